"""Can a model that was meta-trained on speech learn words it has never heard, from people it has never heard?

    python experiments/keyword_fewshot.py

Meta-trains on the words and speakers of one corpus, then learns episodes of other words by other speakers, and shows
the accuracy after 0, 1, 2, ... adaptation steps next to fine-tuning, to training from scratch on the same support sets,
and to chance. With no arguments it runs on the embedded synthetic corpus, about 4 minutes on 2 CPU cores.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cells
import jax
import jax.numpy as jnp
import numpy as np
import optax
from methods import METHODS, Built, build, chunk_of, graft, scorer

import metajax as mj
from metajax import checkpoint, models, report
from metajax.data.augment import augment, normalize, scaled
from metajax.data.cache import default_folder
from metajax.data.corpora import arabic, espeak, fsdd, manifest, speech_commands
from metajax.data.corpus import Corpus, Recordings, fingerprint, load, read_noise
from metajax.data.features import FeatureSettings
from metajax.evaluate import adaptation_ms
from metajax.losses import cross_entropy
from metajax.models import FORMULATIONS, NORMALIZATIONS, Model
from metajax.parallel import replicate, task_mesh, use_all_cores
from metajax.tasks.episodes import ACROSS, episodes, mixture, with_inputs, with_reference
from metajax.tasks.splits import Splits, divide, without_tested
from metajax.train import averaged

READERS = {"fsdd": fsdd.read, "arabic": arabic.read, "speech_commands": speech_commands.read}
NOISE = {"arabic": arabic.noise_files, "speech_commands": speech_commands.noise_files}
CORPORA = ("espeak", *READERS, "manifest")
MODELS = {"conv4": models.conv4, "tcresnet8": models.tcresnet8}

# inner learning rates that fine-tuning and training from scratch choose from, on validation episodes
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
BASELINE_STEPS = 20
LEAST = {"outer_steps": 1, "joint_steps": 1, "num_steps": 1, "tasks": 1, "episodes": 2}  # of all other numbers 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; unknown names end with exit code 2 and the list of known ones."""
    parser = argparse.ArgumentParser(
        description="Meta-train on speech, then learn new words by new speakers from a few recordings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add("--corpus", choices=CORPORA, default="espeak", help="corpus to train on")
    add("--root", type=Path, help="its folder, or the manifest file (CSV, TSV or JSON lines)")
    add("--eval-corpus", choices=CORPORA, help="corpus to test on, if another")
    add("--eval-root", type=Path, help="its folder or manifest")
    add("--also", choices=CORPORA, help="another corpus, whose words are trained on in a share of the episodes")
    add("--also-root", type=Path, help="its folder or manifest")
    add("--also-share", type=float, default=0.65, help="that share of the training episodes")
    add("--max-hz", type=float, default=7600.0, help="upper edge of the mel bands; 3800 for 8 kHz audio")
    add("--on-error", choices=("raise", "skip"), default="raise", help="what to do with unusable clips")
    add("--cache", type=Path, default=default_folder(), help="folder of cached features")
    add = parser.add_argument_group("episodes").add_argument
    add("--ways", type=int, default=5, help="words per episode")
    add("--shots", type=int, default=1, help="support clips per word")
    add("--queries", type=int, default=5, help="query clips per word")
    add("--test-queries", type=int, help="query clips per word of a test episode, if others")
    who = "speaker: query by other speakers than support; none: speakers ignored; same: one speaker says all"
    add("--across", choices=ACROSS, default="speaker", help=who)
    add = parser.add_argument_group("learning").add_argument
    add("--algorithm", choices=tuple(METHODS), default="protonet", help="meta-learning algorithm")
    add("--model", choices=tuple(MODELS), default="tcresnet8", help="network")
    add("--width", type=float, default=1.0, help="multiplies the network's channels")
    add("--normalization", choices=NORMALIZATIONS, default="group", help="whose statistics normalise")
    add("--convolution", choices=FORMULATIONS, default="auto", help="how convolutions are computed: speed alone")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is for GPU and TPU")
    add("--num-steps", type=int, default=5, help="inner steps")
    add("--inner-rate", type=float, help="inner learning rate (SGD), if not the algorithm's own")
    add("--outer-steps", type=int, default=500, help="outer steps")
    add("--outer-rate", type=float, default=2e-3, help="peak outer learning rate (AdamW, cosine)")
    add("--weight-decay", type=float, default=1e-4, help="outer weight decay")
    add("--average", type=float, default=0.0, help="decay of theta's moving average, which is tested; 0 for none")
    add("--joint-steps", type=int, default=300, help="outer steps of the joint model that is fine-tuned")
    add("--tasks", type=int, default=4, help="episodes per outer step")
    add("--train-ways", type=int, default=10, help="words per training episode of metric methods")
    add("--augment", type=float, default=0.5, help="strength of the augmentation; 0 for none")
    add("--noise", choices=("coloured", "recorded"), default="coloured", help="drawn, or the corpus's own recordings")
    add("--seed", type=int, default=0, help="of everything random")
    add("--episodes", type=int, default=600, help="test episodes")
    compared = "also fine-tune a jointly trained model and train from scratch"
    add("--baselines", action=argparse.BooleanOptionalAction, default=True, help=compared)
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, default=Path("runs/keyword_fewshot"), help="folder for the results")
    add("--resume", action="store_true", help="go on with the run in --out")
    return parser.parse_args(argv)


