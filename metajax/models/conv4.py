"""Conv4: the four-block network of the few-shot literature, on log-mels as one-channel images."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.conv import conv_max_pool, conv_moments, max_pool
from metajax.models.layers import Conv, Norm, Normalization, moments
from metajax.models.model import Model, check_shape, from_linen


def conv_blocks(
    x: Float[Array, "n time mel"], width: int, normalization: Normalization
) -> Float[Array, "n out_time out_mel width"]:
    """Four times relu(max_pool(norm(conv(x)))), within a module that gets the parameters.

    As norm(y) rises with scale * y, the largest scale * y are chosen first, and only those, a quarter, are normalised.
    The first block never holds the result of its convolution as a whole: of one feature, it would be the largest array
    of all.
    """
    check_shape(x, "n time mel", 16)
    x = x[..., None]
    for i in range(4):
        conv, norm = Conv(width, (3, 3), name=f"conv{i}"), Norm(normalization, name=f"norm{i}")
        if i == 0:
            kernel = conv.weights(1)
            found = conv_moments(x, kernel, norm.each)
        else:
            y = conv(x)
            found = moments(y, norm.each)
        scale, factor, shift = norm.affine(*found, x.ndim)
        sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
        best = sign * (conv_max_pool(x, sign * kernel) if i == 0 else max_pool(sign * y))
        x = jax.nn.relu((best * factor + shift).astype(x.dtype))
    return x


class Conv4(nn.Module):
    """Four times 3x3 convolution, normalisation, ReLU, 2x2 max pooling; mean over time; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"]) -> Array:
        x = conv_blocks(x, self.width, self.normalization).mean(1)
        x = x.reshape(x.shape[0], -1)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def conv4(num_outputs: int | None = None, *, normalization: Normalization = "transductive", width: int = 64) -> Model:
    """Conv4-64 (112 k parameters) on log-mels `[n, time, mel]` with at least 16 frames and 16 mel bins.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, (mel // 16) * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: channels of every block.

    Returns:
      The model.

    Raises:
      InputError: when called, inputs of another shape, or an unknown normalisation.

    Reference: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016.
    """
    return from_linen(Conv4(num_outputs, normalization, width))
