"""Tasks from clips without labels, for any method: every clip its own class (UMTRA), clusters as classes (CACTUs)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from metajax.core import Batch, Episode, KeyArray, Labels, Sampler
from metajax.errors import InputError
from metajax.tasks.episodes import check_sizes, count_clips, divided, episodes


def umtra(
    x: PyTree,
    change: Callable[[PyTree, KeyArray], PyTree],
    *,
    ways: int,
    shots: int = 1,
    queries: int = 1,
    name: str = "corpus",
) -> Sampler:
    """A distribution over tasks of `ways` clips at random, each its own class: all examples are views of them.

    A view is a clip through `change`, with random numbers of its own: support and query are never the same view. (In
    the paper the support is the clip as it is.) Where two of the clips happen to be of one word the task is wrong; with
    few ways and many words that is rare.

    With many ways, one shot and one query this is contrastive learning: the query loss of `protonet` with cosines,
    -log exp(cos(q_i, s_i) / T) / sum_j exp(cos(q_i, s_j) / T), is InfoNCE with the other ways - 1 clips as negatives.
    (SimCLR's loss adds the other queries as negatives, and the same with support and query exchanged.)

    Args:
      x: inputs of all clips; an array, `Utterances` or any tree of arrays with the leading axis clips.
      change: `(x, key) -> x` of a batch, each example by its own draw, such as `augment(...)`.
      ways: clips of a task.
      shots: support views of each.
      queries: query views of each.
      name: of the corpus or split, for messages.

    Returns:
      `sample(key) -> Episode`, jittable, with `Labels` whose `corpus` is the number of the clip.

    Raises:
      InputError: fewer clips than `ways`, or a number out of its range.

    Reference: Khodadadeh, Bölöni, Shah, "Unsupervised Meta-Learning for Few-Shot Image Classification", NeurIPS 2019;
      van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018 (InfoNCE); Chen et
      al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

    Example:
      >>> from metajax.data.augment import Augmentation, augment
      >>> clips = jax.random.normal(jax.random.key(0), (9, 98, 40))
      >>> episode = umtra(clips, augment(Augmentation()), ways=5, queries=2)(jax.random.key(1))
      >>> episode.support.x.shape, episode.query.y.episode.tolist()
      ((5, 98, 40), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """
    check_sizes(ways=(ways, 2), shots=(shots, 1), queries=(queries, 1))
    if (count := count_clips(x=x)) < ways:
        raise InputError(f"{name} has {count} clips, expected at least {ways}, one for each of the ways of a task.")
    x = jax.tree.map(jnp.asarray, x)
    label = jnp.concatenate([jnp.repeat(jnp.arange(ways), shots), jnp.repeat(jnp.arange(ways), queries)])

    def sample(key: KeyArray) -> Episode:
        draw_key, key = jax.random.split(key)
        clips = jax.lax.top_k(jax.random.uniform(draw_key, (count,)), ways)[1][label]
        return divided(Batch(change(_rows(x, clips), key), Labels(label, clips)), ways * shots)

    return sample


def cactus(
    x: PyTree,
    clusters: Int[np.ndarray, "partitions clips"],
    *,
    ways: int,
    shots: int,
    queries: int,
    name: str = "corpus",
) -> Sampler:
    """A distribution over tasks whose classes are clusters: a partition at random, then `ways` of its clusters.

    Clips are drawn without replacement, as in `episodes`; `with_inputs` augments them.

    Args:
      x: inputs of all clips; an array, `Utterances` or any tree of arrays with the leading axis clips.
      clusters: the cluster of each clip by each partition, from `metajax.data.clusters`; -1 for a clip in none.
      ways: clusters of a task.
      shots: support clips of each.
      queries: query clips of each.
      name: of the corpus or split, for messages.

    Returns:
      `sample(key) -> Episode`, jittable, with `Labels` whose `corpus` counts the clusters of all partitions that are
      large enough.

    Raises:
      InputError: a partition has fewer than `ways` clusters of `shots + queries` clips, or a number is out of range.

    Reference: Hsu, Levine, Finn, "Unsupervised Learning via Meta-Learning", ICLR 2019.

    Example:
      ``sample = with_inputs(cactus(x, partitions(vectors, 64, 8, seed=0), ways=5, shots=1, queries=5), augment(...))``
    """
    check_sizes(ways=(ways, 2), shots=(shots, 1), queries=(queries, 1))
    if np.ndim(clusters) != 2 or not len(clusters):
        raise InputError(f"{name}: clusters have shape {np.shape(clusters)}, expected [partitions, clips].")
    count = count_clips(x=x, clusters=clusters.T)
    x, need = jax.tree.map(jnp.asarray, x), shots + queries
    for i, row in enumerate(clusters):
        sizes = np.bincount(row[row >= 0], minlength=1)
        if (found := int((sizes >= need).sum())) < ways:
            raise InputError(
                f"{name}: partition {i} has {found} clusters of {need} clips or more, as {shots} shots and {queries} "
                f"queries need, expected at least {ways}; its largest has {sizes.max()}: ask for fewer clusters."
            )
    # a partition is to clusters what a speaker is to words in episodes of one speaker each
    offset = (clusters.max() + 1) * np.arange(len(clusters))[:, None]
    label, partition = np.where(clusters < 0, -1, clusters + offset), np.broadcast_to(offset, clusters.shape)
    places = np.tile(np.arange(count), len(clusters))
    how: dict[str, Any] = {"ways": ways, "shots": shots, "queries": queries, "name": f"{name} (clusters)"}
    draw = episodes(places, label.reshape(-1), partition.reshape(-1), across="same", **how)

    def sample(key: KeyArray) -> Episode:
        return Episode(*(batch._replace(x=_rows(x, batch.x)) for batch in draw(key)))

    return sample


def partly_labelled(sample: Sampler, ways: int, shots: int) -> Sampler:
    """Semi-supervised episodes: the first `shots` support examples of each class keep their labels, the others get -1.

    Args:
      sample: episodes with more shots than those, ordered class by class, such as `episodes`.
      ways: its classes.
      shots: labelled examples of each class.

    Returns:
      Episodes for a method that takes an unlabelled example as such, e.g. `protonet(..., refinements=1)`; for others
      it does not count.

    Raises:
      InputError: `shots` is below 1; when called, the support set has fewer examples.

    Reference: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR 2018.

    Example:
      ``sample = partly_labelled(episodes(..., ways=5, shots=6, queries=5), ways=5, shots=1)``
    """
    check_sizes(ways=(ways, 2), shots=(shots, 1))

    def partly(key: KeyArray) -> Episode:
        support, query = sample(key)
        count = count_clips(y=support.y)
        if count % ways or count < ways * shots:
            raise InputError(f"The support set has {count} examples, expected {shots} or more of each of {ways} ways.")
        known = jnp.tile(jnp.arange(count // ways) < shots, ways)
        return Episode(support._replace(y=jax.tree.map(lambda a: jnp.where(known, a, -1), support.y)), query)

    return partly


def _rows(tree: PyTree, index: Int[Array, " n"]) -> PyTree:
    return jax.tree.map(lambda a: a[index], tree)
