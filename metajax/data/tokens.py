"""Recordings and images as tokens: runs of frames and patches, quantised by k-means over training examples."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from metajax.data.augment import normalized
from metajax.errors import InputError

_FIT_ON = 50_000  # training vectors that a codebook is fitted on, drawn at random where there are more


class Pieces(NamedTuple):
    """Inputs cut into pieces, each a vector to be quantised."""

    vectors: Float[np.ndarray, "n length features"]
    mask: Bool[np.ndarray, "n length"]  # False for padding


def frame_pieces(
    features: Float[Array, "n time mel"], lengths: Int[np.ndarray, " n"], stack: int, every: int
) -> Pieces:
    """Every `every`-th run of `stack` frames of each clip, normalised; runs that leave the recording are padding.

    Args:
      features: log-mel of clips centred in silence, as `metajax.data.corpus.load` has them.
      lengths: frames of the recording itself.
      stack: frames in one piece.
      every: frames from one piece to the next.

    Raises:
      InputError: `stack` is beyond the frames of a clip.
    """
    if not 1 <= stack <= features.shape[1]:
        raise InputError(f"stack is {stack}, expected 1 to the {features.shape[1]} frames of a clip.")
    normal = np.asarray(jax.jit(normalized)(features))
    vectors = np.lib.stride_tricks.sliding_window_view(normal, stack, axis=1)[:, ::every]
    last = np.maximum(lengths[:, None] - stack, 0)  # frame where the last run of a recording starts
    start = np.minimum((normal.shape[1] - lengths[:, None]) // 2, normal.shape[1] - stack - last)
    since = every * (np.arange(vectors.shape[1]) - start // every)  # each recording has a run at 0
    return Pieces(vectors.reshape(*vectors.shape[:2], -1), (since >= 0) & (since <= last))


def patch_pieces(pixels: Float[np.ndarray, "n height width"], size: int) -> Pieces:
    """Every `size` x `size` patch of each image, overlapping, row by row.

    Raises:
      InputError: `size` is beyond the image.
    """
    if not 1 <= size <= min(pixels.shape[1:]):
        raise InputError(f"size is {size}, expected 1 to the {min(pixels.shape[1:])} pixels of an image.")
    views = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(1, 2))
    vectors = views.reshape(len(pixels), -1, size * size)
    return Pieces(vectors, np.ones(vectors.shape[:2], bool))


def tokenise(
    pieces: Pieces, train: Bool[np.ndarray, " n"], num_tokens: int, *, seed: int = 0
) -> Int[np.ndarray, "n length"]:
    """The nearest of `num_tokens` centres of each piece, -1 for padding; needs scikit-learn.

    Args:
      pieces: of all examples.
      train: the examples that the centres, those of k-means, are fitted on.
      num_tokens: centres.
      seed: of the fit.

    Raises:
      InputError: the training examples have fewer different pieces.
    """
    from sklearn.cluster import MiniBatchKMeans

    fit_on = np.random.default_rng(seed).permutation(pieces.vectors[pieces.mask & train[:, None]])[:_FIT_ON]
    if (found := len(np.unique(fit_on, axis=0))) < num_tokens:
        raise InputError(f"num_tokens is {num_tokens}, but the training examples have {found} different pieces.")
    # k-means++ over scikit-learn's own init_size, three batches, would take longer than the fit
    means = MiniBatchKMeans(num_tokens, batch_size=4096, init_size=3 * num_tokens, n_init=1, random_state=seed)
    ids = np.full(pieces.mask.shape, -1, np.int32)
    ids[pieces.mask] = means.fit(fit_on).predict(pieces.vectors[pieces.mask])
    return ids
