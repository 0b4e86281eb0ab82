"""Which method learns new words best for an equal budget of training time?

    python experiments/compare_algorithms.py
    python experiments/compare_algorithms.py --methods maml protonet --seeds 0 --budget 30   # a few minutes

Trains every method of `metajax.methods` on one corpus for an equal number of seconds (compilation and testing not
counted), with several seeds, and tests all of them on the same episodes of unseen words by unseen speakers, each at the
inner rate that validation chooses. Each cell (method, normalisation, shots, seed) is a file of its own under `--out`:
stopped at any time, the same command goes on with those missing. Ends with a table, `results.json` and two pictures:
accuracy against adaptation step, and against training time. All cells take some hours on 2 CPU cores.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import methods, models, recipes, report, runs
from metajax.data import words
from metajax.data.cache import default_folder
from metajax.losses import classify
from metajax.parallel import replicate, task_mesh, use_all_cores
from metajax.train import block_of

SHARES = (0.125, 0.5, 1.0)  # of the budget, after which the methods are tested
STEPS = 20  # adaptation steps of fine-tuning and of training from scratch
PRINCIPAL = (
    "maml", "fomaml", "anil", "meta_sgd", "meta_curvature", "proto_maml", "protonet", "matching", "ridge", "simpleshot",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # what to train and test on
    root: Path | None = None  # its folder
    methods: tuple[str, ...] = (*methods.METHODS, "from_scratch")  # joint is fine-tuned when tested
    normalizations: tuple[str, ...] = ("transductive", "group")  # the first for all, others for the principal methods
    shots: tuple[int, ...] = (1,)  # support clips per word
    seeds: tuple[int, ...] = (0, 1)  # of splits, fresh parameters, episodes
    budget: float = 120.0  # seconds of training per cell
    ways: int = 5  # words per episode
    queries: int = 5  # query clips per word
    episodes: int = 1000  # test episodes
    tasks: int = 4  # episodes per outer step
    num_steps: int = 5  # inner steps
    train_ways: int = 10  # words per training episode of metric methods
    outer_rate: float = 2e-3  # outer learning rate (AdamW), constant
    average: float = 0.99  # decay of theta's moving average, which is tested
    augment: float = 0.5  # strength of the augmentation
    width: float = 1.0  # of TC-ResNet8
    cache: Path | None = None  # folder of cached features and compiled programs; None for the user's
    out: Path = Path("runs/compare_algorithms")  # folder of the results


class Cell(NamedTuple):
    """One entry of the table before seeds are averaged, and one seed of it."""

    method: str
    normalization: str
    shots: int
    seed: int


def wanted(s: Settings) -> Iterator[Cell]:
    """All cells, seed by seed, so that a run that is stopped early has every method."""
    for seed, shots, normalization, method in product(s.seeds, s.shots, s.normalizations, s.methods):
        if normalization == s.normalizations[0] or method in PRINCIPAL:
            yield Cell(method, normalization, shots, seed)


def run_cell(s: Settings, cell: Cell, task: words.Words) -> dict[str, Any]:
    """Train and test one method with one normalisation and seed."""
    jax.clear_caches()
    name = "joint" if cell.method == "from_scratch" else cell.method
    method = methods.METHODS[name]
    net = models.network(width=s.width, normalization=cell.normalization)
    sizes: dict[str, Any] = {"ways": s.ways, "shots": cell.shots, "queries": s.queries}
    test, validation = (words.sampler(task, split, **sizes) for split in ("test", "validation"))
    classes, x = len(words.names_of(task, "train", "label")), jax.eval_shape(test, jax.random.key(0)).support.x

    def build(rate: Any = None) -> methods.Built:
        how: dict[str, Any] = {"ways": s.ways, "train_ways": s.train_ways, "num_steps": s.num_steps}
        return methods.build(method, net, x, classes=classes, rate=rate, **how)

    built = build()
    init_key, fresh_key, key = jax.random.split(jax.random.key(cell.seed), 3)
    more = {"ways": built.train_ways, "augmentation": s.augment} | ({"queries": 1} if method.kind == "joint" else {})
    sample = words.sampler(task, "train", **sizes | more)
    learner, steps, finish = lambda rate: build(rate).tested, built.num_steps, lambda theta: theta
    if name == "joint":  # learns no task by itself
        scratch = {"params": recipes.fresh(net(s.ways).init, test, fresh_key)}
        learner, steps = lambda rate: mj.descent(net(s.ways).apply, classify, optax.sgd(rate)), STEPS
        finish = lambda theta: methods.graft(theta, scratch["params"])  # noqa: E731
        if cell.method == "from_scratch":
            finish = lambda theta: scratch  # noqa: E731
    # no schedule, so that the curve by training time is that of shorter budgets; the average of theta stands in for one
    run, optimizer, mesh = methods.curves(learner, steps), recipes.adamw(s.outer_rate), task_mesh(s.tasks)
    how: dict[str, Any] = {"chunk": methods.chunk_of(method), "mesh": mesh}
    theta = built.algorithm.learner.init(recipes.fresh(built.model.init, sample, init_key), init_key)
    state = replicate(mj.init_state(theta, optimizer, 1, average=s.average), mesh)
    began, seconds, rejected, by_time = 0.0, 0.0, 0, []
    ends = sorted({*SHARES, *np.cumsum([share for share, _ in built.phases]).tolist()})
    for (_, objective), until in zip(built.phases, np.cumsum([share for share, _ in built.phases]), strict=True):
        block = block_of(mj.meta_step(objective, optimizer, sample, s.tasks, **how), key)
        state, _ = block(state, jnp.asarray(1))  # compiles
        for end in (end for end in ends if began < end <= until + 1e-9):
            began = end
            while seconds < end * s.budget and cell.method != "from_scratch":
                start = time.perf_counter()
                state, metrics = jax.block_until_ready(block(state, jnp.asarray(10)))
                seconds += time.perf_counter() - start
                rejected += int(not np.isfinite(metrics["loss"]))
            if end in SHARES:
                theta = finish(mj.trained(state))
                found = methods.tested(run, theta, validation, test, episodes=s.episodes, seed=cell.seed)
                curve = report.curve(*mj.mean_ci95(found.accuracy))
                by_time.append({"seconds": end * s.budget, "accuracy": curve, "rate": found.rate})
    return {
        "accuracy": by_time[-1]["accuracy"], "by_time": by_time, "outer_steps": int(state.count), "rejected": rejected,
        "unseen_words": words.names_of(task, "test", "label"),
        "unseen_speakers": words.names_of(task, "test", "speaker"),
    }  # fmt: skip


def pooled(points: list[dict[str, float]]) -> dict[str, float]:
    """The mean over seeds, and the interval over episodes, seeds counting as so many more of them."""
    ci95 = float(np.sqrt(np.sum([p["ci95"] ** 2 for p in points])) / len(points))
    return {"mean": float(np.mean([p["mean"] for p in points])), "ci95": ci95}


def summary(results: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, normalisation and shots: the mean over seeds, best first."""
    rows = []
    for group in {cell._replace(seed=-1) for cell in results}:
        own = [r for c, r in results.items() if c._replace(seed=-1) == group]
        row = group._asdict() | {"seeds": [r["accuracy"][-1]["mean"] for r in own]}
        row["accuracy"] = [p[0] | pooled(list(p)) for p in zip(*(r["accuracy"] for r in own), strict=True)]
        timed = zip(*(r["by_time"] for r in own), strict=True)
        row["by_time"] = [p[0] | pooled([r["accuracy"][-1] for r in p]) for p in timed]
        row["outer_steps"] = round(np.mean([r["outer_steps"] for r in own]))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["shots"], row["normalization"], -row["accuracy"][-1]["mean"]))


