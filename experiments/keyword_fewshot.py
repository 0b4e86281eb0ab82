"""Can a model that was meta-trained on speech learn words it has never heard, from people it has never heard?

    python experiments/keyword_fewshot.py

Meta-trains on the words and speakers of one corpus, then learns episodes of other words by other speakers, and shows
the accuracy after 0, 1, 2, ... adaptation steps next to fine-tuning, to training from scratch on the same support sets,
and to chance. With no arguments it runs on the embedded synthetic corpus, about 4 minutes on 2 CPU cores.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import checkpoint, models, report
from metajax.data.augment import Augmentation, augment, normalize
from metajax.data.cache import default_folder
from metajax.data.corpora import arabic, espeak, fsdd, manifest, speech_commands
from metajax.data.corpus import Corpus, Recordings, load
from metajax.data.features import FeatureSettings
from metajax.losses import cross_entropy
from metajax.models import NORMALIZATIONS, Model
from metajax.parallel import hoisted, replicate, task_mesh, use_all_cores
from metajax.tasks.episodes import ACROSS, episodes, with_inputs, with_reference
from metajax.tasks.splits import Splits, divide

CORPORA = ("espeak", "fsdd", "arabic", "speech_commands", "manifest")
ALGORITHMS = ("maml", "fomaml", "protonet", "joint")
MODELS = {"conv4": models.conv4, "tcresnet8": models.tcresnet8}

# inner learning rates that fine-tuning and training from scratch choose from, on validation episodes
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
BASELINE_STEPS = 20


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; unknown names end with exit code 2 and the list of known ones."""
    parser = argparse.ArgumentParser(
        description="Meta-train on speech, then learn new words by new speakers from a few recordings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--corpus", choices=CORPORA, default="espeak", help="corpus to train on")
    data.add_argument("--root", type=Path, help="its folder, or the manifest file (CSV, TSV or JSON lines)")
    data.add_argument("--eval-corpus", choices=CORPORA, help="corpus to test on, if another")
    data.add_argument("--eval-root", type=Path, help="its folder or manifest")
    data.add_argument("--max-hz", type=float, default=7600.0, help="upper edge of the mel bands; 3800 for 8 kHz audio")
    data.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what to do with unusable clips")
    data.add_argument("--cache", type=Path, default=default_folder(), help="folder of cached features")
    task = parser.add_argument_group("episodes")
    task.add_argument("--ways", type=int, default=5, help="words per episode")
    task.add_argument("--shots", type=int, default=1, help="support clips per word")
    task.add_argument("--queries", type=int, default=5, help="query clips per word")
    task.add_argument(
        "--across",
        choices=ACROSS,
        default="speaker",
        help="speaker: query by other speakers than support; none: speakers ignored; same: one speaker says all",
    )
    learn = parser.add_argument_group("learning")
    learn.add_argument("--algorithm", choices=ALGORITHMS, default="protonet", help="meta-learning algorithm")
    learn.add_argument("--model", choices=tuple(MODELS), default="tcresnet8", help="network")
    learn.add_argument("--width", type=float, default=1.0, help="multiplies the network's channels")
    learn.add_argument("--normalization", choices=NORMALIZATIONS, default="group", help="whose statistics normalise")
    learn.add_argument("--num-steps", type=int, default=5, help="inner steps")
    learn.add_argument("--inner-rate", type=float, default=0.1, help="inner learning rate (SGD)")
    learn.add_argument("--outer-steps", type=int, default=500, help="outer steps")
    learn.add_argument("--outer-rate", type=float, default=2e-3, help="peak outer learning rate (AdamW, cosine)")
    learn.add_argument("--weight-decay", type=float, default=1e-4, help="outer weight decay")
    learn.add_argument("--joint-steps", type=int, default=300, help="outer steps of the joint model that is fine-tuned")
    learn.add_argument("--tasks", type=int, default=4, help="episodes per outer step")
    learn.add_argument(
        "--train-ways", type=int, default=10, help="words per training episode of protonet, if there are as many"
    )
    learn.add_argument("--augment", type=float, default=0.5, help="strength of the augmentation; 0 for none")
    learn.add_argument("--seed", type=int, default=0, help="of everything random")
    learn.add_argument("--episodes", type=int, default=600, help="test episodes")
    learn.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also fine-tune a jointly trained model and train from scratch",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, default=Path("runs/keyword_fewshot"), help="folder for the results")
    out.add_argument("--resume", action="store_true", help="go on with the run in --out")
    return parser.parse_args(argv)


