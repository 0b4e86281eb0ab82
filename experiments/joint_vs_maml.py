"""Learn jointly, learn to adapt, or both?

    python experiments/joint_vs_maml.py

One theta (a speech and an image encoder, a shared trunk, a head for the words of the corpus, one for handwritten digits
and one for the words of an episode) is trained for an equal time in several ways: jointly on words and images; by MAML
on episodes of words; on MAML's loss + w times the joint one, for several w and for one that falls from 1 to 0; jointly
for the first half and by MAML for the second. All then learn the same episodes of words never heard, from people never
heard, next to training from scratch. Jointly trained models are fine-tuned from a fresh head, at an inner rate that
validation chooses, as it does the number of adaptation steps of every arm. How many outer steps the time allows is
measured first and kept in `--out/rates.json`: nothing else should run then. Every training (arm, seed) is a file of its
own under `--out/cells`: stopped at any time, the same command goes on with those that are missing. Ends with tables,
`results.json`, `curve.png` (accuracy by adaptation step) and `weight.png` (accuracy by weight of the joint loss, and
what the joint heads know). With no arguments it takes about 40 minutes on 2 CPU cores.

    python experiments/joint_vs_maml.py --corpus arabic --root DIR
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import check, complete, guarded, measured, rate
from keyword_fewshot import CORPORA, Task, load_task, names_of, sampler
from keyword_fewshot import parse as parse_run
from methods import scorer
from multitask_common import clean, divide, hold_out

import metajax as mj
from metajax import checkpoint, report
from metajax.data import images
from metajax.data.cache import default_folder
from metajax.losses import cross_entropy, multitask_losses
from metajax.models import tcresnet8
from metajax.models.image import image_encoder
from metajax.models.multitask import Multitask, multitask
from metajax.parallel import hoisted, replicate, task_mesh, use_all_cores
from metajax.train import average_of, averaged

BLOCK = 10  # outer steps per compiled call
MEASURED = 6.0  # seconds over which the outer steps per second are measured
# inner rates that fine-tuning and training from scratch choose from; lower than elsewhere, since heads see |z|^2 = 64
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
IMAGES = 32  # per episode, in the joint loss
JOINT_WORDS = 32  # of an episode of joint training; MAML's and the mixtures' have --ways
VALIDATION_EPISODES = 100


class Phase(NamedTuple):
    """A stretch of training: theta descends MAML's loss, the joint one, or MAML's + w times the joint one."""

    kind: str  # "maml", "joint" or "mix"
    share: float  # of the budget
    first: float = 0.0  # w in the beginning
    last: float = 0.0  # w in the end, linearly


def arms(weights: Sequence[float]) -> dict[str, list[Phase]]:
    """What every arm does with its time."""
    return {
        "from scratch": [],
        "joint": [Phase("joint", 1)],
        "maml": [Phase("maml", 1)],
        **{f"mix {weight:g}": [Phase("mix", 1, weight, weight)] for weight in weights},
        "mix 1 to 0": [Phase("mix", 1, 1, 0)],
        "joint, then maml": [Phase("joint", 0.5), Phase("maml", 0.5)],
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare joint training, MAML and their mixtures on new words by new speakers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", choices=CORPORA, default="espeak", help="what to train and test on")
    add("--root", type=Path, help="its folder")
    add("--seeds", type=int, nargs="+", default=(0, 1), help="of splits, parameters and episodes")
    add("--weights", type=float, nargs="+", default=(0.1, 0.3, 1.0, 3.0), help="of the joint loss in the mixtures")
    add("--budget", type=float, default=60.0, help="seconds of training of every arm")
    add("--episodes", type=int, default=1000, help="test episodes")
    add("--ways", type=int, default=5, help="words per episode")
    add("--shots", type=int, default=1, help="support clips per word")
    add("--queries", type=int, default=5, help="query clips per word")
    add("--tasks", type=int, default=4, help="episodes per outer step")
    add("--num-steps", type=int, default=5, help="inner steps while training")
    add("--inner-rate", type=float, default=0.03, help="of MAML and the mixtures, in training and in testing")
    add("--adapt-steps", type=int, default=10, help="adaptation steps when tested")
    add("--outer-rate", type=float, default=2e-3, help="outer learning rate (Adam)")
    add("--width", type=float, default=1.0, help="of TC-ResNet8")
    add("--augment", type=float, default=0.5, help="strength of the augmentation of speech; 0 for none")
    add("--cache", type=Path, default=default_folder(), help="folder of cached features")
    add("--out", type=Path, default=Path("runs/joint_vs_maml"), help="folder of the results")
    return parser.parse_args(argv)


class Cell(NamedTuple):
    """One training."""

    arm: str
    seed: int


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a folder have in common."""
    apart = ("seeds", "weights", "cache", "out")
    return {name: str(value) for name, value in vars(args).items() if name not in apart}


