"""Train, validation and test of the same classes by other people."""

import warnings

import numpy as np
import pytest

import metajax as mj
from metajax.tasks.held_out import closed_test, hold_out

LABEL, SPEAKER = (a.reshape(-1) for a in np.mgrid[:4, :10])


def test_nobody_is_on_two_sides():
    split = hold_out(LABEL, SPEAKER, seed=0)
    assert [len(np.unique(SPEAKER[part])) for part in split] == [6, 2, 2]
    assert (np.sum(split, 0) == 1).all()
    assert all(len(np.unique(LABEL[part])) == 4 for part in split)


def test_without_groups_each_class_is_divided_on_its_own():
    split = hold_out(LABEL, np.full(40, -1), seed=0)
    assert all((np.bincount(LABEL[part]) == count).all() for part, count in zip(split, (6, 2, 2), strict=True))
    assert (np.sum(split, 0) == 1).all()


def test_a_share_of_nothing_leaves_nothing_to_validate_on():
    split = hold_out(LABEL, SPEAKER, shares=(0.0, 0.25), seed=1)
    assert not split.validation.any() and len(np.unique(SPEAKER[split.test])) == 2


def test_too_little_is_refused():
    with pytest.raises(mj.InputError, match="digits has 2 groups .*, expected 3 or more"):
        hold_out(LABEL, SPEAKER % 2, seed=0, name="digits")
    with pytest.raises(mj.InputError, match="1 groups .*, expected 2 or more"):
        hold_out(LABEL, SPEAKER * 0, shares=(0.0, 0.5), seed=0)
    with pytest.raises(mj.InputError, match="2 classes are in no training example"):
        hold_out(LABEL, LABEL, seed=0)
    with pytest.raises(mj.InputError, match=r"\(0.0, 1.0\), expected 0 or more and a sum in 0..1"):
        hold_out(LABEL, SPEAKER, shares=(0.0, 1.0), seed=0)


@pytest.mark.parametrize("everybody", [True, False])
def test_a_closed_test_is_of_the_words_trained_on_by_others(everybody):
    label, speaker = (a.reshape(-1) for a in np.mgrid[:6, :16, :3][:2])
    train = (label < 4) & (everybody | (speaker < 12))
    train &= (label != 3) | (speaker < 1)  # word 3 has one speaker: too few for episodes across speakers
    columns = {"label": label, "speaker": speaker}
    if everybody:
        columns = {name: column[label < 3] for name, column in columns.items()}
        train = train[label < 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left, held, numbers = closed_test(columns, train, ways=2, shots=1, queries=2, seed=0)
    assert not (left & ~train).any() and set(columns["label"][left]) == set(columns["label"][held]) == {0, 1, 2}
    assert not set(columns["speaker"][left]) & set(columns["speaker"][held])
    np.testing.assert_array_equal(numbers, columns["label"][held])
    assert len(set(columns["speaker"][held])) == (2 if everybody else 4)
