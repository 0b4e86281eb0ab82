"""Splits that share neither words nor speakers."""

import numpy as np
import pytest

from metajax import InputError
from metajax.tasks.splits import Splits, check_disjoint, counted, divide, fewer, random_parts, split, without_tested
from tests.conftest import words

LABEL, SPEAKER = words(6, 5, 2)
WORDS, SPEAKERS = ((0, 3), (1,), (2, 4)), ((0, 1), (2,), (4,))


def test_a_split_is_its_words_by_its_speakers():
    splits = split(LABEL, SPEAKER, WORDS, SPEAKERS)
    for mask, part, people in zip(splits, WORDS, SPEAKERS, strict=True):
        wanted = [w in part and s in people for w, s in zip(LABEL, SPEAKER, strict=True)]
        np.testing.assert_array_equal(mask, wanted)
        assert mask.any()
    assert np.sum(splits, 0).max() == 1


def test_without_speakers_words_alone_decide():
    splits = split(LABEL, np.full_like(SPEAKER, -1), WORDS, None)
    assert [int(mask.sum()) for mask in splits] == [20, 10, 20]


@pytest.mark.parametrize(
    ("labels", "speakers", "message"),
    [
        (((0, 3), (1,), (2, 3)), None, r"train and test share 1 words \(3\), expected none"),
        (((0, 3, 1), (1, 3), (2,)), None, r"train and validation share 2 words \(1, 3\)"),
        (WORDS, ((0, 1), (2, 4), (4,)), r"validation and test share 1 speakers \(4\)"),
    ],
)
def test_an_overlap_is_refused_by_name(labels, speakers, message):
    with pytest.raises(InputError, match=message):
        split(LABEL, SPEAKER, labels, speakers)


def test_at_most_three_shared_values_are_named():
    masks = Splits(LABEL < 5, LABEL == 5, LABEL < 5)
    with pytest.raises(InputError, match=r"train and test share 5 words \(zero, one, two\), expected none"):
        check_disjoint(masks, LABEL, "words", ("zero", "one", "two", "three", "four", "five"))
    check_disjoint(Splits(LABEL < 2, LABEL == 2, LABEL > 2), LABEL, "words")


def test_random_parts_are_disjoint_and_a_function_of_the_seed():
    values = np.arange(100, 120)
    parts = random_parts(values, (10, 4, 5), seed=3)
    assert [len(part) for part in parts] == [10, 4, 5]
    assert len({v for part in parts for v in part}) == 19
    assert {v for part in parts for v in part} <= set(values.tolist())
    assert parts == random_parts(values, (10, 4, 5), seed=3) != random_parts(values, (10, 4, 5), seed=4)
    assert parts[0] != tuple(range(100, 110))


NAMES = {"label": tuple("abcdef"), "speaker": tuple("vwxyz"), "split": Splits._fields, "official_split": Splits._fields}


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_is_divided_into_disjoint_words_and_speakers(seed):
    label, speaker = words(12, 9, 1)
    splits = divide({"label": label, "speaker": speaker}, NAMES, ways=3, seed=seed)
    for column, least in ((label, 3), (speaker, 2)):
        parts = [set(column[mask]) for mask in splits]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(column))
        assert min(map(len, parts)) >= least
    again = divide({"label": label, "speaker": speaker}, NAMES, ways=3, seed=seed)
    np.testing.assert_array_equal(splits, again)


def test_the_speakers_of_an_official_split_are_kept():
    official = np.array([0, 0, 0, 1, 2])[SPEAKER]
    splits = divide({"label": LABEL, "speaker": SPEAKER, "official_split": official}, NAMES, ways=2, seed=0)
    assert [set(SPEAKER[mask]) for mask in splits] == [{0, 1, 2}, {3}, {4}]


