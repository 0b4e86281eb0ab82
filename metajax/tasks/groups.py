"""Tasks that are values of a column: one speaker, one language, one accent each."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Batch, Episode, KeyArray, Sampler
from metajax.errors import InputError
from metajax.tasks.episodes import check_column, check_sizes, count_clips, divided


def groups(
    x: PyTree,
    y: PyTree,
    group: Int[np.ndarray, " clips"],
    *,
    shots: int,
    queries: int,
    apart: Int[np.ndarray, " clips"] | None = None,
    name: str = "corpus",
    names: Sequence[str] = (),
) -> Sampler:
    """A distribution over tasks: `shots` support and `queries` query clips of one group, drawn without replacement.

    Groups are drawn uniformly, whatever their size; so are the clips of a group.

    Args:
      x: inputs of all clips; an array, `Utterances` or any tree of arrays with the leading axis clips.
      y: targets of all clips, a tree such as `Transcripts`; () where there are none.
      group: value of each clip in a column of the corpus; a clip of group -1, unknown, is in no task.
      shots: support clips of a task; 0 for an empty support set.
      queries: query clips of a task.
      apart: value of each clip in another column, such as a session; support and query are then of different ones:
        the support of that of a clip at random, the query of all others. A clip of -1 is in no task.
      name: of the corpus or split, for messages.
      names: of the groups, by value, for messages.

    Returns:
      `sample(key) -> Episode`, jittable; the leaves of `x` and `y` have the shapes `[shots, ...]` and `[queries, ...]`.

    Raises:
      InputError: no group has clips enough, or the arguments are for unequal numbers of clips.

    Example:
      ``sample = groups(x, (), corpus.columns["speaker"], shots=5, queries=5)``
    """
    check_sizes(shots=(shots, 0), queries=(queries, 1))
    count_clips(x=x, y=y, group=group, apart=() if apart is None else apart)
    check_column("group", group)
    x, y = jax.tree.map(jnp.asarray, (x, y))
    if apart is not None:
        group = np.where(apart < 0, -1, group)
    values, start, size = np.unique(np.sort(group[group >= 0]), return_index=True, return_counts=True)
    enough, need = size >= shots + queries, shots + queries
    if apart is not None:
        parts = [np.unique(apart[group == value], return_counts=True)[1] for value in values]
        enough = np.array([sizes.min() >= shots and (sizes.sum() - sizes).min() >= queries for sizes in parts])
        if not enough.any():
            raise InputError(f"{name}: no group has {shots} shots of each value and {queries} queries of the others.")
    if not enough.any():
        raise InputError(
            f"{name}: none of {len(size)} groups has {need} clips, as {shots} shots and {queries} queries need; the "
            f"largest has {size.max(initial=0)}."
        )
    if not enough.all():
        few = f"fewer than {need} clips" if apart is None else "too few clips of a value or of the others"
        left = [names[value] for value in values[~enough]] if names else []
        told = f": {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}" if left else ""
        count = f"{(~enough).sum()} of {len(size)} groups"
        warnings.warn(f"{name}: {count} have {few} and are left out{told}.", stacklevel=2)
    clips = jnp.asarray(np.argsort(group, kind="stable")[(group < 0).sum() :])
    starts, sizes, width = jnp.asarray(start[enough]), jnp.asarray(size[enough]), int(size[enough].max())
    sides = None if apart is None else jnp.asarray(apart)

    def sample(key: KeyArray) -> Episode:
        # one call of the generator: each costs compile time
        numbers = jax.random.uniform(key, (1 + width,))
        task = jnp.floor(numbers[0] * len(starts)).astype(jnp.int32)
        ranked = jnp.where(jnp.arange(width) < sizes[task], numbers[1:], -1.0)
        if sides is None:
            place = jax.lax.top_k(ranked, need)[1]
        else:
            side = sides[clips[jnp.minimum(starts[task] + jnp.arange(width), len(clips) - 1)]]
            first = side == side[ranked.argmax()]
            drawn = zip((first, ~first), (shots, queries), strict=True)
            place = jnp.concatenate([jax.lax.top_k(jnp.where(of, ranked, -1.0), count)[1] for of, count in drawn])
        chosen = clips[starts[task] + place]
        return divided(Batch(*jax.tree.map(lambda a: a[chosen], (x, y))), shots)

    return sample


def of_each(
    x: PyTree,
    y: PyTree,
    group: Int[np.ndarray, " clips"],
    values: Sequence[int] | Int[np.ndarray, " values"],
    *,
    shots: int,
    queries: int,
    seed: int,
    name: str = "corpus",
) -> Episode:
    """One task of each of some groups, drawn on the host: to test with, so that intervals are over groups.

    Args:
      x, y, group, shots, queries, name: as in `groups`.
      values: the groups, in the order of the tasks.
      seed: of the draw, of the same clips in the same order however many `queries` there are.

    Returns:
      Stacked episodes: leaves `[values, shots, ...]` and `[values, queries, ...]`.

    Raises:
      InputError: there is no group, or one has too few clips.
    """
    draw, rows, need = np.random.default_rng(seed), [], shots + queries
    if not len(values):
        raise InputError(f"{name}: values is empty, expected one group or more.")
    for value in values:
        rows.append(draw.permutation(np.flatnonzero(group == value))[:need])
        if len(rows[-1]) < need:
            raise InputError(f"{name}: group {value} has {len(rows[-1])} clips, expected {need}.")
    table = np.stack(rows)
    support, query = (jax.tree.map(lambda a, at=at: jnp.asarray(a)[at], (x, y)) for at in np.split(table, [shots], 1))
    return Episode(Batch(*support), Batch(*query))


def of_amounts(
    x: PyTree,
    y: PyTree,
    group: Int[np.ndarray, " clips"],
    amount: Float[np.ndarray, " clips"],
    most: Sequence[float],
    *,
    queries: int,
    seed: int,
    apart: Int[np.ndarray, " clips"] | None = None,
    name: str = "corpus",
) -> list[tuple[Episode, Float[np.ndarray, " groups"]]]:
    """For each of some amounts, such as seconds of speech, one task of every group whose support is at most so much.

    The longer support holds the shorter one; the query is the same for all. Zeros fill up: an utterance without frames,
    in which nothing is said.

    Args:
      x, y, group, apart, name: as in `groups`; support and query are of the first of two values and of the other.
      amount: of each clip.
      most: support of a task, increasing.
      queries: query clips of a task, at most: all that are left where fewer are.
      seed: of the draw.

    Returns:
      By amount, stacked episodes, leaves `[groups, clips, ...]`, and the amount that the support of each has.

    Raises:
      InputError: for some group nothing is left to recognise, or nothing is short enough to adapt to.
    """
    draw, side = np.random.default_rng(seed), np.zeros(len(group), int) if apart is None else apart
    rows: list[list[list[int]]] = []
    for value in np.unique(group[group >= 0]):
        mine, given, row = draw.permutation(np.flatnonzero(group == value)), list[int](), list[list[int]]()
        own = mine[:-1] if apart is None else mine[side[mine] == side[mine].min()]  # one is left to recognise
        for limit in most:
            for clip in own:
                if clip not in given and amount[given].sum() + amount[clip] <= limit:
                    given.append(int(clip))
            row.append([*given])
        others = [int(clip) for clip in mine if clip not in given and (apart is None or side[clip] != side[mine].min())]
        rows.append([*row, others[:queries]])
        if not row[0] or not others:
            raise InputError(f"{name}: group {value} has {len(row[0])} clips to adapt to and {len(others)} others.")

    def stacked(lists: list[list[int]]) -> Batch:
        table = np.array([[*one, *[-1] * (max(map(len, lists)) - len(one))] for one in lists])

        def filled(a: Any) -> Array:
            there = (table >= 0).reshape(table.shape + (1,) * (np.ndim(a) - 1))
            return jnp.where(there, jnp.asarray(a)[table], 0)

        return Batch(*jax.tree.map(filled, (x, y)))

    query = stacked([row[-1] for row in rows])
    supports = [[row[i] for row in rows] for i in range(len(most))]
    return [(Episode(stacked(of), query), np.array([amount[row].sum() for row in of])) for of in supports]
