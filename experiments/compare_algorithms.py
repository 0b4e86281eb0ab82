"""Which method learns new words best for an equal budget of training time?

    python experiments/compare_algorithms.py

Trains every method of `methods.py` on one corpus for an equal number of seconds (compilation and testing not counted),
with several seeds, and tests all of them on the same episodes of unseen words by unseen speakers. How many outer steps
those seconds are is measured first, once for each method, on a machine that should have nothing else to do, and kept in
`--out/rates.json`; from then on a cell takes a number of steps, whatever else runs, and gives the same numbers again.
Each cell (method, normalisation, shots, seed) is a file of its own under `--out`: stopped at any time, the same command
goes on with the cells that are missing, and one with other `--shots` or `--methods` adds its own. Ends with a table,
`results.json` and two pictures: accuracy against adaptation step, and against training time. All cells with the default
budget take some hours on 2 CPU cores.

    python experiments/compare_algorithms.py --methods maml protonet --seeds 0 --budget 30   # a few minutes
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, product
from pathlib import Path
from typing import Any, NamedTuple

import cells
import jax
import numpy as np
import optax
from keyword_fewshot import CORPORA, Task, built, initial, load_task, names_of, network, sampler
from keyword_fewshot import parse as parse_run
from methods import METHODS, Built, chunk_of, graft
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, report
from metajax.data.cache import default_folder
from metajax.losses import cross_entropy
from metajax.models import NORMALIZATIONS
from metajax.parallel import copied, hoisted, replicate, task_mesh, use_all_cores
from metajax.train import average_of, averaged

# shares of the training budget after which the methods are tested
SHARES = (0.125, 0.25, 0.5, 1.0)
BLOCK = 10  # outer steps per compiled call
MEASURED = 6.0  # seconds over which a method's outer steps per second are measured
PIECE = 200  # test episodes per compiled call
EARLY_EPISODES = 600  # test episodes before the end of the budget
BASELINE_STEPS, BASELINE_RATE = 20, 0.1  # of fine-tuning and of training from scratch
PRINCIPAL = (
    "maml", "fomaml", "anil", "meta_sgd", "meta_curvature", "proto_maml", "protonet", "matching", "ridge", "simpleshot",
)  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare all methods on one corpus and one budget.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--corpus", choices=CORPORA, default="espeak", help="what to train and test on")
    parser.add_argument("--root", type=Path, help="its folder")
    names = (*METHODS, "from_scratch")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="joint is fine-tuned when tested")
    parser.add_argument(
        "--normalizations", nargs="+", choices=NORMALIZATIONS, default=("transductive", "group"),
        help="the first for all methods, the others for the ten principal ones",
    )  # fmt: skip
    parser.add_argument("--shots", type=int, nargs="+", default=(1,), help="support clips per word")
    parser.add_argument("--test-queries", type=int, default=5, help="query clips per word of a test episode")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="of splits, fresh parameters, episodes")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of training per cell")
    parser.add_argument("--rates-only", action="store_true", help="measure the rates of all cells and stop")
    parser.add_argument("--episodes", type=int, default=1000, help="test episodes")
    parser.add_argument("--tasks", type=int, default=4, help="episodes per outer step")
    parser.add_argument("--num-steps", type=int, default=5, help="inner steps")
    parser.add_argument("--outer-rate", type=float, default=2e-3, help="outer learning rate (AdamW)")
    parser.add_argument("--augment", type=float, default=0.5, help="strength of the augmentation")
    parser.add_argument("--width", type=float, default=1.0, help="of TC-ResNet8")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="folder of cached features")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_algorithms"), help="folder of the results")
    return parser.parse_args(argv)


class Cell(NamedTuple):
    """One entry of the table before seeds are averaged, and one seed of it."""

    method: str
    normalization: str
    shots: int
    seed: int


def wanted(args: argparse.Namespace) -> Iterator[Cell]:
    """All cells, seed by seed, so that a run that is stopped early has every method."""
    for seed, shots, normalization, method in product(args.seeds, args.shots, args.normalizations, args.methods):
        if normalization == args.normalizations[0] or method in PRINCIPAL:
            yield Cell(method, normalization, shots, seed)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a folder have in common; the rates are those of `methods.py`."""
    names = (
        "corpus",
        "root",
        "budget",
        "episodes",
        "test_queries",
        "tasks",
        "num_steps",
        "outer_rate",
        "augment",
        "width",
    )
    return {name: str(getattr(args, name)) for name in names}


