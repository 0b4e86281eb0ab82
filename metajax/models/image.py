"""A small convolutional network on images, the one-channel counterpart of the speech encoders."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.formulations import Formulation
from metajax.models.model import Model, from_linen
from metajax.models.norm import Norm, Normalization
from metajax.models.tcresnet import Conv


class ImageEncoder(nn.Module):
    """Four 3x3 convolutions with normalisation and ReLU, all but the first at stride 2; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: int
    convolution: Formulation

    @nn.compact
    def __call__(self, x: Float[Array, "n height width"], num_reference: int | None = None) -> Array:
        x = x[..., None]
        for i, (factor, stride) in enumerate(((1, 1), (2, 2), (2, 2), (4, 2))):
            x = Conv(factor * self.width, (3, 3), stride, self.convolution, name=f"conv{i}")(x)
            x = jax.nn.relu(Norm(self.normalization, name=f"norm{i}")(x, num_reference))
        x = x.reshape(x.shape[0], -1)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def image_encoder(
    num_outputs: int | None = None,
    *,
    normalization: Normalization = "layer",
    width: int = 16,
    convolution: Formulation = "auto",
) -> Model:
    """A small convolutional network on images `[n, height, width]`, e.g. digits of 8x8 or characters of 28x28.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding,
        `[n, ceil(height / 8) * ceil(width / 8) * 4 * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: channels of the first convolution; the others have twice, twice and four times as many.
      convolution: how convolutions are computed; see `conv`.

    Returns:
      The model.
    """
    return from_linen(ImageEncoder(num_outputs, normalization, width, convolution))