def run(s: Settings) -> None:
    """Every cell that is missing, then the table and the pictures."""
    runs.check(s, ("plot",), budget=0.1, episodes=2, tasks=1, num_steps=1, queries=1)
    runs.known("methods", s.methods, (*methods.METHODS, "from_scratch"))
    runs.known("normalizations", s.normalizations, models.NORMALIZATIONS)
    left_out = ("out", "cache", "methods", "shots", "seeds", "normalizations")
    cache, config = s.cache or default_folder(), runs.config(s, left_out)
    use_all_cores(cache / "compiled")
    task = lru_cache(1)(lambda seed: words.load_words(s.corpus, s.root, ways=s.ways, cache=cache, seed=seed))
    done = runs.complete(s.out, config, list(wanted(s)), lambda cell: run_cell(s, cell, task(cell.seed)))
    rows, first = summary(done), next(iter(done.values()))
    title = f"{s.corpus}, {s.ways}-way, {s.budget:.0f} s of training, {s.episodes} episodes of each seed, 95 % "
    title += f"intervals over episodes;\n{len(first['unseen_words'])} unseen words by {len(first['unseen_speakers'])} "
    title += "unseen speakers, support and query by different speakers"
    runs.save_results(s.out, {"title": title, "config": config, "rows": rows})
    names = ("method", "normalisation", "shots", "accuracy after adaptation", "each seed", "steps", "outer steps")
    lines = []
    for row in rows:
        last, seeds = row["accuracy"][-1], ", ".join(f"{100 * mean:.1f}" for mean in row["seeds"])
        told = row["shots"], report.percent(last), seeds, last["step"], row["outer_steps"]
        lines.append([row["method"], row["normalization"], *map(str, told)])
    print(f"\n{title}\n\n{report.markdown(names, lines, left=2)}\n\nTable, results and pictures are in {s.out}.")
    panels = {f"{r['shots']}-shot, {r['normalization']} normalisation": [] for r in rows}
    for row in rows:
        panels[f"{row['shots']}-shot, {row['normalization']} normalisation"].append(row)
    for name, field, x, label in (
        ("by_step", "accuracy", "step", "adaptation steps"), ("by_time", "by_time", "seconds", "seconds of training"),
    ):  # fmt: skip
        lists = {panel: {row["method"]: row[field] for row in own} for panel, own in panels.items()}
        report.plot_panels(lists, title, s.out / f"{name}.png", x=x, label=label)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