class Task(NamedTuple):
    """A corpus, and which clips of it belong to which split."""

    corpus: Corpus
    splits: Splits
    noise: jax.Array | None = None  # log-mel of the corpus's recordings of noise
    data: str = ""  # counts and a digest


def read_recordings(name: str, root: Path | None, args: argparse.Namespace) -> Recordings:
    """List the clips of a corpus."""
    if name == "espeak":
        if root is None:
            return espeak.read(clips_per_label=12)
        raise mj.InputError(f"The corpus espeak reads no folder, found {root}; name its corpus by --corpus.")
    if root is None:
        raise mj.InputError(f"The corpus {name} lies in a folder of yours: give it with --root (or --eval-root).")
    return manifest.read(root, on_error=args.on_error) if name == "manifest" else READERS[name](root)


def load_task(name: str, root: Path | None, args: argparse.Namespace) -> Task:
    """Read a corpus and divide it into splits that share no word and no speaker."""
    recordings = read_recordings(name, root, args)
    recordings = recordings._replace(digest=cache(recordings.digest))  # it reads all files, and is asked for twice
    features = FeatureSettings(high=args.max_hz)
    corpus = load(recordings, features, cache=args.cache, on_error=args.on_error)
    print("".join(f"skipped: {sentence}\n" for sentence in corpus.skipped), end="", file=sys.stderr)
    noise = None
    if args.noise == "recorded" and args.augment and name == args.corpus:
        noise = read_noise(NOISE[name](root) if name in NOISE and root else [], features, args.on_error)
    splits = divide(corpus.columns, corpus.names, ways=args.ways, seed=args.seed)
    frames = "" if noise is None else f", {len(noise)} frames of noise"
    return Task(corpus, splits, noise, fingerprint(recordings, corpus) + frames)


def names_of(task: Task, split: str, column: str) -> list[str]:
    """The words ("label") or speakers of a split."""
    values = task.corpus.columns[column][getattr(task.splits, split)]
    return [task.corpus.names[column][i] for i in np.unique(values) if i >= 0]


def load_tasks(args: argparse.Namespace) -> tuple[Task, Task, Task | None]:
    """What to train on, to test on and to train on also, without a tested word or speaker, by name, in training."""
    source = load_task(args.corpus, args.root, args)
    same = args.eval_corpus in (None, args.corpus) and args.eval_root in (None, args.root)
    target = source if same else load_task(args.eval_corpus or args.corpus, args.eval_root, args)
    also = load_task(args.also, args.also_root, args) if args.also else None
    tested = {column: set(names_of(target, "test", column)) for column in ("label", "speaker")}

    def unseen(task: Task) -> Task:
        return task._replace(splits=without_tested(task.splits, task.corpus.columns, task.corpus.names, tested))

    return source if same else unseen(source), target, also and unseen(also)


