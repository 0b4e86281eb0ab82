"""N-way K-shot episodes, sampled on the device by a pure function of a key."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from metajax.core import Batch, Episode, KeyArray, Labels, Sampler
from metajax.errors import InputError

Across = Literal["speaker", "none", "same"]
ACROSS: tuple[str, ...] = get_args(Across)
SHARING = {
    "speaker": "support and query by different speakers",
    "none": "speakers ignored",
    "same": "one speaker per episode",
}  # what `across` means, as results tell it


class Tables(NamedTuple):
    """Padded index tables from which episodes are drawn; -1 pads."""

    clips: Int[Array, "classes width"]  # clip indices of each class
    labels: Int[Array, " classes"]  # corpus label of each class, renumbered 0..classes - 1 over the split
    speakers: Int[Array, "classes width"]  # speaker of each of `clips`, renumbered 0..speakers - 1 over the split
    members: Int[Array, " speakers"]  # the speakers; for `across="same"` those with clips enough of `ways` classes
    homes: Bool[Array, "speakers classes"]  # for `across="same"`: of which classes each of them has clips enough


def episodes(
    features: PyTree,
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    *,
    y: PyTree | None = None,
    ways: int,
    shots: int,
    queries: int,
    across: Across = "speaker",
    within: Int[np.ndarray, " clips"] | None = None,
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
      features: inputs of all clips; an array, `Utterances` or any tree of arrays with the leading axis clips.
      label: class of each clip; clips of class -1, unknown, are left out.
      speaker: speaker of each clip, -1 where unknown.
      y: targets of all clips, a tree such as `Transcripts`, in place of `Labels`.
      ways: classes of an episode.
      shots: support clips per class.
      queries: query clips per class.
      across: who speaks; see above.
      within: a group of each clip, the same for all of a class, such as its language: the classes of an episode are
        then of one group, drawn uniformly.
      name: of the corpus or split, for messages.

    Returns:
      `sample(key) -> Episode`, jittable; the leaves of `x` and `y` have the shapes `[ways * shots, ...]` and
      `[ways * queries, ...]`, and `y` is a `Labels` unless targets are given.

    Raises:
      InputError: too few classes, speakers or clips, with how many there are; or arguments for other numbers of clips.
    """
    count_clips(features=features, label=label, speaker=speaker, y=y, within=() if within is None else within)
    features, y = jax.tree.map(jnp.asarray, (features, y))
    tables = index_tables(label, speaker, ways, shots, queries, across, name)
    cut = ways * shots

    num_classes, width = tables.clips.shape
    num_speakers = tables.members.shape[0]
    group = None if within is None else _group_of_class(tables, label, within, ways, name)

    def draw(key: KeyArray) -> tuple[Array, Array, Array]:
        """Classes [ways], clip indices [ways, shots + queries], and whether every one of them exists."""
        # one call of the generator for all three: each costs compile time
        ends = np.cumsum([num_classes, num_speakers, ways * width])
        numbers = jax.random.uniform(key, (ends[-1] + (group is not None),))
        by_class, by_speaker, by_clip, by_group = jnp.split(numbers, ends)
        if group is not None:
            chosen = jnp.floor(by_group[0] * (group.max() + 1)).astype(int)
            by_class = jnp.where(group == chosen, by_class, -1.0)
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
            sides = ((False, shots), (True, queries))
            best = [jax.lax.top_k(jnp.where(half == side, priority, -1.0), count) for side, count in sides]
            values, columns = (jnp.concatenate(pair, 1) for pair in zip(*best, strict=True))
        else:
            values, columns = jax.lax.top_k(priority, shots + queries)
        return classes, jnp.take_along_axis(clips, columns, 1), (values >= 0).all() & (by_class[classes] >= 0).all()

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
        x, targets = jax.tree.map(lambda a: a[chosen], (features, y))
        return divided(Batch(x, Labels(episode, tables.labels[classes][episode]) if y is None else targets), cut)

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
    check_sizes(ways=(ways, 2), shots=(shots, 1), queries=(queries, 1))
    if across not in ACROSS:
        raise InputError(f"across is {across!r}, expected one of {', '.join(ACROSS)}.")
    check_column("label", label)
    check_column("speaker", speaker)
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
        few = len(classes) - len(kept)
        warnings.warn(f"{name}: {few} of {len(classes)} classes have too few clips for {asked}.", stacklevel=3)
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


