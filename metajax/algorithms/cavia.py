"""CAVIA: adapt a context vector, leave the network as it is."""

from typing import Any

import optax

from metajax.algorithms.maml import chosen, maml
from metajax.algorithms.parts import context
from metajax.core import Algorithm, Apply, Error


def cavia(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    size: int = 32,
    patterns: tuple[str, ...] = (),
    **how: Any,
) -> Algorithm:
    """Fast context adaptation: phi is a context vector, F a linear map to shifts of parameters: `part=context(size)`.

    phi_0 = 0;  phi_{k+1} = phi_k - alpha grad_phi error(apply(params + phi_k F, support)).

    Args:
      apply, error, inner, num_steps: as in `maml`.
      size: of the context vector.
      patterns: of the parameters that the context shifts; none for all vectors, such as scales and biases.
      **how: passed to `maml`, such as `rule`.

    Returns:
      The algorithm; its theta is `{"params", "context"}`.

    Raises:
      InputError: at init, a pattern matches no parameter.

    Reference: Zintgraf et al., "Fast Context Adaptation via Meta-Learning", ICML 2019.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = cavia(lambda p, x, key: x + p["bias"], mj.losses.squared_error, optax.sgd(1.0), 1, size=2).learner
      >>> theta = learner.init({"bias": jnp.zeros(3)}, jax.random.key(0))
      >>> support = mj.Batch(jnp.ones((1, 3)), jnp.ones((1, 3)))
      >>> learner.start(theta, support, jax.random.key(0)).own.tolist()
      [0.0, 0.0]
    """
    return maml(apply, error, inner, num_steps, **chosen("cavia", how, part=context(size, *patterns)))
