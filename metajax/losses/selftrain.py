"""Errors that need no labels, for a support set that has none."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.core import Metrics, Scalar


def entropy(logits: Float[Array, "n *time classes"], y: Any = ()) -> tuple[Scalar, Metrics]:
    """Mean entropy of the predictions, -sum_c p_c log p_c with p = softmax(logits), over examples and frames.

    Args:
      logits: scores, `[n, classes]` or, frame by frame, `[n, time, classes]`.
      y: ignored.

    Returns:
      The mean in nats, at least in single precision, and the metric `loss`. Frames past an utterance's end, certain
      blanks as `blank_after` makes them, add nothing but count in the mean.

    Reference: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    p, logs = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    loss = -(p * jnp.where(jnp.isneginf(logs), 0, logs)).sum(-1).mean()  # a probability of 0 adds nothing
    return loss, {"loss": loss}
