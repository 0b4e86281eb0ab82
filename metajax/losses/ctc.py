"""Connectionist temporal classification: padded sequences, the loss and greedy decoding.

Token 0 is the blank. Lengths travel with inputs and transcripts; past an utterance's end a model emits certain blanks,
which neither the loss nor decoding can tell from nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metajax.core import Metrics, Scalar, Transcripts
from metajax.errors import InputError

LOG_ZERO = -1e5  # the logarithm of probability 0; finite, so that derivatives are


def blank_after(logits: Float[Array, "n time vocabulary"], lengths: Int[Array, " n"]) -> Array:
    """Logits with certain blanks in place of each utterance's frames past its length."""
    blank = jnp.full(logits.shape[-1], LOG_ZERO, logits.dtype).at[0].set(0)
    return jnp.where((jnp.arange(logits.shape[1]) < lengths[:, None])[..., None], logits, blank)


def check_transcripts(transcripts: Transcripts, frames: Int[np.ndarray, " n"], vocabulary: int) -> None:
    """Check that each transcript has an alignment; for concrete arrays, e.g. those of a corpus.

    Args:
      transcripts: what was said.
      frames: a model's output frames by utterance, `[n]`, e.g. ceil(time / 4).
      vocabulary: number of tokens, blank included.

    Raises:
      InputError: a token is out of range, or a transcript needs more frames than there are: one per token and one more
        between two equal ones.
    """
    tokens, lengths = (np.asarray(a) for a in transcripts)
    for i, (row, length, have) in enumerate(zip(tokens, lengths, frames, strict=True)):
        row = row[:length]
        if outside := [int(token) for token in row if not 0 < token < vocabulary]:
            raise InputError(f"Transcript {i} has token {outside[0]}, expected 1..{vocabulary - 1} (0 is the blank).")
        if (need := length + int((row[1:] == row[:-1]).sum())) > have or length > len(row):
            raise InputError(f"Transcript {i} of {length} tokens needs {need} frames, but the model gives {have}.")


def log_likelihood(logits: Float[Array, "n time vocabulary"], transcripts: Transcripts) -> Float[Array, " n"]:
    """log p(transcript | utterance) = log of the sum over all alignments of prod_t p_t(token), by recursion.

    As `optax.ctc_loss`, with one logarithm for each frame and place in the transcript, where that takes four: in second
    order on CPU a third of the time to run and half to compile.

    Args:
      logits: scores, `[n, time, vocabulary]`.
      transcripts: what was said.

    Returns:
      Nats by utterance, `[n]`; at most -100,000 where there is no alignment.
    """
    tokens, lengths = transcripts
    logs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    # places: blank, token, blank, token, ..., blank
    tokens = jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
    places = jnp.pad(jnp.stack([jnp.zeros_like(tokens), tokens], -1).reshape(len(tokens), -1), ((0, 0), (0, 1)))
    # a token may follow another one at once if they differ
    follows = jnp.pad((places[:, 2:] != 0) & (places[:, 2:] != places[:, :-2]), ((0, 0), (2, 0)))
    barred = jnp.where(follows, 0, LOG_ZERO).astype(logs.dtype)
    emitted = jnp.einsum("ntv,nsv->tns", logs, jax.nn.one_hot(places, logs.shape[-1], dtype=logs.dtype))

    def step(alpha: Array, now: Array) -> tuple[Array, None]:
        before = jnp.pad(alpha, ((0, 0), (2, 0)), constant_values=LOG_ZERO)
        one, two = before[:, 1:-1], before[:, :-2] + barred
        top = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(alpha, one), two))  # its derivatives cancel
        return now + top + jnp.log(jnp.exp(alpha - top) + jnp.exp(one - top) + jnp.exp(two - top)), None

    start = jnp.full_like(emitted[0], LOG_ZERO).at[:, 0].set(0)
    alpha, _ = jax.lax.scan(step, start, emitted)
    ends = jnp.take_along_axis(alpha, 2 * lengths[:, None] - jnp.array([0, 1]), 1, mode="clip")
    return jax.nn.logsumexp(ends, 1, where=jnp.stack([lengths >= 0, lengths > 0], 1))


def ctc(logits: Float[Array, "n time vocabulary"], y: Transcripts) -> tuple[Scalar, Metrics]:
    """-log p(transcript | utterance), the sum over all alignments, in nats per token of the batch.

    Args:
      logits: scores, `[n, time, vocabulary]`, certain blanks past each utterance's end (`blank_after`).
      y: what was said.

    Returns:
      The mean and the metric `loss`.

    Reference: Graves et al., "Connectionist Temporal Classification", ICML 2006.
    """
    tokens, lengths = y
    if not any(isinstance(a, jax.core.Tracer) for a in (logits, tokens, lengths)):
        frames = np.asarray((logits[..., 1:] > LOG_ZERO).any(-1).sum(-1))
        check_transcripts(Transcripts(tokens, lengths), frames, logits.shape[-1])
    loss = -log_likelihood(logits, y).sum() / jnp.maximum(lengths.sum(), 1)
    return loss, {"loss": loss}


def greedy(logits: Float[Array, "n time vocabulary"]) -> Transcripts:
    """The most likely token of every frame, repetitions merged, blanks left out.

    Args:
      logits: scores, `[n, time, vocabulary]`.

    Returns:
      Transcripts, their tokens `[n, time]` with zeros past the lengths.
    """
    best = logits.argmax(-1)
    kept = (best != 0) & (best != jnp.pad(best, ((0, 0), (1, 0)))[:, :-1])
    order = jnp.argsort(~kept, axis=1, stable=True)
    return Transcripts(jnp.take_along_axis(jnp.where(kept, best, 0), order, 1), kept.sum(1))
