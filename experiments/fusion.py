"""What do sound, image and text of a digit give together, and what if one of them is bad or missing?

    python experiments/fusion.py
    python experiments/fusion.py --corpus arabic --root DIR --seeds 0 1 2 --out runs/fusion_arabic

Five digits are learned from one example each: spoken, drawn (scikit-learn's 8x8 digits) and written (phonemes of
synthetic speech, else the name in the language). Trained on synthetic speech in many languages and on the other five
digits, with augmentation, noise, occlusion, typos and modalities dropped at random; tested on digits, languages,
speakers and images that are in no training, support and query by different speakers (who drew a digit is not recorded).
One model is tested on every set of modalities, in every condition, support and query alike; beside it: models that
never had the others, other fusions, MAML, and a plain fusion trained jointly, read by class means; all on equal time.
Each cell is a file: stopped at any time, the same command goes on.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax import methods, models, recipes, report
from metajax.data.augment import add_noise, augment, coloured_noise, misspelt, normalize, occluded, scaled
from metajax.data.cache import default_folder
from metajax.data.images import digits
from metajax.data.spoken_digits import Spoken, spoken_digits
from metajax.evaluate import over_seeds
from metajax.losses import classify
from metajax.models.fusion import MODALITIES
from metajax.tasks.crossmodal import Items, dropped, paired
from metajax.tasks.episodes import with_inputs

SETS = [" + ".join(some) for count in (1, 2, 3) for some in combinations(MODALITIES, count)]
CONDITIONS = {  # signal-to-noise ratio in dB, share of the image's width that is hidden, share of wrong characters
    "clean": (100.0, 0.0, 0.0), "20 dB": (20.0, 0.0, 0.0), "10 dB": (10.0, 0.0, 0.0), "0 dB": (0.0, 0.0, 0.0),
    "occluded": (100.0, 0.6, 0.0), "typos": (100.0, 0.0, 0.5), "all three": (0.0, 0.6, 0.5),
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
    queries: int = 5  # query examples per digit; five digits, one support example of each
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


def run_cell(s: Settings, cell: Cell, data: tuple[Spoken, Spoken, int]) -> dict[str, Any]:
    """Train one model, and test it on what it has had, whole and in part."""
    jax.clear_caches()
    (train, test, symbols), drawn = data, images.digits()
    order = np.random.default_rng(cell.seed).permutation(10)
    method, had = methods.METHODS[cell.method], np.isin(MODALITIES, cell.had.split(" + "))
    net = partial(models.fusion, kind=cell.kind, width=s.width, symbols=symbols)
    init_key, key = jax.random.split(jax.random.key(cell.seed))

    def sampler(part: Spoken, digits: np.ndarray, ways: int, queries: int, **how: Any) -> Any:
        label = np.where(np.isin(part.digit, digits), part.columns["label"], -1)
        shown = {"image": Items(drawn.pixels, drawn.label, part.digit)}
        sizes = {"ways": ways, "shots": 1, "queries": queries, "name": s.corpus}
        return paired(part.x, label, part.columns["speaker"], shown, **sizes, **how)

    changed = augment(scaled(0.5)._replace(noise=0.0))

    def prepared(x: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Another voice, all images turned alike, and anything from clean to bad, or gone."""
        keys, n = jax.random.split(key, 5), len(x["text"])
        turns = [partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
        turns += [lambda a, turn=turn: turn(a[:, ::-1]) for turn in turns]
        image = jax.lax.switch(jax.random.randint(keys[0], (), 0, 8), turns, x["image"])
        levels = jax.random.uniform(keys[1], (n, 3)) * jnp.array([40.0, 0.6, 0.6])
        present = dropped(x["present"] & had, keys[2], s.dropout)
        x = x | {"audio": changed(x["audio"], keys[3]), "image": image, "present": present}
        return degraded(x, keys[4], levels, symbols)

    trained, within = np.isin(train.digit, order[:5]), {"within": train.columns["language"]}
    classes = len(np.unique(train.columns["label"][trained]))
    sample = sampler(train, order[:5], 5, s.queries, **within)
    x = jax.eval_shape(sample, key).support.x
    built = methods.build(method, net, x, ways=5, train_ways=5, classes=classes, num_steps=s.num_steps)
    theta = jax.jit(built.algorithm.learner.init)(recipes.fresh(built.model.init, sample, init_key), init_key)
    if method.kind == "joint":  # many words at once, of all languages
        sample = sampler(train, order[:5], built.train_ways, 1)
    fitted = recipes.meta_train(
        built.phases, theta, with_inputs(sample, prepared), key, s.outer_steps or 500,
        optimizer=recipes.adamw(s.outer_rate), num_tasks=s.tasks, chunk=methods.chunk_of(method), average=0.98,
        seconds=None if s.outer_steps else s.seconds, title="-".join(map(str, cell)),
    )  # fmt: skip
    tested, keys = sampler(test, order[5:], 5, s.queries), jax.random.split(jax.random.key(cell.seed + 1), s.episodes)

    def accuracy(theta: Any, levels: jax.Array, here: jax.Array) -> jax.Array:
        """Of every episode, with these levels and what is here of support and query; the same whatever these are."""

        def one(keys: jax.Array) -> jax.Array:
            n = 5 * (1 + s.queries)
            kept = jnp.where((jnp.arange(n) < 5)[:, None], *here)
            sample = with_inputs(tested, lambda x, key: degraded(
                x | {"present": x["present"] & kept}, key, jnp.broadcast_to(levels, (n, 3)), symbols))  # fmt: skip
            episode = sample(keys[0])
            phi, _ = mj.adapt(built.tested, theta, episode.support, keys[1], built.num_steps)
            return classify(built.tested.predict(theta, phi, episode.query.x, None), episode.query.y)[1]["accuracy"]

        return jax.lax.map(one, jax.vmap(jax.random.split)(keys))

    score, scores, across = mj.hoisted(accuracy), dict[str, Any](), dict[str, Any]()
    kept = {some: np.isin(MODALITIES, some.split(" + ")) for some in SETS}

    def told(condition: str, support: np.ndarray, query: np.ndarray) -> dict[str, float]:
        found = score(fitted.theta, jnp.array(CONDITIONS[condition]), jnp.stack([support, query]))
        return report.curve(*mj.mean_ci95(np.asarray(found)[:, None]))[0]

    for some in (some for some in SETS if (kept[some] <= had).all() and (had.all() or some == cell.had)):
        scores[some] = {condition: told(condition, kept[some], kept[some]) for condition in CONDITIONS}
    if had.all():
        pairs = [pair for pair in product(MODALITIES, repeat=2) if pair[0] != pair[1]]
        across = {" to ".join((a, b)): told("clean", kept[a], kept[b]) for a, b in pairs}
    spent = {"outer_steps": int(fitted.state.count), "seconds": fitted.seconds}
    return {"scores": scores, "across": across, "digits": order[5:].tolist()} | spent


def mean(found: list[float], alone: dict[str, float]) -> dict[str, Any]:
    """Over seeds; of one seed over its episodes."""
    return over_seeds(found) if len(found) > 1 else alone


def summary(s: Settings, done: dict[Cell, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A row for every model and set of modalities that it is tested on, a value for every condition."""
    rows: dict[str, dict[str, Any]] = {}
    for cell in (cell for cell in wanted(s) if cell.seed == s.seeds[0]):
        own = [done[cell._replace(seed=seed)] for seed in s.seeds]
        for some, alone in own[0]["scores"].items():
            first = cell[:2] == (s.methods[0], s.kinds[0])
            if not first and some != SETS[-1]:
                continue
            name = f"{cell.method}, {cell.kind}: {some}" + (
                ", nothing else in training" if cell.had != SETS[-1] else ""
            )
            each = {c: [one["scores"][some][c]["mean"] for one in own] for c in CONDITIONS}
            rows[name] = {c: mean(each[c], alone[c]) for c in CONDITIONS} | {"each": each}
    return rows
