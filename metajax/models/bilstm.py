"""A bidirectional LSTM encoder over log-mel frames, a quarter of the frame rate out, for recognition with CTC."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from metajax.core import Utterances
from metajax.errors import InputError
from metajax.losses.ctc import blank_after
from metajax.models.layers import Conv, Norm
from metajax.models.model import Model, check_shape, from_linen
from metajax.models.recurrent import Recurrent

FrameNormalization = Literal["layer", "group"]
Inputs: TypeAlias = Array | Utterances


class BiLSTM(nn.Module):
    """Two convolutions of stride 2 over time; residual bidirectional LSTM layers; a linear head, if asked."""

    num_outputs: int | None
    normalization: FrameNormalization
    width: int
    num_layers: int

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        x = inputs.frames if isinstance(inputs, Utterances) else inputs
        check_shape(x, "n time mel")
        lengths = inputs.lengths if isinstance(inputs, Utterances) else jnp.full(len(x), x.shape[1])
        if lengths.shape != x.shape[:1]:
            raise InputError(f"lengths has shape {lengths.shape}, expected one for each of {len(x)} utterances.")

        def masked(x: Array) -> Array:  # zeros past the end, as if the array ended there
            return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)

        def norm(x: Array, name: str) -> Array:  # each frame by itself, so that padding has no part in it
            return Norm(self.normalization, name=name)(x.reshape(-1, x.shape[-1])).reshape(x.shape)

        # whole blocks of 4 frames: a strided convolution's alignment depends on where the array ends
        x = jnp.pad(masked(x), ((0, 0), (0, -x.shape[1] % 4), (0, 0)))
        for i in range(2):
            lengths = (lengths + 1) // 2
            x = Conv(self.width, (5,), 2, name=f"conv{i}")(x)
            x = masked(jax.nn.relu(norm(x, f"norm{i}")))
        mask = jnp.arange(x.shape[1]) < lengths[:, None]
        for i in range(self.num_layers):
            layer = Recurrent(self.width // 2, "lstm", both=True, name=f"lstm{i}")
            x = x + layer(norm(x, f"norm{i + 2}"), mask)
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
    if normalization not in get_args(FrameNormalization):
        raise InputError(
            f"normalization is {normalization!r}, expected one of {', '.join(get_args(FrameNormalization))}: "
            "padded frames must not count."
        )
    if width < 2 or width % 2:
        raise InputError(f"width is {width}, expected an even number, 2 or more: half of it for each direction.")
    return from_linen(BiLSTM(num_outputs, normalization, width, num_layers))