class Prepared(NamedTuple):
    """A cell before its training."""

    made: Built
    state: mj.MetaState
    key: jax.Array
    phases: list[tuple[float, Callable[..., Any]]]  # the share of the budget at which each ends, and its outer steps
    test: mj.core.Sampler
    fresh_key: jax.Array
    options: argparse.Namespace


def prepare(args: argparse.Namespace, cell: Cell, task: Task) -> Prepared:
    """The method on its network and corpus; nothing is compiled yet."""
    name = "joint" if cell.method == "from_scratch" else cell.method
    method = METHODS[name]
    options = parse_run(["--algorithm", name, "--normalization", cell.normalization])
    for field in ("tasks", "num_steps", "augment", "width"):
        setattr(options, field, getattr(args, field))
    options.shots = cell.shots
    test = sampler(task, "test", options, ways=options.ways, queries=args.test_queries)
    made = built(options, test, len(names_of(task, "train", "label")))
    queries = 1 if method.kind == "joint" else None
    sample = sampler(task, "train", options, ways=made.train_ways, queries=queries, training=True)

    init_key, fresh_key, key = jax.random.split(jax.random.key(cell.seed), 3)
    # no schedule, so that the curve by training time is that of shorter budgets; the average of theta stands in for one
    optimizer = averaged(optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(args.outer_rate)), 0.99)
    mesh = task_mesh(args.tasks)
    chunk = chunk_of(method)
    state = mj.init_state(made.algorithm.learner.init(initial(made.model, sample, init_key)), optimizer)

    def block(objective: mj.core.Objective) -> Callable[..., Any]:
        step = mj.meta_step(objective, optimizer, sample, args.tasks, chunk=chunk, mesh=mesh)
        return hoisted(lambda state, key: jax.lax.scan(step, state, jax.random.split(key, BLOCK)), donate=(0,))

    ends = [*accumulate(share for share, _ in made.phases[:-1]), 1.0]
    phases = [(end, block(objective)) for end, (_, objective) in zip(ends, made.phases, strict=True)]
    return Prepared(made, replicate(state, mesh), key, phases, test, fresh_key, options)


def rates(args: argparse.Namespace, cell: Cell, task: Task) -> list[float]:
    """Outer steps per second of each phase of a method, compilation left out."""
    ready = prepare(args, cell, task)
    return [BLOCK * cells.rate(block, copied(ready.state), MEASURED) for _, block in ready.phases]


