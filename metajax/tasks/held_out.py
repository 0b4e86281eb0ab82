"""Train, validation and test of the same classes: whole groups of examples are held out, such as all of a speaker."""

import numpy as np
from jaxtyping import Bool, Int

from metajax.errors import InputError
from metajax.tasks.episodes import index_tables
from metajax.tasks.splits import Splits, random_parts


def hold_out(
    label: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    *,
    shares: tuple[float, float] = (0.15, 0.25),
    seed: int,
    name: str = "corpus",
) -> Splits:
    """Whole groups, such as speakers, to train, to validate and to test on; within each class where groups are unknown.

    Args:
      label: class of each example.
      group: group of each example; where one is unknown, -1, the examples of each class are divided on their own.
      shares: of the groups, to validate and to test on, each at least one group unless its share is 0.
      seed: of the random choice.
      name: of the corpus, for messages.

    Returns:
      One mask over the examples for each split.

    Raises:
      InputError: shares that leave nothing, too few groups or examples, or a class that has none to train on.
    """
    if min(shares) < 0 or not 0 < sum(shares) < 1:
        raise InputError(f"shares to validate and to test on are {shares}, expected 0 or more and a sum in 0..1.")
    known = bool((group >= 0).all())
    index = np.arange(len(label))
    masks = np.zeros((3, len(label)), bool)
    for values in [np.unique(group)] if known else [index[label == c] for c in np.unique(label)]:
        validation, test = (max(1, round(share * len(values))) if share else 0 for share in shares)
        if len(values) <= validation + test:
            what = "groups (speakers, drawers)" if known else "examples of a class"
            least = 2 + bool(shares[0])
            raise InputError(f"{name} has {len(values)} {what}, expected {least} or more to hold some out of training.")
        parts = random_parts(values, (len(values) - validation - test, validation, test), seed)
        for mask, part in zip(masks, parts, strict=True):
            mask |= np.isin(group if known else index, part)
    if unseen := len(np.setdiff1d(label, label[masks[0]])):
        raise InputError(f"{name}: {unseen} classes are in no training example, expected each class in some.")
    return Splits(*masks)


def closed_test(
    columns: dict[str, Int[np.ndarray, " clips"]],
    train: Bool[np.ndarray, " clips"],
    *,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    most: int = 2000,
) -> tuple[Bool[np.ndarray, " clips"], Int[np.ndarray, " held"], Int[np.ndarray, " held"]]:
    """A test of the very words that are trained on, by other people: what a head for all of a corpus's words knows.

    Where no others say these words, as in the embedded corpus, an eighth of the people go without training.

    Args:
      columns: of a corpus, `label` and `speaker`.
      train: the clips to train on.
      ways, shots, queries: of the training episodes across speakers; words with too few clips for them are left out.
      seed: of what is held out.
      most: clips of the test.

    Returns:
      The clips left to train on, as a mask; the clips of the test; their labels, numbered as those of the episodes.

    Raises:
      InputError: as `hold_out` and `episodes`.
    """
    label, speaker = columns["label"], columns["speaker"]
    others = np.isin(label, label[train]) & ~np.isin(speaker, speaker[train])
    if not others.any():
        split = hold_out(label[train], speaker[train], shares=(0.0, 0.125), seed=seed)
        others[np.flatnonzero(train)[split.test]] = True
        train = train & ~others
    tables = index_tables(np.where(train, label, -1), speaker, ways, shots, queries, "speaker", "training")
    known = np.sort(label[np.asarray(tables.clips)[:, 0]])
    held = np.random.default_rng(seed).permutation(np.flatnonzero(others & np.isin(label, known)))[:most]
    return train & np.isin(label, known), held, np.searchsorted(known, label[held])
