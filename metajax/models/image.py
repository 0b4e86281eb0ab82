"""A small convolutional network on images, the one-channel counterpart of the speech encoders."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.layers import Conv, Norm, Normalization
from metajax.models.model import Model, check_shape, from_linen


class ImageEncoder(nn.Module):
    """Four 3x3 convolutions with normalisation and ReLU, all but the first at stride 2; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n height width"]) -> Array:
        check_shape(x, "n height width")
        x = x[..., None]
        for i, (factor, stride) in enumerate(((1, 1), (2, 2), (2, 2), (4, 2))):
            x = Conv(factor * self.width, (3, 3), stride, name=f"conv{i}")(x)
            x = jax.nn.relu(Norm(self.normalization, name=f"norm{i}")(x))
        x = x.reshape(x.shape[0], -1)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def image_encoder(num_outputs: int | None = None, *, normalization: Normalization = "layer", width: int = 16) -> Model:
    """A small convolutional network on images `[n, height, width]`, e.g. digits of 8x8 or characters of 28x28.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding,
        `[n, ceil(height / 8) * ceil(width / 8) * 4 * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: channels of the first convolution; the others have twice, twice and four times as many.

    Returns:
      The model.

    Raises:
      InputError: when called, inputs of another shape, or an unknown normalisation.
    """
    return from_linen(ImageEncoder(num_outputs, normalization, width))
