"""Joint training: one model for all classes, nothing learned per task."""

import optax

from metajax.algorithms.parts import nothing
from metajax.core import Algorithm, Apply, Error, query_loss
from metajax.inner import descent


def joint(apply: Apply, error: Error) -> Algorithm:
    """Joint multi-task training: min_theta E error(apply(theta, query)); phi learns nothing: `part=nothing()`.

    Train it on labels that mean the same in every episode (`classify_corpus`): on episode labels it stays at chance.
    Fine-tuning is its theta, with a fresh head, under `descent`.

    Args:
      apply: the model, `(params, x, key) -> outputs`.
      error: `(outputs, y) -> (scalar, metrics)` of the query set.

    Returns:
      The algorithm; its objective goes with any theta of the same model: `mix(maml.objective, joint.objective, 1)`.

    Reference: Caruana, "Multitask Learning", Machine Learning 1997.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> algorithm = joint(lambda p, x, key: p["slope"] * x, mj.losses.squared_error)
      >>> one = mj.Batch(jnp.ones(1), jnp.ones(1))
      >>> float(algorithm.objective({"params": {"slope": 3.0}}, mj.Episode(one, one), jax.random.key(0))[0])
      4.0
    """
    learner = descent(apply, error, optax.identity(), part=nothing())
    return Algorithm(learner, query_loss(learner, error, 0))
