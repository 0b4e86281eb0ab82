"""What the sections of `accelerator.py` share: processes, tables, and time."""

import json
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import rounds
from processes import Ask, Child, start
from workloads import WORKLOADS, Workload, num_cores

from metajax.checkpoint import write_bytes
from metajax.report import markdown

SIDE_BY_SIDE = min(5, num_cores())  # processes that compile; on 16 cores seven took three times as long


class Context(NamedTuple):
    """What every section needs."""

    out: Path
    report: dict[str, Any]  # grows row by row
    small: bool
    cache: Path
    deadline: float  # of `time.monotonic`
    workloads: Sequence[str]
    processes: list[Child]  # all that were started, to be ended with the script
    references: Path | None = None  # folder of what a CPU computed before

    def workload(self, name: str, **changed: Any) -> Workload:
        """A workload for an accelerator: all tasks at a time; few and small ones, if small."""
        w = WORKLOADS[name]._replace(chunk=None, precision="tf32")
        if self.small:
            w = w._replace(time=80 if name == "ctc" else 16, tasks=2, queries=2, steps=1)
        return w._replace(**changed)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def start(self, side: str, w: Workload, device: str = "", **how: Any) -> Child:
        """A process for a workload, on the accelerator if not said."""
        process = start(side, w, device or ("cpu" if self.small else "gpu"), self.cache, **how)
        self.processes.append(process)
        return process

    def answer(self, question: str, w: Workload, device: str = "", nice: int = 0, **arguments: Any) -> Any:
        """That of a process of metajax that lives for this question."""
        process = self.start("metajax", w, device, nice=nice)
        try:
            return process.ask(question, limit=self.left(), **arguments)
        finally:
            process.stop()

    def reference(self, question: str, w: Workload, **arguments: Any) -> Any:
        """A CPU's answer, which stands back behind all else: from the folder of references, or computed and kept."""
        if self.references is None:
            return self.answer(question, w, "cpu", nice=15, **arguments)
        asked = zlib.crc32(repr((w, sorted(arguments.items()))).encode())
        path = self.references / f"{question}-{w.model}-{w.precision}-{asked:08x}.pickle"
        if not path.exists():
            value = self.answer(question, w, "cpu", nice=15, **arguments)
            write_bytes(path, pickle.dumps(value))
        return pickle.loads(path.read_bytes())


def within(context: Context, share: float) -> Context:
    """The context with a deadline after this share of what time is left."""
    return context._replace(deadline=time.monotonic() + share * context.left())


def add(context: Context, name: str, *cells: Any, header: Sequence[str] = ()) -> None:
    """A row of a section's table, numbers in four digits, or a line under it; write all results."""
    section = context.report["sections"].setdefault(name, {"header": [], "rows": [], "notes": []})
    if header:
        section["header"], cells = list(header), (f"\n{name}", *header)
    row = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
    if not header:
        section["notes" if len(row) == 1 else "rows"] += row if len(row) == 1 else [row]
    print(" | ".join(row), flush=True)
    report = context.report
    (context.out / "accelerator.json").write_text(json.dumps(report, indent=1))
    lines = [f"{report.get('device')}; {report.get('versions')}; {report['date']}", "", f"`{report['command']}`"]
    lines += ["", f"Matmul peaks in TFLOP/s: {report.get('peak')}"]
    for title, one in report["sections"].items():
        table = [markdown(one["header"], one["rows"]), ""] if one["rows"] else []
        lines += ["", f"## {title}", "", *table, *one["notes"]]
    (context.out / "accelerator.md").write_text("\n".join(lines) + "\n")


def attempt(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """f's result, or why it failed, in short."""
    try:
        return f(*args, **options)
    except Exception as error:
        return f"({(str(error) or type(error).__name__)[:100]})"


def at_once(jobs: Iterable[Callable[[], Any]], most: int) -> list["Future[Any]"]:
    """All of them at the same time, but for so many at most."""
    pool = ThreadPoolExecutor(most)
    futures = [pool.submit(attempt, job) for job in jobs]
    pool.shutdown(wait=False)
    return futures


def started(context: Context, workloads: Sequence[Workload]) -> list[Any]:
    """For each a process that has compiled its outer step, or the reason why there is none."""
    limit = time.monotonic() + 0.8 * context.left()

    def begin(w: Workload) -> Child:
        process = context.start("metajax", w)
        process.ask("outer", count=1, limit=limit - time.monotonic())
        return process

    return [one.result() for one in at_once([partial(begin, w) for w in workloads], SIDE_BY_SIDE)]


def measured(context: Context, asks: dict[str, Ask]) -> dict[str, Any]:
    """Milliseconds of an outer step of each, median of three rounds in turn, or why there are none."""

    def job(name: str, count: int) -> float:
        peer = {} if name == "metajax" else {"peer": name}
        return asks[name]("outer", count=count, limit=context.left(), **peer)

    tried = {name: attempt(job, name, 1) for name in asks}
    jobs = {name: partial(job, name) for name, first in tried.items() if isinstance(first, float)}
    times = attempt(rounds, jobs, 0.1 if context.small else 0.5, 3)
    if isinstance(times, str):
        return dict.fromkeys(asks, times)
    return tried | {name: 1e3 * float(np.median(values)) for name, values in times.items()}
