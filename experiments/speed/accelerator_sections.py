"""The four sections of `accelerator.py`."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from processes import Ask, Child, start
from workloads import WORKLOADS, Workload, num_cores

import metajax as mj
from metajax.report import markdown

NOISE = 6.0  # of the checks' corpus, so that accuracy is neither chance nor perfect
# largest distance from float64's theta over the way of 20 outer steps; on CPU float32 ends 0.010 and bfloat16 0.034
# away on TC-ResNet8, as every ReLU that rounding turns on or off moves the gradient by up to 0.002
TOLERANCE = {"float32": 0.05, "tf32": 0.1, "bfloat16": 0.2}
CONVOLUTIONS = ("products", "direct", "xla")
PEERS = ("torch", "torch_graph", "torch_func", "torch_func_graph")


class Context(NamedTuple):
    """What every section needs."""

    out: Path
    report: dict[str, Any]  # grows row by row
    device: str
    small: bool
    cache: Path
    deadline: float  # of `time.monotonic`
    workloads: Sequence[str]
    processes: list[Child]  # all that were started, to be ended with the script
    began: float = 0.0

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
        """A process for a workload."""
        process = start(side, w, device or self.device, self.cache, **how)
        self.processes.append(process)
        return process


def own_time(context: Context, share: float) -> Context:
    """The context with a deadline after this share of what time is left."""
    now = time.monotonic()
    return context._replace(began=now, deadline=now + share * context.left())


def write(context: Context) -> None:
    """All results as JSON and as tables in Markdown."""
    report = context.report
    (context.out / "accelerator.json").write_text(json.dumps(report, indent=1))
    lines = [f"{report.get('device')}; {report.get('versions')}; {report['date']}", "", f"`{report['command']}`"]
    lines += ["", f"Matmul peaks in TFLOP/s: {report.get('peak')}"]
    for name, section in report["sections"].items():
        lines += ["", f"## {name}", "", *(section["table"] and [markdown(section["table"], section["rows"]), ""])]
        lines += section["notes"]
    (context.out / "accelerator.md").write_text("\n".join(lines) + "\n")


def section_of(context: Context, name: str, table: Sequence[str] = ()) -> dict[str, Any]:
    """The section's results so far, made if new."""
    empty: dict[str, Any] = {"table": [], "rows": [], "notes": []}
    section = context.report["sections"].setdefault(name, empty)
    if table:
        section["table"] = list(table)
        print(f"\n{name}: {' | '.join(table)}", flush=True)
    return section


def note(context: Context, name: str, sentence: str) -> None:
    """A line under the section's table."""
    section_of(context, name)["notes"].append(sentence)
    print(f"{name}: {sentence}", flush=True)
    write(context)


def add(context: Context, name: str, *cells: Any) -> None:
    """A row of the section's table: numbers in four digits."""
    row = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
    section_of(context, name)["rows"].append(row)
    print(" | ".join(row), flush=True)
    write(context)


def attempt(f: Callable[[], Any]) -> Any:
    """f(), or why it failed, in short."""
    try:
        return f()
    except Exception as error:
        reason = str(error).split("during ")[-1].split(": ", 1)[-1] or f"{type(error).__name__}, out of time"
        return f"({reason[:100]})"


def at_once(jobs: Iterable[Callable[[], Any]], context: Context) -> list["Future[Any]"]:
    """All of them at the same time, as far as there are cores."""
    pool = ThreadPoolExecutor(num_cores())
    futures = [pool.submit(attempt, job) for job in jobs]
    pool.shutdown(wait=False)
    return futures


def started(context: Context, workloads: Sequence[Workload]) -> list[Any]:
    """For each a process that has compiled its outer step, or the reason why there is none."""
    limit = 0.8 * context.left()

    def begin(w: Workload) -> Child:
        process = context.start("metajax", w)
        try:
            process.ask("outer", count=1, limit=limit)
        except mj.InputError:
            process.stop()
            raise
        return process

    return [one.result() for one in at_once([lambda w=w: begin(w) for w in workloads], context)]


