"""Conv4: the four-block network of the few-shot literature, on log-mels as one-channel images."""

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.formulations import Formulation
from metajax.models.model import Model, from_linen
from metajax.models.norm import Norm, Normalization
from metajax.models.tcresnet import Conv


def conv_blocks(
    x: Float[Array, "n time mel"],
    width: int,
    normalization: Normalization,
    convolution: Formulation,
    num_reference: int | None,
) -> Float[Array, "n out_time out_mel width"]:
    """Four times convolution, normalisation, ReLU and pooling, within a module that gets the parameters."""
    x = x[..., None]
    for i in range(4):
        conv = Conv(width, (3, 3), 1, convolution, name=f"conv{i}")
        norm = partial(Norm(normalization, name=f"norm{i}"), num_reference=num_reference, pool=2)
        # the first one's result, of one feature, would be the largest array of all
        x = norm(x, kernel=conv(x, apply=False), formulation=convolution) if i == 0 else norm(conv(x))
        x = jax.nn.relu(x)
    return x


class Conv4(nn.Module):
    """Four times 3x3 convolution, normalisation, ReLU, 2x2 max pooling; mean over time; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: int
    convolution: Formulation

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"], num_reference: int | None = None) -> Array:
        x = conv_blocks(x, self.width, self.normalization, self.convolution, num_reference)
        x = x.mean(1).reshape(x.shape[0], -1)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def conv4(
    num_outputs: int | None = None,
    *,
    normalization: Normalization = "transductive",
    width: int = 64,
    convolution: Formulation = "auto",
) -> Model:
    """Conv4-64 (112 k parameters) on log-mels `[n, time, mel]` with at least 16 frames and 16 mel bins.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, (mel // 16) * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: channels of every block.
      convolution: how convolutions are computed; see `conv`.

    Returns:
      The model.

    Reference: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016.
    """
    return from_linen(Conv4(num_outputs, normalization, width, convolution))