class Bench(NamedTuple):
    """What all arms of a seed share."""

    task: Task
    model: Multitask
    theta: Any  # fresh
    optimizer: optax.GradientTransformation
    blocks: dict[str, Callable[..., Any]]  # by kind: (state, key, (first w, last w, outer steps)) -> state, metrics
    test: Callable[..., np.ndarray]  # (theta, inner rate) -> accuracies [episodes, steps + 1]
    validation: Callable[..., np.ndarray]
    known: Callable[..., Any]  # theta -> losses and accuracies of the joint heads on clips and images held out
    held: int  # those clips


def bench(args: argparse.Namespace, seed: int) -> Bench:
    """Read the data of a seed and set its arms up; nothing is compiled yet."""
    options = parse_run(["--seed", str(seed), "--cache", str(args.cache), "--normalization", "group"])
    for name in ("corpus", "root", "ways", "shots", "queries", "augment", "width"):
        setattr(options, name, getattr(args, name))
    task = load_task(args.corpus, args.root, options)
    train, held, words = hold_out(task.corpus, task.splits.train, args, seed)
    mesh = task_mesh(args.tasks)
    task = task._replace(splits=task.splits._replace(train=train))
    if not task.splits.validation.any():
        raise mj.InputError(f"{args.corpus} has too few words or speakers to validate on, as fine-tuning needs.")
    drawn = images.digits()
    split = divide(drawn.drawer, drawn.label, seed)
    pixels, digit = jnp.asarray(drawn.pixels), jnp.asarray(drawn.label)
    seen = jnp.asarray(split["train"])

    model = multitask(
        {"speech": tcresnet8(None, normalization="group", width=args.width), "image": image_encoder()},
        {"episode": args.ways, "speech": len(words), "image": len(drawn.names)},
        modality={"episode": "speech"},
    )
    losses = multitask_losses(model, normalize=True)

    def joint(theta: Any, episode: mj.Episode, key: jax.Array) -> tuple[jax.Array, mj.core.Metrics]:
        """The sum of both normalised cross-entropies, on all clips of the episode and on images of its own."""
        clips = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), episode.support, episode.query)
        chosen = seen[jax.random.randint(key, (IMAGES,), 0, len(seen))]
        speech, image = mj.Batch(clips.x, clips.y.corpus), mj.Batch(pixels[chosen], digit[chosen])
        values, _, metrics = losses(theta, {"speech": speech, "image": image})
        return values.sum(), {name: metrics[name] for name in ("loss", "speech_accuracy", "image_accuracy")}

    def learner(rate: Any) -> mj.Learner:
        return mj.descent(loss_fn, optax.sgd(rate), split=adapted, join=rejoined)

    loss_fn = cross_entropy(lambda params, x: model.apply(params, {"episode": x})["episode"])
    maml = mj.query_loss(learner(args.inner_rate), args.num_steps)
    wide = {"ways": min(JOINT_WORDS, len(words)), "queries": 1}
    episodes = sampler(task, "train", options, ways=args.ways, training=True)
    samples = {"maml": episodes, "mix": episodes, "joint": sampler(task, "train", options, **wide, training=True)}
    optimizer = averaged(optax.chain(optax.clip_by_global_norm(10.0), optax.adam(args.outer_rate)), 0.99)

    def block(kind: str) -> Callable[..., Any]:
        # per-task weights: one task at a time is fastest on CPU; shared weights: all tasks in one batch
        chunk = None if kind == "joint" or jax.default_backend() != "cpu" else 1

        def steps(state: mj.MetaState, key: jax.Array, ramp: jax.Array) -> Any:
            def step(state: mj.MetaState, key: jax.Array) -> Any:
                first, last, total = ramp
                weight = first + (last - first) * state.count / total
                objective = {"joint": joint, "maml": maml, "mix": mj.mix(maml, joint, weight)}[kind]
                return mj.meta_step(objective, optimizer, samples[kind], args.tasks, chunk=chunk, mesh=mesh)(state, key)

            return jax.lax.scan(step, state, jax.random.split(key, BLOCK))

        return hoisted(steps, donate=(0,))

    x = jnp.zeros_like(jax.eval_shape(episodes, jax.random.key(0)).support.x)
    theta = jax.jit(model.init)(jax.random.key(seed), {"episode": x, "speech": x, "image": pixels[:2]})
    tests = {part: sampler(task, part, options, ways=args.ways) for part in ("test", "validation")}
    clips = clean("speech", task.corpus.features[held])
    place = jnp.asarray(np.searchsorted(words, task.corpus.columns["label"][held]), jnp.int32)
    held_out = {"speech": mj.Batch(clips, place), "image": mj.Batch(pixels[split["test"]], digit[split["test"]])}

    @hoisted
    def known(theta: Any) -> dict[str, jax.Array]:
        metrics = losses(theta, held_out)[2]
        return {f"{task}_{what}": metrics[f"{task}_{what}"] for task in held_out for what in ("accuracy", "loss")}

    return Bench(
        task, model, theta, optimizer, {kind: block(kind) for kind in samples},
        scorer(learner, tests["test"], args.episodes, args.adapt_steps, seed + 1),
        scorer(learner, tests["validation"], VALIDATION_EPISODES, args.adapt_steps, seed + 2),
        lambda theta: known(jax.tree.map(np.asarray, theta)), len(held),
    )  # fmt: skip


