"""Probe tasks: synthetic distributions with known answers, each made for one question."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.core import Batch, Episode, KeyArray, Labels, Sampler
from metajax.tasks.episodes import divided


def sinusoids(shots: int, queries: int) -> Sampler:
    """Regression of y = a sin(x - p), a uniform in 0.1..5, p in 0..pi, x in -5..5: does a few-shot regressor adapt?

    Predicting 0 for all gives the mean squared error E[a^2] / 2 = 4.25; one sinusoid is known after a few shots.

    Args:
      shots: support points per task.
      queries: query points per task.

    Returns:
      Episodes with x and y of shape `[shots, 1]` and `[queries, 1]`.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.
    """
    low = jnp.array([0.1, 0.0, *[-5.0] * (shots + queries)])
    high = jnp.array([5.0, jnp.pi, *[5.0] * (shots + queries)])

    def sample(key: KeyArray) -> Episode:
        # one call of the generator: each costs compile time
        a, p, *_ = draws = jax.random.uniform(key, low.shape, minval=low, maxval=high)
        points = draws[2:, None]
        return divided(Batch(points, a * jnp.sin(points - p)), shots)

    return sample


def blobs(
    ways: int, shots: int, queries: int, *, classes: int = 64, signal: int = 4, nuisance: int = 12, noise: float = 2.0
) -> Sampler:
    """Gaussian classes that differ in `signal` of the dimensions only: is what tasks share learned?

    x = (m_c + 0.3 e, noise e'), with m_c, e and e' standard normal, rotated by one fixed rotation. Nearest class means
    of the raw inputs are near chance; of the signal's dimensions alone they are nearly always right. Episode labels are
    drawn anew each time, so a model that does not adapt stays at chance on them; corpus labels can be learned jointly.

    Args:
      ways: classes per episode.
      shots: support examples per class.
      queries: query examples per class.
      classes: number of classes in the corpus.
      signal: dimensions in which classes differ.
      nuisance: dimensions of noise.
      noise: its standard deviation.

    Returns:
      Episodes with x of shape `[n, signal + nuisance]`.
    """
    mean_key, turn_key = jax.random.split(jax.random.key(0))
    means = jax.random.normal(mean_key, (classes, signal))
    rotation = jnp.linalg.qr(jax.random.normal(turn_key, (signal + nuisance,) * 2))[0]
    episode = jnp.concatenate([jnp.repeat(jnp.arange(ways), shots), jnp.repeat(jnp.arange(ways), queries)])

    def sample(key: KeyArray) -> Episode:
        class_key, noise_key = jax.random.split(key)
        corpus = jax.random.permutation(class_key, classes)[:ways][episode]
        e = jax.random.normal(noise_key, (episode.size, signal + nuisance))
        x: Array = jnp.concatenate([means[corpus] + 0.3 * e[:, :signal], noise * e[:, signal:]], 1) @ rotation
        return divided(Batch(x, Labels(episode, corpus)), ways * shots)

    return sample