class Task(NamedTuple):
    """A corpus, and which clips of it belong to which split."""

    corpus: Corpus
    splits: Splits


def read_recordings(name: str, root: Path | None, args: argparse.Namespace) -> Recordings:
    """List the clips of a corpus."""
    if name == "espeak":
        if root is not None:
            raise mj.InputError(f"The corpus espeak reads no folder, found {root}; name its corpus by --corpus.")
        return espeak.read(clips_per_label=12)
    if root is None:
        raise mj.InputError(f"The corpus {name} lies in a folder of yours: give it with --root (or --eval-root).")
    if name == "manifest":
        return manifest.read(root, on_error=args.on_error)
    return {"fsdd": fsdd, "arabic": arabic, "speech_commands": speech_commands}[name].read(root)


def load_task(name: str, root: Path | None, args: argparse.Namespace) -> Task:
    """Read a corpus and divide it into splits that share no word and no speaker."""
    recordings = read_recordings(name, root, args)
    corpus = load(recordings, FeatureSettings(high=args.max_hz), cache=args.cache, on_error=args.on_error)
    return Task(corpus, divide(corpus.columns, corpus.names, ways=args.ways, seed=args.seed))


def without_shared(train: Task, test: Task) -> Task:
    """The corpus to train on without the words and speakers, by name, that the other is tested on."""
    keep = np.ones(len(train.corpus.columns["label"]), bool)
    for column, what in (("label", "words"), ("speaker", "speakers")):
        names = test.corpus.names[column]
        tested = {names[i] for i in np.unique(test.corpus.columns[column][test.splits.test]) if i >= 0}
        shared = [i for i, name in enumerate(train.corpus.names[column]) if name in tested]
        if shared:
            shown = ", ".join(train.corpus.names[column][i] for i in shared[:3])
            print(f"{train.corpus.name}: {len(shared)} {what} are tested on and left out of training ({shown}, ...)")
            keep &= ~np.isin(train.corpus.columns[column], shared)
    return train._replace(splits=Splits(*(mask & keep for mask in train.splits)))


def sampler(
    task: Task,
    split: str,
    args: argparse.Namespace,
    *,
    ways: int,
    queries: int | None = None,
    training: bool = False,
) -> mj.core.Sampler:
    """Episodes of one split: clips, augmented for training, normalised clip by clip."""
    columns = task.corpus.columns
    label = np.where(getattr(task.splits, split), columns["label"], -1)
    sample = episodes(
        task.corpus.features,
        label,
        columns["speaker"],
        ways=ways,
        shots=args.shots,
        queries=args.queries if queries is None else queries,
        across=args.across,
        name=f"{task.corpus.name} ({split})",
    )
    change = augment(strength(args.augment)) if training and args.augment else None

    def prepare(x: jax.Array, key: jax.Array) -> jax.Array:
        x = x if change is None else change(x, key)
        return jax.vmap(lambda clip: normalize(clip, "mean_variance"))(x)

    sample = with_inputs(sample, prepare)
    return with_reference(sample) if args.normalization == "support" else sample


def strength(factor: float) -> Augmentation:
    """The default augmentation, stronger or weaker."""
    default = Augmentation()
    return default._replace(
        warp=default.warp * factor,
        stretch=default.stretch * factor,
        shift=round(default.shift * factor),
        gain=default.gain * factor,
        noise=min(1.0, default.noise * factor),
        time_mask=round(default.time_mask * factor),
        frequency_mask=round(default.frequency_mask * factor),
    )


def network(num_outputs: int | None, args: argparse.Namespace) -> Model:
    """The network with a head of `num_outputs`, or its embedding."""
    width = args.width if args.model == "tcresnet8" else round(64 * args.width)
    return MODELS[args.model](num_outputs, normalization=args.normalization, width=width)


def training_ways(args: argparse.Namespace, classes: int) -> int:
    """Words per training episode: more than are tested on make a better metric, but a head has as many as it has."""
    return max(args.ways, min(args.train_ways, classes)) if args.algorithm == "protonet" else args.ways


