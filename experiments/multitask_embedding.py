"""What do speech and images share when both read one embedding table? The reference joint model, on real inputs.

    python experiments/multitask_embedding.py
    python experiments/multitask_embedding.py --corpus fsdd --root DIR --max-hz 3800

`Input -> Embedding -> Task A & Task B`: a table of 1,000 tokens x 128, the mean over the tokens of an input, a linear
head per task (speech 30 classes, image 10), the sum of the two cross-entropies, Adam at 1e-3, 100 epochs. Spoken
numbers (eSpeak's 30 English ones, or a corpus of yours) and scikit-learn's handwritten digits become tokens by k-means
over stacked log-mel frames and over image patches, fitted on training data. Tested on held-out speakers and images,
beside chance and two single-task models that start from the same weights and see the same batches.

What such a table can do: count. One vector per token, averaged over the input, is a linear classifier of the histogram
of tokens, of rank 128. What it cannot do: order, position, context (any shuffle of the input gives the same output),
and anything between tokens (two near centres are as foreign as two far ones). With ids of their own (speech 0..499,
image 500..999, the reference) the tasks touch no common row, and Adam works entry by entry: the joint loss *is* two
single trainings, and can transfer nothing. With the same ids 0..499 rows are shared, but row k means one thing in
speech and another in an image: what is shared is capacity, not knowledge. `--place` writes positions into the tokens.

Expect, on held-out speakers and images, 3 seeds: 96 % and 97 % on the embedded corpus, 67 % and 97 % on FSDD (two of
its six speakers held out), joint and alone the same but for a point or less; about a minute on 2 CPU cores.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cells
import jax
import numpy as np
import optax
from keyword_fewshot import CORPORA, read_recordings
from multitask_common import interval, people
from multitask_tokens import Vectors, frames, moved, patches, tokenise
from scipy import stats
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, report
from metajax.data.cache import default_folder
from metajax.data.corpora import espeak
from metajax.data.corpus import Recordings, fingerprint, load
from metajax.data.features import FeatureSettings
from metajax.data.images import digits
from metajax.losses import multitask_losses, total
from metajax.models.multitask import Multitask, embedding_heads
from metajax.parallel import copied

HEADS = {"speech": 30, "image": 10}
TOKENS, WIDTH = 1000, 128
MODELS = ("joint, own ids", "joint, same ids", "single-task")
NOTE = """\
Accuracy in percent, mean over seeds ± 95 % over the test examples of one run (Wilson); clips of one speaker are not
independent, so for new speakers the true interval is wider, and the digits' writers are unknown. Gain: joint minus
single-task, mean ± 95 % over seeds (Student's t).

The table gives one vector per token, averaged over the input: it counts tokens, and sees neither order nor context.
With ids of their own the tasks touch no common row, and the joint loss trains just what the single ones do; with the
same ids they share rows whose meanings have nothing to do with each other."""
LEAST = {"tokens": 2} | dict.fromkeys(("stack", "every", "patch", "epochs", "batch", "seeds"), 1)
LEAST |= dict.fromkeys(("max_hz", "held_out", "place", "rate", "seed"), 0)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One embedding table, a speech head and an image head, trained by the sum of their losses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add("--corpus", choices=CORPORA, default="espeak", help="speech; espeak: 30 English numbers, synthetic")
    add("--root", type=Path, help="its folder, or the manifest file (CSV, TSV or JSON lines)")
    add("--max-hz", type=float, default=7600.0, help="upper edge of the mel bands; 3800 for 8 kHz audio")
    add("--on-error", choices=("raise", "skip"), default="raise", help="what to do with unusable clips")
    add("--cache", type=Path, default=default_folder(), help="folder of cached features")
    add("--held-out", type=float, default=0.25, help="share of speakers and of images to test on")
    add = parser.add_argument_group("tokens").add_argument
    add("--tokens", type=int, default=TOKENS // 2, help=f"size of each codebook, at most {TOKENS // 2}")
    add("--stack", type=int, default=5, help="log-mel frames (10 ms) in one speech token")
    add("--every", type=int, default=2, help="frames from one speech token to the next")
    add("--patch", type=int, default=4, help="height and width of the overlapping image patches, in pixels")
    add("--place", type=float, default=0.0, help="weight of a token's position in its input; 0: content alone")
    add = parser.add_argument_group("learning").add_argument
    add("--epochs", type=int, default=100, help="passes over the larger task")
    add("--batch", type=int, default=64, help="examples of each task in one step")
    add("--rate", type=float, default=1e-3, help="learning rate (Adam)")
    add("--seeds", type=int, default=3, help="runs, each with held-out speakers, codebooks and weights of its own")
    add("--seed", type=int, default=0, help="the first of them")
    add("--out", type=Path, default=Path("runs/multitask_embedding"), help="folder for the results")
    return parser.parse_args(argv)


class Speech(NamedTuple):
    """The clips of a corpus, and who speaks."""

    inputs: Vectors
    person: np.ndarray  # [n], indices of persons: nobody is both trained and tested on
    words: tuple[str, ...]
    data: str  # counts and a digest


def read_speech(args: argparse.Namespace) -> Speech:
    """Read a corpus, at most 30 words of it, as stacked log-mel frames, normalised clip by clip."""
    recordings: Recordings
    if args.corpus == "espeak" and args.root is None:
        recordings = espeak.read(languages=["en"], clips_per_label=100)
    else:
        recordings = read_recordings(args.corpus, args.root, args)
    settings = FeatureSettings(high=args.max_hz)
    if not args.stack <= settings.num_frames:
        raise mj.InputError(f"--stack is {args.stack}, expected at most the {settings.num_frames} frames of a clip.")
    corpus = load(recordings, settings, cache=args.cache, on_error=args.on_error)
    print("".join(f"skipped: {sentence}\n" for sentence in corpus.skipped), end="", file=sys.stderr)
    label, person = corpus.columns["label"], people(corpus)
    used = np.unique(label[label >= 0])[: HEADS["speech"]]
    keep = np.flatnonzero(np.isin(label, used))
    if len(keep) < len(label):
        words = len(np.unique(label[label >= 0]))
        print(f"note: {len(used)} of {words} words are used, {len(keep)} of {len(label)} clips", file=sys.stderr)
    inputs = frames(corpus.features[keep], np.asarray(corpus.lengths)[keep], args.stack, args.every)
    inputs = inputs._replace(label=np.searchsorted(used, label[keep]))
    words = tuple(corpus.names["label"][i] for i in used)
    return Speech(inputs, np.unique(person[keep], return_inverse=True)[1], words, fingerprint(recordings, corpus))


def held_out_people(speech: Speech, share: float, seed: int) -> np.ndarray:
    """The mask of the clips to train on: those of all but a share of the persons."""
    people = int(speech.person.max()) + 1
    if people < 2:
        raise mj.InputError("All clips are by one speaker, expected at least 2: one to train on, one to test on.")
    count = min(max(round(share * people), 1), people - 1)
    train = ~np.isin(speech.person, np.random.default_rng(seed).permutation(people)[:count])
    if missing := sorted({*range(len(speech.words))} - {*speech.inputs.label[train].tolist()}):
        words = ", ".join(speech.words[i] for i in missing[:3])
        raise mj.InputError(f"{len(missing)} words are said by held-out speakers alone ({words}): leave them out.")
    return train


def held_out_images(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The mask of the images to train on: all but a share of each class."""
    draw, train = np.random.default_rng(seed), np.ones(len(label), bool)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        train[draw.permutation(rows)[: max(round(share * len(rows)), 1)]] = False
    return train


def orders(key: jax.Array, sizes: dict[str, int], epochs: int, batch: int) -> dict[str, jax.Array]:
    """Which examples each step sees: `[epochs, steps, batch]` by task, one pass over the largest task per epoch.

    Every task runs through its examples in random order, then again in another, and keeps `batch` of them for each
    step, so that a step is the same whatever other tasks are trained beside it.
    """
    if batch > min(sizes.values()):
        task = min(sizes, key=lambda name: sizes[name])
        raise mj.InputError(f"--batch is {batch}, expected at most the {sizes[task]} training examples of {task}.")
    steps = max(sizes.values()) // batch

    def order(key: jax.Array, size: int) -> jax.Array:
        rounds = -(-epochs * steps * batch // size)
        rows = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, rounds))
        return rows.reshape(-1)[: epochs * steps * batch].reshape(epochs, steps, batch)

    return {task: order(jax.random.fold_in(key, i), sizes[task]) for i, task in enumerate(sizes)}


