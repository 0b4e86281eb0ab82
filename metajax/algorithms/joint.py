"""Joint training: one model for all classes, nothing learned per task."""

import optax

from metajax.core import Algorithm, LossFn, query_loss
from metajax.inner import descent


def joint(loss_fn: LossFn) -> Algorithm:
    """Joint multi-task training: min_theta E loss(theta, query); phi = ().

    Train it on labels that mean the same in every episode (`Labels.corpus`): on episode labels it stays at chance.
    Fine-tuning is its theta, with a fresh head, under `descent`.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.

    Returns:
      The algorithm.

    Reference: Caruana, "Multitask Learning", Machine Learning 1997.
    """
    learner = descent(loss_fn, optax.identity(), split=lambda theta: (), join=lambda theta, params: theta)
    return Algorithm(learner, query_loss(learner, num_steps=0))
