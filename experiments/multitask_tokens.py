"""Recordings and images as tokens: runs of frames and patches, quantised by k-means over the training examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax.data.augment import normalize

FIT_ON = 50_000  # training vectors that a codebook is fitted on, drawn at random where there are more


class Vectors(NamedTuple):
    """Inputs as vectors to be quantised, and their labels."""

    vectors: np.ndarray  # [n, length, ...] float32
    mask: np.ndarray  # [n, length], False for padding
    place: np.ndarray  # [n, length, axes] position within the input, -1..1
    label: np.ndarray  # [n]


def frames(features: jax.Array, lengths: np.ndarray, stack: int, every: int) -> Vectors:
    """Every `every`-th run of `stack` log-mel frames of each clip; those that leave the recording itself are masked."""
    normal = np.asarray(jax.jit(jax.vmap(lambda clip: normalize(clip, "mean_variance")))(features))
    vectors = np.lib.stride_tricks.sliding_window_view(normal, stack, axis=1)[:, ::every]
    last = np.maximum(lengths[:, None] - stack, 0)  # frame where the last run of a recording starts
    start = np.minimum((normal.shape[1] - lengths[:, None]) // 2, normal.shape[1] - stack - last)
    since = every * (np.arange(vectors.shape[1]) - start // every)  # each recording has a run at 0
    place = 2 * since / np.maximum(last, 1) - 1
    return Vectors(vectors, (since >= 0) & (since <= last), place[..., None], np.zeros(len(normal), int))


def patches(pixels: np.ndarray, label: np.ndarray, size: int) -> Vectors:
    """Every `size` x `size` patch of each image, overlapping."""
    if not size <= min(pixels.shape[1:]):
        raise mj.InputError(f"--patch is {size}, expected at most the image's {min(pixels.shape[1:])} pixels.")
    views = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(1, 2))
    count, rows, columns = views.shape[:3]
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (rows, columns)), indexing="ij"), -1).reshape(-1, 2)
    vectors = views.reshape(count, rows * columns, -1).astype(np.float32)
    return Vectors(vectors, np.ones(vectors.shape[:2], bool), np.broadcast_to(place, (count, *place.shape)), label)


def codebook(vectors: np.ndarray, num_tokens: int, seed: int, what: str) -> np.ndarray:
    """The centres `[num_tokens, features]` of k-means over training vectors `[n, features]`."""
    from sklearn.cluster import MiniBatchKMeans

    if (found := len(np.unique(vectors, axis=0))) < num_tokens:
        raise mj.InputError(f"--tokens is {num_tokens}, but the training data hold only {found} different {what}.")
    # k-means++ over scikit-learn's own init_size, three batches, would take longer than the fit
    means = MiniBatchKMeans(num_tokens, batch_size=4096, init_size=3 * num_tokens, n_init=1, random_state=seed)
    return means.fit(vectors).cluster_centers_


def tokenise(
    inputs: Vectors, train: np.ndarray, num_tokens: int, place: float, seed: int, what: str
) -> tuple[mj.Batch, mj.Batch]:
    """Training and test examples as tokens 0..num_tokens - 1, -1 for padding, by a codebook of the training examples.

    Args:
      inputs: all examples.
      train: which of them train, a mask.
      num_tokens: centres of the codebook.
      place: weight of the position, in units of the content's standard deviation; 0 leaves it out.
      seed: of the codebook.
      what: the vectors' name, for messages.
    """
    from sklearn.metrics import pairwise_distances_argmin

    def content(where: np.ndarray) -> np.ndarray:
        return inputs.vectors[tuple(where.T)].reshape(len(where), -1)

    def whole(where: np.ndarray) -> np.ndarray:
        return np.concatenate([content(where), (scale * inputs.place[tuple(where.T)]).astype(np.float32)], -1)

    drawn = np.random.default_rng(seed).permutation(np.argwhere(inputs.mask & train[:, None]))[:FIT_ON]
    scale = place * np.sqrt(content(drawn).var(0).sum())
    centres = codebook(whole(drawn), num_tokens, seed, what)
    ids = np.full(inputs.mask.shape, -1, np.int32)
    there = np.argwhere(inputs.mask)
    for where in np.array_split(there, -(-len(there) // FIT_ON)):  # bounds the memory
        ids[tuple(where.T)] = pairwise_distances_argmin(whole(where), centres)
    label = inputs.label.astype(np.int32)
    trained, tested = (mj.Batch(jnp.asarray(ids[part]), jnp.asarray(label[part])) for part in (train, ~train))
    return trained, tested


def moved(batch: mj.Batch, by: int) -> mj.Batch:
    """The same tokens under ids `by` higher; padding stays padding."""
    return batch._replace(x=jnp.where(batch.x < 0, batch.x, batch.x + by))