def train(
    model: Multitask, params: Any, data: dict[str, mj.Batch], order: dict[str, jax.Array], *,
    rate: float = 1e-3, tell: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Any, list[dict[str, float]]]:  # fmt: skip
    """Minimise the sum of the tasks' mean cross-entropies by Adam, every epoch one compiled scan.

    Args:
      model: with a head for each task.
      params: to start from.
      data: all training examples by task.
      order: rows of `data` that each step sees, `[epochs, steps, batch]` by task.
      rate: learning rate.
      tell: is called after each epoch with its number, from 1 on, and its metrics.

    Returns:
      The trained parameters, and for each epoch the means over its steps of the metrics, among them `loss`.
    """
    losses_fn, optimizer = multitask_losses(model), optax.adam(rate)

    def loss_fn(params: Any, batch: dict[str, mj.Batch]) -> tuple[jax.Array, mj.core.Metrics]:
        losses, _, metrics = losses_fn(params, batch)
        return total(losses), metrics

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, data: dict[str, mj.Batch], order: dict[str, jax.Array]) -> tuple[Any, mj.core.Metrics]:
        def step(state: Any, rows: dict[str, jax.Array]) -> tuple[Any, mj.core.Metrics]:
            params, opt_state = state
            batch = {task: jax.tree.map(lambda a, rows=rows[task]: a[rows], data[task]) for task in rows}
            grads, metrics = jax.grad(loss_fn, has_aux=True)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), metrics

        state, metrics = jax.lax.scan(step, state, order)
        return state, jax.tree.map(lambda a: a.mean(0), metrics)

    params = copied(params)  # donation must not take the caller's arrays
    state, history = (params, optimizer.init(params)), []
    for number in range(len(next(iter(order.values())))):
        state, metrics = epoch(state, data, {task: rows[number] for task, rows in order.items()})
        history.append({name: float(value) for name, value in metrics.items()})
        if not np.isfinite(history[-1]["loss"]):
            raise mj.DivergedError(f"The loss is no longer finite in epoch {number + 1}; choose a smaller --rate.")
        if tell:
            tell(number + 1, history[-1])
    return state[0], history


