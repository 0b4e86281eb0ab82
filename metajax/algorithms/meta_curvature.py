"""Meta-Curvature: learn the matrices that transform the inner gradients."""

from typing import Any

import optax

from metajax.algorithms.maml import chosen, maml
from metajax.algorithms.rules import curvature
from metajax.core import Algorithm, Apply, Error


def meta_curvature(
    apply: Apply, error: Error, inner: optax.GradientTransformation, num_steps: int, **how: Any
) -> Algorithm:
    """MAML with learned curvature, square matrices that are the identity at first: `maml(..., rule=curvature())`.

    phi_{k+1} = phi_k + M inner(grad error(apply(phi_k, support))),  M = M_taps x M_in x M_out for each kernel.

    Args:
      apply, error, inner, num_steps: as in `maml`.
      **how: passed to `maml`, such as `part`.

    Returns:
      The algorithm; its theta is `{"params", "curvature"}`.

    Reference: Park, Oliva, "Meta-Curvature", NeurIPS 2019.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = meta_curvature(lambda p, x, key: x @ p["w"], mj.losses.squared_error, optax.sgd(0.5), 1).learner
      >>> theta = learner.init({"w": jnp.zeros((3, 2))}, jax.random.key(0))
      >>> {name: matrix.shape for name, matrix in theta["curvature"]["w"].items()}
      {'in': (3, 3), 'out': (2, 2)}
    """
    return maml(apply, error, inner, num_steps, **chosen("meta_curvature", how, rule=curvature()))
