"""Hear a word once, with an image; another speaker says it: which new image is meant? And which word, by an image?

    python experiments/crossmodal.py
    python experiments/crossmodal.py --ways 11 --characters OMNIGLOT --corpus arabic --root DIR --out runs/crossmodal11

A task is so many pairs of a spoken word and an image, tied at random, one each. Trained on synthetic words of many
languages and on other classes of images; tested on words, languages, speakers and classes of images that are in no
training, each word by another speaker, each image by another drawer (not recorded of scikit-learn's digits). Beside it,
on the same tasks: time warping of endpointed cepstra, then cosines of pixels, as in Eloff, Engelbrecht and Kamper,
"Multimodal One-Shot Learning of Speech and Images", 2019.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax import models, recipes, report, runs
from metajax.algorithms.heads import unit
from metajax.core import Sampler
from metajax.data import images, words
from metajax.data.augment import normalized, turned
from metajax.data.cache import default_folder
from metajax.data.features import endpointed
from metajax.evaluate import over_runs
from metajax.losses import classify
from metajax.parallel import use_all_cores
from metajax.tasks.crossmodal import choices, side_by_side
from metajax.tasks.episodes import episodes, with_inputs

AUDIO, IMAGE, FRAMES = 0, 1, 40  # numbers of the modalities; frames of a word for time warping
ROWS = ("learned", "time warping + pixels")
COLUMNS = ("word to image", "image to word", "words alone", "images alone")


@dataclass(frozen=True)
class Settings:
    corpus: Literal["espeak", "fsdd", "arabic"] = "espeak"  # words to test on
    root: Path | None = None  # its folder
    characters: Path | None = None  # folder of Omniglot; None for scikit-learn's digits
    ways: int = 5  # pairs of a task; 11 as in the paper, which takes characters
    seeds: tuple[int, ...] = (0,)  # of the division of images, fresh parameters, tasks and episodes
    seconds: float = 60.0  # of training
    outer_steps: int | None = None  # that many, in place of a time
    episodes: int = 400  # test episodes
    width: int = 48  # of the vectors
    bands: int = 40  # lowest mel bands to hear; 30 for 8 kHz audio
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/crossmodal")  # folder of the results


class Cell(NamedTuple):
    """One division."""

    seed: int


def divided(drawn: images.Images, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels to train on and to test on, -1 elsewhere: whole alphabets apart, or five digits and five others."""
    alphabet = np.unique([name.split("/")[0] for name in drawn.names], return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(alphabet.max() + 1)
    known = np.isin(alphabet, order[: len(order) // 2])[drawn.label]
    return np.where(known, drawn.label, -1), np.where(known, -1, drawn.label)


def tasks(audio: Sampler, drawn: images.Images, label: np.ndarray, ways: int) -> Sampler:
    """Words and images tied at random; the query says where the image of each word is among those to choose from."""
    across = "none" if (drawn.drawer < 0).any() else "speaker"
    image = episodes(drawn.pixels, label, drawn.drawer, ways=ways, shots=1, queries=1, across=across, name=drawn.name)
    return choices(side_by_side({"audio": audio, "image": image}), "image")


def backward(episode: mj.Episode) -> mj.Episode:
    """The same task the other way round: which word is that of each image."""
    (x, y), support = episode.query, episode.support
    return mj.Episode(support, mj.Batch(x, y._replace(episode=jnp.argsort(y.episode))))


def warped(a: jax.Array, b: jax.Array) -> jax.Array:
    """Dynamic time warping of frames `[time, features]` by 1 - cosine: the least sum along a monotonous path."""
    cost = 1 - unit(a) @ unit(b).T

    def row(above: jax.Array, cost: jax.Array) -> tuple[jax.Array, None]:
        entered = jnp.minimum(above, jnp.pad(above[:-1], (1, 0), constant_values=jnp.inf))
        total = jnp.cumsum(cost)  # a row is entered once, then followed: the least over all places to enter
        return total + jax.lax.cummin(entered - (total - cost)), None

    return jax.lax.scan(row, jnp.cumsum(cost[0]), cost[1:])[0][-1]


def unlearned(episode: mj.Episode) -> jax.Array:
    """How often the nearest neighbours by time warping and by pixels are right, `[4]` in the order of `COLUMNS`."""
    cepstra, pixels = ([jax.vmap(of)(half.x[name]) for half in (episode.query, episode.support)] for name, of in (
        ("audio", lambda x: endpointed(x, FRAMES).reshape(FRAMES, -1)), ("image", jnp.ravel)))  # fmt: skip
    far = jax.vmap(lambda q: jax.vmap(lambda s: warped(q, s))(cepstra[1]))(cepstra[0])
    near = unit(pixels[0]) @ unit(pixels[1]).T
    where, word, pair = episode.query.y.episode, jnp.arange(len(far)), backward(episode).query.y.episode
    found = near[:, far.argmin(1)].argmax(0), far[:, near.argmax(1)].argmin(0), far.argmin(1), near.argmax(1)
    return jnp.stack([(a == b).mean() for a, b in zip(found, (where, pair, word, pair), strict=True)])


def run_cell(s: Settings, cell: Cell, data: tuple[words.Words, words.Words, images.Images]) -> dict[str, Any]:
    """Train on one division and test on what it holds back, beside what needs no training."""
    jax.clear_caches()
    train, test, drawn = data
    known, new = divided(drawn, cell.seed)
    model, sizes = models.fusion(kind="apart", modalities=("audio", "image"), width=s.width), {"shots": 1, "queries": 1}

    def embedded(theta: Any, episode: mj.Episode) -> mj.Episode:
        """Both halves through the model at once: vectors `[ways, modalities, width]` as x."""
        x = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *(half.x for half in episode))
        halves = jnp.split(model.apply(theta["params"], x | {"audio": normalized(x["audio"])}), 2)
        return mj.Episode(*(half._replace(x=z) for half, z in zip(episode, halves, strict=True)))

    there, back = (mj.crossmodal(lambda _, z, key: z, classify, given=a, wanted=1 - a) for a in (AUDIO, IMAGE))
    hop = partial(mj.protonet, error=classify, num_classes=s.ways, metric="cosine", temperature=0.1)
    heard, seen = (hop(lambda _, z, key, m=m: z[:, m]) for m in (AUDIO, IMAGE))

    def objective(theta: Any, episode: mj.Episode, key: jax.Array) -> tuple[jax.Array, Any]:
        images = backward(episode := embedded(theta, episode))
        sounds = episode._replace(query=episode.query._replace(y=episode.support.y))
        loss, metrics = there.objective(theta, episode, key)
        more = (back, images), (heard, sounds), (seen, images)  # each hop too: two that know nothing have no slope
        return loss + sum(method.objective(theta, own, key)[0] for method, own in more), metrics

    spoken = words.sampler(train, "train", ways=s.ways, augmentation=0.5, **sizes)
    change = lambda x, key: x | {"image": turned(x["image"], key)}  # noqa: E731
    sample = with_inputs(tasks(spoken, drawn, known, s.ways), change)
    init_key, key = jax.random.split(jax.random.key(cell.seed))
    theta = {"params": recipes.fresh(model.init, sample, init_key)}
    fitted = recipes.meta_train(
        [(1.0, objective)], theta, sample, key, s.outer_steps or 500, optimizer=recipes.adamw(), average=0.98,
        seconds=None if s.outer_steps else s.seconds, title=f"seed {cell.seed}")  # fmt: skip
    columns, label = test.corpus.columns, np.where(test.splits.test, test.corpus.columns["label"], -1)
    asked = tasks(episodes(test.corpus.features, label, columns["speaker"], ways=s.ways, **sizes), drawn, new, s.ways)

    @mj.hoisted
    def right(theta: Any, keys: jax.Array) -> jax.Array:
        """How often learned and unlearned are right, `[episodes, 2, 4]`."""

        def one(key: jax.Array) -> jax.Array:
            episode, found = asked(key), []
            vectors = embedded(theta, episode)
            for side, algorithm in ((vectors, there), (backward(vectors), back)):
                phi, _ = mj.adapt(algorithm.learner, theta, side.support, key, 1)
                scores = algorithm.learner.predict(theta, phi, side.query.x, None)
                found.append(classify(scores, side.query.y)[1]["accuracy"])
            pairs, z = (unit(half.x) for half in vectors)
            near = jnp.einsum("qmf,smf->mqs", z, pairs).argmax(-1)
            own = jnp.arange(s.ways), jnp.argsort(episode.query.y.episode)
            found += [(near[m] == own[m]).mean() for m in (AUDIO, IMAGE)]
            return jnp.stack([jnp.stack(found), unlearned(episode)])

        return jax.lax.map(one, keys)

    table = np.asarray(right(fitted.theta, jax.random.split(jax.random.key(cell.seed + 1), s.episodes)))
    tested = {"image classes": len(np.unique(new[new >= 0])), "words": len(np.unique(label[label >= 0]))}
    scores = {row: dict(zip(COLUMNS, table[:, i].T.tolist(), strict=True)) for i, row in enumerate(ROWS)}
    return {"scores": scores, "tested on": tested, "outer_steps": int(fitted.state.count)}


def run(s: Settings) -> None:
    """Every division that is missing, then the table and the picture."""
    runs.check(s, ("plot", "images"), seeds=0, ways=2, episodes=2, width=4, bands=1, seconds=0.1, outer_steps=1)
    use_all_cores(s.cache / "compiled")
    drawn = images.digits() if s.characters is None else images.omniglot(s.characters)
    train = test = words.load_words("espeak", cache=s.cache)
    if s.corpus != "espeak":  # all of it is unheard
        test = words.load_words(s.corpus, s.root, cache=s.cache)
        every = np.ones(len(test.corpus.columns["label"]), bool)
        test = test._replace(splits=test.splits._replace(train=~every, validation=~every, test=every))
    if s.corpus == "fsdd":
        english = train.corpus.columns["language"] == train.corpus.names["language"].index("en")
        train = train._replace(splits=train.splits._replace(train=train.splits.train & ~english))
    cut = lambda w: w._replace(corpus=w.corpus._replace(features=w.corpus.features[..., : s.bands]))  # noqa: E731
    data = cut(train), cut(test), drawn
    config = runs.config(s, ("out", "cache", "seeds"))
    done = runs.complete(s.out, config, list(map(Cell, s.seeds)), lambda cell: run_cell(s, cell, data))
    own = [done[Cell(seed)]["scores"] for seed in s.seeds]
    rows = {row: {c: over_runs([np.array(one[row][c]) for one in own]) for c in COLUMNS} for row in ROWS}
    counts = ", ".join(f"{count} {what}" for what, count in done[Cell(s.seeds[0])]["tested on"].items())
    title = f"{s.corpus} and {drawn.name}, {s.ways}-way 1-shot, unseen: {counts}, speakers, others in support than in "
    title += f"query;\nchance {100 / s.ways:.1f} %, 95 % intervals over {'seeds' if len(s.seeds) > 1 else 'tasks'}"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows})
    lines = [[row, *map(report.percent, values.values())] for row, values in rows.items()]
    print(f"\n{title}\n\n{report.markdown(['accuracy (%)', *COLUMNS], lines)}")
    report.heat_map(rows, title, s.out / "crossmodal.png")
    print(f"\nTable, results and picture are in {s.out}.")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
