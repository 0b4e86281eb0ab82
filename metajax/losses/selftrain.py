"""Errors that need no labels, for a support set that has none."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.core import Error, Metrics, Scalar, Transcripts
from metajax.errors import InputError
from metajax.losses.ctc import greedy, log_likelihood


class Judged(NamedTuple):
    """Outputs of a recogniser that judges them, `models.judged`."""

    logits: Float[Array, "n time vocabulary"]
    verdict: Float[Array, " n"]  # of each utterance; the lower the better


def verdict(outputs: Judged, y: Any = ()) -> tuple[Scalar, Metrics]:
    """The mean verdict: an error without labels that is learned, since only the outer error teaches what it says."""
    loss = outputs.verdict.mean()
    return loss, {"loss": loss}


def of_logits(error: Error) -> Error:
    """An error of logits as one of `Judged` outputs: `of_logits(ctc)`."""
    return lambda outputs, y: error(outputs.logits, y)


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


def suta(
    logits: Float[Array, "n time vocabulary"], y: Any = (), *, temperature: float = 2.5, weight: float = 0.3
) -> tuple[Scalar, Metrics]:
    """weight * entropy + (1 - weight) * class confusion of p = softmax(logits / temperature), for CTC.

    The entropy is the mean over the frames whose likeliest token is not the blank. With C = sum_t p_t p_t^T of one
    utterance and its columns divided by their sums, the confusion is the sum of what lies off the diagonal, over the
    size of the vocabulary: 0 where each frame is sure of its token. Frames past an utterance's end count nowhere.

    Args:
      logits: scores, `[n, time, vocabulary]`, certain blanks past each utterance's end (`blank_after`).
      y: ignored.
      temperature: above 1 it evens out what a recogniser is sure of.
      weight: of the entropy, in 0..1.

    Returns:
      The mean over utterances, at least in single precision, and the metrics `loss`, `entropy` and `confusion`.

    Raises:
      InputError: `weight` is not in 0..1, or `temperature` is not positive.

    Reference: Lin, Li, Lee, "Listen, Adapt, Better WER: Source-free Single-utterance Test-time Adaptation for Automatic
    Speech Recognition", Interspeech 2022.
    """
    if not 0 <= weight <= 1 or not temperature > 0:
        raise InputError(f"weight is {weight} and temperature {temperature}, expected 0 to 1 and more than 0.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    inside = (logits[..., 1:] > -jnp.inf).any(-1)
    said = inside & (logits.argmax(-1) != 0)
    p, logs = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    each = -(p * jnp.where(jnp.isneginf(logs), 0, logs)).sum(-1)
    uncertain = jnp.where(said, each, 0).sum(1) / jnp.maximum(said.sum(1), 1)
    p = jnp.where(inside[..., None], p, 0)
    together = jnp.einsum("ntv,ntw->nvw", p, p)
    sums = together.sum(1, keepdims=True)
    shares = together / jnp.where(sums > 0, sums, 1)
    confusion = (shares.sum((1, 2)) - jnp.trace(shares, axis1=1, axis2=2)) / logits.shape[-1]
    loss = (weight * uncertain + (1 - weight) * confusion).mean()
    return loss, {"loss": loss, "entropy": uncertain.mean(), "confusion": confusion.mean()}


class PseudoLabels(NamedTuple):
    """What a recogniser itself heard, in place of labels."""

    transcripts: Transcripts
    trusted: Float[Array, " n"]  # 1 for an utterance that counts, 0 for one that does not


def pseudo_labels(logits: Float[Array, "n time vocabulary"], floor: float = 0.9) -> PseudoLabels:
    """The transcripts of greedy decoding, of which those count whose confidence reaches a floor; no gradient.

    The confidence of an utterance is the geometric mean of the likeliest token's probability over the frames where that
    is not the blank; of an utterance in which nothing is heard it is 0, since the label would teach to hear nothing.

    Args:
      logits: scores, `[n, time, vocabulary]`, certain blanks past each utterance's end (`blank_after`).
      floor: of the confidence, more than 0 and at most 1.

    Raises:
      InputError: `floor` is out of range.

    Reference: Kahn, Lee, Hannun, "Self-Training for End-to-End Speech Recognition", ICASSP 2020.
    """
    if not 0 < floor <= 1:
        raise InputError(f"floor is {floor}, expected more than 0 and at most 1.")
    logits = jax.lax.stop_gradient(logits)
    best, said = jax.nn.log_softmax(logits).max(-1), logits.argmax(-1) != 0
    sure = jnp.where(said, best, 0).sum(1) / jnp.maximum(said.sum(1), 1)
    trusted = said.any(1) & (sure >= jnp.log(floor))
    return PseudoLabels(greedy(logits), trusted.astype(best.dtype))


def pseudo(logits: Float[Array, "n time vocabulary"], y: PseudoLabels) -> tuple[Scalar, Metrics]:
    """`ctc` of pseudo-labels: nats per token of the utterances that count; 0 where none does.

    Args:
      logits: scores, `[n, time, vocabulary]`, certain blanks past each utterance's end (`blank_after`).
      y: labels that no longer change while a task is learned, as `inner.first_pass` keeps them.

    Returns:
      The loss, and the metrics `loss` and `trusted`, the share of utterances that count.
    """
    nats = -log_likelihood(logits, y.transcripts)
    loss = (y.trusted * nats).sum() / jnp.maximum((y.trusted * y.transcripts.lengths).sum(), 1)
    return loss, {"loss": loss, "trusted": y.trusted.mean()}
