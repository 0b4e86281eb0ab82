"""Can a model learn to learn words from speech that nobody has labelled?

    python experiments/unsupervised.py
    python experiments/unsupervised.py --corpus arabic --root DIR --seeds 0 1 2 --seconds 120 --out runs/unlabelled

Trains methods on tasks that read no label and no speaker: UMTRA (every clip its own class, queries are augmented
copies), the same with many ways (contrastive), CACTUs (clusters of cepstra); or tests an encoder that learned to say
masked frames. Beside them: the same on labels; class means of endpointed cepstra (the floor), which are also put beside
what a ProtoNet learned; a network from scratch. Words and speakers of the test are in no training. Each cell is a file:
the same command goes on. Without arguments: embedded synthetic speech.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax as mj
from metajax import methods, models, recipes, report, runs
from metajax.core import Sampler, Theta
from metajax.data import words
from metajax.data.augment import scaled
from metajax.data.cache import default_folder
from metajax.data.clusters import partitions
from metajax.data.features import endpointed
from metajax.evaluate import over_seeds
from metajax.losses import classify
from metajax.parallel import run_once, use_all_cores
from metajax.tasks.episodes import with_inputs
from metajax.tasks.unsupervised import cactus, partly_labelled, umtra

SOURCES = ("umtra", "contrastive", "cactus", "masked", "supervised")
READERS = ("in_context", "relation", "hypernetwork", "task_encoder")  # an encoder alone is no use to them


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # what to train and test on
    root: Path | None = None  # its folder, or the manifest file
    sources: tuple[str, ...] = SOURCES  # of training tasks
    methods: tuple[str, ...] = ("protonet_cosine", "maml", "ridge", "in_context")  # of metajax.methods
    clips: tuple[int, ...] = (100, 400)  # so many clips without labels, too, for the first source and method
    seeds: tuple[int, ...] = (0,)  # of splits, fresh parameters, tasks and episodes
    seconds: float = 20.0  # of training
    outer_steps: int | None = None  # that many, in place of a time
    ways: int = 5  # words per test episode, and classes per training task of gradient-based methods
    shots: tuple[int, ...] = (1, 5)  # support clips per word of the test; 1 in training
    unlabelled: int = 4  # support clips without a label beside one with it, for ProtoNet with soft k-means
    queries: int = 5  # query clips per word
    train_ways: int = 10  # classes per training task of metric methods
    many: int = 32  # classes per contrastive task
    clusters: int = 100  # of a partition
    partitions: int = 4  # by k-means, each from another start
    augment: float = 1.0  # strength of the augmentation of tasks without labels, but for
    warp: float = 0.25  # its change of the frequency scale, and
    stretch: float = 0.3  # of the tempo, which imitate another speaker
    supervised_augment: float = 0.5  # of those with labels
    tasks: int = 4  # tasks per outer step
    num_steps: int = 5  # inner steps
    outer_rate: float = 2e-3  # peak outer learning rate
    episodes: int = 600  # test episodes
    width: float = 1.0  # of TC-ResNet8
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/unsupervised")  # folder of the results


class Cell(NamedTuple):
    """One entry of the table before seeds are averaged."""

    source: str  # of the training tasks; "none" for no training
    method: str
    clips: int  # to train on, 0 for all
    seed: int


def wanted(s: Settings) -> Iterator[Cell]:
    """All cells, seed by seed. Many ways are for methods without a head of so many classes."""
    for seed in s.seeds:
        yield from (Cell("none", name, 0, seed) for name in ("cepstra", "from scratch"))
        left = {"contrastive": [m for m in s.methods if methods.METHODS[m].kind != "metric"], "masked": READERS}
        arms = [(source, name) for source, name in product(s.sources, s.methods) if name not in left.get(source, ())]
        yield from (Cell(*arm, 0, seed) for arm in arms)
        yield from (Cell(*arm, n, seed) for arm, n in product([a for a in arms if a[0] != "supervised"][:1], s.clips))


def training(s: Settings, cell: Cell, task: words.Words, ways: int) -> Sampler:
    """The training tasks of a cell; of the corpus's columns only "supervised" reads any."""
    sizes: dict[str, Any] = {"ways": ways, "shots": 1, "queries": s.queries}
    if cell.source == "supervised":
        return words.sampler(task, "train", **sizes, augmentation=s.supervised_augment)
    chosen = np.random.default_rng(cell.seed).permutation(np.flatnonzero(task.splits.train))
    if cell.clips > len(chosen):
        raise mj.InputError(f"clips holds {cell.clips}, but there are {len(chosen)} to train on.")
    x = task.corpus.features[chosen[: cell.clips or None]]
    change = words.prepared(task, scaled(s.augment)._replace(warp=s.warp, stretch=s.stretch))
    if cell.source != "cactus":
        return umtra(x, change, **sizes | ({} if cell.source == "umtra" else {"queries": 1, "ways": s.many}))
    vectors = np.asarray(jax.jit(jax.vmap(endpointed))(x))  # what is known of clips without learning
    found = partitions(vectors, s.clusters, s.partitions, seed=cell.seed, metric="cosine")
    return with_inputs(cactus(x, found, **sizes), change)


