"""Train, validation and test that share neither words nor speakers, checked."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from metajax.errors import InputError


class Splits(NamedTuple):
    """Which clips belong to each split; the rest (a test speaker's training words, say) belong to none."""

    train: Bool[np.ndarray, " clips"]
    validation: Bool[np.ndarray, " clips"]
    test: Bool[np.ndarray, " clips"]


def split(
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    labels: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    speakers: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None,
) -> Splits:
    """The clips of each split's words by each split's speakers.

    Args:
      label: class of each clip.
      speaker: speaker of each clip.
      labels: classes of train, validation and test.
      speakers: speakers of train, validation and test; None where speakers are unknown.

    Returns:
      One mask over clips for each split.

    Raises:
      InputError: two splits share a word or a speaker.
    """
    masks = [np.isin(label, part) for part in labels]
    if speakers is not None:
        masks = [mask & np.isin(speaker, part) for mask, part in zip(masks, speakers, strict=True)]
    splits = Splits(*masks)
    check_disjoint(splits, label, "words")
    if speakers is not None:
        check_disjoint(splits, speaker, "speakers")
    return splits


def check_disjoint(splits: Splits, column: Int[np.ndarray, " clips"], what: str, names: tuple[str, ...] = ()) -> None:
    """Raise `InputError` where two splits share a value of `column`, naming up to three of them."""
    for i, j in ((0, 1), (0, 2), (1, 2)):
        shared = np.intersect1d(column[splits[i]], column[splits[j]])
        if len(shared):
            shown = ", ".join(names[v] if names else str(v) for v in shared[:3])
            raise InputError(
                f"{Splits._fields[i]} and {Splits._fields[j]} share {len(shared)} {what} ({shown}), expected none."
            )


def random_parts(
    values: Int[np.ndarray, " n"], sizes: tuple[int, int, int], seed: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """`values` in random order, cut into three parts of the given sizes."""
    order = np.random.default_rng(seed).permutation(values)
    a, b = sizes[0], sizes[0] + sizes[1]
    train, validation, test = (tuple(int(v) for v in part) for part in (order[:a], order[a:b], order[b : b + sizes[2]]))
    return train, validation, test
