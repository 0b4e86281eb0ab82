"""BOIL: body only in the inner loop, the head stays."""

from typing import Any

import optax

from metajax.algorithms.maml import chosen, maml
from metajax.algorithms.parts import without
from metajax.core import Algorithm, Apply, Error


def boil(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    head: str | tuple[str, ...] = "head",
    **how: Any,
) -> Algorithm:
    """MAML whose inner steps change all but the head; all of theta is meta-learned: `maml(..., part=without(head))`.

    theta = (body, head);  phi_0 = body;  phi_{k+1} = phi_k - alpha grad_phi error(apply((phi_k, head), support)).

    Args:
      apply, error, inner, num_steps: as in `maml`.
      head: name or pattern, or several, of the layers that do not adapt.
      **how: passed to `maml`.

    Returns:
      The algorithm.

    Raises:
      InputError: when called, a pattern matches no parameter.

    Reference: Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> params = {"body": jnp.ones(()), "head": jnp.zeros(())}
      >>> apply = lambda p, x, key: p["head"] * p["body"] * x
      >>> learner = boil(apply, mj.losses.squared_error, optax.sgd(0.5), 1).learner
      >>> support = mj.Batch(jnp.ones(1), jnp.ones(1))
      >>> list(learner.start(learner.init(params, jax.random.key(0)), support, jax.random.key(0)).own)
      ['body']
    """
    part = without(*((head,) if isinstance(head, str) else head))
    return maml(apply, error, inner, num_steps, **chosen("boil", how, part=part))
