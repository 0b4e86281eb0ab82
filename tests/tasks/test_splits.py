"""Splits that share neither words nor speakers."""

import numpy as np
import pytest

from metajax import InputError
from metajax.tasks.splits import Splits, check_disjoint, random_parts, split
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
