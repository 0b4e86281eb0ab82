"""What do speech and images share when both read one embedding table? The reference joint model, on real inputs.

    python experiments/multitask_embedding.py
    python experiments/multitask_embedding.py --corpus fsdd --root DIR --max-hz 3800

A table of 1,000 tokens x 128, the mean over the tokens of an input, a linear head per task, the sum of the two
cross-entropies, Adam at 1e-3, 100 epochs. Spoken numbers and scikit-learn's handwritten digits become tokens by k-means
over stacked log-mel frames and image patches. Tested on held-out speakers and images, beside single-task models that
start from the same weights and see the same batches.

Such a table counts tokens, and knows no order, position or context. With ids of their own (speech 0..499, image
500..999) the tasks touch no common row, so the joint loss *is* two single trainings, and can transfer nothing. With the
same ids row k means one thing in speech and another in an image: what is shared is capacity, not knowledge.

Expect, 3 seeds: 95 and 96 % on the embedded corpus, 60 and 96 % on FSDD (the seed of the codebook moves words by 4
points), joint minus alone (the gain) 0.0 with ids of their own, a point or less below it with the same; 2 minutes on 2
CPU cores. Intervals are 95 %, of accuracies over one run's test examples (Wilson), of gains over seeds (Student's t).
"""

import sys
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import binomtest

import metajax as mj
from metajax import checkpoint, report, runs
from metajax.data import corpora, tokens
from metajax.data.cache import default_folder
from metajax.data.corpus import fingerprint, load
from metajax.data.features import FeatureSettings
from metajax.data.images import digits
from metajax.evaluate import over_seeds
from metajax.losses import multitask_losses
from metajax.losses.weighting import equal
from metajax.models.multitask import Multitask, embedding_heads
from metajax.tasks.held_out import hold_out

HEADS = {"speech": 30, "image": 10}
TOKENS = 1000
reference = partial(embedding_heads, num_tokens=TOKENS, width=128)
MODELS = ("joint, own ids", "joint, same ids", "speech alone", "image alone")


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # speech; espeak: 30 English numbers, synthetic
    root: Path | None = None  # its folder, or the manifest file (CSV, TSV or JSON lines)
    max_hz: float = 7600.0  # upper edge of the mel bands; 3800 for 8 kHz audio
    held_out: float = 0.25  # share of speakers and of images to test on
    tokens: int = TOKENS // 2  # size of each codebook, at most half of the table
    stack: int = 5  # log-mel frames (10 ms) in one speech token
    every: int = 2  # frames from one speech token to the next
    patch: int = 4  # height and width of the overlapping image patches, in pixels
    epochs: int = 100  # passes over the larger task
    batch: int = 64  # examples of each task in one step
    rate: float = 1e-3  # learning rate (Adam)
    seeds: tuple[int, ...] = (0, 1, 2)  # of held-out speakers, codebooks and weights
    cache: Path = field(default_factory=default_folder)  # folder of cached features
    out: Path = Path("runs/multitask_embedding")  # folder of the results; the same command goes on there


class Cell(NamedTuple):
    model: str
    seed: int


def read(s: Settings) -> tuple[dict[str, tuple[Any, ...]], str]:
    """Pieces, labels and makers of the clips of a corpus, its first 30 words, and of the digits; which data it is."""
    options = {"languages": ["en"], "clips_per_label": 100} if s.corpus == "espeak" else {}
    recordings = corpora.read(s.corpus, s.root, **options)
    corpus = load(recordings, FeatureSettings(high=s.max_hz), cache=s.cache)
    label, drawn = corpus.columns["label"], digits()
    kept = np.flatnonzero(np.isin(label, np.unique(label[label >= 0])[: HEADS["speech"]]))
    frames = tokens.frame_pieces(corpus.features[kept], np.asarray(corpus.lengths)[kept], s.stack, s.every)
    speech = frames, np.unique(label[kept], return_inverse=True)[1], corpus.columns["speaker"][kept]
    image = tokens.patch_pieces(drawn.pixels, s.patch), drawn.label, drawn.drawer
    return {"speech": speech, "image": image}, fingerprint(recordings, corpus)


