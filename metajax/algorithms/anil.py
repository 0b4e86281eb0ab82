"""ANIL: almost no inner loop, only the head adapts."""

from typing import Any

import optax

from metajax.algorithms.maml import chosen, maml
from metajax.algorithms.parts import only
from metajax.core import Algorithm, Apply, Error


def anil(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    head: str | tuple[str, ...] = "head",
    **how: Any,
) -> Algorithm:
    """MAML whose inner steps change the head only; all of theta is meta-learned: `maml(..., part=only(head))`.

    theta = (body, head);  phi_0 = head;  phi_{k+1} = phi_k - alpha grad_phi error(apply((body, phi_k), support)).

    Args:
      apply, error, inner, num_steps: as in `maml`.
      head: name or pattern, or several, of the layers that adapt.
      **how: passed to `maml`.

    Returns:
      The algorithm.

    Raises:
      InputError: when called, a pattern matches no parameter.

    Reference: Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML", ICLR
    2020.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> params = {"body": jnp.ones(()), "head": jnp.zeros(())}
      >>> apply = lambda p, x, key: p["head"] * p["body"] * x
      >>> learner = anil(apply, mj.losses.squared_error, optax.sgd(0.5), 1).learner
      >>> support = mj.Batch(jnp.ones(1), jnp.ones(1))
      >>> list(learner.start(learner.init(params, jax.random.key(0)), support, jax.random.key(0)).own)
      ['head']
    """
    part = only(*((head,) if isinstance(head, str) else head))
    return maml(apply, error, inner, num_steps, **chosen("anil", how, part=part))
