"""What do sound, image and text of a digit give together, and what if one of them is bad or missing?

    python experiments/fusion.py
    python experiments/fusion.py --corpus arabic --root DIR --seeds 0 1 2 --out runs/fusion_arabic

Five digits are learned from one example each: spoken, drawn (scikit-learn's 8x8 digits) and written (phonemes of
synthetic speech, else the name in the language). Trained on synthetic speech in many languages and on the other five
digits, with noise, occlusion, typos and modalities dropped at random; tested on digits, languages, speakers and images
that are in no training, support and query by different speakers (who drew a digit is not recorded). One model is tested
on every set of modalities, in every condition, support and query alike; beside it: models that never had the others,
other fusions, MAML, and a plain fusion trained jointly, read by class means; all on equal time. Each cell is a file:
stopped at any time, the same command goes on.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax import checkpoint, methods, models, recipes, report, runs
from metajax.core import Sampler
from metajax.data.augment import add_noise, augment, coloured_noise, misspelt, normalize, occluded, scaled
from metajax.data.cache import default_folder
from metajax.data.images import digits
from metajax.data.spoken_digits import Spoken, spoken_digits
from metajax.evaluate import over_seeds
from metajax.losses import classify
from metajax.models.fusion import MODALITIES, Kind
from metajax.parallel import use_all_cores
from metajax.tasks.crossmodal import Items, dropped, only, paired
from metajax.tasks.episodes import with_inputs

SETS = [" + ".join(some) for count in (1, 2, 3) for some in combinations(MODALITIES, count)]
CONDITIONS = {  # signal-to-noise ratio in dB, share of the image's width that is hidden, share of wrong characters
    "clean": (100.0, 0.0, 0.0), "20 dB": (20.0, 0.0, 0.0), "10 dB": (10.0, 0.0, 0.0), "0 dB": (0.0, 0.0, 0.0),
    "occluded": (100.0, 0.6, 0.0), "typos": (100.0, 0.0, 0.5), "each": (0.0, 0.6, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    corpus: Literal["espeak", "fsdd", "arabic"] = "espeak"  # spoken digits to test on
    root: Path | None = None  # its folder
    methods: tuple[str, ...] = ("protonet", "maml", "simpleshot")  # the last is the plain fusion, trained jointly
    kinds: tuple[str, ...] = ("gated", "concat", "experts", "bottleneck")  # of fusion; the first with every method
    seeds: tuple[int, ...] = (0,)  # of the division of digits, fresh parameters, tasks and episodes
    seconds: float = 20.0  # of training
    outer_steps: int | None = None  # that many, in place of a time
    queries: int = 5  # query examples per digit
    tasks: int = 4  # tasks per outer step
    num_steps: int = 5  # inner steps of MAML
    dropout: float = 0.3  # probability that an example of training lacks a modality
    outer_rate: float = 2e-3  # peak outer learning rate
    episodes: int = 200  # test episodes
    width: int = 48  # of the vectors
    bands: int = 40  # lowest mel bands to hear; 30 for 8 kHz audio
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/fusion")  # folder of the results


class Cell(NamedTuple):
    """One trained model."""

    method: str
    kind: str
    had: str  # modalities in training
    seed: int


def wanted(s: Settings) -> list[Cell]:
    """All cells, seed by seed: every method, every fusion, and models that never had some modalities."""
    found = []
    for seed in s.seeds:
        found += [Cell(name, s.kinds[0], SETS[-1], seed) for name in s.methods]
        found += [Cell(s.methods[0], kind, SETS[-1], seed) for kind in s.kinds[1:]]
        found += [Cell(s.methods[0], s.kinds[0], some, seed) for some in SETS[:-1]]
    return found


def among(some: str) -> np.ndarray:
    """Which of the modalities a set holds."""
    return np.isin(MODALITIES, some.split(" + "))


def degraded(x: dict[str, Any], key: jax.Array, levels: jax.Array, symbols: int) -> dict[str, Any]:
    """Noise in the audio, then its own mean and variance; a black square; wrong characters; levels `[n, 3]`."""
    draws, (bits_key, *keys) = jax.random.uniform(key, (4, len(levels))), jax.random.split(key, 1 + len(levels))
    snr, hidden, wrong = levels.T
    noise = jax.vmap(coloured_noise)(*draws[:2], jax.random.bits(bits_key, x["audio"].shape, jnp.uint32))
    noisy = jax.vmap(add_noise)(x["audio"], noise, 0 * snr, snr, snr)
    return x | {
        "audio": jax.vmap(partial(normalize, mode="mean_variance"))(noisy),
        "image": jax.vmap(occluded)(x["image"], *draws[2:], hidden),
        "text": jax.vmap(partial(misspelt, symbols=symbols))(x["text"], jnp.stack(keys), wrong),
    }


def prepared(s: Settings, symbols: int, had: np.ndarray) -> Callable[[Any, jax.Array], Any]:
    """`(x, key) -> x` of training: other voices, all images turned alike, anything from clean to bad, or gone."""
    changed = augment(scaled(0.5)._replace(noise=0.0))
    turns = [partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
    turns += [lambda image, turn=turn: turn(image[:, ::-1]) for turn in turns]

    def prepare(x: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 5)
        image = jax.lax.switch(jax.random.randint(keys[0], (), 0, 8), turns, x["image"])
        present = dropped(x["present"] & had, keys[1], s.dropout)
        levels = jax.random.uniform(keys[2], (len(image), 3)) * jnp.array([40.0, 0.6, 0.6])
        x = x | {"audio": changed(x["audio"], keys[3]), "image": image, "present": present}
        return degraded(x, keys[4], levels, symbols)

    return prepare


def run_cell(s: Settings, cell: Cell, data: tuple[Spoken, Spoken, int]) -> dict[str, Any]:
    """Train one model, and test it on what it has had, whole and in part."""
    jax.clear_caches()
    (train, test, symbols), drawn = data, digits()
    order, had = np.random.default_rng(cell.seed).permutation(10), among(cell.had)
    method, net = methods.METHODS[cell.method], partial(models.fusion, kind=cell.kind, width=s.width, symbols=symbols)
    init_key, key = jax.random.split(jax.random.key(cell.seed))

    def sampler(part: Spoken, some: np.ndarray, ways: int, queries: int, **how: Any) -> Sampler:
        label = np.where(np.isin(part.digit, some), part.label, -1)
        x, shown = (
            {"audio": part.audio[..., : s.bands], "text": part.text},
            Items(drawn.pixels, drawn.label, part.digit),
        )
        how |= {"ways": ways, "shots": 1, "queries": queries, "name": s.corpus}
        return paired(x, label, part.speaker, {"image": shown}, **how)

    sample = sampler(train, order[:5], 5, s.queries, within=train.language)
    x, classes = jax.eval_shape(sample, key).support.x, len(np.unique(train.label[np.isin(train.digit, order[:5])]))
    built = methods.build(method, net, x, ways=5, train_ways=5, classes=classes, num_steps=s.num_steps)
    theta = jax.jit(built.algorithm.learner.init)(recipes.fresh(built.model.init, sample, init_key), init_key)
    if method.kind == "joint":  # many words at once, of all languages
        sample = sampler(train, order[:5], built.train_ways, 1)
    fitted = recipes.meta_train(
        built.phases, theta, with_inputs(sample, prepared(s, symbols, had)), key, s.outer_steps or 500,
        optimizer=recipes.adamw(s.outer_rate), num_tasks=s.tasks, chunk=methods.chunk_of(method), average=0.98,
        seconds=None if s.outer_steps else s.seconds, title="-".join(map(str, cell)),
    )  # fmt: skip
    tested = sampler(test, order[5:], 5, s.queries, within=test.language)
    keys = jax.random.split(jax.random.key(cell.seed + 1), (s.episodes, 2))

    @mj.hoisted
    def accuracy(theta: Any, levels: jax.Array, support: jax.Array, query: jax.Array) -> jax.Array:
        """Of all episodes, which are the same whatever is degraded or missing."""

        def one(keys: jax.Array) -> jax.Array:
            change = lambda x, key: degraded(x, key, jnp.tile(levels, (len(x["image"]), 1)), symbols)  # noqa: E731
            episode = only(with_inputs(tested, change), support, query)(keys[0])
            phi, _ = mj.adapt(built.tested, theta, episode.support, keys[1], built.num_steps)
            return classify(built.tested.predict(theta, phi, episode.query.x, None), episode.query.y)[1]["accuracy"]

        return jax.lax.map(one, keys)

    @cache
    def score(levels: tuple[float, ...], support: str, query: str) -> dict[str, float]:
        found = accuracy(fitted.theta, jnp.array(levels), *map(among, (support, query)))
        return report.curve(*mj.mean_ci95(np.asarray(found)[:, None]))[0]

    scores: dict[str, Any] = {}
    for some in SETS if had.all() else [cell.had]:  # what is absent is as good as clean
        at = {name: np.where(among(some), levels, CONDITIONS["clean"]).tolist() for name, levels in CONDITIONS.items()}
        scores[some] = {name: score(tuple(levels), some, some) for name, levels in at.items()}
    pairs = permutations(MODALITIES, 2) if had.all() else ()
    across = {f"{a} to {b}": score(CONDITIONS["clean"], a, b) for a, b in pairs}
    return {"scores": scores, "across": across, "digits": order[5:].tolist(), "outer_steps": int(fitted.state.count)}


def summary(s: Settings, done: dict[Cell, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A row for every model and set it is tested on, a value for every condition; and what the first model gains."""
    own = {cell._replace(seed=0): [done[cell._replace(seed=seed)] for seed in s.seeds] for cell in wanted(s)}
    first = Cell(s.methods[0], s.kinds[0], SETS[-1], 0)

    def mean(cell: Cell, some: str, condition: str, less: tuple[Cell, str] | None = None) -> dict[str, Any]:
        """Accuracy, or how much higher it is than that of `less`, over seeds; of one seed over episodes."""
        found = [one["scores"][some][condition]["mean"] for one in own[cell]]
        if less:
            found = [a - one["scores"][less[1]][condition]["mean"] for a, one in zip(found, own[less[0]], strict=True)]
        return over_seeds(found) if len(found) > 1 or less else own[cell][0]["scores"][some][condition]

    rows, gains = {}, {}
    for cell in own:
        for some in own[cell][0]["scores"] if cell == first or cell.had != SETS[-1] else SETS[-1:]:
            name = f"{cell.method}, {cell.kind}: {some}" + ("" if cell.had == SETS[-1] else ", never more")
            rows[name] = {condition: mean(cell, some, condition) for condition in CONDITIONS}
    for condition in CONDITIONS:
        best = max(SETS[:3], key=lambda some: mean(first, some, condition)["mean"])
        gains[condition] = mean(first, SETS[-1], condition, (first, best)) | {"best": best}
    costs = {some: mean(first, some, "clean", (first._replace(had=some), some)) for some in SETS[:-1]}
    across = {name: over_seeds([one["across"][name]["mean"] for one in own[first]]) for name in own[first][0]["across"]}
    return rows, {"all three over the best alone": gains, "missing at test over never had": costs, "across": across}


