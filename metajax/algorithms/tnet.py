"""T-Net: learn a warp of every kernel through which the inner loop adapts."""

from typing import Any

import optax

from metajax.algorithms.maml import maml
from metajax.algorithms.parts import everything, warped
from metajax.core import Algorithm, Apply, Error
from metajax.inner import Part


def tnet(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    part: Part = everything(),  # noqa: B008  (pure functions)
    **how: Any,
) -> Algorithm:
    """Transformation networks, a matrix `[out, out]` per kernel, the identity at first: `maml(..., part=warped(part))`.

    The model sees kernel @ warp.  phi_{k+1} = phi_k - alpha grad_phi error(apply(phi_k @ warp, support)).

    Args:
      apply, error, inner, num_steps: as in `maml`.
      part: what a task learns of the kernels before they are warped.
      **how: passed to `maml`, such as `rule`.

    Returns:
      The algorithm; its theta is `{"params", "warp"}`, warp by dotted names, e.g. `conv0.kernel`.

    Reference: Lee, Choi, "Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace", ICML 2018.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = tnet(lambda p, x, key: x @ p["w"], mj.losses.squared_error, optax.sgd(0.5), 1).learner
      >>> learner.init({"w": jnp.zeros((3, 2))}, jax.random.key(0))["warp"]["w"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return maml(apply, error, inner, num_steps, part=warped(part), **how)
