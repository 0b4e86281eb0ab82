"""Clusters of clips, which stand for words where nothing is labelled."""

from typing import Literal

import numpy as np
from jaxtyping import Int, Num

from metajax.errors import InputError


def partitions(
    vectors: Num[np.ndarray, "clips features"],
    num_clusters: int,
    num_partitions: int,
    *,
    seed: int,
    metric: Literal["scaled", "cosine"] = "scaled",
) -> Int[np.ndarray, "partitions clips"]:
    """k-means of vectors, once for each partition; needs scikit-learn.

    With the metric "scaled" features are standardised, and scaled by factors uniform in 0..1 of each partition's own,
    so that each looks at other features. With "cosine" vectors have length 1 and partitions differ by their start: for
    features whose sizes mean something, such as cepstra.

    Args:
      vectors: an embedding of each clip, learned without labels.
      num_clusters: of a partition.
      num_partitions: how many of them.
      seed: of the factors and of k-means.
      metric: "scaled" or "cosine".

    Returns:
      The cluster of each clip by each partition.

    Raises:
      InputError: fewer clips than clusters, a vector that is not finite, another metric, or a number below its
        least.

    Reference: Hsu, Levine, Finn, "Unsupervised Learning via Meta-Learning", ICLR 2019 (diagonal random scaling).

    Example:
      >>> vectors = np.array([[0.0, 1.0], [0.1, 1.0], [9.0, 0.0], [9.1, 0.0]])
      >>> (a, b, c, d), = partitions(vectors, 2, 1, seed=0).tolist()
      >>> a == b != c == d
      True
    """
    from sklearn.cluster import KMeans

    for name, number, least in (("num_clusters", num_clusters, 2), ("num_partitions", num_partitions, 1)):
        if number < least:
            raise InputError(f"{name} is {number}, expected {least} or more.")
    if metric not in ("scaled", "cosine"):
        raise InputError(f'metric is {metric!r}, expected "scaled" or "cosine".')
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        told = "hold a number that is not finite" if vectors.ndim == 2 else f"have shape {vectors.shape}"
        raise InputError(f"vectors {told}, expected finite ones, [clips, features].")
    if (found := len(np.unique(vectors, axis=0))) < num_clusters:
        raise InputError(f"num_clusters is {num_clusters}, but there are {found} different vectors.")
    generator, cosine = np.random.default_rng(seed), metric == "cosine"
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / (length + 1e-8) if cosine else (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-8)
    rows = []
    for i in range(num_partitions):
        means = KMeans(num_clusters, n_init=1, random_state=seed + i)
        rows.append(means.fit_predict(scaled if cosine else scaled * generator.uniform(size=vectors.shape[1])))
    return np.stack(rows)
