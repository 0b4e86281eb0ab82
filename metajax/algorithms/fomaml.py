"""FOMAML: MAML without its second derivatives."""

from typing import Any

import optax

from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn


def fomaml(loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, **options: Any) -> Algorithm:
    """First-order MAML: the meta-gradient is the query gradient at phi_K, grad_phi loss(phi_K, query).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      **options: passed to `descent`.

    Returns:
      The algorithm.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.
    """
    return maml(loss_fn, inner, num_steps, first_order=True, **options)
