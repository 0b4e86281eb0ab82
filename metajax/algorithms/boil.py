"""BOIL: body only in the inner loop, the head stays."""

from typing import Any

import optax

from metajax.algorithms.anil import layers
from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta


def boil(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    head: str | tuple[str, ...] = "head",
    **options: Any,
) -> Algorithm:
    """MAML whose inner steps change everything but the head; all of theta is meta-learned.

    theta = (body, head);  phi_0 = body;  phi_{k+1} = phi_k - alpha grad_phi loss((phi_k, head), support).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      head: name, or names, of the layers that do not adapt: top-level names of params.
      **options: passed to `maml`.

    Returns:
      The algorithm.

    Raises:
      InputError: when called, a name in `head` is not in the parameters.

    Reference: Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021.
    """

    def split(theta: Theta) -> Params:
        kept = layers(theta, head)
        return {name: layer for name, layer in theta.items() if name not in kept}

    return maml(loss_fn, inner, num_steps, split=split, join=lambda theta, params: theta | params, **options)
