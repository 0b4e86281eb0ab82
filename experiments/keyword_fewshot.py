"""Can a model that was meta-trained on speech learn words it has never heard, from people it has never heard?

    python experiments/keyword_fewshot.py
    python experiments/keyword_fewshot.py --corpus manifest --root clips.csv --out runs/mine
    python experiments/keyword_fewshot.py --theta runs/mine --corpus fsdd --root DIR --out runs/there

Trains MAML with learned curvature, ProtoNet and a joint model for about equal times, then lets each learn episodes of
other words by other speakers, and shows the accuracy after 0, 1, 2, ... adaptation steps: Meta-Curvature and the
fine-tuned joint model by gradient steps, ProtoNet in one, and a network that was never trained. Validation chooses the
rate of each. With `--theta RUN` nothing is trained: the theta of an earlier run is tested, on any corpus, or trained on
from there with `--outer-steps` or `--seconds`. Without arguments: embedded synthetic speech, 5 minutes on 2 CPU cores.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

import metajax as mj
from metajax import checkpoint, methods, models, recipes, report, runs
from metajax.core import Sampler, Theta
from metajax.data import words
from metajax.data.cache import default_folder
from metajax.data.features import FeatureSettings
from metajax.evaluate import adaptation_ms
from metajax.parallel import run_once, use_all_cores
from metajax.tasks.episodes import SHARING, Across, mixture

Corpus = Literal["espeak", "fsdd", "arabic", "speech_commands", "manifest"]
STEPS = 10  # adaptation steps at test
# outer steps for about equal times, 20 to 25 s each on 2 CPU cores; outer rates: see experiments/results/synthetic.md
RECIPES = {"meta_curvature": (170, 2e-3), "maml": (240, 2e-3), "protonet": (360, 2e-3), "joint": (560, 1e-2)}


@dataclass(frozen=True)
class Settings:
    corpus: Corpus = "espeak"  # corpus to train on
    root: Path | None = None  # its folder, or the manifest file (CSV, TSV or JSON lines)
    eval_corpus: Corpus | None = None  # corpus to test on, if another
    eval_root: Path | None = None  # its folder or manifest
    also: Corpus | None = None  # another corpus, whose words episodes are of, too; joint training takes none
    also_root: Path | None = None  # its folder or manifest
    also_share: float = 0.65  # that share
    max_hz: float = 7600.0  # upper edge of the mel bands; 3800 for 8 kHz audio
    on_error: Literal["raise", "skip"] = "raise"  # what to do with clips that cannot be used
    ways: int = 5  # words per episode
    shots: int = 1  # support clips per word
    queries: int = 5  # query clips per word
    test_queries: int = 2  # query clips per word of a test or validation episode
    across: Across = "speaker"  # speaker: the query by other speakers; none: speakers ignored; same: one says all
    methods: tuple[str, ...] = ("meta_curvature", "protonet", "joint")  # of metajax.methods; the first is the main one
    model: models.Network = "tcresnet8"  # network
    width: float = 1.0  # multiplies its channels
    normalization: models.Normalization = "group"  # whose statistics normalise
    precision: models.Precision = "float32"  # bfloat16 is for GPU and TPU
    num_steps: int = 5  # inner steps while training
    outer_steps: int | None = None  # the same number for each method, in place of about equal times
    seconds: float | None = None  # a time for each method, in place of a number of outer steps
    outer_rate: float | None = None  # peak outer learning rate, the same for each method, in place of its own
    weight_decay: float = 1e-4  # outer weight decay
    average: float = 0.98  # decay of theta's moving average, which is tested; 0 for none
    tasks: int = 4  # episodes per outer step
    train_ways: int = 10  # words per training episode of metric methods
    augment: float = 0.5  # strength of the augmentation; 0 for none
    noise: Literal["coloured", "recorded"] = "coloured"  # drawn, or the corpus's own recordings
    validate: bool = False  # keep the theta of the best validation, in place of the last
    episodes: int = 600  # test episodes
    seed: int = 0  # of everything random
    theta: Path | None = None  # folder of an earlier run whose theta is taken
    cache: Path | None = None  # folder of cached features and compiled programs; None for the user's
    out: Path = Path("runs/keyword_fewshot")  # folder for the results
    resume: bool = False  # go on with the run in --out


class Data(NamedTuple):
    source: words.Words  # what is trained on
    target: words.Words  # what is tested on
    also: words.Words | None  # what is trained on beside
    validation: Sampler | None  # episodes to choose rates on
    test: Sampler  # episodes to test on


def load(s: Settings, cache: Path) -> Data:
    """The corpora, without a tested word or speaker, by name, in training."""
    how: dict[str, Any] = {"settings": FeatureSettings(high=s.max_hz), "cache": cache, "seed": s.seed, "ways": s.ways}

    def read(name: str, root: Path | None, **more: Any) -> words.Words:
        more |= {"clips_per_label": 12} if name == "espeak" else {}
        return words.load_words(name, root, on_error=s.on_error, **how, **more)

    target = source = read(s.corpus, s.root, noise=s.noise == "recorded")
    also = read(s.also, s.also_root) if s.also else None
    if s.eval_corpus or s.eval_root:
        target = read(s.eval_corpus or s.corpus, s.eval_root)
        source = words.leave_out(source, target)
    sizes: dict[str, Any] = {"ways": s.ways, "shots": s.shots, "across": s.across}
    words.sampler(source, "train", queries=s.queries, **sizes)  # refuses what does not fit, before anything is written
    sizes |= {"queries": s.test_queries}  # alike, so that one program serves
    test = words.sampler(target, "test", **sizes)
    validation = words.sampler(source, "validation", **sizes) if source.splits.validation.any() else None
    return Data(source, target, also and words.leave_out(also, target), validation, test)


def train(s: Settings, name: str, built: methods.Built, data: Data, theta: Theta, key: jax.Array) -> mj.Fit:
    """Meta-train, or go on where `--resume` finds a checkpoint."""
    joint = methods.METHODS[name].kind == "joint"  # whose batch has to vary: one query of each of many words
    sizes: dict[str, Any] = {"ways": built.train_ways, "queries": 1 if joint else s.queries, "augmentation": s.augment}
    sizes |= {"shots": s.shots, "across": s.across}
    sample = words.sampler(data.source, "train", **sizes)
    if data.also is not None and not joint:
        sample = mixture(sample, words.sampler(data.also, "train", **sizes), s.also_share)
    validate = None
    if s.validate and data.validation is not None and built.num_steps:
        run = methods.curves(lambda _: built.tested, built.num_steps)
        score = methods.scorer(run, data.validation, 200, s.seed + 2)
        validate = lambda theta: float(score(theta)[:, -1].mean())  # noqa: E731
    steps, rate = RECIPES.get(name, (400, 2e-3))
    return recipes.meta_train(
        built.phases, theta, sample, key, s.outer_steps or steps, seconds=s.seconds, average=s.average,
        optimizer=recipes.adamw(s.outer_rate or rate, s.weight_decay), num_tasks=s.tasks,
        chunk=methods.chunk_of(methods.METHODS[name]), validate=validate, folder=s.out / name, title=name,
        resume=s.resume and checkpoint.exists(s.out / name / "last"),
    )  # fmt: skip


def run(s: Settings) -> None:
    """The whole experiment."""
    runs.check(s, ("plot",), ways=2, shots=1, queries=1, num_steps=1, tasks=1, episodes=2, augment=0, outer_steps=1)
    runs.check(s, seed=0, outer_rate=0, weight_decay=0, average=0, seconds=0)
    runs.known("methods", s.methods, methods.METHODS)
    if s.also_root is not None and s.also is None:
        raise mj.InputError(f"also_root is {s.also_root}, but no also says which corpus that is.")
    config, began, cache = runs.config(s), time.perf_counter(), s.cache or default_folder()
    runs.check_folder(s.out, config, resume=s.resume)
    earlier = runs.read_json(s.theta / "config.json") if s.theta else {}
    if s.theta:
        alike = {name: config[name] for name in ("model", "width", "normalization", "ways", "num_steps", "max_hz")}
        runs.check_same(earlier, alike, s.theta / "config.json")
        runs.known(f"methods with theta {s.theta}", s.methods, earlier["methods"])
    use_all_cores(cache / "compiled")
    data, key = load(s, cache), jax.random.key(s.seed)
    net = models.network(s.model, width=s.width, normalization=s.normalization, precision=s.precision)
    config["classes"] = earlier.get("classes", len(words.names_of(data.source, "train", "label")))
    config |= {"data": data.source.data, "eval_data": data.target.data, "also_data": data.also and data.also.data}
    sizes: dict[str, Any] = {"ways": s.ways, "train_ways": s.train_ways, "num_steps": s.num_steps}
    sizes["x"] = jax.eval_shape(data.test, key).support.x

    def build(name: str, rate: Any = None) -> methods.Built:
        return methods.build(methods.METHODS[name], net, classes=config["classes"], rate=rate, **sizes)

    made = {name: build(name) for name in s.methods}  # refuses what does not fit, before anything is written
    runs.open_folder(s.out, config, resume=s.resume)
    curves, told, took = {}, {}, {}  # by method: accuracy at each step, what else the table tells; by program: ms

    def test(name: str, run: methods.Curves, theta: Theta, **more: Any) -> None:
        print(f"testing {name}", flush=True)
        found = methods.tested(run, theta, data.validation, data.test, episodes=s.episodes, seed=s.seed)
        curves[name] = report.curve(*mj.mean_ci95(found.accuracy))
        if run not in took:  # from scratch is the same program as fine-tuned
            took[run] = adaptation_ms(run.learner(found.rate or 0.0), theta, data.test, min(run.num_steps, s.num_steps))
        told[name] = {"inner_rate": found.rate, "adapt_ms": took[run]} | more

    tuning = methods.curves(lambda rate: mj.descent(net(s.ways).apply, mj.losses.classify, optax.sgd(rate)), STEPS)
    scratch = {"params": recipes.fresh(net(s.ways).init, data.test, key)}
    for name, built in made.items():
        theta = run_once(built.algorithm.learner.init, recipes.fresh(built.model.init, data.test, key), key)
        theta = checkpoint.restore(s.theta / name / "theta", theta) if s.theta else theta
        trained: dict[str, Any] = {}
        if not s.theta or s.seconds or s.outer_steps:
            fitted = train(s, name, built, data, theta, key)
            theta, trained = fitted.theta, {"outer_steps": int(fitted.state.count)} | fitted._asdict()
            del trained["theta"], trained["state"]
        checkpoint.save(s.out / name / "theta", theta)
        if name == "joint":  # learns no task by itself: it is fine-tuned
            test("joint, fine-tuned", tuning, methods.graft(theta, scratch["params"]), **trained)
        else:
            steps = built.num_steps if built.num_steps == 1 else built.tested.max_steps or STEPS
            test(name, methods.curves(lambda rate, name=name: build(name, rate).tested, steps), theta, **trained)
    test("from scratch", tuning, scratch)
    splits = {f"unseen_{what}s": words.names_of(data.target, "test", what) for what in ("label", "speaker")}
    splits |= {f"train_{what}s": len(words.names_of(data.source, "train", what)) for what in ("label", "speaker")}
    results = {"accuracy": next(iter(curves.values())), "curves": curves, "methods": told, "chance": 1 / s.ways}
    skipped = [*data.source.corpus.skipped, *data.target.corpus.skipped]
    results |= splits | {"skipped_clips": skipped, "wall_seconds": time.perf_counter() - began, "config": config}
    runs.save_results(s.out, results)
    title = f"{s.ways}-way {s.shots}-shot, {data.source.corpus.name} to {data.target.corpus.name}: "
    title += f"{len(splits['unseen_labels'])} unseen words, {len(splits['unseen_speakers'])} unseen speakers,\n"
    title += f"{SHARING[s.across]}, {s.normalization} normalisation, {s.episodes} episodes, 95 % intervals"
    fields = {"outer_steps": "outer steps", "seconds": "training (s)", "inner_rate": "chosen rate", "adapt_ms": "ms"}
    report.present(curves, 1 / s.ways, (0, 1, 2, 3, s.num_steps, STEPS), title, s.out / "curve.png", told, fields)
    print(f"\nResults, picture and thetas are in {s.out}.")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