def adapted(theta: Any) -> Any:
    """What an episode learns: all that its words go through."""
    return {"encoder": theta["encoders"]["speech"], "shared": theta["shared"], "head": theta["heads"]["episode"]}


def rejoined(theta: Any, params: Any) -> Any:
    """theta with what an episode learned."""
    encoders, heads = ({**theta[name]} for name in ("encoders", "heads"))
    encoders["speech"], heads["episode"] = params["encoder"], params["head"]
    return {"encoders": encoders, "shared": params["shared"], "heads": heads}


def fresh_head(theta: Any) -> Any:
    """theta with a head of zeros for episodes, as fine-tuning starts."""
    return rejoined(theta, adapted(theta) | {"head": jax.tree.map(jnp.zeros_like, theta["heads"]["episode"])})


def begin(args: argparse.Namespace, made: Bench, theta: Any) -> mj.MetaState:
    """The state before the first outer step."""
    return replicate(mj.init_state(jax.tree.map(np.asarray, theta), made.optimizer), task_mesh(args.tasks))


def speeds(args: argparse.Namespace, made: Callable[[int], Bench]) -> dict[str, float]:
    """Outer steps per second of each kind of phase, from `rates.json` or measured now and kept there."""
    kept = measured(args.out / "rates.json", settings(args))
    rates = kept["measured"]
    for kind in sorted({"joint", "maml", "mix"} - set(rates)):
        ready = made(args.seeds[0])
        start, seconds = begin(args, ready, ready.theta), min(MEASURED, args.budget)
        rates[kind] = BLOCK * rate(ready.blocks[kind], start, seconds, jnp.ones(3))
        checkpoint.write_json(args.out / "rates.json", kept)
    return rates