@pytest.mark.parametrize("known", [True, False])
def test_a_column_split_decides(known):
    speaker = SPEAKER if known else np.full_like(SPEAKER, -1)
    part = np.where(SPEAKER == 4, -1, np.array([0, 0, 1, 1, 2, 2])[LABEL])
    part = np.where(np.array([0, 0, 1, 2, 2])[SPEAKER] == part, part, -1)
    with pytest.warns(UserWarning, match=f"{(part < 0).sum()} clips have no label or no split"):
        splits = divide({"label": LABEL, "speaker": speaker, "split": part}, NAMES, ways=2, seed=0)
    for index, mask in enumerate(splits):
        np.testing.assert_array_equal(mask, part == index)
    with pytest.raises(InputError, match=r"train and validation share 1 words \(a\)"):
        divide(
            {"label": LABEL, "speaker": speaker, "split": np.minimum(SPEAKER, 1) * (LABEL == 0)}, NAMES, ways=2, seed=0
        )


def test_too_few_words_or_speakers_to_divide_are_refused():
    with pytest.raises(InputError, match="6 words, expected at least 8"):
        divide({"label": LABEL, "speaker": SPEAKER}, NAMES, ways=4, seed=0)
    with pytest.raises(InputError, match="3 speakers, expected at least 4"):
        divide({"label": LABEL, "speaker": SPEAKER % 3}, NAMES, ways=2, seed=0)
    with pytest.raises(InputError, match="12 of 60 clips have no speaker"):
        divide({"label": LABEL, "speaker": np.where(SPEAKER == 0, -1, SPEAKER)}, NAMES, ways=2, seed=0)


def test_without_words_to_validate_on_its_speakers_train():
    label, speaker = np.repeat(np.arange(10), 6), np.tile(np.arange(6), 10)
    splits = divide({"label": label, "speaker": speaker}, {"label": tuple("abcdefghij")}, ways=5, seed=0)
    assert [len(set(speaker[mask])) for mask in splits] == [4, 0, 2]
    assert [len(set(label[mask])) for mask in splits] == [5, 0, 5]


def test_words_and_speakers_tested_on_are_left_out_of_training():
    columns, everything = {"label": LABEL, "speaker": SPEAKER}, np.ones(len(LABEL), bool)
    names = {"label": tuple("abcdef"), "speaker": tuple("vwxyz")}
    whole = Splits(everything, everything, everything)
    tested = {"label": {"a", "other"}, "speaker": {"w", "other"}}
    with pytest.warns(UserWarning, match="1 (words|speakers) are tested on and left out of training .[aw]"):
        left = without_tested(whole, columns, names, tested)
    np.testing.assert_array_equal(left.train, (LABEL != 0) & (SPEAKER != 1))
    with (
        pytest.warns(UserWarning, match="6 words are tested on"),
        pytest.raises(InputError, match="No clip is left to train on"),
    ):
        without_tested(whole, columns, names, {"label": set("abcdef"), "speaker": set()})


def test_fewer_are_of_so_many_words_speakers_and_takes_and_grow():
    label, speaker, _ = (a.reshape(-1) for a in np.mgrid[:7, :6, :4])
    columns, mask = {"label": label, "speaker": speaker}, label < 6
    kept = fewer(columns, mask, 3, 2, 1, 0)
    assert counted(columns, kept) == {"words": 3, "speakers": 2, "takes": 1} and kept.sum() == 6
    for more in ((4, 2, 1), (3, 5, 1), (3, 2, 3), (6, 6, 4), (0, 2, 1)):
        grown = fewer(columns, mask, *more, 0)
        assert counted(columns, grown) == dict(
            zip(("words", "speakers", "takes"), (more[0] or 6, *more[1:]), strict=True)
        )
        assert (grown >= kept).all() and grown.sum() == (more[0] or 6) * more[1] * more[2]
    np.testing.assert_array_equal(fewer(columns, mask, 0, 0, 0, 0), mask)
    assert (fewer(columns, mask, 3, 2, 1, 1) != kept).any()
    with pytest.raises(InputError, match="words is 7, expected 0 to 6, all there are"):
        fewer(columns, mask, 7, 0, 0, 0)