def run(args: argparse.Namespace, cell: Cell, task: Task, speeds: Sequence[float]) -> dict[str, Any]:
    """Train and test one method with one normalisation and seed, at `speeds` outer steps per second of budget."""
    made, state, key, phases, test, fresh_key, options = prepare(args, cell, task)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.theta))
    learner, num_steps, finish = made.tested.learner, made.num_steps, lambda theta: theta
    if options.algorithm == "joint":  # learns no task by itself
        classifier = network(options.ways, options)
        fresh = initial(classifier, test, fresh_key)
        learner, num_steps = mj.descent(cross_entropy(classifier.apply), optax.sgd(BASELINE_RATE)), BASELINE_STEPS
        finish = (lambda theta: fresh) if cell.method == "from_scratch" else (lambda theta: graft(theta, fresh))
    piece = min(PIECE, args.episodes)
    mesh = task_mesh(piece)

    @hoisted
    def measure(theta: Any, key: jax.Array) -> jax.Array:
        return mj.evaluate(learner, theta, test, key, piece, num_steps, mesh=mesh)["accuracy"]

    def curve(state: mj.MetaState, episodes: int) -> report.Curve:
        theta, key = replicate(finish(average_of(state)), mesh), jax.random.key(1000 + cell.seed)
        pieces = [np.asarray(measure(theta, jax.random.fold_in(key, i))) for i in range(-(-episodes // piece))]
        return report.curve(*mj.mean_ci95(np.concatenate(pieces)[:episodes]))

    began, trained = 0.0, cell.method != "from_scratch"
    steps, losses, by_time, wall = 0, [], [], 0.0
    for end in sorted({*SHARES, *(until for until, _ in phases)}):
        block, speed = next((b, speed) for (until, b), speed in zip(phases, speeds, strict=True) if end <= until)
        blocks = max(1, round((end - began) * args.budget * speed / BLOCK)) if trained else 0
        began, clock = end, time.perf_counter()
        for _ in range(blocks):
            state, metrics = block(state, jax.random.fold_in(key, steps))
            losses.extend(np.asarray(metrics["loss"]).tolist())
            steps += BLOCK
        wall += time.perf_counter() - clock
        if end in SHARES and (trained or end == 1):
            episodes = args.episodes if end == 1 else min(EARLY_EPISODES, args.episodes)
            point = {"seconds": end * args.budget * trained, "outer_steps": steps, "episodes": episodes}
            by_time.append(point | {"accuracy": curve(state, episodes)})
    if not trained:
        by_time *= len(SHARES)
    finite = np.isfinite(np.array(losses))
    return {
        "accuracy": by_time[-1]["accuracy"],
        "by_time": by_time,
        "outer_steps": steps,
        "outer_steps_per_second": steps / args.budget,
        "wall_seconds": wall,  # of training, compilation included, whatever else ran
        "train_loss": float(np.mean(np.array(losses)[finite][-100:])) if finite.any() else None,
        "rejected_steps": int((~finite).sum()),
        "parameters": size,
        "unseen_words": names_of(task, "test", "label"),
        "unseen_speakers": names_of(task, "test", "speaker"),
    }


def kind(cell: Cell) -> str:
    """What cells of equal cost have in common."""
    method = "joint" if cell.method == "from_scratch" else cell.method
    return f"{method}-{cell.normalization}-{cell.shots}"


def measured(args: argparse.Namespace, missing: Sequence[Cell], task: Callable[[int], Task]) -> dict[str, list[float]]:
    """The rates of all missing cells, from `rates.json` or measured now and kept there."""
    path = args.out / "rates.json"
    kept = cells.measured(path, settings(args))
    found: dict[str, list[float]] = kept["measured"]
    for cell in (bar := tqdm([cell for cell in missing if kind(cell) not in found], unit="rate", dynamic_ncols=True)):
        if kind(cell) in found:  # of another seed
            continue
        bar.set_description(f"rate of {kind(cell)}")
        found[kind(cell)] = rates(args, cell, task(cell.seed))
        checkpoint.write_json(path, kept)
        jax.clear_caches()
    return found


def summary(results: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, normalisation and shots: the mean over seeds, best first."""
    rows = []
    groups = {(cell.shots, cell.normalization, cell.method) for cell in results}
    for shots, normalization, method in groups:
        own = [r for c, r in results.items() if (c.shots, c.normalization, c.method) == (shots, normalization, method)]
        points = [[r["accuracy"][i] for r in own] for i in range(len(own[0]["accuracy"]))]
        # the interval over episodes, seeds counting as so many more of them
        curve = [
            {
                "step": i,
                "mean": float(np.mean([p["mean"] for p in point])),
                "ci95": float(np.sqrt(np.sum([p["ci95"] ** 2 for p in point])) / len(point)),
            }
            for i, point in enumerate(points)
        ]
        by_time = [
            {
                "seconds": float(np.mean([r["by_time"][i]["seconds"] for r in own])),
                "mean": float(np.mean([r["by_time"][i]["accuracy"][-1]["mean"] for r in own])),
                "ci95": float(np.sqrt(np.sum([r["by_time"][i]["accuracy"][-1]["ci95"] ** 2 for r in own])) / len(own)),
            }
            for i in range(len(SHARES))
        ]
        rows.append(
            {
                "method": method,
                "normalization": normalization,
                "shots": shots,
                "seeds": [r["accuracy"][-1]["mean"] for r in own],
                "accuracy": curve,
                "by_time": by_time,
                "outer_steps_per_second": float(np.mean([r["outer_steps_per_second"] for r in own])),
            }
        )
    return sorted(rows, key=lambda row: (row["shots"], row["normalization"], -row["accuracy"][-1]["mean"]))


def table(rows: list[dict[str, Any]]) -> str:
    header = ("method", "normalisation", "shots", "accuracy after adaptation", "each seed", "steps", "outer steps/s")
    lines = []
    for row in rows:
        last = row["accuracy"][-1]
        accuracy = f"{100 * last['mean']:.1f} ± {100 * last['ci95']:.1f}"
        seeds = ", ".join(f"{100 * mean:.1f}" for mean in row["seeds"])
        line = (row["method"], row["normalization"], str(row["shots"]), accuracy, seeds, str(last["step"]))
        lines.append((*line, f"{row['outer_steps_per_second']:.1f}"))
    return report.markdown(header, lines, left=2)


def plot(rows: list[dict[str, Any]], title: str, folder: Path) -> None:
    """One picture by adaptation step and one by training time, a panel for each normalisation and number of shots."""
    panels = sorted({(row["shots"], row["normalization"]) for row in rows})
    for name, field, x, label in (
        ("by_step", "accuracy", "step", "adaptation steps"),
        ("by_time", "by_time", "seconds", "seconds of training"),
    ):
        figsize = (7 * len(panels), 6)
        with report.picture(folder / f"{name}.png", title, len(panels), figsize=figsize) as every:
            for axes, panel in zip(every, panels, strict=True):
                own = [row for row in rows if (row["shots"], row["normalization"]) == panel]
                for i, row in enumerate(own):
                    at, mean, ci95 = (np.array([point[key] for point in row[field]]) for key in (x, "mean", "ci95"))
                    style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10], "marker": ".", "capsize": 2}
                    shown = f"{row['method']}: {100 * mean[-1]:.1f}"
                    axes.errorbar(at, 100 * mean, 100 * ci95, label=shown, linewidth=1, **style)
                axes.set(title=f"{panel[0]}-shot, {panel[1]} normalisation", xlabel=label, ylabel="query accuracy (%)")
                axes.grid(alpha=0.3)
                axes.legend(fontsize=7, ncols=2)


def run_all(args: argparse.Namespace) -> None:
    """Every rate and every cell that is missing, then the table and the pictures."""
    cells.check(args, ("plot",), budget=0.1, episodes=2, tasks=1, num_steps=1, test_queries=1)
    use_all_cores(args.cache / "compiled")
    checkpoint.make_folder(args.out / "cells")

    @lru_cache(1)
    def task(seed: int) -> Task:
        options = parse_run(["--seed", str(seed), "--cache", str(args.cache)])
        options.corpus, options.root = args.corpus, args.root
        return load_task(args.corpus, args.root, options)

    done = cells.finished(args.out, settings(args), Cell)
    speeds = measured(args, [cell for cell in wanted(args) if cell not in done], task)
    if args.rates_only:
        return

    def one(cell: Cell) -> dict[str, Any]:
        jax.clear_caches()
        return run(args, cell, task(cell.seed), speeds[kind(cell)])

    done |= cells.complete(args.out, settings(args), list(wanted(args)), one)
    rows, first = summary(done), next(iter(done.values()))
    title = (
        f"{args.corpus}, 5-way, {args.budget:.0f} s of training, {args.episodes} episodes of each seed, "
        f"95 % intervals over episodes;\n{len(first['unseen_words'])} unseen words by "
        f"{len(first['unseen_speakers'])} unseen speakers, support and query by different speakers"
    )
    found = {"title": title, "settings": settings(args), "rows": rows} | report.environment()
    checkpoint.write_json(args.out / "results.json", found)
    plot(rows, title, args.out)
    print(f"\n{title}\n\n{table(rows)}\n\nTable, results and pictures are in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return cells.guarded(lambda: run_all(args))


if __name__ == "__main__":
    sys.exit(main())
