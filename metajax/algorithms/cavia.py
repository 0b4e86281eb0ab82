"""CAVIA: adapt a context vector, leave the network as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.film import film_apply, film_init
from metajax.core import Algorithm, LossFn, Params, Remat, Theta, query_loss
from metajax.inner import descent


def cavia(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    size: int = 32,
    names: tuple[str, ...] = ("scale", "bias"),
    seed: int = 0,
    remat: Remat = "none",
    **options: Any,
) -> Algorithm:
    """Fast context adaptation: theta = (params, film), phi a context vector; film maps it to FiLM shifts of params.

    phi_0 = 0;  phi_{k+1} = phi_k - alpha grad_phi loss(params + film phi_k, support).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      size: of the context vector.
      names: last names of the parameters that the context shifts.
      seed: of film's first values.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **options: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "film"}`.

    Raises:
      InputError: at init, no parameter has one of the names.

    Reference: Zintgraf et al., "Fast Context Adaptation via Meta-Learning", ICML 2019.
    """

    def init(params: Params) -> Theta:
        return {"params": params, "film": film_init(params, size, names, seed)}

    learner = descent(
        loss_fn,
        inner,
        split=lambda theta: jnp.zeros(size, jax.tree.leaves(theta["film"])[0].dtype),
        join=lambda theta, context: film_apply(theta["params"], theta["film"], context),
        **options,
    )._replace(init=init)
    return Algorithm(learner, query_loss(learner, num_steps, remat=remat))
