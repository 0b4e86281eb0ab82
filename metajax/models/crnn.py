"""CRNN: MetaAudio's convolutional-recurrent network, on log-mels as one-channel images."""

from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.conv4 import conv_blocks
from metajax.models.layers import Norm, Normalization
from metajax.models.model import Model, from_linen
from metajax.models.recurrent import Cell, Recurrent


class CRNN(nn.Module):
    """Conv4's blocks; mean over mel; a recurrent layer with a skip; its last frame, normalised; a head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: int
    cell: Cell

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"]) -> Array:
        x = conv_blocks(x, self.width, self.normalization).mean(2)
        x = (x + Recurrent(self.width, self.cell, name="recurrent")(x))[:, -1]
        x = Norm(self.normalization, name="norm4")(x)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def crnn(
    num_outputs: int | None = None,
    *,
    normalization: Normalization = "transductive",
    width: int = 64,
    cell: Cell = "rnn",
) -> Model:
    """MetaAudio's CRNN (120 k parameters) on log-mels `[n, time, mel]` with at least 16 frames and 16 mel bins.

    Four 3x3 convolutions, one recurrent layer in one direction, added to its input, and the last frame's features.
    Unlike there, pooling is 2x2 and the mel bins left are averaged (there: 3x3, which leaves one of 128); convolutions
    have no bias, which the normalisation would take away; there is no dropout.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: channels of every block and of the recurrent layer.
      cell: `rnn`, as in MetaAudio's published settings, or `lstm`.

    Returns:
      The model.

    Raises:
      InputError: when called, inputs of another shape, or an unknown normalisation or cell.

    Reference: Heggan et al., "MetaAudio: A Few-Shot Audio Classification Benchmark", ICANN 2022.
    """
    return from_linen(CRNN(num_outputs, normalization, width, cell))
