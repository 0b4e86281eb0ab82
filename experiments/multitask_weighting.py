"""What does each way of weighting two tasks cost, and what does it give?

    python experiments/multitask_weighting.py

One model (a speech encoder and an image encoder, a shared trunk, a head per task) learns spoken words and handwritten
digits at once, an equal number of steps under every weighting of `metajax.weighting`, next to a model of the same size
for each task alone and to linear probes (logistic regression on the inputs, and on a network that never learned).
Speech is tested on speakers never heard, images on images never seen. Fixed weights are chosen on the validation part,
for each seed anew, which takes a training for each of them. The time per step, without the drawing of its batch, is
measured first, all weightings in turn, and kept in `--out/timings.json`: nothing else should run then. Every training
(method, seed) is a file of its own under `--out/cells`: stopped at any time, the same command goes on with those that
are missing. Ends with a table of accuracies and transfer (joint minus alone), 95 % intervals over seeds,
`results.json` and `weightings.png`. About 10 minutes on 2 CPU cores, a third of them compilation.

    python experiments/multitask_weighting.py --corpus fsdd --root DIR
    python experiments/multitask_weighting.py --corpus arabic --root DIR --words zero one two --omniglot DIR
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cells
import jax
import jax.numpy as jnp
import multitask_common as common
import numpy as np
import optax
from keyword_fewshot import READERS, read_recordings
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, report, weighting
from metajax.data import images
from metajax.data.cache import default_folder
from metajax.data.corpora import espeak
from metajax.data.corpus import Corpus, load
from metajax.data.features import FeatureSettings
from metajax.losses import multitask_losses
from metajax.models import tcresnet8
from metajax.models.image import image_encoder
from metajax.models.multitask import Multitask, linear, multitask
from metajax.parallel import use_all_cores

TASKS = ("speech", "image")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of speech in the fixed weights, which add to 2; 0.5 is the plain sum
BLOCK = 10  # steps per compiled call
ROUNDS = 30  # blocks of each weighting that are timed
WEIGHTINGS: dict[str, Callable[[], weighting.Weighting]] = {
    "sum": weighting.equal,
    **{f"fixed {s}": partial(weighting.fixed, (2 * s, 2 - 2 * s)) for s in SHARES if s != 0.5},
    "uncertainty": lambda: weighting.uncertainty(optax.adam(1e-2)),  # faster than its default, for so few steps
    "GradNorm": weighting.gradnorm,
    "PCGrad": weighting.pcgrad,
    "CAGrad": weighting.cagrad,
    "MGDA": weighting.mgda,
    "Nash-MTL": weighting.nash,
}
ALONE = {f"{task} alone": task for task in TASKS}
PROBES = ("probe of the inputs", "probe of a random network")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare the weightings of a joint loss on speech and images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", choices=("espeak", *READERS), default="espeak", help="of the words; espeak: 40 numbers")
    add("--root", type=Path, help="its folder")
    add("--words", nargs="+", help="use these words alone; all, if none are given")
    add("--omniglot", type=Path, help="folder of Omniglot characters, instead of scikit-learn's digits")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of splits, parameters and batches")
    add("--steps", type=int, default=600, help=f"training steps of every model, a multiple of {BLOCK}")
    add("--batch", type=int, default=32, help="examples of each task per step")
    add("--rate", type=float, default=2e-3, help="learning rate (Adam, cosine)")
    add("--width", type=float, default=0.5, help="of TC-ResNet8")
    add("--augment", type=float, default=0.5, help="strength of the augmentation of speech; 0 for none")
    add("--cache", type=Path, default=default_folder(), help="folder of cached features")
    add("--out", type=Path, default=Path("runs/multitask_weighting"), help="folder of the results")
    return parser.parse_args(argv)


class Cell(NamedTuple):
    """One training, or one probe."""

    method: str
    seed: int


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a folder have in common."""
    names = ("corpus", "root", "words", "omniglot", "steps", "batch", "rate", "width", "augment")
    return {name: str(getattr(args, name)) for name in names}