def measured(context: Context, ask: Ask, **peer: str) -> float:
    """Milliseconds of an outer step, median of three rounds."""
    seconds = 0.1 if context.small else 0.5
    ask("outer", count=1, limit=context.left(), **peer)
    count = max(1, round(seconds / ask("outer", count=1, limit=context.left(), **peer)))
    if count > 5:  # a first guess was of one step
        count = max(1, round(seconds / (ask("outer", count=5, limit=context.left(), **peer) / 5)))
    return 1e3 * float(np.median([ask("outer", count=count, limit=context.left(), **peer) / count for _ in range(3)]))


def peaks(context: Context, ask: Ask) -> dict[str, float]:
    """TFLOP/s of the largest products, by type."""
    found = {}
    for name, dtype, precision in (
        ("float32", "float32", "highest"), ("tf32", "float32", "default"), ("bfloat16", "bfloat16", "default"),
    ):  # fmt: skip
        for size in (256,) if context.small else (2048, 4096, 8192):
            how = {"size": size, "repeats": 3, "dtype": dtype, "precision": precision}
            rate = attempt(lambda how=how: ask("matmul", limit=60, **how) / 1e3)
            if isinstance(rate, float):
                found[name] = round(max(rate, found.get(name, 0.0)), 4)
    return found


def checks(context: Context) -> None:
    """theta after 20 outer steps against float64, accuracy after 500 against float32 on CPU."""
    outer, count, tasks = (5, 10, 20) if context.small else (20, 500, 400)
    names, precisions = ("sinusoid", "tcresnet8"), tuple(TOLERANCE)

    def one(device: str, name: str, precision: str, question: str, **arguments: Any) -> Any:
        chunk = 1 if device == "cpu" and name != "sinusoid" else None
        process = context.start("metajax", context.workload(name, precision=precision, chunk=chunk), device)
        try:
            return process.ask(question, limit=context.left(), **arguments)
        finally:
            process.stop()

    walked = [("cpu", name, "float64") for name in names]
    walked += [(context.device, name, precision) for name in names for precision in precisions]
    learned = [("cpu", "tcresnet8", "float32"), *((context.device, "tcresnet8", p) for p in precisions)]
    if context.small:
        walked, learned = walked[:-2], [learned[0], learned[3]]
    jobs = [lambda job=job: one(*job, "trajectory", count=outer) for job in walked]
    scored = {"num_steps": count, "num_tasks": tasks, "noise": NOISE}
    # the slow ones first
    all_jobs = [lambda job=job: one(*job, "accuracy", **scored) for job in learned] + jobs
    futures = dict(zip([*learned, *(("theta", *job) for job in walked)], at_once(all_jobs, context), strict=True))

    section_of(context, "checks", ("check", "workload", "precision", "found", "expected", "verdict"))
    for device, name, precision in walked[2:]:
        truth, ours = (futures["theta", *job].result() for job in (("cpu", name, "float64"), (device, name, precision)))
        if failed := next((found for found in (truth, ours) if isinstance(found, str)), None):
            add(context, "checks", f"theta, {outer} steps", name, precision, failed, "", "")
            continue
        distance = np.linalg.norm(ours[1] - truth[1])
        share, far = float(distance / np.linalg.norm(truth[1] - truth[0])), float(distance / np.linalg.norm(truth[1]))
        verdict = "ok" if share <= TOLERANCE[precision] else "FAILED"
        told = f"{share:.1e} of the way, {far:.1e} of theta"
        add(context, "checks", f"theta, {outer} steps", name, precision, told, f"<= {TOLERANCE[precision]}", verdict)
    truth = futures[learned[0]].result()
    for job in learned[1:]:
        ours = futures[job].result()
        if failed := next((found for found in (truth, ours) if isinstance(found, str)), None):
            add(context, "checks", f"accuracy, {count} steps", "tcresnet8", job[2], failed, "", "")
            continue
        (ours_mean, ours_ci), (mean, ci) = mj.mean_ci95(ours), mj.mean_ci95(truth)
        verdict = "ok" if abs(ours_mean - mean) <= np.hypot(ci, ours_ci) else "FAILED"
        shown = [f"{100 * m:.1f} ± {100 * c:.1f} %" for m, c in ((ours_mean, ours_ci), (mean, ci))]
        add(context, "checks", f"accuracy, {count} steps", "tcresnet8", job[2], *shown, verdict)


