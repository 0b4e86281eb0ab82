"""FOMAML: MAML without its second derivatives."""

from typing import Any

import optax

from metajax.algorithms.maml import maml
from metajax.core import Algorithm, Apply, Error


def fomaml(apply: Apply, error: Error, inner: optax.GradientTransformation, num_steps: int, **how: Any) -> Algorithm:
    """First-order MAML: the meta-gradient is the query gradient at phi_K, grad_phi error(apply(phi_K, query)).

    Args:
      apply, error, inner, num_steps: as in `maml`.
      **how: passed to `maml`: `support_error`, `part`, `rule`.

    Returns:
      The algorithm.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> bowl = lambda params, x, key: params["c"] * x
      >>> algorithm = fomaml(bowl, mj.losses.squared_error, optax.sgd(0.25), 1)
      >>> one = mj.Batch(jnp.ones(1), jnp.ones(1))  # error (c - 1)^2: from c = 0 to 1/2, where its slope is -1
      >>> task = mj.Episode(one, one)
      >>> slope = jax.grad(lambda c: algorithm.objective({"params": {"c": c}}, task, jax.random.key(0))[0])
      >>> float(slope(0.0))
      -1.0
    """
    return maml(apply, error, inner, num_steps, first_order=True, **how)
