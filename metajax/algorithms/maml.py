"""MAML: learn an initialisation from which few gradient steps suffice."""

from typing import Any

import optax

from metajax.core import Algorithm, LossFn, Remat, query_loss
from metajax.inner import descent


def maml(
    loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, *, remat: Remat = "step", **options: Any
) -> Algorithm:
    """Model-agnostic meta-learning.

    phi_0 = theta;  phi_{k+1} = phi_k - alpha grad loss(phi_k, support);  min_theta E loss(phi_K, query).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **options: passed to `descent`: `first_order`, `mode`, `split`, `join`, `precondition`, `init`.

    Returns:
      The algorithm.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.
    """
    learner = descent(loss_fn, inner, **options)
    return Algorithm(learner, query_loss(learner, num_steps, remat=remat))
