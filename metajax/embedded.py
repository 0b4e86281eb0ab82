"""What embeddings of words are worth: by one clip of each, and where most queries are of words that nobody taught."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int
from tqdm import tqdm

from metajax import report
from metajax.algorithms.heads import unit
from metajax.algorithms.open_set import open_set
from metajax.algorithms.protonet import protonet
from metajax.core import Batch, Episode, KeyArray, Sampler
from metajax.evaluate import evaluate, over_runs
from metajax.losses import classify
from metajax.tasks.episodes import Across, episodes
from metajax.train import fit, init_state, meta_step

Embeddings = Float[np.ndarray, "clips features"]
Numbers = dict[str, float]


def vectors(
    embed: Callable[..., Any], x: np.ndarray, batch: int = 64, *, seed: int | None = None, title: str = ""
) -> Any:
    """What a compiled function makes of each of many clips, a batch of one size at a time.

    Args:
      embed: `[batch, ...] -> [batch, ...]`, or to a tree of such arrays; compiled.
      x: of all clips, `[clips, ...]`; half precision is made single.
      batch: clips at a time; one program serves, since the last batch is filled up.
      seed: of a function that is random: it gets a key for every batch, too.
      title: of a progress bar; none without.
    """
    found = []
    for k in tqdm(range(0, len(x), batch), title, mininterval=5, disable=not title):
        part = np.resize(x[k : k + batch], (batch, *x.shape[1:])).astype(np.float32)
        found.append(jax.device_get(embed(part) if seed is None else embed(part, jax.random.key(seed + k))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(x)], *found)


def open_episodes(
    z: Embeddings, columns: dict[str, np.ndarray], *, ways: int, shots: int, queries: int, across: Across,
    fewer: bool = False,
) -> Sampler:  # fmt: skip
    """Episodes of twice as many words, half of which are in no support set: their queries are labelled `ways`.

    Args:
      z: embeddings of all clips.
      columns: `label` and `speaker` of each.
      ways: words taught.
      shots, queries, across: as in `metajax.tasks.episodes.episodes`.
      fewer: of every word a random number of support clips count, from 1 to all.
    """
    label, speaker = columns["label"], columns["speaker"]
    draw = episodes(z, label, speaker, ways=2 * ways, shots=shots, queries=queries, across=across)

    def sample(key: KeyArray) -> Episode:
        key, count_key = jax.random.split(key)
        support, query = draw(key)
        count = jax.random.randint(count_key, (ways, 1), 1, shots + 1) if fewer else shots
        y = jnp.where(jnp.arange(shots) < count, jnp.arange(ways)[:, None], -1).reshape(-1)
        return Episode(Batch(support.x[: ways * shots], y), Batch(query.x, jnp.minimum(query.y.episode, ways)))

    return sample


def calibrated(sample: Sampler, ways: int, outer_steps: int, seed: int = 0) -> Numbers:
    """Scale, bias and growth of `open_set`, learned on `open_episodes` of words that are not tested on."""
    learner, objective = open_set(lambda params, x, key: x, classify, ways)
    optimizer, key = optax.adam(optax.cosine_decay_schedule(0.2, outer_steps)), jax.random.key(seed)
    state = init_state(learner.init({"none": jnp.zeros(1)}, key), optimizer, outer_steps)
    fitted = fit(meta_step(objective, optimizer, sample, 32), state, key, num_tasks=32, title="rejection")
    return {name: float(value) for name, value in fitted.theta["unknown"].items()}


def rejection(sample: Sampler, ways: int, unknown: Numbers, num_tasks: int, seed: int = 0) -> Numbers:
    """Of queries of taught and other words: how well they are told apart, and what is answered by the most likely.

    Args:
      sample: from `open_episodes`.
      ways: words taught.
      unknown: the numbers of `open_set`.
      num_tasks: number of episodes.
      seed: of the episodes.
    """
    from scipy.stats import rankdata  # a third of a second

    learner = open_set(lambda params, x, key: x, classify, ways, **unknown).learner
    theta = learner.init({"none": jnp.zeros(1)}, jax.random.key(0))

    def one(key: KeyArray) -> tuple[jax.Array, jax.Array]:
        support, query = sample(key)
        phi = learner.step(theta, None, support, key)
        return jax.nn.softmax(learner.predict(theta, phi, query.x, None)), query.y

    p, y = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(seed), num_tasks))
    p, y = np.asarray(p).reshape(-1, ways + 1), np.asarray(y).reshape(-1)
    known, answer = y < ways, p.argmax(1)
    rank, count = rankdata(-p[:, ways]), known.sum()
    area = (rank[known].sum() - count * (count + 1) / 2) / count / (~known).sum()
    order = np.argsort(p[:, ways])  # accepted are the first so many
    false = np.cumsum(~known[order]) / (~known).sum()
    missed = 1 - np.cumsum(known[order]) / count
    place = np.abs(false - missed).argmin()
    found = {
        "area under the curve": area,
        "equal error rate": (false[place] + missed[place]) / 2,
        "taught word right": (answer == y)[known].mean(),
        "taught word unknown": (answer == ways)[known].mean(),
        "other word unknown": (answer == ways)[~known].mean(),
    }
    return {name: float(value) for name, value in found.items()}


def accuracy(sample: Sampler, ways: int, num_tasks: int, seed: int = 0) -> dict[str, float | None]:
    """Of class means by cosine: mean and half the width of its 95 % interval over episodes."""
    learner = protonet(lambda params, x, key: unit(x), classify, ways, metric="cosine").learner
    theta = learner.init({"none": jnp.zeros(1)}, jax.random.key(0))
    found = evaluate(learner, classify, theta, sample, jax.random.key(seed), num_tasks, 1)
    return over_runs([np.asarray(found["accuracy"])[:, -1]])


def tested(
    name: str, by: dict[str, Embeddings], columns: dict[str, np.ndarray], unknown: Numbers, num_tasks: int,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """On a corpus of real words, by 1 and 5 clips of each of five: accuracy, and rejection by Arabic ones.

    Args:
      name: of the corpus.
      by: embeddings of all clips by each method; those of the last must reject, too.
      columns: `label` and `speaker` of each clip.
      unknown: the numbers of `open_set` for the last.
      num_tasks: number of episodes.
      seed: of the episodes.
    """
    found = {}
    for shots in (1, 5):
        sizes: dict[str, Any] = {"ways": 5, "shots": shots, "across": "speaker"}
        queries = 2 if name == "speech_commands" else 15  # there, a word has ten clips
        row: dict[str, Any] = {}
        for how, z in by.items():
            sample = episodes(z, columns["label"], columns["speaker"], queries=queries, **sizes)
            row[how] = accuracy(sample, 5, num_tasks, seed)
        if name == "arabic":
            opened = open_episodes(list(by.values())[-1], columns, queries=5, **sizes)
            row |= rejection(opened, 5, unknown, num_tasks, seed)
        found[f"{name}, {shots}-shot"] = row
    return found


class Draws(NamedTuple):
    """Episodes as clips."""

    support: Int[np.ndarray, "episodes ways shots"]
    query: Int[np.ndarray, "episodes ways queries"]


def draws(columns: dict[str, np.ndarray], num_tasks: int, seed: int = 0, **sizes: Any) -> Draws:
    """Episodes across speakers, as clips: so that embeddings, and clips heard otherwise, are compared on the same.

    Args:
      columns: `label` and `speaker` of all clips.
      num_tasks: number of episodes.
      seed: of the episodes.
      **sizes: `ways`, `shots` and `queries` of `metajax.tasks.episodes.episodes`, which refuses too few clips.
    """
    clips = np.arange(len(columns["label"]))
    sample = episodes(clips, columns["label"], columns["speaker"], **sizes, across="speaker", name="the corpus")
    keys = jax.random.split(jax.random.key(seed), num_tasks)
    support, query = jax.jit(lambda keys: jax.lax.map(lambda key: tuple(batch.x for batch in sample(key)), keys))(keys)
    shape = num_tasks, sizes["ways"], -1
    return Draws(np.asarray(support).reshape(shape), np.asarray(query).reshape(shape))


def shares(
    query: Float[np.ndarray, "clips ... features"], support: Float[np.ndarray, "clips ... features"],
    drawn: Sequence[Draws],
) -> Float[np.ndarray, "sizes episodes"]:  # fmt: skip
    """Share of the queries of each episode that are told right.

    Embeddings are compared by class means. Frames by the cost of their best alignment in time, the mean over a class:
    two frames cost 1 - cosine, twice that where both go on, and none is skipped.

    Args:
      query: embeddings of all clips, `[clips, features]`, or frames, `[clips, time, features]`, of length 1.
      support: the same of the clips as they are taught.
      drawn: equally many episodes of each size.
    """
    costs, found = _costs(query, support) if query.ndim == 3 else None, []
    for taught, asked in (pair for one in drawn for pair in zip(*one, strict=True)):
        if costs is None:
            means = support[taught].mean(1)
            scores = query[asked] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        else:
            scores = -costs[asked[..., None, None], taught].mean(-1)
        found.append((scores.argmax(-1) == np.arange(len(taught))[:, None]).mean())
    return np.array(found).reshape(len(drawn), -1)


def _costs(query: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Of the best paths between all pairs of clips, `[queries, supports]`."""
    above: list[np.ndarray] = []
    for i in range(query.shape[1]):
        row: list[np.ndarray] = []
        for j in range(support.shape[1]):
            cost = 1 - query[:, i] @ support[:, j].T
            ways = [above[j] + cost] if i else [2 * cost] if not j else []
            ways += [row[-1] + cost] if j else []
            ways += [above[j - 1] + 2 * cost] if i and j else []
            row.append(np.minimum.reduce(ways))
        above = row
    return above[-1]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Of results by test, accuracies and shares, a table in percent."""
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    told = [[row.get(name, "") for row in results.values()] for name in names]
    cells = [[_cell(value) for value in row] for row in told]
    return report.markdown(["%", *results], [[name, *row] for name, row in zip(names, cells, strict=True)])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return report.percent(value)
    return value if value == "" else f"{100 * value:.1f}"