def sampler(
    task: Task, split: str, args: argparse.Namespace, *, ways: int, queries: int | None = None, training: bool = False
) -> mj.core.Sampler:
    """Episodes of one split: clips, augmented for training, normalised clip by clip."""
    columns, name = task.corpus.columns, f"{task.corpus.name} ({split})"
    label = np.where(getattr(task.splits, split), columns["label"], -1)
    sizes = {"ways": ways, "shots": args.shots, "queries": args.queries if queries is None else queries}
    sample = episodes(task.corpus.features, label, columns["speaker"], **sizes, across=args.across, name=name)
    change = augment(scaled(args.augment), task.noise) if training and args.augment else None

    def prepare(x: jax.Array, key: jax.Array) -> jax.Array:
        x = x if change is None else change(x, key)
        return jax.vmap(lambda clip: normalize(clip, "mean_variance"))(x)

    sample = with_inputs(sample, prepare)
    return with_reference(sample) if args.normalization == "support" else sample


def network(num_outputs: int | None, args: argparse.Namespace) -> Model:
    """The network with a head of `num_outputs`, or its embedding."""
    width = args.width if args.model == "tcresnet8" else round(64 * args.width)
    options = {"normalization": args.normalization, "width": width, "convolution": args.convolution}
    model = MODELS[args.model](num_outputs, **options)
    return models.in_bfloat16(model) if args.precision == "bfloat16" else model


def built(args: argparse.Namespace, sample: mj.core.Sampler, classes: int) -> Built:
    """The algorithm on the network, as trained and as tested."""
    x = jax.eval_shape(sample, jax.random.key(0)).support.x
    options = {name: getattr(args, name) for name in ("ways", "train_ways", "num_steps")}
    return build(
        METHODS[args.algorithm], lambda n: network(n, args), x, classes=classes, rate=args.inner_rate, **options
    )


def initial(model: Model, sample: mj.core.Sampler, key: jax.Array) -> Any:
    """Fresh parameters of a network for the inputs of `sample`."""
    return jax.jit(model.init)(key, jnp.zeros_like(jax.eval_shape(sample, key).support.x))