def run_cell(s: Settings, cell: Cell, task: words.Words) -> dict[str, Any]:
    """Train and test one method on one source of tasks."""
    jax.clear_caches()
    net, (init_key, key) = models.network(width=s.width), jax.random.split(jax.random.key(cell.seed))
    sizes: dict[str, Any] = {"ways": s.ways, "queries": s.queries}
    whole, vectors = partial(words.sampler, task, "test"), partial(words.embedded, task, "test")
    means = partial(mj.protonet, models.identity().apply, classify, s.ways, metric="cosine", temperature=0.1)

    def score(learner: Any, theta: Theta, tasks: Sampler, rate: float = 0.1, steps: int = 1) -> dict[str, Any]:
        # at the inner rate of training: without labels none could be chosen
        how: dict[str, Any] = {"episodes": s.episodes, "seed": cell.seed, "rates": (rate,)}
        found = methods.tested(methods.curves(learner, steps), theta, None, tasks, **how)
        return report.curve(*mj.mean_ci95(found.accuracy))[-1]

    def by_shots(draw: Any, learner: Any, theta: Theta, *how: Any, kind: str = "") -> dict[str, Any]:
        return {f"{n}-shot{kind}": score(learner, theta, draw(**sizes, shots=n), *how) for n in s.shots}

    if cell.method == "cepstra":
        return by_shots(vectors(jax.vmap(endpointed)), lambda _: means().learner, {"params": {}})
    first = whole(**sizes, shots=s.shots[0])
    if cell.method == "from scratch":
        theta = {"params": recipes.fresh(net(s.ways).init, first, init_key)}
        return by_shots(whole, lambda rate: mj.descent(net(s.ways).apply, classify, optax.sgd(rate)), theta, 0.1, 10)
    ways = s.many if cell.source == "contrastive" else s.train_ways
    classes = len(words.names_of(task, "train", "label")) if cell.source == "supervised" else ways
    method, inputs = methods.METHODS[cell.method], jax.eval_shape(first, key).support.x
    build = partial(methods.build, method, ways=s.ways, train_ways=ways, classes=classes, num_steps=s.num_steps)
    built = build(net, inputs)
    theta = run_once(built.algorithm.learner.init, recipes.fresh(built.model.init, first, init_key), init_key)
    phases = built.phases
    if cell.source == "masked":
        frames = models.tcresnet8(normalization="group", width=s.width, pooled=False).apply
        masked = mj.masked_prediction(frames, features=round(48 * s.width), bands=inputs.shape[-1], stride=8)
        phases, theta = [(1.0, masked.objective)], theta | masked.learner.init(theta["params"], init_key)
    fitted = recipes.meta_train(
        phases, theta, training(s, cell, task, built.train_ways), key, s.outer_steps or 200,
        optimizer=recipes.adamw(s.outer_rate), num_tasks=s.tasks, chunk=methods.chunk_of(method), average=0.98,
        seconds=None if s.outer_steps else s.seconds, title="-".join(map(str, cell)),
    )  # fmt: skip
    told, theta = {"outer_steps": int(fitted.state.count), "seconds": fitted.seconds}, fitted.theta
    if method.kind == "gradient":
        return told | by_shots(whole, lambda r: build(net, inputs, rate=r).tested, theta, method.rate, s.num_steps)
    heard = net(None)._replace(apply=lambda p, x, _=None: net(None).apply(p, words.prepared(task)(x, key)))
    once, both = (vectors(partial(m.apply, theta["params"])) for m in (heard, models.beside(heard, endpointed)))
    z = jax.eval_shape(once(**sizes, shots=1), key).support.x
    told |= by_shots(once, lambda _: build(lambda _: models.identity(), z).tested, theta)
    if cell.method.startswith("protonet"):
        told |= by_shots(both, lambda _: means().learner, theta, kind=" beside")
        some = partly_labelled(both(**sizes, shots=s.shots[0] + s.unlabelled), s.ways, s.shots[0])
        told["refined"] = score(lambda _: means(refinements=1).learner, theta, some)
    return told


