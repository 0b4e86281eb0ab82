"""Meta-SGD: learn the inner learning rate of every parameter."""

from typing import Any

import optax

from metajax.algorithms.maml import chosen, maml
from metajax.algorithms.rules import rates
from metajax.core import Algorithm, Apply, Error


def meta_sgd(apply: Apply, error: Error, inner: optax.GradientTransformation, num_steps: int, **how: Any) -> Algorithm:
    """MAML with learned rates, of every parameter that adapts and 1 at first: `maml(..., rule=rates())`.

    phi_{k+1} = phi_k + rates * inner(grad error(apply(phi_k, support))), elementwise: alpha = rates x inner's rate.

    Args:
      apply, error, num_steps: as in `maml`.
      inner: inner optimiser, any optax transformation; its rate is where alpha starts.
      **how: passed to `maml`, such as `part`.

    Returns:
      The algorithm; its theta is `{"params", "rates"}`.

    Reference: Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> apply = lambda p, x, key: p["head"] * x
      >>> learner = meta_sgd(apply, mj.losses.squared_error, optax.sgd(0.5), 1, part=mj.only("head")).learner
      >>> float(learner.init({"head": jnp.zeros(())}, jax.random.key(0))["rates"]["head"])
      1.0
    """
    return maml(apply, error, inner, num_steps, **chosen("meta_sgd", how, rule=rates()))
