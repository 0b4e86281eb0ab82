"""ANIL: almost no inner loop, only the head adapts."""

from typing import Any

import optax

from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta
from metajax.errors import InputError


def layers(params: Params, head: str | tuple[str, ...]) -> tuple[str, ...]:
    """The head's names as a tuple; an `InputError` if one is not in params."""
    names = (head,) if isinstance(head, str) else head
    if missing := [name for name in names if name not in params]:
        raise InputError(f"head is {missing[0]!r}, which the parameters lack; expected one of {', '.join(params)}.")
    return names


def anil(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    head: str | tuple[str, ...] = "head",
    **options: Any,
) -> Algorithm:
    """MAML whose inner steps change the head only; all of theta is meta-learned.

    theta = (body, head);  phi_0 = head;  phi_{k+1} = phi_k - alpha grad_phi loss((body, phi_k), support).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      head: name, or names, of the layers that adapt: top-level names of params.
      **options: passed to `maml`.

    Returns:
      The algorithm.

    Raises:
      InputError: when called, a name in `head` is not in the parameters.

    Reference: Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML", ICLR
    2020.
    """

    def split(theta: Theta) -> Params:
        return {name: theta[name] for name in layers(theta, head)}

    return maml(loss_fn, inner, num_steps, split=split, join=lambda theta, params: theta | params, **options)