def outer_optimizer(args: argparse.Namespace, outer_steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping."""
    warmup = min(50, outer_steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, args.outer_rate, warmup, max(outer_steps, warmup + 1))
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=args.weight_decay))
    return averaged(optimizer, args.average) if args.average else optimizer


def train(
    args: argparse.Namespace, model: Model, learner: mj.Learner, phases: list[tuple[float, mj.core.Objective]],
    sample: mj.core.Sampler, score: Callable[..., np.ndarray] | None, key: jax.Array, folder: Path, title: str,
    outer_steps: int,
) -> mj.Fit:  # fmt: skip
    """Meta-train a fresh network, or go on where `folder` left off; `score` gives validation accuracies."""
    init_key, fit_key = jax.random.split(key)
    theta = learner.init(initial(model, sample, init_key))
    mesh = task_mesh(args.tasks)
    optimizer = outer_optimizer(args, outer_steps)
    chunk = chunk_of(METHODS[title])
    steps = [
        (share, mj.meta_step(objective, optimizer, sample, args.tasks, chunk=chunk, mesh=mesh))
        for share, objective in phases
    ]
    state = replicate(mj.init_state(theta, optimizer), mesh)
    resume = args.resume and checkpoint.exists(folder / "last")
    if args.resume and not resume:  # stopped before its first checkpoint
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        checkpoint.remove(folder / "best")
    print(f"{title}: {sum(leaf.size for leaf in jax.tree.leaves(theta)):,} parameters, {outer_steps} outer steps")
    validate = score and (lambda theta: float(score(theta)[:, -1].mean()))
    options = {"num_tasks": args.tasks, "block": 25, "validate": validate, "validate_every": 100}
    step = mj.in_phases(steps, outer_steps)
    return mj.fit(step, state, fit_key, outer_steps, **options, folder=folder, resume=resume, title=title)


def baseline(
    args: argparse.Namespace, validation: mj.core.Sampler | None, test: mj.core.Sampler
) -> Callable[[Any], tuple[np.ndarray, float]]:
    """Gradient descent on the support set: theta -> test accuracy by step, and the rate that validation chose."""
    loss_fn = cross_entropy(network(args.ways, args).apply)

    def accuracy(sample: mj.core.Sampler, num_tasks: int, seed: int) -> Callable[..., np.ndarray]:
        return scorer(lambda rate: mj.descent(loss_fn, optax.sgd(rate)), sample, num_tasks, BASELINE_STEPS, seed)

    on_test = accuracy(test, args.episodes, args.seed + 1)
    on_validation = accuracy(validation, 40, args.seed + 2) if validation is not None else None

    def measure(theta: Any) -> tuple[np.ndarray, float]:
        choose = on_validation and (lambda rate: float(on_validation(theta, rate)[:, -1].mean()))
        rate = max(RATES, key=choose) if choose else RATES[1]
        return on_test(theta, rate), rate

    return measure


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments that bear on the results."""
    values = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "cache")}
    if args.test_queries is None:
        values["test_queries"] = args.queries
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment; returns what `results.json` holds."""
    numbers = [name for name, value in vars(args).items() if isinstance(value, int | float)]
    cells.check(args, ("plot",), **{name: LEAST.get(name, 0) for name in numbers})
    outer_optimizer(args, args.outer_steps)  # refuses a decay that is none
    if args.also is None and args.also_root is not None:
        raise mj.InputError(f"--also-root is {args.also_root}, but no --also says which corpus that is.")
    config = settings(args)
    checkpoint.check_folder(args.out, config, resume=args.resume)
    key = jax.random.key(args.seed)
    source, target, also = load_tasks(args)
    config |= {"data": source.data, "eval_data": target.data, "also_data": also and also.data}
    checkpoint.check_folder(args.out, config, resume=args.resume)
    classes = len(names_of(source, "train", "label"))
    validation = sampler(source, "validation", args, ways=args.ways) if source.splits.validation.any() else None
    test = sampler(target, "test", args, ways=args.ways, queries=args.test_queries)
    method, (model, algorithm, tested, num_steps, train_ways, phases) = (
        METHODS[args.algorithm],
        built(args, test, classes),
    )
    # joint training needs a varied batch: one query of each of many words
    varied = sampler(source, "train", args, ways=min(32, classes), queries=1, training=True)
    sample = varied if method.kind == "joint" else sampler(source, "train", args, ways=train_ways, training=True)
    if also is not None:
        also = also._replace(noise=source.noise)
        if method.kind == "joint":
            raise mj.InputError(f"--also: {args.algorithm} has one head for one corpus; use it without --also.")
        other = sampler(also, "train", args, ways=train_ways, training=True)
        sample = mixture(sample, other, args.also_share)
    solo = args.algorithm == "joint"  # learns no task by itself: it is fine-tuned
    # shapes alone find what settings do not fit, before anything is written
    jax.eval_shape(lambda key: initial(model, sample, key), key)
    jax.eval_shape(validation or test, key)
    checkpoint.make_folder(args.out)
    checkpoint.write_json(args.out / "config.json", config)

    score = None
    if validation and not solo:
        score = scorer(lambda _: tested.learner, validation, 200, num_steps, args.seed + 2)
    began = time.perf_counter()
    named = (args.out, args.algorithm, args.outer_steps)
    fitted = train(args, model, algorithm.learner, phases, sample, score, key, *named)
    seconds = time.perf_counter() - began
    checkpoint.save(args.out / "theta", fitted.theta)

    print(f"testing {args.algorithm}", flush=True)
    fresh = initial(network(args.ways, args), test, jax.random.fold_in(key, 1))
    curves, adapt_ms = {}, None
    if not solo:
        accuracy = scorer(lambda _: tested.learner, test, args.episodes, num_steps, args.seed + 1)(fitted.theta)
        curves[args.algorithm] = report.curve(*mj.mean_ci95(accuracy))
        adapt_ms = adaptation_ms(tested.learner, fitted.theta, test, num_steps)
    baselines: dict[str, Any] = {"chance": 1 / args.ways}
    if args.baselines or solo:
        joint_theta = fitted.theta
        if not solo:
            wide = network(classes, args)
            joint = mj.joint(cross_entropy(wide.apply, "corpus"))
            named = (args.out / "joint", "joint", args.joint_steps)
            fit = train(args, wide, joint.learner, [(1.0, joint.objective)], varied, None, key, *named)
            joint_theta = fit.theta
        print("testing fine-tuning and training from scratch", flush=True)
        measure = baseline(args, validation, test)
        for name, start in (("fine-tuning", graft(joint_theta, fresh)), ("from scratch", fresh)):
            accuracy, rate = measure(start)
            curves[name] = report.curve(*mj.mean_ci95(accuracy))
            baselines[name] = {"accuracy": curves[name], "inner_rate": rate}

    results = {
        "accuracy": curves["fine-tuning" if solo else args.algorithm],
        "algorithm": args.algorithm,
        "baselines": baselines,
        "corpus": source.corpus.name,
        "eval_corpus": target.corpus.name,
        "also": also and also.corpus.name,
        **{
            name: config[name]
            for name in ("ways", "shots", "queries", "test_queries", "across", "normalization", "episodes", "seed")
        },
        "unseen_words": names_of(target, "test", "label"),
        "unseen_speakers": names_of(target, "test", "speaker"),
        "train_words": classes,
        "train_speakers": len(names_of(source, "train", "speaker")),
        "also_words": len(names_of(also, "train", "label")) if also else 0,
        "also_speakers": len(names_of(also, "train", "speaker")) if also else 0,
        "skipped_clips": [
            s for task in {id(t): t for t in (source, target, also) if t}.values() for s in task.corpus.skipped
        ],
        "config": config,
        **report.environment(),
        "wall_seconds": seconds,
        "tasks_per_second": args.tasks * max(args.outer_steps - 1, 0) / fitted.seconds if fitted.seconds else None,
        "outer_steps_per_second": (args.outer_steps - 1) / fitted.seconds if fitted.seconds else None,
        **{name: getattr(fitted, name) for name in ("seconds", "first_step_seconds", "validation")},
        "adapt_ms": adapt_ms,
    }
    checkpoint.write_json(args.out / "results.json", results)
    show(args, results, curves)
    return results


def show(args: argparse.Namespace, results: dict[str, Any], curves: dict[str, report.Curve]) -> None:
    """Print the table, draw the picture."""
    who = {"speaker": "support and query by different speakers", "same": "one speaker per episode"}
    trained = " and ".join(filter(None, (results["corpus"], results["also"])))
    title = (
        f"{args.ways}-way {args.shots}-shot, trained on {trained}, tested on {results['eval_corpus']}: "
        f"{len(results['unseen_words'])} unseen words, {len(results['unseen_speakers'])} unseen speakers,\n"
        f"{who.get(args.across, 'speakers ignored')}, {args.normalization} normalisation,\n"
        f"{args.episodes} episodes, 95 % intervals"
    )
    last = max(point["step"] for points in curves.values() for point in points)
    steps = sorted({0, 1, 2, 3, args.num_steps, 10, last} & set(range(last + 1)))
    rates = [f"{name} {entry['inner_rate']}" for name, entry in results["baselines"].items() if name != "chance"]
    print(f"\n{title}\n\n{report.table(curves, 1 / args.ways, steps)}\n")
    if rates:
        print(f"Inner learning rates chosen on validation episodes: {', '.join(rates)}.")
    if results["adapt_ms"] is not None:
        print(f"One adaptation takes {results['adapt_ms']:.1f} ms on {results['device']}.")
    report.plot_curves(curves, 1 / args.ways, title, args.out / "curve.png")
    print(f"Results, picture and trained theta are in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    def work() -> None:
        use_all_cores(args.cache / "compiled")
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *rest, **more: print(f"note: {message}", file=sys.stderr)
            run(args)

    return cells.guarded(work, "to go on, give the same command again with --resume")


if __name__ == "__main__":
    sys.exit(main())