def trainer(args: argparse.Namespace, model: Multitask, how: weighting.Weighting) -> Callable[..., Any]:
    """Compiled `(state, key, batches) -> (state, metrics [BLOCK])`."""
    losses = multitask_losses(model, normalize=True)

    def step(state: mj.MetaState, drawn: tuple[jax.Array, dict[str, mj.Batch]]) -> Any:
        key, batch = drawn
        own = {task: batch[task] for task in model.heads}
        return weighting.weighted_step(losses, how, optimizer(args), lambda _: own)(state, key)

    @partial(jax.jit, donate_argnums=0)
    def block(state: mj.MetaState, key: jax.Array, batches: dict[str, mj.Batch]) -> Any:
        return jax.lax.scan(step, state, (jax.random.split(key, BLOCK), batches))

    return block


def optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.rate, args.steps))


class Bench(NamedTuple):
    """What all cells share."""

    tasks: dict[str, tuple[Any, np.ndarray, np.ndarray]]  # by task: x, y, and the group that is held out together
    models: dict[str, Multitask]  # by method
    blocks: dict[str, Callable[..., Any]]
    hows: dict[str, weighting.Weighting]
    draw: Callable[..., dict[str, mj.Batch]]


def bench(args: argparse.Namespace) -> Bench:
    """Read the data, set up every method; nothing is compiled yet."""
    if args.corpus == "espeak" and args.root is None:
        recordings = espeak.read(languages=("en-us", "es"), numbers=tuple(range(20)), clips_per_label=48)
    else:
        recordings = read_recordings(args.corpus, args.root, args)
    corpus = load(recordings, FeatureSettings(high=3800.0 if args.corpus == "fsdd" else 7600.0), cache=args.cache)
    drawn = images.omniglot(args.omniglot) if args.omniglot else images.digits()
    kept, label = of_words(corpus, args.words)
    tasks = {
        "speech": (corpus.features[kept], label, common.people(corpus)[kept]),
        "image": (jnp.asarray(drawn.pixels), np.asarray(drawn.label), np.asarray(drawn.drawer)),
    }
    sizes = {task: int(y.max()) + 1 for task, (_, y, _) in tasks.items()}
    hows = {name: make() for name, make in WEIGHTINGS.items()} | {name: weighting.equal() for name in ALONE}
    encoders = {"speech": tcresnet8(None, normalization="group", width=args.width), "image": image_encoder()}
    both = multitask(encoders, sizes)
    single = {name: multitask({task: encoders[task]}, {task: sizes[task]}) for name, task in ALONE.items()}
    models = {name: single.get(name, both) for name in (*hows, *PROBES)}
    blocks = {name: trainer(args, models[name], how) for name, how in hows.items()}
    return Bench(tasks, models, blocks, hows, common.batches_of(args.batch, BLOCK, args.augment))


def of_words(corpus: Corpus, words: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """The clips of the given words, of all if there are none given, and their labels, numbered from 0."""
    names, label = corpus.names["label"], corpus.columns["label"]
    if unknown := [word for word in words or () if word not in names]:
        raise mj.InputError(f"--words has {unknown[0]!r}, expected some of {', '.join(names)}.")
    kept = np.flatnonzero(np.isin(label, [names.index(word) for word in words]) if words else label >= 0)
    return kept, np.unique(label[kept], return_inverse=True)[1]


def start(args: argparse.Namespace, made: Bench, method: str, data: dict[str, common.Data], seed: int) -> mj.MetaState:
    """Fresh parameters, the same for all weightings, and what their steps keep."""
    model = made.models[method]
    params = jax.jit(model.init)(jax.random.key(seed), {task: data[task].x[:2] for task in model.heads})
    how = made.hows.get(method, made.hows["sum"])
    return weighting.init_weighted(params, optimizer(args), how, len(model.heads))


def timings(args: argparse.Namespace, bench_of: Callable[[], Bench]) -> dict[str, dict[str, float]]:
    """Milliseconds per step of each weighting, the drawing of batches left out, and its ratio to the plain sum's."""
    path = args.out / "timings.json"
    kept = cells.measured(path, settings(args))
    if kept["measured"]:
        return kept["measured"]
    made = bench_of()
    data, _ = common.dealt(made.tasks, args.seeds[0])
    names = [name for name in made.blocks if name == "fixed 0.1" or not name.startswith("fixed")]
    states = {name: start(args, made, name, data, 0) for name in names}
    took: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(ROUNDS + 1), unit="round", desc="timing", dynamic_ncols=True):
        key = jax.random.key(i)
        batches = jax.block_until_ready(made.draw(key, data))
        for name in names if i % 2 else names[::-1]:
            began = time.perf_counter()
            states[name], _ = jax.block_until_ready(made.blocks[name](states[name], key, batches))
            took[name].append(1e3 * (time.perf_counter() - began) / BLOCK)
    rounds = {name: np.array(times[1:]) for name, times in took.items()}  # the first round compiles
    steps = {n: {"ms": float(np.median(t)), "ratio": float(np.median(t / rounds["sum"]))} for n, t in rounds.items()}
    checkpoint.write_json(path, kept | {"measured": steps})
    return steps


