"""Makers of loss functions `(params, batch, key) -> (scalar, metrics)`."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Batch, KeyArray, LossFn, Metrics, Params, Scalar
from metajax.errors import InputError


def classify(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], smoothing: float = 0.0
) -> tuple[Scalar, Metrics]:
    """Mean softmax cross-entropy and accuracy.

    Args:
      logits: scores, `[n, classes]`.
      labels: classes in 0..classes - 1, `[n]`.
      smoothing: share of the target spread evenly over all classes.

    Returns:
      The mean loss in nats, and metrics `loss` and `accuracy` (unsmoothed).
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = nats
    if smoothing:
        targets = optax.smooth_labels(jnp.eye(logits.shape[-1], dtype=logits.dtype)[labels], smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, {"loss": nats, "accuracy": (logits.argmax(-1) == labels).mean(dtype=logits.dtype)}


def cross_entropy(
    apply: Callable[[Params, PyTree], Array], labels: Literal["episode", "corpus"] = "episode", smoothing: float = 0.0
) -> LossFn:
    """Softmax cross-entropy of a model's logits.

    Args:
      apply: `(params, x) -> logits [n, classes]`.
      labels: which numbering of the classes the model predicts: within the episode, or within the corpus.
      smoothing: label smoothing.

    Returns:
      `loss_fn(params, batch, key)` for batches whose `y` is a `Labels`.
    """

    def loss_fn(params: Params, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return classify(apply(params, batch.x), getattr(batch.y, labels), smoothing)

    return loss_fn


def squared_error(apply: Callable[[Params, PyTree], Array]) -> LossFn:
    """Mean squared error of a model's outputs.

    Args:
      apply: `(params, x) -> predictions`, of the shape of `y`.

    Returns:
      `loss_fn(params, batch, key)` with metric `loss`.

    Raises:
      InputError: when called, predictions and targets differ in shape.
    """

    def loss_fn(params: Params, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        predictions = apply(params, batch.x)
        if predictions.shape != batch.y.shape:
            raise InputError(f"predictions have shape {predictions.shape}, targets {batch.y.shape}; expected the same.")
        loss = jnp.square(predictions - batch.y).mean()
        return loss, {"loss": loss}

    return loss_fn