def run(s: Settings) -> None:
    """Every cell that is missing, then the table and the picture."""
    least = dict.fromkeys(("shots", "queries", "tasks", "num_steps", "outer_steps", "unlabelled", "partitions"), 1)
    least |= dict.fromkeys(("ways", "many", "clusters", "episodes"), 2)
    least |= dict.fromkeys(("seeds", "supervised_augment", "warp", "stretch", "outer_rate"), 0)
    runs.check(s, ("plot", "images"), **least, seconds=0.1, augment=0.1, width=0.1)
    runs.known("sources", s.sources, SOURCES)
    runs.known("methods", s.methods, [name for name, row in methods.METHODS.items() if row.kind != "joint"])
    use_all_cores(s.cache / "compiled")
    task = lru_cache(1)(lambda seed: words.load_words(s.corpus, s.root, ways=s.ways, cache=s.cache, seed=seed))
    config = runs.config(s, ("out", "cache", "seeds", "sources", "methods", "clips"))
    done = runs.complete(s.out, config, list(wanted(s)), lambda cell: run_cell(s, cell, task(cell.seed)))
    columns = {f"{n}-shot{kind}": f"{n}-shot{kind}{kind and ' cepstra'}" for kind in ("", " beside") for n in s.shots}
    columns |= {"refined": f"{s.shots[0]}-shot and {s.unlabelled} unlabelled beside cepstra"}
    rows, first = dict[str, dict[str, Any]](), task(s.seeds[0])
    for cell in (cell for cell in wanted(s) if cell.seed == s.seeds[0]):
        own = [done[cell._replace(seed=seed)] for seed in s.seeds]
        each = {name: [one[name]["mean"] for one in own] for name in columns if name in own[0]}
        row = {name: over_seeds(values) if len(own) > 1 else own[0][name] for name, values in each.items()}
        what = f"{cell.source}, {cell.method}" + (f", {cell.clips} clips" if cell.clips else "")
        rows[what] = row | {"each seed": each, "steps": ", ".join(str(one.get("outer_steps", 0)) for one in own)}
    new = [len(words.names_of(first, "test", column)) for column in ("label", "speaker")]
    title = f"{s.corpus}, {s.ways}-way, {s.outer_steps or s.seconds:g} {'outer steps' if s.outer_steps else 's'} of "
    title += f"training on {first.splits.train.sum()} clips, group normalisation,\n{new[0]} unseen words by {new[1]} "
    title += f"unseen speakers, others in support than in query; {len(s.seeds)} division(s), 95 % intervals"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows})
    lines = [[name, *(report.percent(row.get(c)) for c in columns), row["steps"]] for name, row in rows.items()]
    print(f"\n{title}\n\n{report.markdown(['tasks, method', *columns.values(), 'outer steps'], lines)}")
    shown = [(name, "") for name in rows] + [(name, " beside") for name, row in rows.items() if "refined" in row]
    points = {name + kind: [rows[name][f"{n}-shot{kind}"] | {"shots": n} for n in s.shots] for name, kind in shown}
    report.plot_panels({"": points}, title, s.out / "accuracy.png", x="shots", label="support clips per word")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