def run(args: argparse.Namespace, cell: Cell, made: Bench, rates: dict[str, float]) -> dict[str, Any]:
    """Train and test one arm."""
    theta, key, phases = made.theta, jax.random.key(1000 + cell.seed), arms(args.weights)[cell.arm]
    losses: list[float] = []
    began = time.perf_counter()
    for phase in phases:
        # what was learned before is a start like any other: the optimiser's sizes are not those of this loss
        state = begin(args, made, fresh_head(theta) if losses else theta)
        blocks = max(1, round(phase.share * args.budget * rates[phase.kind] / BLOCK))
        ramp = jnp.array([phase.first, phase.last, BLOCK * blocks], jnp.float32)
        for _ in range(blocks):
            state, metrics = made.blocks[phase.kind](state, jax.random.fold_in(key, len(losses)), ramp)
            losses.extend(np.asarray(metrics["loss"]).tolist())
        theta = average_of(state)
    wall = time.perf_counter() - began
    rates_tried: tuple[float, ...] = (args.inner_rate,)
    if all(phase.kind == "joint" for phase in phases):  # has never adapted: fine-tuning, or from scratch
        theta, rates_tried = fresh_head(theta) if phases else theta, RATES
    tried = {rate: made.validation(theta, rate).mean(0) for rate in rates_tried}
    rate = max(tried, key=lambda rate: tried[rate].max())
    step = int(tried[rate].argmax())
    accuracy = made.test(theta, rate)
    curve = report.curve(*mj.mean_ci95(accuracy))
    return {
        "accuracy": curve,
        "adapted": curve[step],
        "episodes": [round(float(value), 4) for value in accuracy[:, step]],
        "heads": {name: float(value) for name, value in made.known(theta).items()},
        "inner_rate": rate,
        "outer_steps": len(losses),
        "rejected_steps": int((~np.isfinite(losses)).sum()),
        "wall_seconds": wall,  # of training, whatever else ran
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(theta)),
        "train_words": made.model.heads["speech"],
        "held_clips": made.held,
        "unseen_words": names_of(made.task, "test", "label"),
        "unseen_speakers": names_of(made.task, "test", "speaker"),
    }