def run(s: Settings) -> None:
    """Every cell that is missing, then the tables and the heat map."""
    least = {"queries": 1, "tasks": 1, "num_steps": 1, "episodes": 2, "width": 4, "bands": 1, "seconds": 0.1}
    runs.check(s, ("plot", "images"), seeds=0, dropout=0, outer_rate=0, outer_steps=1, **least)
    runs.known("methods", s.methods, methods.METHODS)
    runs.known("kinds", s.kinds, [kind for kind in get_args(Kind) if kind != "apart"])
    use_all_cores(s.cache / "compiled")
    data = spoken_digits(s.corpus, s.root, cache=s.cache)
    config = runs.config(s, ("out", "cache", "seeds", "methods", "kinds"))
    done = runs.complete(s.out, config, wanted(s), lambda cell: run_cell(s, cell, data))
    rows, told = summary(s, done)
    title = (
        f"{s.corpus}: 5 unseen digits, 1-shot, unseen speakers, others in support than in query; {s.seconds:g} s each, "
    )
    title += f"95 % intervals over {len(s.seeds)} seeds" if len(s.seeds) > 1 else "95 % intervals over episodes"
    results = {"title": title, "config": config, "seeds": s.seeds, "rows": rows} | told | report.environment()
    checkpoint.write_json(s.out / "results.json", results)
    lines = [[name, *map(report.percent, row.values())] for name, row in rows.items()]
    print(f"\n{title}\n\n{report.markdown(['', *CONDITIONS], lines)}")
    for what, found in told.items():
        cells = [report.percent(one, "+" * (what != "across")) for one in found.values()]
        print(f"\n{report.markdown([what, *found], [['', *cells]])}")
    with report.picture(s.out / "fusion.png", title, figsize=(9, 2 + 0.3 * len(rows))) as (axes,):
        values = np.array([[100 * one["mean"] for one in row.values()] for row in rows.values()])
        axes.imshow(values, aspect="auto", vmin=20, vmax=100)
        axes.set_xticks(range(len(CONDITIONS)), CONDITIONS)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        for (y, x), value in np.ndenumerate(values):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="w" if value < 70 else "k", fontsize=7)
    print(f"\nTables, results and picture are in {s.out}.")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
