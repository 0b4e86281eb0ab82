"""Corpora larger than memory: items in shards on disk, memory-mapped, of which an outer step reads what it needs.

Which items these are is a function of the seed and the step's number alone, so that a run goes on exactly where it
stopped, at no cost.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from metajax.checkpoint import write_json
from metajax.core import Batch, Episode
from metajax.data.corpora.files import read_text
from metajax.errors import InputError
from metajax.names import named

_INDEX = "stream.json"


class Stream(NamedTuple):
    """Items on disk.

    Fields:
        group: of each item, such as its speaker or language; -1 where unknown.
        take: items by number, of any shape: leaves `[*shape, ...]`, in memory.
    """

    group: Int[np.ndarray, " items"]
    take: Callable[[Int[np.ndarray, "..."]], Batch]


def write(folder: Path, parts: Iterable[tuple[Batch, Int[np.ndarray, " n"]]]) -> None:
    """Write items part by part, each a shard of its own, so that one part at a time is in memory.

    A shard appears when it is whole, the stream when all its shards are there.

    Args:
        folder: new or empty.
        parts: items, leaves `[n, ...]` of which all but n is the same in all parts, and the group of each.

    Raises:
        InputError: the folder holds something, there is no part, or the parts are not alike.

    Example:
        ``write(folder, ((Batch(x, y), corpus.columns["language"]) for x, y, corpus in pieces))``
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not an empty folder; choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[int]] = []
    first = np.dtype([])
    for batch, group in parts:
        leaves, part = {name: np.asarray(a) for name, a in named(batch).items()}, f"part {len(groups)}"
        kind = np.dtype([(name, a.dtype, a.shape[1:]) for name, a in leaves.items()])
        first = first if groups else kind
        _check_alike(part, kind, first)
        items = np.empty(len(group), kind)
        for name, leaf in leaves.items():
            if len(leaf) != len(group):
                raise InputError(f"{part} has {len(leaf)} items in {name}, expected {len(group)}, one for each group.")
            items[name] = leaf
        temporary = folder / f".{len(groups)}.tmp"
        try:
            with temporary.open("wb") as file:
                np.save(file, items, allow_pickle=False)
            os.replace(temporary, _shard(folder, len(groups)))
        finally:
            temporary.unlink(missing_ok=True)
        groups.append(np.asarray(group).tolist())
    if not any(groups):
        raise InputError("parts holds no item, expected one or more.")
    write_json(folder / _INDEX, {"groups": groups})


def open(folder: Path, like: Batch) -> Stream:
    """Open what `write` wrote: its shards are mapped, which takes addresses but no memory.

    Args:
        folder: of the stream.
        like: a batch or an item of the same structure; its values do not matter.

    Raises:
        InputError: there is no whole stream, a shard is missing, damaged or unlike the others, or `like` is.
    """
    folder = Path(folder)
    if not (folder / _INDEX).exists():
        raise InputError(f"{folder} holds no whole stream: {_INDEX} is missing, which is written last.")
    try:
        groups = [np.array(group, np.int32) for group in json.loads(read_text(folder / _INDEX))["groups"]]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / _INDEX} is damaged ({error}).") from error
    shards = [_mapped(folder, number, len(group)) for number, group in enumerate(groups)]
    kind, names = shards[0].dtype, tuple(named(like))
    if names != kind.names:
        raise InputError(f"{folder} holds {', '.join(kind.names or ())}, expected {', '.join(names)}, as like has.")
    for number, shard in enumerate(shards):
        _check_alike(str(_shard(folder, number)), shard.dtype, kind)
    ends, structure = np.cumsum([len(group) for group in groups]), jax.tree.structure(like)

    def take(items: Int[np.ndarray, "..."]) -> Batch:
        rows = items.reshape(-1)
        of = np.searchsorted(ends, rows, side="right")
        leaves = {name: np.empty((len(rows), *kind[name].shape), kind[name].base) for name in names}
        for number in np.unique(of).tolist():
            shard, here = shards[number], of == number
            for name, leaf in leaves.items():
                leaf[here] = shard[name][rows[here] - (ends[number] - len(shard))]
        shaped = [leaf.reshape(*items.shape, *leaf.shape[1:]) for leaf in leaves.values()]
        return jax.tree.unflatten(structure, shaped)

    return Stream(np.concatenate(groups), take)


def episodes(stream: Stream, *, shots: int, queries: int, num_tasks: int, seed: int = 0) -> Callable[[int], Episode]:
    """Tasks that are groups, for `fit(outer_step(...), ..., episodes=...)`.

    Args:
        stream: the items.
        shots, queries: of a task, drawn without replacement.
        num_tasks: groups of an outer step, drawn uniformly from those with items enough.
        seed: of the draw.

    Returns:
        `step -> stacked episodes`, leaves `[num_tasks, shots, ...]` and `[num_tasks, queries, ...]`.

    Raises:
        InputError: no group has items enough.
    """
    members = [np.flatnonzero(stream.group == value) for value in np.unique(stream.group[stream.group >= 0])]
    able = [rows for rows in members if len(rows) >= shots + queries]
    if not able:
        asked = f"{shots} shots and {queries} queries"
        raise InputError(f"None of {len(members)} groups has {shots + queries} items, as {asked} need.")

    def at(step: int) -> Episode:
        draw = np.random.default_rng((seed, step))
        groups = draw.integers(len(able), size=num_tasks)
        batch = stream.take(np.stack([draw.choice(able[i], shots + queries, replace=False) for i in groups]))
        return Episode(*(jax.tree.map(lambda a, of=of: a[:, of], batch) for of in (slice(shots), slice(shots, None))))

    return at


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.npy"


def _mapped(folder: Path, number: int, count: int) -> np.ndarray:
    path = _shard(folder, number)
    try:
        items = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing, a shard of {count} items.") from error
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from error
    if items.shape != (count,):
        raise InputError(f"{path} holds {items.shape} items, expected {count}.")
    return np.asarray(items)  # a plain array of the same map, which is quicker to index


def _check_alike(what: str, kind: np.dtype, first: np.dtype) -> None:
    for name in (*(first.names or ()), *(kind.names or ())):
        now, then = ((k[name] if name in (k.names or ()) else None) for k in (kind, first))
        if now != then:
            raise InputError(f"{what} holds {now} in {name}, expected {then}, as the first.")
