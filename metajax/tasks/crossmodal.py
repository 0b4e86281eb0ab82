"""Episodes whose examples have several modalities, all or some of them: spoken, drawn and written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from metajax.core import Batch, Episode, KeyArray, Sampler
from metajax.errors import InputError
from metajax.tasks.episodes import check_column, check_probability, count_clips, divided, episodes, pad


class Items(NamedTuple):
    """Items of one modality that belong to a class, not to a clip, such as handwritten digits."""

    x: PyTree  # arrays with the leading axis items
    label: Int[np.ndarray, " items"]  # class of each item, -1 for one that is not to be drawn
    wanted: Int[np.ndarray, " clips"]  # class of the items that go with each clip; -1 where it has none


def paired(
    x: Mapping[str, PyTree],
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    items: Mapping[str, Items],
    *,
    ways: int,
    shots: int,
    queries: int,
    name: str = "corpus",
    **how: Any,
) -> Sampler:
    """A distribution over episodes of clips, each with an item of its class from every other modality.

    Clips are drawn as by `episodes`. Items are drawn uniformly, so that no item is twice in an episode: those of
    support and query are different ones. A clip whose class has no items (`wanted` -1) lacks that modality.

    Args:
      x: what goes with each clip, by modality: `audio`, or `text` too.
      label, speaker: of each clip.
      items: the other modalities.
      ways, shots, queries, name: as in `episodes`.
      **how: passed to `episodes`: `across`, and `within` where classes of two groups share their items.

    Returns:
      `sample(key) -> Episode`, with x a dict of all modalities and `present`, `[n, modalities]` in alphabetical order.

    Raises:
      InputError: as `episodes`; a class without an item where one is asked for, or with too few; a modality named
        twice, or of another number of clips.

    Example:
      ``sample = paired({"audio": x}, label, speaker, {"image": Items(pixels, digit, label)}, ways=5, shots=1, ...)``
    """
    if twice := set(x) & set(items):
        raise InputError(f"{name}: {twice.pop()!r} is among x and items, expected each modality once.")
    count_clips(**x, label=label, **{f"{modality}.wanted": one.wanted for modality, one in items.items()})
    tables = {m: _table(one, label, ways, shots + queries, f"{name}, {m}") for m, one in items.items()}
    names = sorted({*x, *items})
    draw = episodes(dict(x) | {m: one.wanted for m, one in items.items()}, label, speaker,
                    ways=ways, shots=shots, queries=queries, name=name, **how)  # fmt: skip
    x_of = {modality: jax.tree.map(jnp.asarray, one.x) for modality, one in items.items()}

    def sample(key: KeyArray) -> Episode:
        key, draw_key = jax.random.split(key)
        both: Batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *draw(draw_key))
        present = jnp.ones((ways * (shots + queries), len(names)), bool)
        for i, (modality, table) in enumerate(tables.items()):
            wanted = both.x[modality]
            ranked = jnp.where(table >= 0, jax.random.uniform(jax.random.fold_in(key, i), table.shape), -1.0)
            # the k-th example of a class takes the k-th item in a random order of them
            place = jnp.tril(wanted[:, None] == wanted, -1).sum(1)
            order = jnp.argsort(-ranked, 1)[wanted]
            chosen = table[wanted, jnp.take_along_axis(order, place[:, None], 1)[:, 0]]
            both.x[modality] = jax.tree.map(lambda a, chosen=chosen: a[chosen], x_of[modality])
            present = present.at[:, names.index(modality)].set(wanted >= 0)
        return divided(both._replace(x=both.x | {"present": present}), ways * shots)

    return sample


def side_by_side(samples: Mapping[str, Sampler]) -> Sampler:
    """Episodes of several modalities, each drawn by itself: class i of all of them is one, an arbitrary pair.

    Args:
      samples: episodes of each modality, of equal numbers of classes and examples, such as words and characters.

    Returns:
      `sample(key) -> Episode` with x a dict of all modalities and `present`; the labels of the first modality.

    Raises:
      InputError: when called, the modalities' numbers of examples differ.
    """

    def sample(key: KeyArray) -> Episode:
        drawn = [one(jax.random.fold_in(key, i)) for i, one in enumerate(samples.values())]
        halves = []
        for half in zip(*drawn, strict=True):
            n = count_clips(**{f"x of {name}": batch.x for name, batch in zip(samples, half, strict=True)})
            x = {name: batch.x for name, batch in zip(samples, half, strict=True)}
            halves.append(Batch(x | {"present": jnp.ones((n, len(x)), bool)}, half[0].y))
        return Episode(*halves)

    return sample


def choices(sample: Sampler, modality: str) -> Sampler:
    """Episodes whose query asks for the right item: those of `modality` change places, and y tells where it now is.

    For `mj.crossmodal`: hear a word once, paired with an image; another speaker says it: which new image is it?

    Args:
      sample: episodes of several modalities with one query of each class.
      modality: to choose from.

    Returns:
      Episodes whose query y is `Labels` with `episode` the row of the right item, `[ways]`.

    Raises:
      InputError: when called, the examples lack the modality.
    """

    def asked(key: KeyArray) -> Episode:
        support, query = sample(jax.random.fold_in(key, 0))
        if modality not in query.x:
            raise InputError(f"modality is {modality!r}, expected one of {', '.join(query.x)}.")
        order = jax.random.permutation(jax.random.fold_in(key, 1), len(query.y.episode))
        moved = jax.tree.map(lambda a: a[order], query.x[modality])
        return Episode(support, Batch(query.x | {modality: moved}, query.y._replace(episode=jnp.argsort(order))))

    return asked


def only(sample: Sampler, support: Bool[ArrayLike, " modalities"], query: Bool[ArrayLike, " modalities"]) -> Sampler:
    """Episodes of which the support set keeps some modalities and the query set some, others perhaps.

    Args:
      sample: episodes of several modalities.
      support, query: which of them stay, in alphabetical order; may be traced.

    Raises:
      InputError: none is to stay (where that is concrete).
    """
    for name, kept in (("support", support), ("query", query)):
        if not isinstance(kept, jax.core.Tracer) and not np.any(kept):
            raise InputError(f"{name} keeps no modality at all, expected one or more.")

    def fewer(key: KeyArray) -> Episode:
        halves = zip(sample(key), (support, query), strict=True)
        return Episode(*(b._replace(x=b.x | {"present": b.x["present"] & jnp.asarray(kept)}) for b, kept in halves))

    return fewer


def dropped(present: Bool[Array, "n modalities"], key: KeyArray, rate: float) -> Bool[Array, "n modalities"]:
    """Modality dropout: each of an example's modalities is gone with probability `rate`, but never the last of them.

    Args:
      present: which example has which modality.
      key: of the draw.
      rate: a probability.

    Raises:
      InputError: `rate` is none.

    Example:
      >>> here = dropped(jnp.ones((100, 3), bool), jax.random.key(0), 0.5)
      >>> bool(here.any(1).all()), bool((~here).any())
      (True, True)
    """
    check_probability("rate", rate)
    draw = jax.random.uniform(key, present.shape)
    last = jnp.argmax(jnp.where(present, draw, -1.0), 1)
    return present & ((draw >= rate) | (jnp.arange(present.shape[1]) == last[:, None]))


def _table(items: Items, label: Int[np.ndarray, " clips"], ways: int, each: int, name: str) -> Int[Array, "classes _"]:
    """The items of every class 0, 1, ..., padded with -1; an `InputError` where an episode could want more of them."""
    count_clips(x=items.x, label=items.label)
    for column, values in (("label", items.label), ("wanted", items.wanted)):
        check_column(f"{column} of {name}", values)
    asked = np.unique(np.stack([items.wanted, label])[:, (label >= 0) & (items.wanted >= 0)], axis=1)[0]
    for value, classes in zip(*np.unique(asked, return_counts=True), strict=True):
        need, found = each * min(ways, int(classes)), int((items.label == value).sum())
        if found < need:
            raise InputError(f"{name}: class {value} has {found or 'no'} items, expected {need} or more.")
    return jnp.asarray(pad([np.flatnonzero(items.label == value) for value in range(items.label.max() + 1)]))
