"""How fast does metajax meta-train and adapt, next to PyTorch doing the same mathematics on the same machine?

    python experiments/adaptation_speed.py                       # all workloads
    python experiments/adaptation_speed.py --workload ctc --quick
    python experiments/adaptation_speed.py --scaling --workload tcresnet8
    python experiments/adaptation_speed.py --adaptation runs/compare_algorithms/results.json

Second-order MAML, Adam outside, float32 by default. `sinusoid`: regression, 25 tasks, 10-shot, 5 steps. `tcresnet8`
(98x40 log-mels), `conv4`, `crnn` (64x40): 5-way 1-shot, 15 queries per class, 4 tasks, 5 steps, transductive
normalisation. `ctc`: BiLSTM, 200x40, 5 support and 5 query utterances of one speaker, 4 tasks, 3 steps. Every outer
step draws its tasks: sinusoids, or clips of a corpus of random log-mels on the device, shifted, with another level,
noise and masks, and normalised; the other library does the same work.

Each library has processes of its own, timed in alternating rounds; ratios are medians over rounds, of the faster of two
PyTorch peers: a loop over tasks with `create_graph`, as learn2learn writes it, and `torch.func`. First the losses and
meta-gradients of both sides on equal weights and data are compared; where they differ there is no ratio. Prints tables,
writes `results.json` and pictures. With `--quick` about 2 minutes for each workload on 2 CPU cores, else about 6.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cells
import jax
import numpy as np
from speed_report import USERS, plot, plot_adaptation, plot_scaling, table
from speed_workloads import WORKLOADS, Ask, Workload, child

import metajax as mj
from metajax import checkpoint, report
from metajax.models import FORMULATIONS
from metajax.parallel import use_all_cores

STEPS, TOLERANCE, MATMUL = (1, 5, 10), 1e-3, 2048
# each side of a scaling curve: field of a workload and its values
AXES = {
    "ways": (2, 5, 10, 20), "shots": (1, 2, 5, 10), "tasks": (2, 4, 8, 16), "steps": (1, 2, 5, 10, 20, 50, 100),
    "time": (49, 98, 196, 392),
}  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speed of meta-training and adaptation, next to PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workload", choices=tuple(WORKLOADS), nargs="+", default=list(WORKLOADS), help="what to run")
    add("--peer", choices=("torch", "torch_func", "none"), help="PyTorch by a loop or torch.func; both, if not given")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="where both sides run")
    add("--convolution", choices=FORMULATIONS, default="auto", help="how metajax computes convolutions")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16 needs --peer none")
    add("--quick", action="store_true", help="few and short rounds, about 2 minutes a workload")
    add("--scaling", action="store_true", help="instead: metajax's time and memory by size of the problem")
    what = "instead: steps and ms to 90 %% of the final accuracy"
    add("--adaptation", type=Path, nargs="+", metavar="RESULTS", help=what)
    add("--out", type=Path, default=Path("runs/adaptation_speed"), help="folder of the results")
    return parser.parse_args(argv)


def agreement(name: str, ours: tuple[Any, float, Any], theirs: dict[str, tuple[Any, float, Any]]) -> dict[str, Any]:
    """Losses of all sides and the relative distances of their meta-gradients; an `InputError` if losses differ.

    Args:
      name: of the workload.
      ours: parameters, loss and meta-gradient, a dict of dicts.
      theirs: the same by peer.
    """
    losses = {"metajax": ours[1]} | {peer: loss for peer, (_, loss, _) in theirs.items()}
    for peer, (_, loss, _) in theirs.items():
        if not abs(loss - ours[1]) <= TOLERANCE * max(1.0, abs(ours[1])):
            raise mj.InputError(
                f"{name}: on equal weights and data the losses of metajax, {ours[1]:.6f}, and {peer}, {loss:.6f}, "
                f"differ by more than {TOLERANCE}, so that a ratio of their times would mean nothing."
            )

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.ravel(tree[layer][leaf]) for layer in sorted(tree) for leaf in sorted(tree[layer])])

    grad = flat(ours[2])
    apart = {peer: float(np.linalg.norm(flat(g) - grad) / np.linalg.norm(grad)) for peer, (_, _, g) in theirs.items()}
    return {"losses": losses, "gradient_distance": apart}


def rounds(jobs: dict[str, Callable[[int], float]], seconds: float, count: int) -> dict[str, list[float]]:
    """Seconds per unit of each job, `count` rounds in turn, of about `seconds` each; the first calls are not counted.

    Args:
      jobs: by library: takes a number of units and returns how long they took.
      seconds: length of one job's share of a round.
      count: rounds.

    Returns:
      By library; a peer that needs five times as long as the other takes no part in more than its first call.
    """
    sizes, first = {}, {}
    for name, job in jobs.items():
        first[name] = job(1)
        if name == "metajax" or first[name] < 5 * seconds:
            first[name] = job(1) if name == "metajax" else min(first[name], job(1))  # metajax compiles in the first
        if first[name] < seconds / 10:  # too short to tell
            first[name] = job(10) / 10
        sizes[name] = max(1, round(seconds / max(first[name], 1e-6)))
    peers = {name: value for name, value in first.items() if name != "metajax"}
    slow = {name for name, value in peers.items() if value > 5 * min(peers.values())}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in jobs}
    for _ in range(count):
        for name, job in jobs.items():
            if name not in slow:
                times[name].append(job(sizes[name]) / sizes[name])
    return times


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in ms, and the median over rounds of the faster peer's time by metajax's."""
    found: dict[str, Any] = {"metajax_ms": 1e3 * float(np.median(times["metajax"]))}
    peers = {name: float(np.median(values)) for name, values in times.items() if name != "metajax"}
    if peers:
        best = min(peers, key=lambda name: peers[name])
        ratios = np.array(times[best]) / times["metajax"]
        low, high = np.percentile(ratios, (5, 95))
        found |= {"peer": best, "peer_ms": 1e3 * peers[best], "ratio": float(np.median(ratios))}
        found |= {"ratio_range": [float(low), float(high)], "peers_ms": {k: 1e3 * v for k, v in peers.items()}}
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 5th and 95th percentile."""
    return dict(zip(("median", "p5", "p95"), map(float, np.percentile(values, (50, 5, 95))), strict=True))


def benchmark(name: str, workload: Workload, peers: Sequence[str], device: str, quick: bool) -> dict[str, Any]:
    """Everything measured on one workload."""
    count, seconds = 5 if quick else 15, 0.6 if quick else 1.5
    say = partial(print, flush=True, file=sys.stderr)
    row: dict[str, Any] = {"name": name, "workload": workload._asdict()}
    with tempfile.TemporaryDirectory() as folder:
        say(f"{name}: comparing losses")
        with child("metajax", workload, device) as ask:
            ours = ask("check")
            row |= ask("work") | ({} if quick else {"compiled": ask("cost", repeats=3)})
        theirs = {}
        if peers:
            with child("torch", workload, device) as ask:
                theirs = {peer: ask("check", params=ours[0], peer=peer) for peer in peers}
        row |= agreement(name, ours, theirs)
        shown = [f"{side} {loss:.6f}" for side, loss in row["losses"].items()]
        shown += [f"gradient of {peer} {value:.1e} away" for peer, value in row["gradient_distance"].items()]
        say(f"{name}: losses agree: {', '.join(shown)}" if peers else f"{name}: no peer")

        say(f"{name}: time to the first outer step, memory")
        row["first"] = {}
        for kind in ("cold", "warm"):
            with child("metajax", workload, device, Path(folder)) as ask:
                row["first"][kind] = ask("first")
        for peer in peers:
            with child("torch", workload, device) as ask:
                ask("start", params=ours[0])
                row["first"][peer] = ask("first", peer=peer, tune=False)
        if not quick:  # do 100 steps fit where PyTorch has 20?
            long = {
                "metajax, 100 steps": ("metajax", 100, {}),
                "torch, 20 steps": ("torch", 20, {"peer": "torch", "tune": False}),
            }
            for label, (side, steps, arguments) in long.items():
                if side == "torch" and "torch" not in peers:
                    continue
                with tempfile.TemporaryDirectory() as again:
                    for _ in range(2 if side == "metajax" else 1):  # without the compiler's own memory
                        with child(side, workload._replace(steps=steps), device, Path(again)) as ask:
                            if side == "torch":
                                ask("start", params=ours[0])
                            row["first"][label] = ask("first", **arguments)

        say(f"{name}: timing")
        row["load"] = os.getloadavg()[0]
        with child("metajax", workload, device, Path(folder)) as ask:
            sides: dict[str, tuple[Ask, dict[str, Any]]] = {"metajax": (ask, {})}
            row["settings"] = {"metajax": ask("settings")}
            if not peers:
                return row | timings(sides, workload, count, seconds, row["flops"])
            with child("torch", workload, device, keep=True) as other:
                other("start", params=ours[0])
                sides |= {peer: (other, {"peer": peer}) for peer in peers}
                row |= timings(sides, workload, count, seconds, row["flops"])
                row["settings"]["torch"] = other("settings")  # with the threads that it found best
                return row


def timings(
    sides: dict[str, tuple[Ask, dict[str, Any]]], workload: Workload, count: int, seconds: float, flops: float
) -> dict[str, Any]:
    """Outer steps, single adaptations, 64 users at once, and the matmul peak."""

    def units(ask: Ask, name: str, arguments: dict[str, Any], kept: list[float]) -> Callable[[int], float]:
        def job(repeats: int) -> float:
            times = ask(name, repeats=repeats, **arguments)
            kept.extend(times)
            return sum(times)

        return job

    outer = {name: lambda n, ask=ask, own=own: ask("outer", count=n, **own) for name, (ask, own) in sides.items()}
    processes = list({id(ask): ask for ask, _ in sides.values()}.values())
    best = [max(ask("matmul", size=MATMUL, repeats=3) for ask in processes)]
    found = compared(rounds(outer, seconds, count))
    row: dict[str, Any] = {"adaptation": {}} | found
    for num_steps in STEPS:
        every: dict[str, list[float]] = {name: [] for name in sides}
        jobs = {
            name: units(ask, "adapt", own | {"num_steps": num_steps}, every[name]) for name, (ask, own) in sides.items()
        }
        one = compared(rounds(jobs, seconds / 4, count))
        one |= {name: spread([1e3 * value for value in values[1:] or values]) for name, values in every.items()}
        row["adaptation"][str(num_steps)] = one
    best.append(max(ask("matmul", size=MATMUL, repeats=3) for ask in processes))
    jobs = {name: units(ask, "users", own | {"count": USERS}, []) for name, (ask, own) in sides.items()}
    row["users"] = compared(rounds(jobs, seconds, count))
    for side in ("metajax", "peer"):
        if f"{side}_ms" in found:
            rate = 1e3 / found[f"{side}_ms"]
            row |= {f"{side}_outer_steps_per_second": rate, f"{side}_tasks_per_second": rate * workload.tasks}
            row |= {f"{side}_gflops": flops * rate / 1e9}
            row["users"][f"{side}_per_second"] = 1e3 * USERS / row["users"][f"{side}_ms"]
    best.append(max(ask("matmul", size=MATMUL, repeats=3) for ask in processes))
    return row | {"matmul_gflops": max(best), "share_of_peak": row["metajax_gflops"] / max(best)}


def scaling(name: str, workload: Workload, device: str, quick: bool) -> list[dict[str, Any]]:
    """Cost of an outer step against each measure of size, the others as they are."""
    points = []
    for axis, values in AXES.items():
        if axis in ("ways", "time") and workload.ways == 1 and (axis == "ways" or name == "sinusoid"):
            continue
        for value in values[: 2 if quick else None]:
            with child("metajax", workload._replace(**{axis: value}), device) as ask:
                point = {"workload": name, "axis": axis, "value": value, "precision": workload.precision}
                points.append(point | ask("cost", repeats=3 if quick else 9) | ask("settings"))
            print(json.dumps(points[-1]), file=sys.stderr, flush=True)
    return points


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for; print tables, write results, draw pictures."""
    peers = {None: ["torch", "torch_func"], "none": []}.get(args.peer, [args.peer])
    setting = {"convolution": args.convolution, "precision": args.precision}
    workloads = {name: WORKLOADS[name]._replace(**setting) for name in args.workload}
    if args.precision != "float32" and peers and not (args.scaling or args.adaptation):
        raise mj.InputError(
            f"PyTorch's side computes in float32 only; add --peer none for --precision {args.precision}."
        )
    if args.scaling and args.adaptation:
        raise mj.InputError("--scaling and --adaptation are two modes, expected at most one of them.")
    if peers and not (args.scaling or args.adaptation) and find_spec("torch") is None:
        raise mj.InputError(
            "torch is not installed; install it with: pip install 'metajax[peers]', or use --peer none."
        )
    if args.adaptation and (args.convolution, args.precision, args.device) != ("auto", "float32", "cpu"):
        raise mj.InputError(
            "--adaptation measures with the defaults of --convolution, --precision and --device; leave them out."
        )
    cells.check(args, ("plot",))
    checkpoint.make_folder(args.out)
    if args.adaptation:
        import speed_adaptation  # it brings all scripts of training with it

        jax.config.update("jax_platforms", "cpu")
        use_all_cores()
        rows = [row for path in args.adaptation for row in speed_adaptation.read(path)]
        if len(args.adaptation) > 1:
            rows = [row | {"learner": f"{Path(row['results']).parent.name}: {row['learner']}"} for row in rows]
        checkpoint.write_json(args.out / "adaptation.json", {"rows": rows} | report.environment())
        print(f"{report.environment()['device']}\n\n{speed_adaptation.table(rows)}")
        plot_adaptation(speed_adaptation.fastest_first(rows), args.out / "adaptation.png")
        return
    if args.scaling:
        points = [p for name, w in workloads.items() for p in scaling(name, w, args.device, args.quick)]
        checkpoint.write_json(args.out / "scaling.json", points)
        plot_scaling(points, args.out / "scaling.png")
        header = ("workload", "axis", "value", "outer step (ms)", "temporaries (MiB)")
        lines = [
            (p["workload"], p["axis"], str(p["value"]), f"{p['outer_ms']:.2f}", f"{p['memory_mib']:.1f}")
            for p in points
        ]
        print(report.markdown(header, lines, left=2))
        return
    rows = []
    for name, workload in workloads.items():
        rows.append(benchmark(name, workload, peers, args.device, args.quick))
        rows[-1]["device"] = rows[-1]["settings"]["metajax"]["device"]
        checkpoint.write_json(args.out / "results.json", rows)
    print(f"\n{rows[0]['device']}, {args.precision}\n\n{table(rows)}\n")
    for row in rows:
        load = f"load of the machine before timing {row['load']:.1f}"
        print(f"{row['name']}: {load}; losses {row['losses']}; {row['workload']}; {row['settings']}")
    if peers:
        plot(rows, rows[0]["device"], args.out / "ratios.png")
    print(f"Results are in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return cells.guarded(lambda: run(args), f"what was finished is in {args.out}")


if __name__ == "__main__":
    sys.exit(main())
