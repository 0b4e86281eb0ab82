"""What do sound, image and text of a digit give together, and what if one of them is bad or missing?

    python experiments/fusion.py
    python experiments/fusion.py --corpus arabic --root DIR --seeds 0 1 2 --out runs/fusion_arabic

Five digits are learned from one example each: spoken, drawn (scikit-learn's 8x8 digits) and written (phonemes of
synthetic speech, else the name in the language). Trained on synthetic speech of many languages and five other digits;
tested on digits, languages, speakers and images that are in no training, support and query by different speakers (who
drew is not recorded), degraded alike. One model is tested on every set of modalities: each decides by itself, and trust
in it is learned on languages and digits that it was not trained on. Beside it models that never had the others, fusions
in one vector, MAML, and a plain joint one, read by class means; on equal time. Stopped at any time, it goes on.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax import methods, models, recipes, report, runs
from metajax.core import Sampler
from metajax.data.augment import add_noise, augment, coloured_noise, misspelt, normalized, occluded, scaled
from metajax.data.cache import default_folder
from metajax.data.images import digits
from metajax.data.spoken_digits import Spoken, spoken_digits
from metajax.evaluate import over_runs
from metajax.losses import classify
from metajax.models.fusion import MODALITIES, Kind
from metajax.parallel import run_once, use_all_cores
from metajax.tasks.crossmodal import Items, dropped, only, paired
from metajax.tasks.episodes import with_inputs

SETS = [" + ".join(some) for count in (1, 2, 3) for some in combinations(MODALITIES, count)]
among = lambda some: np.isin(MODALITIES, some.split(" + "))  # noqa: E731  which of the modalities a set holds
CONDITIONS = {  # signal-to-noise ratio in dB, share of the image's width that is hidden, share of wrong characters
    "clean": (100.0, 0.0, 0.0), "20 dB": (20.0, 0.0, 0.0), "10 dB": (10.0, 0.0, 0.0), "0 dB": (0.0, 0.0, 0.0),
    "occluded": (100.0, 0.5, 0.0), "typos": (100.0, 0.0, 0.25), "each": (10.0, 0.5, 0.25),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    corpus: Literal["espeak", "fsdd", "arabic"] = "espeak"  # spoken digits to test on
    root: Path | None = None  # its folder
    methods: tuple[str, ...] = ("late_fusion", "protonet", "maml", "simpleshot")  # the last: the plain joint fusion
    kinds: tuple[str, ...] = ("concat", "gated", "experts", "bottleneck")  # of fusion; the first with the other methods
    seeds: tuple[int, ...] = (0,)  # of the division of digits, fresh parameters, tasks and episodes
    seconds: float = 20.0  # of training
    outer_steps: int | None = None  # that many, in place of a time
    queries: int = 5  # query examples per digit
    dropout: float = 0.5  # probability that a task of training lacks a modality; a third of it for an example
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
    found = [(name, "apart" if name == "late_fusion" else s.kinds[0], SETS[-1]) for name in s.methods]
    found += [("protonet", kind, SETS[-1]) for kind in s.kinds[1:] if "protonet" in s.methods]
    return [Cell(*one, seed) for seed in s.seeds for one in (*found, *((*found[0][:2], some) for some in SETS[:-1]))]


def degraded(x: dict[str, Any], key: jax.Array, levels: jax.Array, symbols: int) -> dict[str, Any]:
    """Noise in the audio, then its own mean and variance; a black square; wrong characters; levels of all or each."""
    (count, n), (draw_key, key) = x["text"].shape, jax.random.split(key)
    draws = jax.random.uniform(draw_key, (count, 4 + 2 * n))
    snr, hidden, wrong = jnp.broadcast_to(levels, (count, 3)).T
    noise = jax.vmap(coloured_noise)(*draws.T[:2], jax.random.bits(key, x["audio"].shape, jnp.uint32))
    noisy = jax.vmap(partial(add_noise, low_db=0.0, high_db=1.0))(x["audio"], noise, snr)
    return x | {
        "audio": normalized(noisy),
        "image": jax.vmap(occluded)(x["image"], *draws.T[2:4], hidden),
        "text": jax.vmap(partial(misspelt, symbols=symbols))(x["text"], draws[:, 4 : n + 4], draws[:, n + 4 :], wrong),
    }


def run_cell(s: Settings, cell: Cell, data: tuple[Spoken, Spoken, int]) -> dict[str, Any]:
    """Train one model, and test it on what it has had, whole and in part."""
    jax.clear_caches()
    (train, test, symbols), drawn = data, digits()
    order, had = np.random.default_rng(cell.seed).permutation(10), jnp.asarray(among(cell.had))
    net = partial(models.fusion, kind=cell.kind, width=s.width, symbols=symbols)
    method, dropout, drawing = methods.METHODS.get(cell.method), s.dropout, train.digit + train.label % 8 * 10
    if method is None:  # a quarter of the languages, with turns of two digits, teach trust; the others have three
        held, place, fuse, dropout = train.language % 4 == 3, np.argsort(order)[train.digit], net, 0.0
        drawing = order[np.where(held, 3 + place % 2, place % 3)]
        drawing += (train.language // 4 + place // np.where(held, 2, 3) * 3) % 8 * 10
        late = partial(mj.late_fusion, modalities=3, held=np.unique(train.label[held]))
        method = methods.Method(lambda of: late(of.embed, of.error, of.ways), "metric", "none", test_steps=1)
        # few digits teach a network what tells them apart, and little about others: their pixels too
        pixels = lambda x: jnp.zeros((3, 64)).at[1].set(jnp.where(x["present"][1], x["image"], 0).ravel())  # noqa: E731
        net = lambda _: models.beside(fuse(None), pixels)  # noqa: E731
    (init_key, key), changed = jax.random.split(jax.random.key(cell.seed)), augment(scaled(0.5)._replace(noise=0.0))
    turns = [np.rot90(drawn.pixels[:, ::step], k, (1, 2)) for k in range(4) for step in (1, -1)]
    glyphs, glyph = np.concatenate(turns), (drawn.label + 10 * np.arange(8)[:, None]).ravel()

    def sampler(part: Spoken, some: np.ndarray, drawing: np.ndarray, **how: Any) -> Sampler:
        label, x = np.where(np.isin(part.digit, some), part.label, -1), {"audio": part.audio[..., : s.bands]}
        shown, how = {"image": Items(glyphs, glyph, drawing)}, {"ways": 5, "queries": s.queries, "shots": 1} | how
        return paired(x | {"text": part.text}, label, part.speaker, shown, name=s.corpus, **how)

    def prepared(x: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 6)
        levels = jax.random.uniform(keys[0], (3,)) * jnp.array([40.0, 0.75, 0.5])  # support and query alike
        levels = jnp.where(jax.random.bernoulli(keys[5], 0.6, (3,)), levels, jnp.array(CONDITIONS["clean"]))
        here = x["present"] & dropped(had[None], keys[1], dropout)
        x = x | {"audio": changed(x["audio"], keys[2]), "present": dropped(here, keys[3], dropout / 3)}
        return degraded(x, keys[4], levels, symbols)

    sample = sampler(train, order[:5], drawing, within=train.language)
    x, classes = jax.eval_shape(sample, key).support.x, len(np.unique(train.label[np.isin(train.digit, order[:5])]))
    built = methods.build(method, net, x, ways=5, train_ways=5, classes=classes, num_steps=5)
    theta = run_once(built.algorithm.learner.init, recipes.fresh(built.model.init, sample, init_key), init_key)
    if method.kind == "joint":  # many words at once, of all languages
        sample = sampler(train, order[:5], drawing, ways=built.train_ways, queries=1)
    how = {"chunk": methods.chunk_of(method), "average": 0.98, "title": "-".join(map(str, cell))}
    how |= {"seconds": None if s.outer_steps else s.seconds, "optimizer": recipes.adamw()}
    fitted = recipes.meta_train(built.phases, theta, with_inputs(sample, prepared), key, s.outer_steps or 500, **how)
    tested = sampler(test, order[5:], test.digit, within=test.language)
    keys = jax.random.split(jax.random.key(cell.seed + 1), (s.episodes, 2))

    @mj.hoisted
    def accuracy(theta: Any, levels: jax.Array, kept: jax.Array) -> jax.Array:
        def one(keys: jax.Array) -> jax.Array:
            episode = only(with_inputs(tested, partial(degraded, levels=levels, symbols=symbols)), kept, kept)(keys[0])
            phi, _ = mj.adapt(built.tested, theta, episode.support, keys[1], built.num_steps)
            return classify(built.tested.predict(theta, phi, episode.query.x, None), episode.query.y)[1]["accuracy"]

        return jax.lax.map(one, keys)

    score = cache(lambda levels, some: np.asarray(accuracy(fitted.theta, jnp.array(levels), among(some))).tolist())
    scores, clean = dict[str, Any](), CONDITIONS["clean"]
    for some in SETS if had.all() else [cell.had]:  # what is absent is as good as clean
        at = {name: tuple(np.where(among(some), levels, clean).tolist()) for name, levels in CONDITIONS.items()}
        scores[some] = {name: score(levels, some) for name, levels in at.items()}
    return {"scores": scores, "digits": order[5:].tolist(), "outer_steps": int(fitted.state.count)}


def summary(s: Settings, done: dict[Cell, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """A row for every model and set it is tested on, a value for every condition; then what the first model gains."""
    first = wanted(s)[0]

    def mean(cell: Cell, some: str, condition: str, less: tuple[Cell, str] | None = None) -> dict[str, Any]:
        """Accuracy, or how much higher it is than that of `less`, over seeds; of one seed over its episodes."""
        table = lambda cell, some, seed: np.array(done[cell._replace(seed=seed)]["scores"][some][condition])  # noqa: E731
        return over_runs([table(cell, some, seed) - (table(*less, seed) if less else 0) for seed in s.seeds])

    rows = {}
    for cell in wanted(replace(s, seeds=s.seeds[:1])):
        for some in SETS if cell == first else [cell.had]:
            name = f"{cell.method}, {cell.kind}: {some}" + ("" if cell.had == SETS[-1] else ", never more")
            rows[name] = {condition: mean(cell, some, condition) for condition in CONDITIONS}
    best = lambda c: max(SETS[:3], key=lambda some: mean(first, some, c)["mean"])  # noqa: E731
    gains = {c: mean(first, SETS[-1], c, (first, best(c))) for c in CONDITIONS}
    costs = {some: mean(first, some, "clean", (first._replace(had=some), some)) for some in SETS[:-1]}
    return {"rows": rows, "all three": {"less the best alone": gains}, "missing at test": {"less never had": costs}}


def run(s: Settings) -> None:
    """Every cell that is missing, then the tables and the heat map."""
    least = {"queries": 1, "episodes": 2, "width": 4, "bands": 1, "seconds": 0.1, "outer_steps": 1}
    runs.check(s, ("plot", "images"), seeds=0, dropout=0, **least)
    runs.known("methods", s.methods, ["late_fusion", *methods.METHODS])
    runs.known("kinds", s.kinds, [kind for kind in get_args(Kind) if kind != "apart"])
    use_all_cores(s.cache / "compiled")
    data = spoken_digits(s.corpus, s.root, cache=s.cache)
    config = runs.config(s, ("out", "cache", "seeds", "methods", "kinds"))
    done = runs.complete(s.out, config, wanted(s), lambda cell: run_cell(s, cell, data))
    found, over = summary(s, done), "seeds" if len(s.seeds) > 1 else "episodes"
    title = f"{s.corpus}: 5 unseen digits, 1-shot, unseen speakers, others in support than in query; "
    title += (f"{s.outer_steps} steps" if s.outer_steps else f"{s.seconds:g} s") + f" each, 95 % intervals over {over}"
    runs.save_results(s.out, {"title": title, "config": config} | found)
    print(f"\n{title}")
    for rows in found.values():
        lines = [[name, *map(report.percent, row.values())] for name, row in rows.items()]
        print(f"\n{report.markdown(['', *next(iter(rows.values()))], lines)}")
    report.heat_map(found["rows"], title, s.out / "fusion.png")
    print(f"\nTables, results and picture are in {s.out}.")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
