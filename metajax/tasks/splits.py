"""Train, validation and test that share neither words nor speakers, checked."""

import warnings
from collections import Counter
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
        shared = shared[shared >= 0]  # -1 is unknown
        if len(shared):
            shown = ", ".join(names[v] if names else str(v) for v in shared[:3])
            a, b = Splits._fields[i], Splits._fields[j]
            raise InputError(f"{a} and {b} share {len(shared)} {what} ({shown}), expected none.")


def divide(
    columns: dict[str, Int[np.ndarray, " clips"]],
    names: dict[str, tuple[str, ...]],
    *,
    ways: int,
    seed: int,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> Splits:
    """Train, validation and test of a corpus, without a shared word or speaker.

    A column `split` decides where there is one. Otherwise words are dealt at random, `ways` at least to train and test
    each, and speakers by the column `official_split` where its parts share no speaker (a missing test part is made of
    the validation part), else at random too; validation goes without where too few are left.

    Args:
      columns: of the corpus: `label`, and `speaker`, `split`, `official_split` where known.
      names: of the columns' values.
      ways: classes that an episode needs.
      seed: of the random choices.
      shares: of words and speakers for train, validation and test.

    Returns:
      One mask over clips for each split; clips without a label or a split are in none, with a warning.

    Raises:
      InputError: too few words or speakers, or the column `split` shares some between two splits.
    """
    label = columns["label"]
    speaker = columns.get("speaker", np.full_like(label, -1))
    if "split" in columns:
        order = [names["split"].index(name) if name in names["split"] else -2 for name in Splits._fields]
        splits = Splits(*((columns["split"] == index) & (label >= 0) for index in order))
        _tell_unused(int((~(splits.train | splits.validation | splits.test)).sum()), "have no label or no split")
        check_disjoint(splits, label, "words", names["label"])
        check_disjoint(splits, speaker, "speakers", names["speaker"])
        return splits
    words = np.unique(label[label >= 0])
    if not len(words):
        raise InputError(f"No clip has a label, expected words in the column 'label'; columns: {', '.join(columns)}.")
    _tell_unused(int((label < 0).sum()), "have no label")
    if len(words) < 2 * ways:
        raise InputError(
            f"{len(words)} words, expected at least {2 * ways}: {ways}-way episodes need {ways} to train on and {ways} "
            "others to test on."
        )
    sizes = _sizes(len(words), shares, ways)
    labels = random_parts(words, sizes, seed)
    if (speaker < 0).any():
        if (speaker >= 0).any():
            raise InputError(f"{(speaker < 0).sum()} of {len(speaker)} clips have no speaker, expected all or none.")
        return split(label, speaker, labels, None)
    parts = _official(columns, names, seed)
    if not sizes[1]:  # no words to validate on: its speakers train
        shares = (shares[0] + shares[1], 0.0, shares[2])
        parts = parts and (parts[0] + parts[1], (), parts[2])
    if parts is None:
        people = np.unique(speaker)
        if len(people) < 4:
            raise InputError(f"{len(people)} speakers, expected at least 4: two to train on and two others to test on.")
        parts = random_parts(people, _sizes(len(people), shares, 2), seed)
    return split(label, speaker, labels, parts)


def without_tested(
    splits: Splits,
    columns: dict[str, Int[np.ndarray, " clips"]],
    names: dict[str, tuple[str, ...]],
    tested: dict[str, set[str]],
) -> Splits:
    """`splits` of a corpus to train on, without words and speakers that another is tested on, told in a warning.

    Args:
      splits: of the corpus.
      columns: of the corpus.
      names: of the columns' values.
      tested: the names tested on, of the columns `label` and `speaker`.

    Raises:
      InputError: no clip is left to train on.
    """
    keep = np.ones(len(columns["label"]), bool)
    for column, what in (("label", "words"), ("speaker", "speakers")):
        if shared := [i for i, name in enumerate(names[column]) if name in tested[column]]:
            shown = ", ".join(names[column][i] for i in shared[:3])
            message = f"{len(shared)} {what} are tested on and left out of training ({shown})."
            warnings.warn(message, stacklevel=2)
            keep &= ~np.isin(columns[column], shared)
    if not (splits.train & keep).any():
        raise InputError("No clip is left to train on: all are of words or by speakers that are tested on.")
    return Splits(*(mask & keep for mask in splits))


def fewer(
    columns: dict[str, Int[np.ndarray, " clips"]],
    mask: Bool[np.ndarray, " clips"],
    words: int,
    speakers: int,
    takes: int,
    seed: int,
) -> Bool[np.ndarray, " clips"]:
    """Some of the clips of `mask`: of so many words, by so many speakers, and so many takes of each word by each.

    With the same seed, what is chosen of fewer is among what is chosen of more.

    Args:
      columns: of the corpus: `label` and `speaker`.
      mask: clips to choose from.
      words, speakers, takes: how many; 0 for all.
      seed: of the choice.

    Raises:
      InputError: there are not so many, or a number is negative.
    """
    most, order, keep = counted(columns, mask), np.random.default_rng(seed), mask.copy()
    for name, count in zip(most, (words, speakers, takes), strict=True):
        if not 0 <= count <= most[name]:
            raise InputError(f"{name} is {count}, expected 0 to {most[name]}, all there are.")
    pairs = np.stack([columns[name] for name in ("label", "speaker")], 1)
    for column, count in zip(pairs.T, (words, speakers), strict=True):
        keep &= np.isin(column, order.permutation(np.unique(column[mask]))[: count or None])
    seen = Counter[tuple[int, ...]]()
    for row in order.permutation(len(mask)):
        pair = tuple(pairs[row].tolist())
        seen[pair] += int(keep[row])
        keep[row] &= not takes or seen[pair] <= takes
    return keep


def counted(columns: dict[str, Int[np.ndarray, " clips"]], mask: Bool[np.ndarray, " clips"]) -> dict[str, int]:
    """How many words and speakers there are in `mask`, and takes of one word by one speaker, at most."""
    pairs = np.stack([columns[name][mask] for name in ("label", "speaker")])
    takes = np.unique(pairs, axis=1, return_counts=True)[1]
    return {"words": len({*pairs[0]}), "speakers": len({*pairs[1]}), "takes": int(takes.max(initial=0))}


def _tell_unused(count: int, why: str) -> None:
    """Warn of clips that belong to no split."""
    if count:
        warnings.warn(f"{count} clips {why} and are not used.", stacklevel=3)


def _sizes(count: int, shares: tuple[float, float, float], least: int) -> tuple[int, int, int]:
    """Train, validation and test sizes: test and train at least `least`, validation at least that or nothing."""
    test = max(least, round(count * shares[2]))
    validation = max(least, round(count * shares[1])) if shares[1] else 0
    if count - test - validation < least:
        validation, test = 0, max(least, min(test, count - least))
    return count - test - validation, validation, test


def _official(
    columns: dict[str, Int[np.ndarray, " clips"]], names: dict[str, tuple[str, ...]], seed: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Speakers by the corpus's own split, None where it has none or shares speakers."""
    if "official_split" not in columns:
        return None
    people: dict[str, set[int]] = {name: set() for name in Splits._fields}
    for i, name in enumerate(names["official_split"]):
        people[name] = set(columns["speaker"][columns["official_split"] == i].tolist())
    train, validation, test = (people[name] for name in Splits._fields)
    if train & validation or train & test or validation & test or not train or not validation | test:
        return None
    if not test:
        order = np.random.default_rng(seed).permutation(sorted(train)).tolist()
        count = max(2, len(order) // 6)
        return tuple(order[count:]), tuple(order[:count]), tuple(sorted(validation))
    return tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test))


def random_parts(
    values: Int[np.ndarray, " n"], sizes: tuple[int, int, int], seed: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """`values` in random order, cut into three parts of the given sizes."""
    order = np.random.default_rng(seed).permutation(values)
    a, b = sizes[0], sizes[0] + sizes[1]
    train, validation, test = (tuple(int(v) for v in part) for part in (order[:a], order[a:b], order[b : b + sizes[2]]))
    return train, validation, test
