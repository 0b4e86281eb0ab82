"""A bidirectional LSTM encoder over log-mel frames, a quarter of the frame rate out, for recognition with CTC."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from metajax.errors import InputError
from metajax.losses.ctc import blank_after
from metajax.models.frames import FrameNormalization, Inputs, check_normalization, frame_norm, frames_of, quarter_rate
from metajax.models.model import Model, from_linen
from metajax.models.recurrent import Recurrent


class BiLSTM(nn.Module):
    """Two convolutions of stride 2 over time; residual bidirectional LSTM layers; a linear head, if asked."""

    num_outputs: int | None
    normalization: FrameNormalization
    width: int
    num_layers: int

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        x, lengths = quarter_rate(*frames_of(inputs), self.width, self.normalization)
        mask = jnp.arange(x.shape[1]) < lengths[:, None]
        for i in range(self.num_layers):
            layer = Recurrent(self.width // 2, "lstm", both=True, name=f"lstm{i}")
            x = x + layer(frame_norm(x, self.normalization, f"norm{i + 2}"), mask)
        return x if self.num_outputs is None else blank_after(nn.Dense(self.num_outputs, name="head")(x), lengths)


def bilstm(
    num_outputs: int | None = None,
    *,
    normalization: FrameNormalization = "layer",
    width: int = 128,
    num_layers: int = 2,
) -> Model:
    """A BiLSTM encoder (0.3 M parameters) on log-mels `[n, time, mel]`, or on `Utterances` where their lengths differ.

    Args:
      num_outputs: size of the vocabulary, blank included: logits `[n, ceil(time / 4), num_outputs]` with certain blanks
        past each utterance's end; None for the embeddings, `[n, ceil(time / 4), width]`, zero there.
      normalization: `layer` or `group`, of each frame by itself; see `Norm`.
      width: channels of the convolutions, and of both directions of a layer together.
      num_layers: bidirectional layers.

    Returns:
      The model.

    Raises:
      InputError: another normalisation, or an odd width; when called, inputs of another shape.

    Reference: Graves et al., "Hybrid Speech Recognition with Deep Bidirectional LSTM", ASRU 2013.
    """
    check_normalization(normalization)
    if width < 2 or width % 2:
        raise InputError(f"width is {width}, expected an even number, 2 or more: half of it for each direction.")
    return from_linen(BiLSTM(num_outputs, normalization, width, num_layers))
