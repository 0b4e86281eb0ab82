"""Recordings and images as tokens: how they are cut into pieces, and their codebook."""

import jax
import numpy as np
import pytest

import metajax as mj
from metajax.data import tokens
from tests.conftest import normal

pytest.importorskip("sklearn", reason="k-means is scikit-learn's")


def pieces(seed=0, n=20, length=7):
    """Random inputs with padding at their ends."""
    draw = np.random.default_rng(seed)
    mask = np.arange(length) < draw.integers(3, length + 1, (n, 1))
    return tokens.Pieces(draw.normal(size=(n, length, 4)).astype(np.float32), mask)


def test_tokens_are_the_nearest_centre_and_padding_is_negative():
    inputs, train = pieces(), np.arange(20) < 15
    ids = tokens.tokenise(inputs, train, 6)
    np.testing.assert_array_equal(ids >= 0, inputs.mask)
    np.testing.assert_array_equal(np.unique(ids[inputs.mask]), range(6))
    # k-means has settled: each training vector is closest to the mean of those that share its token
    rows = inputs.mask & train[:, None]
    means = np.stack([inputs.vectors[rows & (ids == token)].mean(0) for token in range(6)])
    nearest = np.square(inputs.vectors[rows][:, None] - means).sum(-1).argmin(-1)
    assert (nearest == ids[rows]).mean() > 0.8


def test_the_codebook_sees_training_examples_alone():
    inputs, train = pieces(), np.arange(20) < 15
    other = inputs._replace(vectors=np.where(train[:, None, None], inputs.vectors, 9.0).astype(np.float32))
    before, after = (tokens.tokenise(one, train, 6) for one in (inputs, other))
    np.testing.assert_array_equal(before[train], after[train])
    assert (before[~train] != after[~train]).any()


def test_frames_of_short_clips_keep_to_the_recording():
    features = normal(3, 10, 4)
    lengths = np.array([10, 5, 2])  # frames 0 to 9, 2 to 6, 4 to 5
    found = tokens.frame_pieces(features, lengths, 3, 1)
    wanted = [[1] * 8, [0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(found.mask, np.array(wanted, bool))
    sparse = tokens.frame_pieces(features, lengths, 3, 3)
    np.testing.assert_array_equal(sparse.vectors, found.vectors[:, ::3])
    np.testing.assert_array_equal(sparse.mask, np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0]], bool))


def test_patches_overlap_row_by_row():
    found = tokens.patch_pieces(np.arange(12.0).reshape(1, 3, 4), 2)
    assert found.vectors.shape == (1, 6, 4) and found.mask.all()
    np.testing.assert_array_equal(found.vectors[0, 1], [1, 2, 5, 6])


def test_what_does_not_fit_is_refused():
    with pytest.raises(mj.InputError, match="stack is 11, expected 1 to the 10 frames"):
        tokens.frame_pieces(jax.numpy.zeros((1, 10, 4)), np.array([10]), 11, 1)
    with pytest.raises(mj.InputError, match="size is 9, expected 1 to the 8 pixels"):
        tokens.patch_pieces(np.zeros((1, 8, 8)), 9)
    with pytest.raises(mj.InputError, match=r"num_tokens is 500, but the training examples have \d+ different pieces"):
        tokens.tokenise(pieces(), np.ones(20, bool), 500)