def tokenised(s: Settings, tasks: dict[str, tuple[Any, ...]], seed: int) -> dict[str, list[mj.Batch]]:
    """Training and test examples of each task as tokens 0..tokens - 1, -1 for padding."""
    data = {}
    for name, (pieces, label, group) in tasks.items():
        split = hold_out(label, group, shares=(0.0, s.held_out), seed=seed, name=name)
        x = tokens.tokenise(pieces, split.train, s.tokens, seed=seed)
        data[name] = [mj.Batch(jnp.asarray(x[m]), jnp.asarray(label[m], jnp.int32)) for m in (split.train, split.test)]
        if s.batch > (count := len(data[name][0].y)):
            raise mj.InputError(f"batch is {s.batch}, expected at most the {count} training examples of {name}.")
    return data


def orders(key: jax.Array, sizes: dict[str, int], epochs: int, batch: int) -> dict[str, jax.Array]:
    """Which examples each step sees, `[epochs, steps, batch]` by task, whatever other tasks are trained beside it.

    Every task runs through its examples in one order after the other; an epoch is one pass of the largest.
    """
    steps = max(sizes.values()) // batch

    def order(key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, -(-epochs * steps * batch // size))
        rows = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
        return rows.reshape(-1)[: epochs * steps * batch].reshape(epochs, steps, batch)

    return {task: order(jax.random.fold_in(key, i), sizes[task]) for i, task in enumerate(sizes)}


def train(
    model: Multitask, params: Any, data: dict[str, mj.Batch], order: dict[str, jax.Array], rate: float, title: str = ""
) -> tuple[Any, list[dict[str, float]]]:
    """Minimise the sum of the tasks' cross-entropies by Adam; the parameters, and the mean metrics of each epoch."""
    losses, optimizer = multitask_losses(model.apply, model.heads), optax.adam(rate)
    rows = {task: order[task].reshape(-1, order[task].shape[-1]) for task in model.heads}
    epochs, steps, _ = jax.tree.leaves(order)[0].shape

    def step(state: mj.MetaState, key: jax.Array) -> Any:
        batch = {task: jax.tree.map(lambda a, r=r: a[r[state.count]], data[task]) for task, r in rows.items()}
        return mj.weighted_step(losses, equal(), optimizer, lambda key: batch)(state, key)

    state = mj.init_state({"params": params}, optimizer, epochs * steps)
    with TemporaryDirectory() as folder:  # a line of metrics for each block, an epoch
        options: dict[str, Any] = {"block": steps, "validate_every": epochs * steps, "folder": Path(folder)}
        fitted = mj.fit(step, state, jax.random.key(0), num_tasks=len(rows), title=title, **options)
        return fitted.theta["params"], checkpoint.read_lines(Path(folder) / "metrics.jsonl")


def run_cell(s: Settings, cell: Cell, data: dict[str, list[mj.Batch]]) -> dict[str, Any]:
    """Train one model and test it."""
    init_key, order_key = jax.random.split(jax.random.key(cell.seed))
    order = orders(order_key, {task: len(train.y) for task, (train, _) in data.items()}, s.epochs, s.batch)
    if cell.model != "joint, same ids":  # padding stays negative
        data = data | {"image": [b._replace(x=jnp.where(b.x < 0, -1, b.x + TOKENS // 2)) for b in data["image"]]}
    fresh = reference(HEADS).init(init_key, {task: data[task][0].x for task in HEADS})
    model = reference({task: n for task, n in HEADS.items() if "joint" in cell.model or task in cell.model})
    start = {"shared": fresh["shared"], "heads": {task: fresh["heads"][task] for task in model.heads}}
    params, lines = train(model, start, {task: data[task][0] for task in model.heads}, order, s.rate, cell.model)
    logits = jax.jit(model.apply)(params, {task: data[task][1].x for task in model.heads})
    return {
        "accuracy": {task: float((logits[task].argmax(-1) == data[task][1].y).mean()) for task in model.heads},
        "losses": {task: [line[f"{task}_loss"] for line in lines] for task in model.heads},
        "test_examples": {task: len(data[task][1].y) for task in model.heads},
    }


def summary(done: dict[Cell, dict[str, Any]], seeds: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """By model: the accuracy of each task and its gain over the task alone, each with its interval."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in (*MODELS[:2], "each task alone")}
    for (name, row), task in product(rows.items(), HEADS):
        alone = [done[Cell(f"{task} alone", seed)] for seed in seeds]
        own = [done[Cell(name, seed)] for seed in seeds] if name in MODELS else alone
        hits, sizes = ([result[what][task] for result in own] for what in ("accuracy", "test_examples"))
        ends = [binomtest(round(n * a), n).proportion_ci(method="wilson") for n, a in zip(sizes, hits, strict=True)]
        row[task] = {"mean": float(np.mean(hits)), "ci95": float(np.mean([end.high - end.low for end in ends])) / 2}
        if name in MODELS:
            row[f"{task} gain"] = over_seeds([a - b["accuracy"][task] for a, b in zip(hits, alone, strict=True)])
    return rows


def run(s: Settings) -> None:
    """Every cell that is missing, then table and picture."""
    least = {"tokens": 2, "stack": 1, "every": 1, "patch": 1, "epochs": 1, "batch": 1}
    runs.check(s, ("plot", "images"), seeds=0, max_hz=0, rate=0, **least)
    if s.tokens > TOKENS // 2:
        raise mj.InputError(f"tokens is {s.tokens}, expected at most {TOKENS // 2}: half of the table.")
    tasks, digest = read(s)
    data = lru_cache(1)(lambda seed: tokenised(s, tasks, seed))
    data(s.seeds[0])  # what it refuses it refuses before there is a folder
    config = runs.config(s, ("out", "cache", "seeds")) | {"data": digest}
    wanted = [Cell(model, seed) for seed in s.seeds for model in MODELS]
    done = runs.complete(s.out, config, wanted, lambda cell: run_cell(s, cell, data(cell.seed)))
    rows, counts = summary(done, s.seeds), done[wanted[0]]["test_examples"]
    shown = rows | {"chance": {task: {"mean": 1 / (int(label.max()) + 1)} for task, (_, label, _) in tasks.items()}}
    title = f"{s.corpus}, {counts['speech']} clips of held-out speakers; digits, {counts['image']} held-out images"
    runs.save_results(s.out, {"title": title, "accuracy": shown, "config": config, "seeds": s.seeds})
    names = [*HEADS, *(f"{task} gain" for task in HEADS)]
    lines = [[name, *(report.percent(row.get(n), "+" * ("gain" in n)) for n in names)] for name, row in shown.items()]
    print(f"\n{title}\n\n{report.markdown(['', *names], lines)}\n\nResults and picture are in {s.out}.")
    with report.picture(s.out / "loss.png", title) as (axes,):
        # those alone lie exactly below the first: drawn before it, wide and pale
        for model, width, style in zip(MODELS[::-1], (6, 6, 2, 1), ("-", "-", ":", "-"), strict=True):
            for task, values in done[Cell(model, s.seeds[0])]["losses"].items():
                color, label, alpha = f"C{[*HEADS].index(task)}", f"{task}, {model}", 0.25 if width == 6 else 1
                axes.plot(values, style, linewidth=width, color=color, label=label, alpha=alpha)
        axes.set(xlabel="epoch, first seed", ylabel="cross-entropy in training (nats)", ylim=(0, None))
        axes.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