def build(args: argparse.Namespace, classes: int) -> tuple[Model, mj.Algorithm, mj.Algorithm, int]:
    """The network, the algorithm as trained and as tested, and how many steps it adapts."""
    if args.algorithm == "protonet":
        model = network(None, args)
        return model, mj.protonet(model.apply, training_ways(args, classes)), mj.protonet(model.apply, args.ways), 1
    if args.algorithm == "joint":
        model = network(classes, args)
        algorithm = mj.joint(cross_entropy(model.apply, "corpus"))
        return model, algorithm, algorithm, 0
    model = network(args.ways, args)
    factory = {"maml": mj.maml, "fomaml": mj.fomaml}[args.algorithm]
    algorithm = factory(cross_entropy(model.apply), optax.sgd(args.inner_rate), args.num_steps)
    return model, algorithm, algorithm, args.num_steps


def outer_optimizer(args: argparse.Namespace, outer_steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping."""
    warmup = min(50, outer_steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, args.outer_rate, warmup, max(outer_steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=args.weight_decay))


def scorer(learner: mj.Learner, sample: mj.core.Sampler, num_tasks: int, num_steps: int) -> Callable[..., np.ndarray]:
    """Compiled `(theta, key) -> query accuracy [num_tasks, num_steps + 1]`, the tasks spread over the devices."""
    mesh = task_mesh(num_tasks)
    run = hoisted(lambda theta, key: mj.evaluate(learner, theta, sample, key, num_tasks, num_steps, mesh=mesh))
    return lambda theta, key: np.asarray(run(replicate(theta, mesh), key)["accuracy"])


def train(
    args: argparse.Namespace,
    model: Model,
    algorithm: mj.Algorithm,
    sample: mj.core.Sampler,
    score: Callable[[Any], float] | None,
    key: jax.Array,
    folder: Path,
    title: str,
    outer_steps: int,
) -> mj.Fit:
    """Meta-train a fresh network, or go on where `folder` left off."""
    init_key, fit_key = jax.random.split(key)
    shapes = jax.eval_shape(sample, key).support.x
    theta = algorithm.learner.init(jax.jit(model.init)(init_key, jnp.zeros(shapes.shape, shapes.dtype)))
    mesh = task_mesh(args.tasks)
    optimizer = outer_optimizer(args, outer_steps)
    # per-task weights: one task at a time is fastest on CPU; shared weights: all tasks in one batch
    chunk = 1 if title in ("maml", "fomaml") and jax.default_backend() == "cpu" else None
    step = mj.meta_step(algorithm.objective, optimizer, sample, args.tasks, chunk=chunk, mesh=mesh)
    state = replicate(mj.init_state(theta, optimizer), mesh)
    resume = args.resume and checkpoint.exists(folder / "last")
    if args.resume and not resume:  # stopped before its first checkpoint
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        checkpoint.remove(folder / "best")
    print(f"{title}: {sum(leaf.size for leaf in jax.tree.leaves(theta)):,} parameters, {outer_steps} outer steps")
    return mj.fit(
        step,
        state,
        fit_key,
        outer_steps,
        num_tasks=args.tasks,
        block=25,
        validate=score,
        validate_every=100,
        folder=folder,
        resume=resume,
        title=title,
    )


def graft(theta: Any, fresh: Any) -> Any:
    """A jointly trained network with a fresh head, its bias and weights zero, for fine-tuning on new words."""
    return theta | {"head": jax.tree.map(jnp.zeros_like, fresh["head"])}


def baseline(
    args: argparse.Namespace, validation: mj.core.Sampler | None, test: mj.core.Sampler
) -> Callable[[Any], tuple[np.ndarray, float]]:
    """Gradient descent on the support set: theta -> test accuracy by step, and the rate that validation chose."""
    loss_fn = cross_entropy(network(args.ways, args).apply)

    def compiled(sample: mj.core.Sampler, num_tasks: int, seed: int) -> Callable[[Any, float], np.ndarray]:
        def accuracy(theta: Any, rate: jax.Array) -> jax.Array:
            learner = mj.descent(loss_fn, optax.sgd(rate))
            key = jax.random.key(seed)
            return mj.evaluate(learner, theta, sample, key, num_tasks, BASELINE_STEPS, mesh=mesh)["accuracy"]

        mesh = task_mesh(num_tasks)
        run = hoisted(accuracy)
        return lambda theta, rate: np.asarray(run(replicate(theta, mesh), jnp.float32(rate)))

    on_test = compiled(test, args.episodes, args.seed + 1)
    on_validation = compiled(validation, 40, args.seed + 2) if validation is not None else None

    def measure(theta: Any) -> tuple[np.ndarray, float]:
        rate = RATES[1]
        if on_validation is not None:
            rate = max(RATES, key=lambda rate: float(on_validation(theta, rate)[:, -1].mean()))
        return on_test(theta, rate), rate

    return measure


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments that bear on the results."""
    values = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "cache")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def check_out(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Refuse to overwrite a run, or to resume another one."""
    path = args.out / "config.json"
    if path.exists():
        if not args.resume:
            raise mj.InputError(f"{args.out} already holds a run; choose another --out, or go on with it by --resume.")
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise mj.InputError(f"{path} is damaged: {error}.") from error
        for name in sorted(config.keys() | old.keys()):
            if config.get(name) != old.get(name):
                raise mj.InputError(
                    f"--resume: {name} is {config.get(name)!r} now but {old.get(name)!r} in {path}, expected the same."
                )
    elif args.resume:
        raise mj.InputError(f"--resume: {args.out} holds no run to go on with.")
    elif args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise mj.InputError(f"{args.out} exists and is not an empty folder; choose another --out.")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment; returns what `results.json` holds."""
    for name, least in (
        ("num_steps", 1),
        ("outer_steps", 1),
        ("joint_steps", 1),
        ("tasks", 1),
        ("episodes", 2),
        ("seed", 0),
    ):
        if getattr(args, name) < least:
            raise mj.InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}.")
    for name in ("width", "inner_rate", "outer_rate", "weight_decay", "augment", "max_hz"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise mj.InputError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}, expected a finite number, 0 or more."
            )
    if find_spec("matplotlib") is None:
        raise mj.InputError("matplotlib is not installed; install it with: pip install 'metajax[plot]'")
    config = settings(args)
    check_out(args, config)
    key = jax.random.key(args.seed)
    source = load_task(args.corpus, args.root, args)
    target = source
    if args.eval_corpus not in (None, args.corpus) or args.eval_root not in (None, args.root):
        target = load_task(args.eval_corpus or args.corpus, args.eval_root, args)
    if target is not source:
        source = without_shared(source, target)

    classes = len(np.unique(source.corpus.columns["label"][source.splits.train]))
    many = (
        {"ways": min(32, classes), "queries": 1}
        if args.algorithm == "joint"
        else {"ways": training_ways(args, classes)}
    )
    training = sampler(source, "train", args, **many, training=True)
    validation = sampler(source, "validation", args, ways=args.ways) if source.splits.validation.any() else None
    test = sampler(target, "test", args, ways=args.ways)
    model, algorithm, tested, num_steps = build(args, classes)
    # shapes alone find what settings do not fit, before anything is written
    support = jax.eval_shape(training, key).support.x
    jax.eval_shape(model.init, key, support)
    jax.eval_shape(validation or test, key)
    checkpoint.make_folder(args.out)
    checkpoint.write_json(args.out / "config.json", config)

    score: Callable[[Any], float] | None = None
    if validation is not None and args.algorithm != "joint":
        accuracies = scorer(tested.learner, validation, 200, num_steps)

        def score(theta: Any) -> float:
            return float(accuracies(theta, jax.random.key(args.seed + 2))[:, -1].mean())

    began = time.perf_counter()
    fitted = train(args, model, algorithm, training, score, key, args.out, args.algorithm, args.outer_steps)
    seconds = time.perf_counter() - began
    checkpoint.save(args.out / "theta", fitted.theta)

    print(f"testing {args.algorithm}", flush=True)
    curves: dict[str, report.Curve] = {}
    fresh_key = jax.random.fold_in(key, 1)
    shape = jax.eval_shape(test, key).support.x
    fresh = jax.jit(network(args.ways, args).init)(fresh_key, jnp.zeros(shape.shape, shape.dtype))
    adapt_ms = None
    if args.algorithm != "joint":
        accuracy = scorer(tested.learner, test, args.episodes, num_steps)(fitted.theta, jax.random.key(args.seed + 1))
        curves[args.algorithm] = report.curve(*mj.mean_ci95(accuracy))
        adapt_ms = time_adaptation(tested.learner, fitted.theta, test, num_steps)
    baselines: dict[str, Any] = {"chance": 1 / args.ways}
    if args.baselines or args.algorithm == "joint":
        joint_theta = fitted.theta
        if args.algorithm != "joint":
            # one query of each of many words: a varied batch, which joint training needs
            varied = sampler(source, "train", args, ways=min(32, classes), queries=1, training=True)
            wide = network(classes, args)
            joint = mj.joint(cross_entropy(wide.apply, "corpus"))
            folder = args.out / "joint"
            joint_theta = train(args, wide, joint, varied, None, key, folder, "joint", args.joint_steps).theta
        print("testing fine-tuning and training from scratch", flush=True)
        measure = baseline(args, validation, test)
        for name, start in (("fine-tuning", graft(joint_theta, fresh)), ("from scratch", fresh)):
            accuracy, rate = measure(start)
            curves[name] = report.curve(*mj.mean_ci95(accuracy))
            baselines[name] = {"accuracy": curves[name], "inner_rate": rate}

    main = curves[args.algorithm if args.algorithm != "joint" else "fine-tuning"]
    columns, mask = target.corpus.columns, target.splits.test
    heard = source.corpus.columns["speaker"][source.splits.train]
    results = {
        "accuracy": main,
        "algorithm": args.algorithm,
        "baselines": baselines,
        "corpus": source.corpus.name,
        "eval_corpus": target.corpus.name,
        "ways": args.ways,
        "shots": args.shots,
        "queries": args.queries,
        "across": args.across,
        "normalization": args.normalization,
        "unseen_words": [target.corpus.names["label"][i] for i in np.unique(columns["label"][mask])],
        "unseen_speakers": [target.corpus.names["speaker"][i] for i in np.unique(columns["speaker"][mask]) if i >= 0],
        "train_words": classes,
        "train_speakers": len(np.unique(heard[heard >= 0])),
        "skipped_clips": list(source.corpus.skipped) + ([] if target is source else list(target.corpus.skipped)),
        "episodes": args.episodes,
        "seed": args.seed,
        "config": config,
        "device": describe_device(),
        "versions": {name: version(name) for name in ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")}
        | {"python": platform.python_version()},
        "seconds": fitted.seconds,
        "wall_seconds": seconds,
        "tasks_per_second": args.tasks * max(args.outer_steps - 1, 0) / fitted.seconds if fitted.seconds else None,
        "outer_steps_per_second": (args.outer_steps - 1) / fitted.seconds if fitted.seconds else None,
        "first_step_seconds": fitted.first_step_seconds,
        "validation": fitted.validation,
        "adapt_ms": adapt_ms,
    }
    checkpoint.write_json(args.out / "results.json", results)
    show(args, results, curves)
    return results


def time_adaptation(learner: mj.Learner, theta: Any, sample: mj.core.Sampler, num_steps: int) -> float:
    """Median milliseconds to learn one task, compiled."""
    support = jax.jit(sample)(jax.random.key(0)).support
    run = jax.jit(lambda theta, support, key: mj.adapt(learner, theta, support, key, num_steps)[0])
    theta = jax.device_put(jax.tree.map(np.asarray, theta), jax.devices()[0])
    times = []
    for i in range(22):
        start = time.perf_counter()
        jax.block_until_ready(run(theta, support, jax.random.key(i)))
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[2:]))


def describe_device() -> str:
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({device.platform}), {platform.machine()}"


def show(args: argparse.Namespace, results: dict[str, Any], curves: dict[str, report.Curve]) -> None:
    """Print the table, draw the picture."""
    who = {
        "speaker": "support and query by different speakers",
        "none": "speakers ignored",
        "same": "one speaker per episode",
    }
    words, speakers = len(results["unseen_words"]), len(results["unseen_speakers"])
    trained = f"trained on {results['corpus']}, tested on {results['eval_corpus']}"
    title = (
        f"{args.ways}-way {args.shots}-shot, {trained}: {words} unseen words, {speakers} unseen speakers,\n"
        f"{who[args.across]}, {args.normalization} normalisation,\n{args.episodes} episodes, 95 % intervals"
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
    try:
        use_all_cores(args.cache / "compiled")
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *rest, **more: print(f"note: {message}", file=sys.stderr)
            run(args)
    except mj.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except mj.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; to go on, give the same command again with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
