"""Utterances in a few lengths, so that a handful of compiled programs serves all of them."""

import warnings
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metajax.core import Utterances
from metajax.errors import InputError

_STEPS = 128  # lengths that a bound is chosen from


def bucket_bounds(lengths: Int[np.ndarray, " n"], count: int = 4, multiple: int = 8, least: int = 1) -> tuple[int, ...]:
    """At most `count` lengths, the last the largest, that leave the least padding in all.

    Args:
        lengths: frames of the utterances, 1 or more.
        count: of the buckets.
        multiple: bounds are multiples of it.
        least: utterances of a bucket, where there are so many in all.

    Raises:
        InputError: there is no utterance, or `count` or `multiple` is below 1.
    """
    if not len(lengths) or min(count, multiple) < 1:
        raise InputError(f"{len(lengths)} lengths, count {count} and multiple {multiple}: expected 1 or more of each.")
    step = multiple * -(-int(np.max(lengths)) // (multiple * _STEPS))  # a larger multiple where there are too many
    ends, sizes = np.unique(-(-np.asarray(lengths) // step) * step, return_counts=True)
    total = np.concatenate([[0], np.cumsum(sizes)])
    # cost[j]: frames of the utterances up to the j-th end, in k buckets; cut[k][j]: where the last of them begins
    cost = np.where(np.arange(len(ends) + 1) == 0, 0.0, np.inf)
    cuts, costs = [], []
    for _ in range(min(count, len(ends))):
        fresh = np.full(len(ends) + 1, np.inf)
        cut = np.zeros(len(ends) + 1, int)
        for j in range(1, len(ends) + 1):
            held = total[j] - total[:j]
            ways = np.where(held < least, np.inf, cost[:j] + held * ends[j - 1])
            cut[j], fresh[j] = ways.argmin(), ways.min()
        cost = fresh
        cuts.append(cut)
        costs.append(cost[-1])
    bounds, j = [], len(ends)
    for cut in reversed(cuts[: int(np.argmin(costs)) + 1]):
        bounds.append(int(ends[j - 1]))
        j = cut[j]
    return tuple(sorted(bounds))


def bucket_of(lengths: Int[np.ndarray, " n"], bounds: Sequence[int]) -> Int[np.ndarray, " n"]:
    """The smallest bucket that holds each utterance.

    Raises:
        InputError: one is longer than the largest.
    """
    if len(long := np.flatnonzero(np.asarray(lengths) > bounds[-1])):
        raise InputError(
            f"Utterance {long[0]} has {lengths[long[0]]} frames, but the largest bucket holds {bounds[-1]} "
            f"({len(long)} of {len(lengths)} are longer)."
        )
    return np.searchsorted(np.asarray(bounds), np.asarray(lengths))


def run_in_buckets(
    apply: Callable[[Utterances], Float[Array, "batch time *features"]],
    utterances: Utterances,
    bounds: Sequence[int],
    batch: int = 8,
) -> list[np.ndarray]:
    """The outputs of an encoder that padding does not change, for each utterance those of its own frames.

    One longer than the largest bucket is split into pieces of that length, which a warning tells; their outputs are
    joined.

    Args:
        apply: the encoder, of the utterances alone; under `jax.jit` compiled once for each bucket.
        utterances: of any lengths.
        bounds: of the buckets, multiples of the encoder's stride.
        batch: utterances at a time.

    Returns:
        One array `[ceil(length / stride), *features]` an utterance.
    """
    frames, lengths = np.asarray(utterances.frames), np.asarray(utterances.lengths)
    if len(long := np.flatnonzero(lengths > bounds[-1])):
        told = f"{len(long)} of {len(lengths)} utterances are longer than the largest bucket, {bounds[-1]} frames"
        warnings.warn(f"{told}, and are split; the first: {long[0]}.", stacklevel=2)
    pieces = [(i, at) for i, length in enumerate(lengths) for at in range(0, max(int(length), 1), bounds[-1])]
    sizes = np.array([min(int(lengths[i]) - at, bounds[-1]) for i, at in pieces])
    bucket = bucket_of(sizes, bounds)
    found: dict[tuple[int, int], np.ndarray] = {}
    for place, bound in enumerate(bounds):
        rows = np.flatnonzero(bucket == place)
        for first in range(0, len(rows), batch):
            chosen = rows[first : first + batch]
            x = np.zeros((batch, bound, frames.shape[2]), frames.dtype)
            held = np.zeros(batch, np.int32)
            for row, piece in enumerate(chosen):
                i, at = pieces[piece]
                held[row] = sizes[piece]
                x[row, : held[row]] = frames[i, at : at + held[row]]
            outputs = np.asarray(apply(Utterances(jnp.asarray(x), jnp.asarray(held))))
            stride = bound // outputs.shape[1]
            for row, piece in enumerate(chosen):
                found[pieces[piece]] = outputs[row, : -(-int(held[row]) // stride)]
    return [np.concatenate([found[piece] for piece in pieces if piece[0] == i]) for i in range(len(lengths))]