@partial(jax.jit, static_argnums=(0, 1))
def embedded(embed: Callable[..., jax.Array], task: str, params: Any, x: jax.Array) -> jax.Array:
    """What the head of a task sees of all examples, computed some at a time."""
    return jax.lax.map(lambda one: embed(params, task, common.clean(task, one[None]))[0], x, batch_size=64)


def run(args: argparse.Namespace, cell: Cell, made: Bench) -> dict[str, Any]:
    """Train and test one cell."""
    data, splits = common.dealt(made.tasks, cell.seed)
    model, losses, accuracy = made.models[cell.method], [], {}
    state, key = start(args, made, cell.method, data, cell.seed), jax.random.key(1000 + cell.seed)
    size, began = sum(leaf.size for leaf in jax.tree.leaves(state.theta)), time.perf_counter()
    for i in range(args.steps // BLOCK if cell.method in made.blocks else 0):
        draw_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        state, metrics = made.blocks[cell.method](state, step_key, made.draw(draw_key, data))
        losses.extend(np.asarray(metrics["loss"]).tolist())
    for task in model.heads:
        y, split = np.asarray(data[task].y), splits[task]
        if cell.method == "probe of the inputs":
            x = np.asarray(data[task].x)
            if task == "speech":  # the mean and spread of each band over time; how loud a clip is tells nothing
                x = x - x.max((1, 2), keepdims=True)
                x = np.concatenate([x.mean(1), x.std(1)], 1)
            accuracy[task] = common.logistic(x.reshape(len(x), -1).astype(np.float64), y, split)
            continue
        z = embedded(model.embed, task, state.theta, data[task].x)
        if cell.method in PROBES:
            accuracy[task] = common.logistic(np.asarray(z, np.float64), y, split)
        else:
            right = np.asarray(linear(state.theta["heads"][task], z)).argmax(-1) == y
            accuracy[task] = {part: float(right[split[part]].mean()) for part in ("validation", "test")}
    finite = [loss for loss in losses if np.isfinite(loss)]
    return {
        "accuracy": accuracy,
        "train_loss": float(np.mean(finite[-50:])) if finite else None,
        "rejected_steps": len(losses) - len(finite),
        "wall_seconds": time.perf_counter() - began,
        "parameters": size,
        "examples": {task: {name: len(split[name]) for name in split} for task, split in splits.items()},
        "classes": dict(model.heads),
    }


def tuned(results: dict[Cell, dict[str, Any]]) -> dict[Cell, dict[str, Any]]:
    """`results`, in which the fixed weights that did best on validation stand for all of them, seed by seed."""
    kept = {cell: result for cell, result in results.items() if not cell.method.startswith("fixed ")}
    grid = {"sum": 0.5} | {f"fixed {share}": share for share in SHARES if share != 0.5}
    for seed in sorted({cell.seed for cell in results}):
        tried = {share: results[Cell(name, seed)] for name, share in grid.items() if Cell(name, seed) in results}
        if len(tried) == len(grid):
            best = max(tried, key=lambda s: sum(part["validation"] for part in tried[s]["accuracy"].values()))
            kept[Cell("fixed, tuned", seed)] = tried[best] | {"speech_share": best}
    return kept


def summary(results: dict[Cell, dict[str, Any]], steps: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row per method, in the order of `WEIGHTINGS`: test accuracy, transfer and time per step."""
    results = tuned(results)
    rows = []
    for method in ("sum", "fixed, tuned", *(m for m in WEIGHTINGS if m[:3] not in ("sum", "fix")), *ALONE, *PROBES):
        own = {cell.seed: result for cell, result in results.items() if cell.method == method}
        if not own:
            continue
        row: dict[str, Any] = {"method": method, "seeds": sorted(own), "accuracy": {}, "transfer": {}}
        for task in own[min(own)]["accuracy"]:
            test = {seed: result["accuracy"][task]["test"] for seed, result in own.items()}
            alone = {seed: results.get(Cell(f"{task} alone", seed)) for seed in own}
            gain = [test[seed] - other["accuracy"][task]["test"] for seed, other in alone.items() if other]
            row["accuracy"][task] = dict(zip(("mean", "ci95"), common.interval(list(test.values())), strict=True))
            if gain and method not in (*ALONE, *PROBES):
                row["transfer"][task] = dict(zip(("mean", "ci95"), common.interval(gain), strict=True))
        cost = steps.get("fixed 0.1" if method == "fixed, tuned" else method, {})
        row |= {"ms": cost.get("ms"), "ratio": cost.get("ratio"), "trainings": len(SHARES) if "tuned" in method else 1}
        row["speech_shares"] = [result["speech_share"] for result in own.values() if "speech_share" in result]
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    def show(value: dict[str, Any] | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{100 * value['mean']:{sign}.1f}" + ("" if value["ci95"] is None else f" ± {100 * value['ci95']:.1f}")

    lines = []
    for row in rows:
        cells = [row["method"], *(show(row["accuracy"].get(task)) for task in TASKS)]
        cells += [show(row["transfer"].get(task), "+") for task in TASKS]
        cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in ("ms", "ratio")]
        lines.append([*cells, "" if row["method"] in PROBES else str(row["trainings"])])
    transfer = [f"transfer, {task}" for task in TASKS]
    return report.markdown(["weighting", "speech (%)", "image (%)", *transfer, "ms/step", "/ sum", "trainings"], lines)


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy of both tasks by weighting, with those of the models alone and of the better probe as lines."""
    joint = [row for row in rows if row["method"] not in (*ALONE, *PROBES)]
    with report.picture(path, title, 2) as both:
        for axes, task in zip(both, TASKS, strict=True):
            mean, ci95 = (np.array([row["accuracy"][task][f] or 0 for row in joint], float) for f in ("mean", "ci95"))
            axes.errorbar(range(len(joint)), 100 * mean, 100 * ci95, fmt="o", capsize=3)
            others = [row for row in rows if row not in joint and task in row["accuracy"]]
            for row, style in zip(others, ("-", "--", ":"), strict=False):
                value = 100 * row["accuracy"][task]["mean"]
                axes.axhline(value, color="0.4", linestyle=style, label=f"{row['method']}: {value:.1f}")
            axes.set_xticks(range(len(joint)), [row["method"] for row in joint], rotation=40, ha="right")
            axes.set(title=task, ylabel="test accuracy (%)", ylim=(None, min(axes.get_ylim()[1], 101)))
            axes.legend(fontsize=8)


def run_all(args: argparse.Namespace) -> None:
    """Every cell that is missing, then the table and the picture."""
    cells.check(args, ("plot", "images"), steps=BLOCK, batch=1, rate=0, width=0.1, augment=0)
    if args.steps % BLOCK:
        raise mj.InputError(f"--steps is {args.steps}, expected a multiple of {BLOCK}.")
    use_all_cores(args.cache / "compiled")
    checkpoint.make_folder(args.out / "cells")
    wanted = [Cell(method, seed) for seed in args.seeds for method in (*WEIGHTINGS, *ALONE, *PROBES)]
    made = cache(lambda: bench(args))
    steps = timings(args, made)
    done = cells.complete(args.out, settings(args), wanted, lambda cell: run(args, cell, made()))
    rows, one = summary(done, steps), done[wanted[0]]
    drawn = "Omniglot" if args.omniglot else "digits"
    title = (
        f"{args.corpus} ({one['classes']['speech']} words, unseen speakers) and {drawn} ({one['classes']['image']} "
        f"classes, unseen images),\n{args.steps} steps of {args.batch} + {args.batch} examples, group normalisation, "
        f"{len({cell.seed for cell in done})} seeds, 95 % t intervals over seeds"
    )
    results = {"title": title, "config": settings(args), "normalization": "group", "rows": rows}
    checkpoint.write_json(args.out / "results.json", results | report.environment())
    plot(rows, title, args.out / "weightings.png")
    print(f"\n{title}\n\n{table(rows)}\n\nFixed weights: {len(SHARES)} trainings for each seed, chosen on validation.")
    print(f"Table, results and picture are in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return cells.guarded(lambda: run_all(args))


if __name__ == "__main__":
    sys.exit(main())
