"""Meta-SGD: learn the inner learning rate of every parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta


def meta_sgd(loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, **options: Any) -> Algorithm:
    """MAML with learned rates: theta = (params, scale), scale shaped as params and 1 at first.

    phi_0 = params;  phi_{k+1} = phi_k + scale * inner(grad loss(phi_k, support)), elementwise: alpha = scale x rate.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation; its rate is where alpha starts.
      num_steps: K, inner steps while training.
      **options: passed to `maml`: `remat`, `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "scale"}`.

    Reference: Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.
    """

    def init(params: Params) -> Theta:
        return {"params": params, "scale": jax.tree.map(jnp.ones_like, params)}

    return maml(
        loss_fn,
        inner,
        num_steps,
        init=init,
        split=lambda theta: theta["params"],
        precondition=lambda theta, updates: jax.tree.map(jnp.multiply, theta["scale"], updates),
        **options,
    )
