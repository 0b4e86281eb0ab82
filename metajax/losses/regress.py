"""Regression."""

import jax.numpy as jnp
from jaxtyping import Array

from metajax.core import Metrics, Scalar
from metajax.errors import InputError


def squared_error(outputs: Array, y: Array) -> tuple[Scalar, Metrics]:
    """Mean squared error, mean of (outputs - y)^2.

    Args:
      outputs: predictions.
      y: targets, of the same shape.

    Returns:
      The mean, and the metric `loss`.

    Raises:
      InputError: predictions and targets differ in shape.
    """
    if jnp.shape(outputs) != jnp.shape(y):
        raise InputError(f"predictions have shape {jnp.shape(outputs)}, targets {jnp.shape(y)}; expected the same.")
    loss = jnp.square(outputs - y).mean()
    return loss, {"loss": loss}
