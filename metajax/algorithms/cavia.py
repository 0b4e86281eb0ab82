"""CAVIA: adapt a context vector, leave the network as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.film import film_apply, film_init
from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta


def cavia(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    size: int = 32,
    names: tuple[str, ...] = ("scale", "bias"),
    seed: int = 0,
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
      **options: passed to `maml`: `remat`, `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "film"}`.

    Raises:
      InputError: at init, no parameter has one of the names.

    Reference: Zintgraf et al., "Fast Context Adaptation via Meta-Learning", ICML 2019.
    """

    def init(params: Params) -> Theta:
        return {"params": params, "film": film_init(params, size, names, seed)}

    return maml(
        loss_fn,
        inner,
        num_steps,
        init=init,
        split=lambda theta: jnp.zeros(size, jax.tree.leaves(theta["film"])[0].dtype),
        join=lambda theta, context: film_apply(theta["params"], theta["film"], context),
        **options,
    )
