"""How much data does learning to learn need, what helps where there is little, and what is to be collected next?

    python experiments/data_scarcity.py
    python experiments/data_scarcity.py --corpus arabic --root DIR --seeds 0 1 2

Trains MAML, ProtoNet and jointly on all of a corpus; on fewer of its words, speakers or takes of each; and, with each
remedy, on few words by few speakers. All are tested on the same words by the same people, none of them trained on, and
on what they trained on: overfitting is seen. Each cell is a file: the same command goes on. Without arguments: eSpeak.
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

import metajax as mj
from metajax import methods, models, recipes, report, runs
from metajax.core import Sampler, Theta
from metajax.data import words
from metajax.data.augment import Augmentation, augment
from metajax.data.cache import default_folder
from metajax.evaluate import over_runs
from metajax.parallel import run_once, use_all_cores
from metajax.tasks.episodes import mixture
from metajax.tasks.new_classes import changed_classes, mixed_classes
from metajax.tasks.splits import counted, fewer

KINDS = ("words", "speakers", "takes")  # as `fewer` takes them
REMEDIES = ("none", "augmentation", "dropout", "weight decay", "averaging", "mixed classes", "pitched classes",
            "reversed classes", "head only", "synthetic too", "synthetic alone")  # fmt: skip
MORE = {"espeak": {"languages": ("cs", "de", "fi", "fr", "id", "it", "ru", "sw", "tr", "vi"), "clips_per_label": 24}}
AUGMENT, DROPOUT, DECAY, AVERAGE = 0.5, 0.3, 0.1, 0.98  # strengths of remedies; without them 0
PITCHED = augment(Augmentation(*[0] * len(Augmentation()))._replace(warp=0.35))


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # what to train and test on
    root: Path | None = None  # its folder, or the manifest file
    methods: tuple[str, ...] = ("maml", "protonet", "simpleshot")  # of metajax.methods; simpleshot is joint training
    shares: tuple[float, ...] = (0.35, 0.6)  # of the training words, speakers or takes; the first is few
    remedies: tuple[str, ...] = REMEDIES  # tried on few words by few speakers
    seeds: tuple[int, ...] = (0,)  # of splits, fresh parameters, tasks and episodes
    outer_steps: int = 300  # of every training
    points: int = 4  # of the curves along the training
    ways: int = 5  # words per episode, at least in training
    shots: int = 1  # support clips per word
    queries: int = 5  # query clips per word of a test
    train_queries: int = 2  # of a training episode
    train_ways: int = 8  # words per training episode of metric methods, or as many as there are
    tasks: int = 4  # episodes per outer step
    num_steps: int = 3  # inner steps while training
    outer_rate: float = 2e-3  # peak outer learning rate
    episodes: int = 400  # test episodes; a quarter as many along the training
    width: float = 1.0  # of TC-ResNet8
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/data_scarcity")  # folder of the results


class Cell(NamedTuple):
    """One training; counts of what it trains on, 0 for all."""

    method: str
    remedy: str
    words: int
    speakers: int
    takes: int
    seed: int


def wanted(s: Settings, most: dict[str, int]) -> Iterator[Cell]:
    """Everything; less of each kind; and few words by few speakers with each remedy."""
    least = {"words": s.ways, "speakers": 2, "takes": 1}
    less = {kind: [max(least[kind], round(share * most[kind])) for share in s.shares] for kind in KINDS}
    sizes = [*({kind: count} for kind in KINDS for count in less[kind] if count < most[kind]), {}]
    for seed, method in product(s.seeds, s.methods):
        whole = Cell(method, "none", 0, 0, 0, seed)
        yield from (whole._replace(**size) for size in sizes)
        left = REMEDIES[5:] if methods.METHODS[method].kind == "joint" else ()  # which has classes of the corpus alone
        left += (REMEDIES[9:] if s.corpus == "espeak" else ()) + (() if method == "maml" else ("head only",))
        few = whole._replace(words=less["words"][0], speakers=less["speakers"][0])
        yield from (few._replace(remedy=one) for one in REMEDIES if one in ("none", *s.remedies) and one not in left)


def training(s: Settings, cell: Cell, task: words.Words, spoken: Any, ways: int) -> Sampler:
    """The training tasks of a cell."""
    sizes: dict[str, Any] = {"ways": ways, "shots": s.shots, "queries": s.train_queries}
    sample = words.sampler(task, "train", **sizes, augmentation=AUGMENT if cell.remedy == "augmentation" else 0.0)
    if cell.remedy.startswith("synthetic"):
        other = words.sampler(spoken(), "train", **sizes)
        return other if cell.remedy == "synthetic alone" else mixture(sample, other, 0.5)
    if cell.remedy == "mixed classes":
        return mixed_classes(sample, ways)
    changes = {"pitched classes": PITCHED, "reversed classes": lambda x, key: x[:, ::-1]}
    return changed_classes(sample, changes[cell.remedy], ways) if cell.remedy in changes else sample


def run_cell(s: Settings, cell: Cell, task: words.Words, spoken: Any) -> dict[str, Any]:
    """Train one method on some of the corpus, and test it."""
    jax.clear_caches()
    task = task._replace(splits=task.splits._replace(train=fewer(task.corpus.columns, task.splits.train, *cell[2:])))
    method = methods.METHODS["anil" if cell.remedy == "head only" else cell.method]
    net = partial(models.tcresnet8, normalization="group", width=s.width)
    classes, dropped = len(words.names_of(task, "train", "label")), DROPOUT if cell.remedy == "dropout" else 0.0
    test = words.sampler(task, "test", ways=s.ways, shots=s.shots, queries=s.queries)
    x, (init_key, key) = jax.eval_shape(test, jax.random.key(0)).support.x, jax.random.split(jax.random.key(cell.seed))
    build = partial(methods.build, method, ways=s.ways, train_ways=s.train_ways, classes=classes, num_steps=s.num_steps)
    built, gradient = build(partial(net, dropout=dropped), x), method.kind == "gradient"
    theta = run_once(built.algorithm.learner.init, recipes.fresh(built.model.init, test, init_key), init_key)
    z = jax.eval_shape(net(None).apply, theta["params"], x)
    learner = build(net, x).tested if gradient else build(lambda _: models.identity(), z).tested
    run = methods.curves(lambda _: learner, built.num_steps)  # at the inner rate of training, as nothing validates
    curve: list[dict[str, Any]] = []

    def score(theta: Theta, split: str, queries: int, episodes: int) -> np.ndarray:
        embed = lambda x: net(None).apply(theta["params"], words.prepared(task)(x, key))  # noqa: E731
        draw = partial(words.sampler, task, split) if gradient else words.embedded(task, split, embed)
        tasks = draw(ways=s.ways, shots=s.shots, queries=queries)
        return methods.scorer(run, tasks, max(episodes, 2), cell.seed + 1)(theta)

    def watch(theta: Theta) -> float:
        found = [score(theta, *part, s.episodes // 4) for part in (("train", s.train_queries), ("test", s.queries))]
        train, test = (report.curve(*mj.mean_ci95(accuracy))[-1] for accuracy in found)
        curve.append({"step": min(every * (len(curve) + 1), s.outer_steps), "train": train, "test": test})
        return 0.0

    alone = cell.remedy != "none" or cell.takes or bool(cell.words) != bool(cell.speakers)  # of no curve
    every = s.outer_steps if alone else -(-s.outer_steps // s.points)
    fitted = recipes.meta_train(
        built.phases, theta, training(s, cell, task, spoken, built.train_ways), key, s.outer_steps,
        optimizer=recipes.adamw(s.outer_rate, DECAY if cell.remedy == "weight decay" else 0.0),
        average=AVERAGE if cell.remedy == "averaging" else 0.0, num_tasks=s.tasks, chunk=methods.chunk_of(method),
        title="-".join(map(str, cell)), validate=watch, validate_every=every, block=every,
    )  # fmt: skip
    tested = score(mj.trained(fitted.state), "test", s.queries, s.episodes)
    counts = counted(task.corpus.columns, task.splits.train) | {"clips": int(task.splits.train.sum())}
    return {"curve": curve, "counts": counts, "episodes": tested[:, -1].astype(float).round(4).tolist()}


def pictures(s: Settings, rows: dict[Cell, dict[str, Any]], title: str) -> None:
    """What more of each kind buys, and what happens along the training."""
    sizes: dict[str, dict[str, Any]] = {name: {f"fewer {kind}": [] for kind in KINDS} for name in s.methods}
    along: dict[str, dict[str, Any]] = {"all": {}, "few words by few speakers": {}}
    for cell, row in ((cell, row) for cell, row in rows.items() if cell.remedy == "none"):
        for i, kind in enumerate(KINDS, 2):
            if not any(cell[2:i] + cell[i + 1 : 5]):
                sizes[cell.method][f"fewer {kind}"].append(row["test"] | {"clips": row["counts"]["clips"]})
        if not cell.takes and bool(cell.words) == bool(cell.speakers):
            for side in ("train", "test"):
                points = [point[side] | {"step": point["step"]} for point in row["curve"]]
                along["few words by few speakers" if cell.words else "all"][f"{cell.method}, {side}"] = points
    report.plot_panels(sizes, title, s.out / "collect.png", x="clips", label="training clips")
    report.plot_panels(along, title, s.out / "training.png", x="step", label="outer steps")


def run(s: Settings) -> None:
    """Every cell that is missing, then the table and the pictures."""
    least = dict.fromkeys(("shots", "queries", "train_queries", "tasks", "num_steps", "outer_steps", "points"), 1)
    runs.check(s, ("plot",), **least, ways=2, episodes=2, width=0.1, seeds=0, shares=0, outer_rate=0)
    runs.known("remedies", s.remedies, REMEDIES)
    runs.known("methods", s.methods, list(methods.METHODS))
    use_all_cores(s.cache / "compiled")
    how = {"cache": s.cache, "ways": s.ways}
    load = lru_cache(2)(lambda name, root, seed: words.load_words(name, root, seed=seed, **how | MORE.get(name, {})))
    task = load(s.corpus, s.root, s.seeds[0])
    most, new = (counted(task.corpus.columns, mask) for mask in (task.splits.train, task.splits.test))
    print("" if most["takes"] > 1 else "No speaker says a word twice: there are no fewer takes to try.")
    one = lambda cell: run_cell(s, cell, load(s.corpus, s.root, cell.seed), partial(load, "espeak", None, 0))  # noqa: E731
    config = runs.config(s, ("out", "cache", "seeds", "methods", "remedies"))
    done = runs.complete(s.out, config, list(wanted(s, most)), one)

    def pooled(cell: Cell) -> np.ndarray:
        return np.concatenate([done[cell._replace(seed=seed)]["episodes"] for seed in s.seeds])

    rows = {cell: done[cell] for cell in wanted(s, most) if cell.seed == s.seeds[0]}
    for cell, row in rows.items():  # episodes of all seeds, and gains over no remedy on the same ones
        gain = pooled(cell) - pooled(cell._replace(remedy="none"))
        row |= {"test": over_runs([pooled(cell)]), "gain": over_runs([gain])}
    title = f"{s.corpus}, {s.ways}-way {s.shots}-shot, {s.outer_steps} outer steps, group normalisation, "
    title += f"{', '.join(f'{count} {kind}' for kind, count in most.items())} to train on,\n{new['words']} unseen "
    title += f"words by {new['speakers']} unseen speakers, others in support than in query; {len(s.seeds)} division(s)"
    runs.save_results(s.out, {"title": title, "config": config, "rows": [*rows.values()]})
    lines = [
        [*cell[:2], *map(str, row["counts"].values()), report.percent(row["curve"][-1]["train"]),
         report.percent(row["test"]), "" if cell.remedy == "none" else report.percent(row["gain"], "+")]
        for cell, row in rows.items()
    ]  # fmt: skip
    header = ["method", "remedy", *KINDS, "clips", "trained words", "new words", "remedy gives"]
    print(f"\n{title}\n\n{report.markdown(header, lines, 2)}")
    pictures(s, rows, title)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
