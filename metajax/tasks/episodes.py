"""N-way K-shot episodes, sampled on the device by a pure function of a key."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from metajax.core import Batch, Episode, KeyArray, Labels, Referenced, Sampler
from metajax.errors import InputError

Across = Literal["speaker", "none", "same"]
ACROSS: tuple[str, ...] = get_args(Across)


class Tables(NamedTuple):
    """Padded index tables from which episodes are drawn; -1 pads."""

    clips: Int[Array, "classes width"]  # clip indices of each class
    labels: Int[Array, " classes"]  # corpus label of each class, renumbered 0..classes - 1 over the split
    speakers: Int[Array, "classes width"]  # speaker of each of `clips`, renumbered 0..speakers - 1 over the split
    members: Int[Array, " speakers"]  # the speakers; for `across="same"` those with clips enough of `ways` classes
    homes: Bool[Array, "speakers classes"]  # for `across="same"`: of which classes each of them has clips enough


def episodes(
    features: Float[Array, "clips ..."],
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    *,
    ways: int,
    shots: int,
    queries: int,
    across: Across = "speaker",
    name: str = "corpus",
) -> Sampler:
    """A distribution over episodes: `ways` classes, `shots` support and `queries` query clips of each.

    Classes and clips are drawn without replacement, uniformly but that a draw with too few clips is drawn again. Query
    clips are ordered class by class, as are support clips. `across` says who speaks:

    - `speaker`: each episode splits the speakers into two halves at random; support clips come from one half, query
      clips from the other, so no speaker is in both;
    - `none`: speakers are ignored;
    - `same`: one speaker says everything in an episode.

    Args:
      features: inputs of all clips, on the device.
      label: class of each clip; clips with a negative one are left out.
      speaker: speaker of each clip, -1 where unknown.
      ways: classes of an episode.
      shots: support clips per class.
      queries: query clips per class.
      across: who speaks; see above.
      name: of the corpus or split, for messages.

    Returns:
      `sample(key) -> Episode`, jittable, with `x` of shape `[ways * shots, ...]` and `[ways * queries, ...]` and `y` a
      `Labels`.

    Raises:
      InputError: too few classes, speakers or clips, with how many there are.
    """
    tables = index_tables(label, speaker, ways, shots, queries, across, name)
    cut = ways * shots

    num_classes, width = tables.clips.shape
    num_speakers = tables.members.shape[0]

    def draw(key: KeyArray) -> tuple[Array, Array, Array]:
        """Classes [ways], clip indices [ways, shots + queries], and whether every one of them exists."""
        # one call of the generator for all three: each costs compile time
        numbers = jax.random.uniform(key, (num_classes + num_speakers + ways * width,))
        by_class, by_speaker, by_clip = jnp.split(numbers, [num_classes, num_classes + num_speakers])
        who = by_speaker.argmax()
        if across == "same":
            by_class = jnp.where(tables.homes[who], by_class, -1.0)
        classes = jax.lax.top_k(by_class, ways)[1]
        clips, speakers = tables.clips[classes], tables.speakers[classes]
        priority = jnp.where(clips >= 0, by_clip.reshape(ways, width), -1.0)
        if across == "same":
            priority = jnp.where(speakers == tables.members[who], priority, -1.0)
        if across == "speaker":
            half = (by_speaker >= jax.lax.top_k(by_speaker, query_speakers(num_speakers))[0][-1])[speakers]
            best = [
                jax.lax.top_k(jnp.where(half == side, priority, -1.0), count)
                for side, count in ((False, shots), (True, queries))
            ]
            values, columns = (jnp.concatenate(pair, 1) for pair in zip(*best, strict=True))
        else:
            values, columns = jax.lax.top_k(priority, shots + queries)
        return classes, jnp.take_along_axis(clips, columns, 1), (values >= 0).all()

    def sample(key: KeyArray) -> Episode:
        # a draw whose halves leave a class short of clips is drawn again: `index_tables` saw that enough are complete
        def again(carry: tuple[KeyArray, Any]) -> tuple[KeyArray, Any]:
            key, draw_key = jax.random.split(carry[0])
            return key, draw(draw_key)

        nothing = (jnp.zeros(ways, jnp.int32), jnp.zeros((ways, shots + queries), jnp.int32), jnp.array(False))
        carry = jax.lax.while_loop(lambda carry: ~carry[1][2], again, (key, nothing))
        classes, clips, _ = carry[1]
        chosen = jnp.concatenate([clips[:, :shots].reshape(-1), clips[:, shots:].reshape(-1)])
        episode = jnp.concatenate([jnp.repeat(jnp.arange(ways), shots), jnp.repeat(jnp.arange(ways), queries)])
        labels = Labels(episode, tables.labels[classes][episode])
        return divided(Batch(features[chosen], labels), cut)

    return sample


def index_tables(
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    ways: int,
    shots: int,
    queries: int,
    across: Across,
    name: str,
) -> Tables:
    """The tables behind `episodes`; a class with too few clips is left out with a warning. Arguments as there."""
    for argument, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if value < least:
            raise InputError(f"{argument} is {value}, expected at least {least}.")
    if across not in ACROSS:
        raise InputError(f"across is {across!r}, expected one of {', '.join(ACROSS)}.")
    known = label >= 0
    if across != "none" and (speaker[known] < 0).any():
        count = int((speaker[known] < 0).sum())
        raise InputError(f"{name}: {count} clips have no speaker, but across='{across}' needs one; use across='none'.")
    asked = f"{ways}-way {shots}-shot episodes with {queries} queries"
    members = np.unique(speaker[known])
    local = np.searchsorted(members, speaker)  # meaningless where the label is unknown, and not looked at there
    classes = np.unique(label[known])
    if across == "speaker" and len(members) < 2:
        raise InputError(f"{name}: {len(members)} speaker, but {asked} across speakers need at least 2.")

    rows = [np.flatnonzero(label == c) for c in classes]
    need = shots + queries
    enough = [len(row) >= need for row in rows]
    homes = np.zeros((len(members), len(classes)), bool)
    if across == "same":
        counts = np.zeros((len(classes), len(members)), int)
        for i, row in enumerate(rows):
            np.add.at(counts[i], local[row], 1)
        able = counts >= need
        enough = [row.any() for row in able]
        hosts = np.flatnonzero(able.sum(0) >= ways)
        if not len(hosts):
            raise InputError(
                f"{name}: no speaker has {need} clips of {ways} classes each, as {asked} by one speaker need."
            )
    if across == "speaker":
        enough = [ok and len(np.unique(local[row])) > 1 for ok, row in zip(enough, rows, strict=True)]
    kept = [i for i, ok in enumerate(enough) if ok]
    if len(kept) < ways:
        most = max((len(row) for row in rows), default=0)
        raise InputError(
            f"{name}: {len(kept)} of {len(classes)} classes have clips enough for {asked} (across {across}); "
            f"the largest class has {most} clips, there are {len(members)} speakers."
        )
    if len(kept) < len(classes):
        warnings.warn(
            f"{name}: {len(classes) - len(kept)} of {len(classes)} classes have too few clips for {asked}.",
            stacklevel=3,
        )
    rows = [rows[i] for i in kept]
    if across == "speaker":
        check_halves([local[row] for row in rows], len(members), ways, shots, queries, f"{name}: {asked}")
    if across == "same":
        homes, members = able[kept][:, hosts].T, hosts
    return Tables(
        clips=jnp.asarray(pad(rows)),
        labels=jnp.arange(len(kept)),
        speakers=jnp.asarray(pad([local[row] for row in rows])),
        members=jnp.asarray(members),
        homes=jnp.asarray(homes),
    )


def query_speakers(count: int) -> int:
    """How many of `count` speakers form the query half: of an odd number the larger one, since it has more to say."""
    return count - count // 2


def check_halves(speakers: list[np.ndarray], count: int, ways: int, shots: int, queries: int, asked: str) -> None:
    """Raise `InputError` unless one in twenty random draws of classes and speaker halves has clips enough."""
    generator = np.random.default_rng(0)
    complete = 0
    for _ in range(200):
        half = generator.permutation(count) < query_speakers(count)
        sides = [half[speakers[i]] for i in generator.choice(len(speakers), ways, replace=False)]
        complete += all((~side).sum() >= shots and side.sum() >= queries for side in sides)
    if complete < 10:
        raise InputError(
            f"{asked}: only {complete} of 200 random splits of the {count} speakers into a support and a query half "
            f"leave clips enough; ask for fewer queries, or use across='none'."
        )


def pad(rows: list) -> Int[np.ndarray, "rows width"]:
    """Rows of unequal length as one array, padded with -1."""
    table = np.full((len(rows), max(len(row) for row in rows)), -1, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def with_inputs(sample: Sampler, transform: Callable[[Array, KeyArray], Array]) -> Sampler:
    """Episodes whose inputs went through `transform(x, key)`, e.g. augmentation, support and query in one call."""

    def transformed(key: KeyArray) -> Episode:
        sample_key, key = jax.random.split(key)
        support, query = sample(sample_key)
        x = transform(jnp.concatenate([support.x, query.x]), key)
        cut = support.x.shape[0]
        return Episode(support._replace(x=x[:cut]), query._replace(x=x[cut:]))

    return transformed


def divided(batch: Batch, cut: int) -> Episode:
    """The first `cut` examples as support set, the rest as query set."""
    return Episode(jax.tree.map(lambda a: a[:cut], batch), jax.tree.map(lambda a: a[cut:], batch))


def mixture(sample: Sampler, other: Sampler, share: float) -> Sampler:
    """Episodes of `other` with probability `share`, else of `sample`; their shapes and dtypes must agree.

    Corpus labels of the two mean different words: only episode labels can be learned from. Under `vmap` both are drawn.

    Raises:
      InputError: `share` is not a probability, or when called, the episodes' shapes or dtypes differ.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}, expected a probability.")

    def mixed(key: KeyArray) -> Episode:
        ours, theirs = (jax.eval_shape(each, key) for each in (sample, other))
        if ours != theirs:
            raise InputError(f"Episodes of different shapes or dtypes cannot be mixed: {ours} and {theirs}.")
        choice_key, key = jax.random.split(key)
        return jax.lax.cond(jax.random.uniform(choice_key) < share, other, sample, key)

    return mixed


def with_reference(sample: Sampler) -> Sampler:
    """Episodes whose query inputs are `Referenced`: normalised by the support set (`normalization="support"`)."""

    def referenced(key: KeyArray) -> Episode:
        support, query = sample(key)
        return Episode(support, query._replace(x=Referenced(query.x, support.x)))

    return referenced
