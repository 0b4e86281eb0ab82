"""How fast does metajax meta-train and adapt, next to PyTorch doing the same mathematics on the same machine?

    python experiments/speed/peers.py
    python experiments/speed/peers.py --workloads ctc --quick
    python experiments/speed/peers.py --workloads tcresnet8 --scaling

Second-order MAML, Adam outside, float32. `sinusoid`: regression, 25 tasks, 10-shot, 5 steps. `tcresnet8` (98x40
log-mels), `conv4`, `crnn` (64x40): 5-way 1-shot, 15 queries per class, 4 tasks, 5 steps, transductive normalisation.
`ctc`: BiLSTM, 200x40, 5 support and 5 query utterances, 4 tasks, 3 steps. Every outer step draws its tasks.

Each library has a process of its own, timed in alternating rounds; ratios are medians over rounds, of the faster of two
PyTorch peers: a loop over tasks with `create_graph`, as learn2learn writes it, and `torch.func`. First the losses of
both sides on equal weights and data are compared; where they differ there is no ratio. Prints a table, writes
`results.json`. With `--quick` about 2 minutes for each workload on 2 CPU cores, else about 6. `--scaling` tells in
place of all that metajax's time and memory by size of the problem.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from processes import child
from workloads import WORKLOADS

import metajax as mj
from metajax import checkpoint, report, runs

PEERS = ("torch", "torch_func")
TOLERANCE, USERS = 1e-3, 64
# each side of a scaling curve: field of a workload and its values
AXES = {
    "ways": (2, 5, 10, 20), "shots": (1, 2, 5, 10), "tasks": (2, 4, 8, 16), "steps": (1, 2, 5, 10, 20, 50, 100),
    "time": (49, 98, 196, 392),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    workloads: tuple[str, ...] = tuple(WORKLOADS)  # what to run
    peers: tuple[str, ...] = PEERS  # PyTorch by a loop or torch.func
    device: Literal["cpu", "gpu"] = "cpu"  # where both sides run
    quick: bool = False  # few and short rounds
    scaling: bool = False  # in place of it metajax's time and memory by size of the problem
    out: Path = Path("runs/peers")  # folder of the results


def agree(name: str, ours: float, theirs: dict[str, float], tolerance: float = TOLERANCE) -> None:
    """An `InputError` where the losses of the sides differ."""
    for peer, loss in theirs.items():
        if not abs(loss - ours) <= tolerance * max(1.0, abs(ours)):
            raise mj.InputError(
                f"{name}: on equal weights and data the losses of metajax, {ours:.6f}, and {peer}, {loss:.6f}, differ "
                f"by more than {tolerance}, so that a ratio of their times would mean nothing."
            )


def rounds(jobs: dict[str, Callable[[int], float]], seconds: float, count: int) -> dict[str, list[float]]:
    """Seconds per unit of each job, `count` rounds in turn, of about `seconds` each; the first calls do not count."""
    sizes = {}
    for name, job in jobs.items():
        job(1)  # compiles
        sizes[name] = max(1, round(seconds / max(job(1), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(count):
        for name, job in jobs.items():
            times[name].append(job(sizes[name]) / sizes[name])
    return times


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in ms, and the median over rounds of the faster peer's time by metajax's, its 5th and 95th percentile."""
    medians = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
    best = min((name for name in medians if name != "metajax"), key=lambda name: medians[name])
    ratios = np.array(times[best]) / np.array(times["metajax"])
    low, middle, high = map(float, np.percentile(ratios, (5, 50, 95)))
    return {"ms": medians, "peer": best, "ratio": middle, "range": [low, high]}


def benchmark(name: str, s: Settings) -> dict[str, Any]:
    """Everything measured on one workload."""
    w, count, seconds = WORKLOADS[name], 5 if s.quick else 15, 0.6 if s.quick else 1.5
    row: dict[str, Any] = {"workload": name}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "warm"):  # the second finds the first one's compiled functions
            with child("metajax", w, s.device, Path(folder)) as ask:
                row[kind] = ask("first")
        with child("metajax", w, s.device, Path(folder)) as ours, child("torch", w, s.device, keep=True) as theirs:
            params, loss, _ = ours("check")
            theirs("start", params=params)
            agree(name, loss, {peer: theirs("check", params=params, peer=peer)[1] for peer in s.peers})
            for what, arguments in (("outer", {}), ("adapt", {"num_steps": w.steps}), ("users", {"count": USERS})):

                def jobs(ask: Any, what: str = what, arguments: dict[str, Any] = arguments, **peer: str) -> Any:
                    if what == "outer":
                        return lambda n: ask("outer", count=n, **peer)
                    return lambda n: sum(ask(what, repeats=n, **arguments, **peer))

                sides = {"metajax": jobs(ours)} | {peer: jobs(theirs, peer=peer) for peer in s.peers}
                row[what] = compared(rounds(sides, seconds, count))
            row["memory_mib"] = {"metajax": ours("memory"), "torch": theirs("memory")}
    return row


def scaling(s: Settings) -> None:
    """Cost of an outer step against each measure of size, the others as they are."""
    rows = []
    for name, (axis, values) in product(s.workloads, AXES.items()):
        w = WORKLOADS[name]
        if (axis == "ways" and w.ways == 1) or (axis == "time" and w.model == "mlp"):
            continue
        for value in values[: 2 if s.quick else None]:
            with child("metajax", w._replace(**{axis: value}), s.device) as ask:
                cost = ask("cost", repeats=3 if s.quick else 9)
            rows.append({"workload": name, "axis": axis, "value": value} | cost)
            print(rows[-1], flush=True)
    checkpoint.write_json(s.out / "scaling.json", {"rows": rows, "config": runs.config(s)} | report.environment())
    header = ("workload", "axis", "value", "outer step (ms)", "temporaries (MiB)")
    shown = "{workload} {axis} {value} {outer_ms:.2f} {memory_mib:.1f}"
    lines = [shown.format(**row).split() for row in rows]
    print(f"\n{report.environment()['device']}\n\n{report.markdown(header, lines, left=2)}")


def run(s: Settings) -> None:
    runs.known("workloads", s.workloads, WORKLOADS)
    runs.known("peers", s.peers, PEERS)
    runs.open_folder(s.out, runs.config(s))
    if s.scaling:
        return scaling(s)
    rows, lines = [], []
    for name in s.workloads:
        rows.append(row := benchmark(name, s))
        runs.save_results(s.out, {"rows": rows, "config": runs.config(s)})
        cells = []
        for what in ("outer", "adapt", "users"):
            found = row[what]
            ms, low, high = found["ms"], *found["range"]
            cells += [f"{ms['metajax']:.3g}, {ms[found['peer']]:.3g}", f"{found['ratio']:.2f}, {low:.1f}-{high:.1f}"]
        lines.append([name, row["outer"]["peer"], *cells, ", ".join(f"{m:.0f}" for m in row["memory_mib"].values())])
        print(name, *cells, flush=True)
    header = ["", "faster peer"]
    for what in ("outer step", f"one adaptation, {WORKLOADS['tcresnet8'].steps} steps", f"{USERS} users"):
        header += [f"{what}: ms, the peer's", "ratio, its 5-95 %"]
    header += ["memory, the peer's (MiB)"]
    print(f"\n{report.environment()['device']}\n\n{report.markdown(header, lines, left=2)}")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
