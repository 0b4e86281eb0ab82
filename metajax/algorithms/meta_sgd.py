"""Meta-SGD: learn the inner learning rate of every parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.core import Algorithm, LossFn, Params, Remat, Theta, query_loss
from metajax.inner import descent


def meta_sgd(
    loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, *, remat: Remat = "none", **options: Any
) -> Algorithm:
    """MAML with learned rates: theta = (params, scale), scale shaped as params and 1 at first.

    phi_0 = params;  phi_{k+1} = phi_k + scale * inner(grad loss(phi_k, support)), elementwise: alpha = scale x rate.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation; its rate is where alpha starts.
      num_steps: K, inner steps while training.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **options: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "scale"}`.

    Reference: Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.
    """

    def init(params: Params) -> Theta:
        return {"params": params, "scale": jax.tree.map(jnp.ones_like, params)}

    learner = descent(
        loss_fn,
        inner,
        split=lambda theta: theta["params"],
        precondition=lambda theta, updates: jax.tree.map(jnp.multiply, theta["scale"], updates),
        **options,
    )._replace(init=init)
    return Algorithm(learner, query_loss(learner, num_steps, remat=remat))
