"""Softmax cross-entropy of classes, where a label of -1 is unknown and counts nowhere."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from metajax.core import Labels, Metrics, Scalar
from metajax.errors import InputError


def classify(logits: Float[Array, "n classes"], y: Labels | Int[Array, " n"]) -> tuple[Scalar, Metrics]:
    """Mean softmax cross-entropy -log p(y | x) of the classes within an episode, over the known labels.

    Args:
      logits: scores, `[n, classes]`.
      y: `Labels`, whose `episode` counts, or labels `[n]`, in 0..classes - 1; -1 for an example without one.

    Returns:
      The mean in nats, at least in single precision, and metrics `loss` and `accuracy`. Both are NaN where a logit of a
      known example is NaN or infinite, and, where labels are traced, also where one is out of range or none is known.

    Raises:
      InputError: `y` is empty, `()`, or no labels of the logits' shape; a concrete label is out of range, or none is
        known.

    Example:
      >>> loss, metrics = classify(jnp.array([[0.0, 2.0], [5.0, 0.0]]), jnp.array([1, -1]))
      >>> round(float(loss), 4), float(metrics["accuracy"])
      (0.1269, 1.0)
    """
    return _cross_entropy(logits, labels_of(y))


def classify_corpus(logits: Float[Array, "n classes"], y: Labels | Int[Array, " n"]) -> tuple[Scalar, Metrics]:
    """As `classify`, of the classes within the corpus, `y.corpus`: what joint training predicts."""
    return _cross_entropy(logits, labels_of(y, "corpus"))


def labels_of(y: Any, numbering: Literal["episode", "corpus"] = "episode", whose: str = "This error") -> Array:
    """The labels `[n]` of a batch's `y`; an `InputError` if there are none, or no integers."""
    labels = getattr(y, numbering) if isinstance(y, Labels) else y
    if labels is None or (isinstance(labels, tuple) and not labels):
        raise InputError(
            f"{whose} needs labels, but the batch has none (y is {labels}): expected `Labels` or integers [n]; an "
            "unlabelled support set needs a support_error without them, such as `entropy`."
        )
    if not hasattr(labels, "dtype") or not jnp.issubdtype(labels.dtype, jnp.integer):
        found = getattr(labels, "dtype", type(labels).__name__)
        raise InputError(f"{whose} needs labels, but y is of {found}, expected `Labels` or integers [n].")
    return labels


def check_labels(labels: Int[Array, " n"], classes: int, of: str = "") -> bool:
    """Whether any label is known or, traced, may be; an `InputError` where a concrete one is out of range."""
    if isinstance(labels, jax.core.Tracer):
        return True
    values = np.asarray(labels)
    if (wrong := (values < -1) | (values >= classes)).any():
        wanted = f"expected 0..{classes - 1}, or -1 for an example without a label"
        raise InputError(f"The labels{of} hold {values[wrong][0]}, {wanted}.")
    return bool((values >= 0).any())


def _cross_entropy(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> tuple[Scalar, Metrics]:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f"logits have shape {logits.shape} and labels {labels.shape}, expected [n, classes] and [n].")
    if not check_labels(labels, logits.shape[1]):
        raise InputError(f"No label is known: all {len(labels)} are -1, expected one in 0..{logits.shape[1] - 1}.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    valid = (labels >= 0) & (labels < logits.shape[1])
    counts = labels != -1
    counts |= ~counts.any()  # none is valid then, and all is NaN
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    nats *= jnp.where(counts & ~valid, jnp.nan, 1).astype(nats.dtype)  # a product, so that the gradient is NaN too
    hits = jnp.where(jnp.isnan(nats), jnp.nan, logits.argmax(1) == labels)  # argmax takes NaN for a class
    loss = nats.mean(where=counts)
    return loss, {"loss": loss, "accuracy": hits.mean(where=counts, dtype=nats.dtype)}