def run_seed(args: argparse.Namespace, speech: Speech, images: Vectors, seed: int) -> dict[str, Any]:
    """Split, quantise, train all models and test them, for one seed."""
    masks = {
        "speech": held_out_people(speech, args.held_out, seed),
        "image": held_out_images(images.label, args.held_out, seed),
    }
    init_key, order_key = jax.random.split(jax.random.key(seed))
    sizes = {task: int(masks[task].sum()) for task in HEADS}
    order = orders(order_key, sizes, args.epochs, args.batch)
    parts = {
        task: tokenise(inputs, masks[task], args.tokens, args.place, seed, what)
        for task, inputs, what in (("speech", speech.inputs, "frames"), ("image", images, "patches"))
    }
    own = {task: tuple(moved(part, TOKENS // 2 * i) for part in parts[task]) for i, task in enumerate(HEADS)}
    fresh = embedding_heads(HEADS, num_tokens=TOKENS, width=WIDTH).init(
        init_key, {task: own[task][0].x for task in HEADS}
    )
    accuracy: dict[str, dict[str, float]] = {name: {} for name in MODELS}
    losses: dict[str, list[dict[str, float]]] = {}
    for name, tasks, data in (
        (MODELS[0], tuple(HEADS), own),
        (MODELS[1], tuple(HEADS), parts),
        *((MODELS[2], (task,), own) for task in HEADS),
    ):
        model = embedding_heads({task: HEADS[task] for task in tasks}, num_tokens=TOKENS, width=WIDTH)
        start = {"shared": fresh["shared"], "heads": {task: fresh["heads"][task] for task in tasks}}
        title = name if len(tasks) > 1 else f"{tasks[0]} alone"
        with tqdm(total=args.epochs, desc=f"seed {seed}: {title}", unit="epoch") as bar:
            tell = partial(_tell, bar, aloud=name == MODELS[0] and seed == args.seed)
            train_data = {task: data[task][0] for task in tasks}
            rows = {task: order[task] for task in tasks}
            params, losses[title] = train(model, start, train_data, rows, rate=args.rate, tell=tell)
        logits = jax.jit(model.apply)(params, {task: data[task][1].x for task in tasks})
        for task in tasks:
            accuracy[name][task] = float((logits[task].argmax(-1) == data[task][1].y).mean())
    return {
        "seed": seed,
        "accuracy": accuracy,
        "losses": losses,
        "train_examples": sizes,
        "test_examples": {task: int((~masks[task]).sum()) for task in HEADS},
        "test_people": len(np.unique(speech.person[~masks["speech"]])),
        "train_people": len(np.unique(speech.person[masks["speech"]])),
    }


def _tell(bar: tqdm, number: int, metrics: dict[str, float], *, aloud: bool) -> None:
    """Move the progress bar on; print the losses, if `aloud`."""
    each = ", ".join(f"{task} {metrics[f'{task}_loss']:.4f}" for task in HEADS if f"{task}_loss" in metrics)
    if aloud:
        bar.write(f"epoch {number:3d}: loss {metrics['loss']:.4f} ({each})", file=sys.stdout)
    bar.set_postfix_str(f"loss {metrics['loss']:.4f}")
    bar.update()


def summarise(runs: list[dict[str, Any]], chance: dict[str, float]) -> dict[str, Any]:
    """Mean accuracies with intervals over test examples, and joint minus single with intervals over seeds."""

    def mean(name: str, task: str) -> dict[str, float]:
        halves = []
        for run in runs:
            n = run["test_examples"][task]
            ends = stats.binomtest(round(n * run["accuracy"][name][task]), n).proportion_ci(method="wilson")
            halves.append((ends.high - ends.low) / 2)
        accuracies = [run["accuracy"][name][task] for run in runs]
        return {"mean": float(np.mean(accuracies)), "ci95": float(np.mean(halves))}

    def transfer(name: str, task: str) -> dict[str, float | None]:
        gain = [run["accuracy"][name][task] - run["accuracy"][MODELS[2]][task] for run in runs]
        return dict(zip(("mean", "ci95"), interval(gain), strict=True))

    return {
        "accuracy": {name: {task: mean(name, task) for task in HEADS} for name in MODELS},
        "transfer": {name: {task: transfer(name, task) for task in HEADS} for name in MODELS[:2]},
        "chance": chance,
    }


def table(results: dict[str, Any]) -> str:
    """Accuracies and gains over the single-task models, in percent, as Markdown."""

    def cell(value: dict[str, float | None], sign: str = "") -> str:
        half = "" if value["ci95"] is None else f" ± {100 * value['ci95']:.1f}"
        return f"{100 * value['mean']:{sign}.1f}{half}"

    rows = []
    for name, by_task in results["accuracy"].items():
        gains = results["transfer"].get(name)
        rows.append((name, *map(cell, by_task.values()), *(cell(gains[t], "+") if gains else "" for t in HEADS)))
    rows.append(("chance", *(f"{100 * value:.1f}" for value in results["chance"].values()), "", ""))
    return report.markdown(("", *HEADS, *(f"{task} gain" for task in HEADS)), rows)


def draw(results: dict[str, Any], left: Any, right: Any) -> None:
    """The training losses of the first seed, and the test accuracies."""
    losses = results["runs"][0]["losses"]
    for task, colour in zip(HEADS, ("C0", "C1"), strict=True):
        # the single-task line lies exactly on the first one: drawn below it, wide and pale
        for name, style in (
            (f"{task} alone", {"linewidth": 6, "alpha": 0.25}),
            (MODELS[0], {}),
            (MODELS[1], {"linestyle": ":", "linewidth": 2}),
        ):
            values = [epoch[f"{task}_loss"] for epoch in losses[name]]
            shown = name if name.startswith(task) else f"{task}, {name}"
            left.plot(range(1, len(values) + 1), values, color=colour, label=shown, **style)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    left.set_title("Training losses, first seed", fontsize=9)
    for i, name in enumerate(MODELS):
        values = [results["accuracy"][name][task] for task in HEADS]
        middle = np.arange(len(HEADS)) + (i - 1) * 0.27
        heights, halves = ([100 * value[field] for value in values] for field in ("mean", "ci95"))
        errors = [halves, [min(half, 100 - height) for half, height in zip(halves, heights, strict=True)]]
        right.bar(middle, heights, 0.25, yerr=errors, capsize=3, label=name)
    for i, value in enumerate(results["chance"].values()):
        right.plot([i - 0.45, i + 0.45], [100 * value] * 2, "--", color="0.3", label="" if i else "chance")
    right.set(ylabel="test accuracy (%)", ylim=(0, 115), yticks=range(0, 101, 20), xticks=range(len(HEADS)))
    right.set_xticklabels(["speech, held-out speakers", "image, held-out images"])
    right.set_title(f"Mean of {len(results['runs'])} seeds, 95 % intervals over test examples", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="upper center", ncol=4)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment; returns what `results.json` holds."""
    began = time.perf_counter()
    cells.check(args, ("plot", "images"), **LEAST)
    if args.tokens > TOKENS // 2:
        raise mj.InputError(f"--tokens is {args.tokens}, expected at most {TOKENS // 2}: half of the table.")
    if not 0 < args.held_out < 1:
        raise mj.InputError(f"--held-out is {args.held_out}, expected a share between 0 and 1.")
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("out", "cache")}
    checkpoint.check_folder(args.out, config, resume=False)
    pictures = digits()
    images = patches(np.asarray(pictures.pixels), np.asarray(pictures.label), args.patch)
    speech = read_speech(args)
    runs = [run_seed(args, speech, images, seed) for seed in range(args.seed, args.seed + args.seeds)]
    chance = {"speech": 1 / len(speech.words), "image": 1 / HEADS["image"]}
    return {
        **summarise(runs, chance),
        "words": speech.words,
        "data": speech.data,
        "images": len(images.label),
        "parameters": TOKENS * WIDTH + sum((WIDTH + 1) * classes for classes in HEADS.values()),
        "runs": runs,
        "config": config,
        "wall_seconds": time.perf_counter() - began,
        **report.environment(),
    }


def show(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the table and what it says, draw the picture."""
    first, corpus = results["runs"][0], results["data"].split(":")[0]
    title = (
        f"One embedding table, two heads: {len(results['words'])} words of {corpus}, speakers: {first['train_people']} "
        f"trained on, {first['test_people']} held out; handwritten digits"
    )
    sizes = "; ".join(
        f"{task}: {first['train_examples'][task]} examples to train on, {first['test_examples'][task]} to test on"
        for task in HEADS
    )
    print(f"\n{title}\n{sizes}.\n\n{table(results)}\n\n{NOTE}")
    with report.picture(args.out / "loss.png", title, 2) as (left, right):
        draw(results, left, right)
    print(f"\nResults and picture are in {args.out}; the whole run took {results['wall_seconds']:.0f} s.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    def work() -> None:
        results = run(args)
        checkpoint.make_folder(args.out)
        checkpoint.write_json(args.out / "config.json", results["config"])
        checkpoint.write_json(args.out / "results.json", results)
        show(args, results)

    return cells.guarded(work, "nothing is kept of it")


if __name__ == "__main__":
    sys.exit(main())