def _group_of_class(
    tables: Tables, label: Int[np.ndarray, " clips"], within: Int[np.ndarray, " clips"], ways: int, name: str
) -> Int[np.ndarray, " classes"]:
    """The group of each class of `tables`, renumbered; -1 for one with fewer than `ways` of them."""
    check_column("within", within)
    firsts = np.asarray(tables.clips)[:, 0]
    for first in firsts:
        if (found := np.unique(within[label == label[first]])).size > 1:
            raise InputError(f"{name}: class {label[first]} is of groups {found[:3].tolist()}, expected one of within.")
    values, counts = np.unique(within[firsts], return_counts=True)
    enough = values[(counts >= ways) & (values >= 0)]
    if not len(enough):
        raise InputError(f"{name}: no group of within has {ways} classes; the largest has {counts.max()}.")
    return np.where(np.isin(within[firsts], enough), np.searchsorted(enough, within[firsts]), -1)


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


def count_clips(**trees: PyTree) -> int:
    """The leading axis that all leaves of all arguments share; an `InputError` naming those that differ."""
    counts = {
        name + jax.tree_util.keystr(path): jnp.shape(leaf)[:1]
        for name, tree in trees.items()
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    if len(found := set(counts.values())) != 1 or () in found:
        told = ", ".join(f"{name} {count[0] if count else 'no'}" for name, count in counts.items())
        raise InputError(f"One number of clips is expected in all arguments, found: {told}.")
    return found.pop()[0]


def check_sizes(**numbers: tuple[int, int]) -> None:
    """Raise `InputError` for a number below the least that is given with it."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise InputError(f"{name} is {value}, expected at least {least}.")


def check_probability(name: str, value: float) -> None:
    """Raise `InputError` unless `value` is within 0..1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}, expected a probability.")


def check_column(name: str, column: np.ndarray) -> None:
    """Raise `InputError` unless `column` holds whole numbers, 0 or more, or -1 where unknown."""
    if not np.issubdtype(column.dtype, np.integer):
        raise InputError(f"{name} holds {column.dtype}, expected whole numbers, -1 where unknown.")
    if column.min(initial=0) < -1:
        raise InputError(f"{name} holds {column.min()}, expected 0 or more, or -1 where unknown.")


def pad(rows: list) -> Int[np.ndarray, "rows width"]:
    """Rows of unequal length as one array, padded with -1."""
    table = np.full((len(rows), max(len(row) for row in rows)), -1, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def with_inputs(sample: Sampler, transform: Callable[[PyTree, KeyArray], PyTree]) -> Sampler:
    """Episodes whose inputs went through `transform(x, key)`, e.g. augmentation, support and query in one call."""

    def transformed(key: KeyArray) -> Episode:
        sample_key, key = jax.random.split(key)
        support, query = sample(sample_key)
        both: Batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)
        return divided(both._replace(x=transform(both.x, key)), count_clips(x=support.x))

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
    check_probability("share", share)

    def mixed(key: KeyArray) -> Episode:
        ours, theirs = (jax.eval_shape(each, key) for each in (sample, other))
        if ours != theirs:
            raise InputError(f"Episodes of different shapes or dtypes cannot be mixed: {ours} and {theirs}.")
        choice_key, key = jax.random.split(key)
        return jax.lax.cond(jax.random.uniform(choice_key) < share, other, sample, key)

    return mixed
