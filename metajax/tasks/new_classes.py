"""Task augmentation: more classes than were recorded, by changing or mixing those of an episode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from metajax.core import Batch, Episode, KeyArray, Sampler
from metajax.errors import InputError
from metajax.tasks.episodes import check_probability, count_clips


def changed_classes(
    sample: Sampler, change: Callable[[PyTree, KeyArray], PyTree], ways: int, share: float = 0.5
) -> Sampler:
    """Episodes in which each class is, with probability `share`, a new one: all its examples changed by one draw.

    x'_i = change(x_i, key_c) for all examples i of class c, in support and query alike: a word at another pitch, or
    backwards, is another word. What `change` makes must differ from the words that there are, or labels are wrong.

    Args:
      sample: episodes with `Labels`.
      change: `(x, key) -> x` of a batch, such as `augment(Augmentation(warp=0.3, ...))`, of the same shape and dtype.
      ways: classes of an episode.
      share: probability of a new class.

    Returns:
      `sample(key) -> Episode`; of a new class the label in the corpus is -1, unknown.

    Raises:
      InputError: `share` is not a probability.

    Reference: Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016 (rotated characters as
      new classes); Rajendran, Irpan, Jang, "Meta-Learning Requires Meta-Augmentation", NeurIPS 2020.

    Example:
      ``sample = changed_classes(sample, lambda x, key: x[:, ::-1], ways=5)  # words backwards``
    """
    check_probability("share", share)

    def changed(key: KeyArray) -> Episode:
        sample_key, pick_key, key = jax.random.split(key, 3)
        new, keys = jax.random.uniform(pick_key, (ways,)) < share, jax.random.split(key, ways)

        def one(x: PyTree, key: KeyArray) -> PyTree:
            return jax.tree.map(lambda a: a[0], change(jax.tree.map(lambda a: a[None], x), key))

        def part(batch: Batch) -> Batch:
            label = batch.y.episode
            return _where(new[label], Batch(jax.vmap(one)(batch.x, keys[label]), batch.y), batch)

        return Episode(*map(part, sample(sample_key)))

    return changed


def mixed_classes(sample: Sampler, ways: int, share: float = 0.5) -> Sampler:
    """Episodes in which each class is, with probability `share`, a mixture of itself and the next one.

    The j-th example of class c becomes w_c x_cj + (1 - w_c) x_(c+1)j, w_c uniform in [0, 1], the same in support and
    query: a new class, which lies between two.

    Args:
      sample: episodes with `Labels`, ordered class by class, with as many examples of each, such as `episodes`; x is an
        array, or a tree of them, of one length.
      ways: classes of an episode.
      share: probability of a new class.

    Returns:
      `sample(key) -> Episode`; of a new class the label in the corpus is -1, unknown.

    Raises:
      InputError: `share` is not a probability; when called, examples are no multiple of `ways`.

    Reference: Yao, Zhang, Finn, "Meta-Learning with Fewer Tasks through Task Interpolation", ICLR 2022.

    Example:
      ``sample = mixed_classes(episodes(..., ways=5, shots=1, queries=5), ways=5)``
    """
    check_probability("share", share)

    def mixed(key: KeyArray) -> Episode:
        sample_key, pick_key, key = jax.random.split(key, 3)
        new, weight = jax.random.uniform(pick_key, (ways,)) < share, jax.random.uniform(key, (ways,))

        def part(batch: Batch) -> Batch:
            each, over = divmod(count_clips(x=batch.x), ways)
            if over:
                raise InputError(f"A batch has {ways * each + over} examples, expected a multiple of {ways} ways.")

            def mix(a: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
                w = _wide(jnp.repeat(weight, each), a).astype(a.dtype)
                return w * a + (1 - w) * jnp.roll(a, -each, 0)

            return _where(jnp.repeat(new, each), batch._replace(x=jax.tree.map(mix, batch.x)), batch)

        return Episode(*map(part, sample(sample_key)))

    return mixed


def _where(new: Array, other: Batch, batch: Batch) -> Batch:
    """`other` where an example is of a new class, which the corpus does not know."""
    x = jax.tree.map(lambda a, b: jnp.where(_wide(new, b), a, b), other.x, batch.x)
    return Batch(x, batch.y._replace(corpus=jnp.where(new, -1, batch.y.corpus)))


def _wide(a: Array, like: Array) -> Array:
    return a.reshape(-1, *[1] * (like.ndim - 1))