def summary(results: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm, means over seeds, with the gain over the better of joint and MAML alone, episode by episode."""
    rows = []
    by_arm = {arm: {cell.seed: result for cell, result in results.items() if cell.arm == arm} for arm, _ in results}
    weights = sorted(float(arm.split()[1]) for arm in by_arm if arm.startswith("mix") and arm != "mix 1 to 0")
    for arm in (arm for arm in arms(weights) if arm in by_arm):
        own = [result for _, result in sorted(by_arm[arm].items())]
        curves = [[*result["accuracy"], result["adapted"]] for result in own]
        mean = np.mean([[point["mean"] for point in points] for points in curves], 0)
        # the interval over episodes, seeds counting as so many more of them
        ci95 = np.linalg.norm([[point["ci95"] for point in points] for points in curves], axis=0) / len(own)
        row: dict[str, Any] = {
            "arm": arm,
            "accuracy": report.curve(mean[:-1], ci95[:-1]),
            "adapted": {"mean": float(mean[-1]), "ci95": float(ci95[-1])},
            "steps": [result["adapted"]["step"] for result in own],
            "seeds": [result["adapted"]["mean"] for result in own],
            "heads": {name: float(np.mean([result["heads"][name] for result in own])) for name in own[0]["heads"]},
            "outer_steps": float(np.mean([result["outer_steps"] for result in own])),
            "inner_rates": [result["inner_rate"] for result in own],
        }
        gains = {}
        for other in ("joint", "maml") if arm not in ("joint", "maml", "from scratch") else ():
            shared = sorted(by_arm[arm].keys() & by_arm.get(other, {}).keys())
            pairs = [np.subtract(by_arm[arm][seed]["episodes"], by_arm[other][seed]["episodes"]) for seed in shared]
            if pairs:
                gain, half = (float(a[0]) for a in mj.mean_ci95(np.concatenate(pairs)[:, None]))
                gains[other] = {"over": other, "mean": gain, "ci95": half}
        rows.append(row | {"gain": min(gains.values(), key=lambda gain: gain["mean"], default=None)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What the joint heads know of held-out clips and images, and what each arm gains over joint and MAML alone."""
    lines = []
    for row in rows:
        known, gain = row["heads"], row["gain"]
        adapted = f"{100 * row['adapted']['mean']:.1f} ± {100 * row['adapted']['ci95']:.1f}"
        steps, rates = (", ".join(map(str, row[name])) for name in ("steps", "inner_rates"))
        cells = [row["arm"], f"{row['outer_steps']:.0f}", adapted, steps, rates]
        for task in ("speech", "image"):
            cells += [f"{100 * known[f'{task}_accuracy']:.1f}", f"{known[f'{task}_loss']:.2f}"]
        lines.append([*cells, f"{100 * gain['mean']:+.1f} ± {100 * gain['ci95']:.1f} ({gain['over']})" if gain else ""])
    header = [
        "arm",
        "outer steps",
        "new words (%)",
        "steps",
        "inner rate",
        "words (%)",
        "words (nats)",
        "digits (%)",
        "digits (nats)",
    ]
    return report.markdown([*header, "gain over the better of joint and maml"], lines)


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy after adaptation, and of the joint heads, from MAML alone over the mixtures to joint training alone."""
    shown = [row for row in rows if row["arm"] != "from scratch"]
    shown.sort(key=lambda row: ("maml", "mix", "joint", "joint,").index(row["arm"].split()[0]))
    with report.picture(path, title) as (axes,):
        mean, ci95 = (np.array([row["adapted"][field] for row in shown]) for field in ("mean", "ci95"))
        axes.errorbar(range(len(shown)), 100 * mean, 100 * ci95, fmt="o", capsize=3, label="new words, adapted")
        for task, what, marker in (("speech", "joint head for words", "s"), ("image", "joint head for digits", "^")):
            known = [100 * row["heads"][f"{task}_accuracy"] for row in shown]
            axes.plot(range(len(shown)), known, marker, label=f"{what}, held out", alpha=0.6)
        axes.set_xticks(range(len(shown)), [row["arm"] for row in shown], rotation=30, ha="right")
        axes.set(ylabel="accuracy (%)", ylim=(0, 100))
        axes.legend(fontsize=8)


def run_all(args: argparse.Namespace) -> None:
    """Every cell that is missing, then the tables and the pictures."""
    least = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, "num_steps": 1, "adapt_steps": 1, "episodes": 2}
    check(args, ("plot", "images"), budget=0.1, outer_rate=0, inner_rate=0, width=0.1, augment=0, **least)
    if len(arms(args.weights)) < len(arms(())) + len(args.weights):
        raise mj.InputError(f"--weights holds a weight twice: {', '.join(f'{w:g}' for w in args.weights)}.")
    for weight in args.weights:
        if not 0 <= weight < float("inf"):
            raise mj.InputError(f"--weights holds {weight}, expected finite numbers, 0 or more.")
    use_all_cores(args.cache / "compiled")
    checkpoint.make_folder(args.out / "cells")
    wanted = [Cell(arm, seed) for seed in args.seeds for arm in arms(args.weights)]
    made = lru_cache(1)(lambda seed: bench(args, seed))
    rates = speeds(args, made)
    done = complete(args.out, settings(args), wanted, lambda cell: run(args, cell, made(cell.seed), rates))
    rows, one = summary(done), done[wanted[0]]
    title = (
        f"{args.corpus}, {args.ways}-way {args.shots}-shot, {args.budget:g} s of training,\n{len(one['unseen_words'])} "
        f"unseen words by {len(one['unseen_speakers'])} unseen speakers, support and query by different speakers,\n"
        f"group normalisation, {args.episodes} episodes of each of {len({cell.seed for cell in done})} seeds, 95 % "
        "intervals over episodes"
    )
    facts = {"normalization": "group", "unseen_words": one["unseen_words"], "unseen_speakers": one["unseen_speakers"]}
    results = {"title": title, "config": settings(args), **facts, "rates": rates, "rows": rows}
    checkpoint.write_json(args.out / "results.json", results | report.environment())
    curves = {row["arm"]: row["accuracy"] for row in rows}
    report.plot_curves(curves, 1 / args.ways, title, args.out / "curve.png")
    plot(rows, title, args.out / "weight.png")
    steps = sorted({0, 1, 2, 3, 5, args.adapt_steps} & set(range(args.adapt_steps + 1)))
    print(f"\n{title}\n\n{report.table(curves, 1 / args.ways, steps)}\n\n{table(rows)}\n\nAll is in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return guarded(lambda: run_all(args))


if __name__ == "__main__":
    sys.exit(main())