def formulations(context: Context) -> None:
    """Outer steps by formulation, of few tasks and of many, and by the number of tasks at a time."""
    many = 4 if context.small else 64
    names = ("tcresnet8",) if context.small else ("tcresnet8", "conv4")
    variants = [(name, context.workload(name, formulation=way)) for name in names for way in CONVOLUTIONS]
    variants += [
        ("tcresnet8", context.workload("tcresnet8", tasks=many, chunk=chunk, formulation=way))
        for way, chunk in (("products", many), ("products", many // 4), ("xla", many), ("direct", 1), ("products", 1))
    ]
    variants += [("tcresnet8", context.workload("tcresnet8", tasks=many, chunk=many, precision="bfloat16"))]
    if context.small:
        variants = variants[1:4]
    table = ("workload", "tasks", "at a time", "formulation", "precision", "ms / outer step", "tasks/s", "MiB")
    section_of(context, "formulations", table)
    best: dict[tuple[str, int], tuple[float, Workload]] = {}
    for (name, w), process in zip(variants, started(context, [w for _, w in variants]), strict=True):
        shown = (name, w.tasks, w.chunk or w.tasks, w.formulation, w.precision)
        if isinstance(process, str):
            add(context, "formulations", *shown, process, "", "")
            continue
        ms = attempt(lambda ask=process.ask: measured(context, ask))
        memory = attempt(lambda ask=process.ask: ask("memory", limit=10))
        process.stop()
        rate = 1e3 * w.tasks / ms if isinstance(ms, float) else ""
        add(context, "formulations", *shown, ms, rate, memory)
        if isinstance(ms, float) and w.precision != "bfloat16":
            best[name, w.tasks] = min(best.get((name, w.tasks), (ms, w)), (ms, w), key=lambda pair: pair[0])
    for (name, tasks), (_, w) in best.items():
        note(context, "formulations", f"{name}, {tasks} tasks: {w.formulation}, {w.chunk or tasks} at a time")
        context.report.setdefault("best", {})[f"{name} {tasks}"] = [w.formulation, w.chunk or tasks]


def begin_in_background(context: Context, compile: bool) -> dict[str, dict[str, Any]]:
    """Of each workload metajax's loss on fixed episodes and its operations, on CPU, and PyTorch's compiler at work on
    the same network; futures, by what they are of."""
    began: dict[str, dict[str, Any]] = {}
    limit = 0.6 * context.left()
    for name in context.workloads:

        def refer(w: Workload) -> tuple[Any, ...]:
            process = context.start("metajax", w._replace(chunk=1, precision="float32"), "cpu", nice=5)
            try:
                return *process.ask("check", limit=limit), process.ask("work", limit=limit)
            finally:
                process.stop()

        def compiled(w: Workload, reference: "Future[Any]") -> Child:
            process = context.start("torch", w, nice=10)
            process.ask("start", params=reference.result()[0], limit=limit)
            process.ask("outer", count=1, peer="torch_compiled", tune=False, limit=limit)
            return process

        w = context.workload(name)
        reference = at_once([partial(refer, w)], context)[0]
        began[name] = {"reference": reference}
        if compile:
            began[name] |= {"compiled": at_once([partial(compiled, w, reference)], context)[0]}
    return began


def peers(context: Context, background: dict[str, dict[str, Any]]) -> None:
    """Outer steps per second next to PyTorch."""
    graphs = context.device == "gpu"
    names = [peer for peer in PEERS if graphs or not peer.endswith("_graph")]
    late = [f"torch_compiled{end}" for end in ("", "_graph") if graphs or not end]
    shown = [name.removeprefix("torch_").replace("torch", "loop") for name in (*names, *late)]
    table = ("workload", "loss", "PyTorch's", "metajax steps/s", "tasks/s", *shown, "times the fastest")
    table += ("share of peak", "MiB", "PyTorch's MiB")
    section_of(context, "peers", table)
    best = context.report.get("best", {})
    ours = []
    for name in context.workloads:
        way = best.get({"crnn": "conv4 4", "ctc": "tcresnet8 4"}.get(name, f"{name} 4"), ["auto"])[0]
        ours.append(context.workload(name, formulation=way))
    processes = started(context, ours)
    for name, w, process in zip(context.workloads, ours, processes, strict=True):
        reference = attempt(lambda name=name: background[name]["reference"].result(timeout=context.left()))
        if isinstance(reference, str) or isinstance(process, str):
            reason = reference if isinstance(reference, str) else process
            add(context, "peers", name, reason, *[""] * (len(table) - 2))
            continue
        params, loss, _, work = reference
        context.report.setdefault("flops", {})[name] = work["flops"] / w.tasks
        ms = {"metajax": attempt(lambda ask=process.ask: measured(context, ask))}
        memory = [attempt(lambda ask=process.ask: ask("memory", limit=10))]
        process.stop()
        other = context.start("torch", w, keep=True)
        theirs = attempt(lambda ask=other.ask, p=params: ask("check", params=p, peer="torch", limit=context.left())[1])
        for peer in names:
            ms[peer] = attempt(lambda ask=other.ask, peer=peer: measured(context, ask, peer=peer))
        memory.append(attempt(lambda ask=other.ask: ask("memory", limit=10)))
        other.stop()
        other = attempt(lambda name=name: background[name]["compiled"].result(timeout=context.left() / 4))
        for peer in late:
            ms[peer] = other
            if not isinstance(other, str):
                ms[peer] = attempt(lambda ask=other.ask, peer=peer: measured(context, ask, peer=peer))
        times = {peer: value for peer, value in ms.items() if isinstance(value, float)}
        fastest = min((value for peer, value in times.items() if peer != "metajax"), default=None)
        ours_ms, flops = ms["metajax"], work["flops"]
        known = isinstance(ours_ms, float)
        ratio = f"{fastest / ours_ms:.2f}" if known and fastest else ""
        if isinstance(theirs, float) and abs(theirs - loss) > 0.02 * max(1.0, abs(loss)):
            ratio = "losses differ"
        steps = [1e3 / value if isinstance(value, float) else value for value in ms.values()]
        share = flops / ours_ms / 1e9 / context.report["peak"]["tf32"] if known else ""
        tasks = w.tasks * steps[0] if known else ""
        add(context, "peers", name, float(loss), theirs, steps[0], tasks, *steps[1:], ratio, share, *memory)


def scaling(context: Context) -> None:
    """Tasks per second against tasks per outer step."""
    sizes = (4, 8) if context.small else (8, 64, 512, 4096)
    way, chunk = context.report.get("best", {}).get(f"tcresnet8 {4 if context.small else 64}", ("auto", 64))
    variants = []
    for tasks in sizes:
        how = {"tasks": tasks, "chunk": min(tasks, chunk), "formulation": way}
        variants += [("sinusoid", context.workload("sinusoid", tasks=tasks))]
        variants += [("tcresnet8", context.workload("tcresnet8", **how))]
    if not context.small:
        for precision, size in (("bfloat16", chunk), ("tf32", 512)):
            how = {"tasks": 512, "chunk": size, "formulation": way, "precision": precision}
            variants += [("tcresnet8", context.workload("tcresnet8", **how))]
    table = ("workload", "tasks", "at a time", "precision", "ms / outer step", "tasks/s", "TFLOP/s", "share of peak")
    section_of(context, "scaling", (*table, "MiB"))
    flops = context.report.setdefault("flops", {})
    for (name, w), process in zip(variants, started(context, [w for _, w in variants]), strict=True):
        shown = (name, w.tasks, w.chunk or w.tasks, w.precision)
        if isinstance(process, str):
            add(context, "scaling", *shown, process, *[""] * 4)
            continue
        ms = attempt(lambda ask=process.ask: measured(context, ask))
        memory = attempt(lambda ask=process.ask: ask("memory", limit=10))
        if name not in flops:
            flops[name] = attempt(lambda ask=process.ask, w=w: ask("work", limit=30)["flops"] / w.tasks)
        process.stop()
        if not isinstance(ms, float):
            add(context, "scaling", *shown, ms, *[""] * 3, memory)
            continue
        rate = 1e3 * w.tasks / ms
        done = rate * flops[name] / 1e12 if isinstance(flops[name], float) else ""
        share = done / context.report["peak"][w.precision] if done else ""
        add(context, "scaling", *shown, ms, rate, done, share, memory)
