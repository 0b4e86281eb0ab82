"""TC-ResNet8: temporal convolution over log-mel frames, mel bins as channels."""

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.conv import conv
from metajax.models.formulations import Formulation
from metajax.models.model import Model, from_linen
from metajax.models.norm import Norm, Normalization


class Conv(nn.Module):
    """Convolution without bias; `taps` gives its size along each axis of space. Not `apply`: its kernel alone."""

    features: int
    taps: tuple[int, ...]
    stride: int = 1
    formulation: Formulation = "auto"

    @nn.compact
    def __call__(self, x: Array, apply: bool = True) -> Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.taps, x.shape[-1], self.features))
        return conv(x, kernel, self.stride, self.formulation) if apply else kernel


class TCResNet8(nn.Module):
    """A first convolution and three residual blocks of two; mean over time; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: float
    convolution: Formulation

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"], num_reference: int | None = None) -> Array:
        layer = partial(Conv, formulation=self.convolution)
        first, *rest = (round(self.width * c) for c in (16, 24, 32, 48))
        x = layer(first, (3,), name="conv0")(x)
        for i, features in enumerate(rest, 1):
            y = layer(features, (9,), 2, name=f"conv{i}a")(x)
            y = jax.nn.relu(Norm(self.normalization, name=f"norm{i}a")(y, num_reference))
            y = Norm(self.normalization, name=f"norm{i}b")(layer(features, (9,), name=f"conv{i}b")(y), num_reference)
            x = layer(features, (1,), 2, name=f"short{i}")(x)
            x = jax.nn.relu(y + jax.nn.relu(Norm(self.normalization, name=f"norm{i}s")(x, num_reference)))
        x = x.mean(1)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def tcresnet8(
    num_outputs: int | None = None,
    *,
    normalization: Normalization = "transductive",
    width: float = 1.0,
    convolution: Formulation = "auto",
) -> Model:
    """TC-ResNet8 (65 k parameters at width 1) on log-mels `[n, time, mel]`.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, 48 * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: multiplies the channels 16, 24, 32, 48.
      convolution: how convolutions are computed; see `conv`.

    Returns:
      The model.

    Reference: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices", Interspeech 2019.
    """
    return from_linen(TCResNet8(num_outputs, normalization, width, convolution))
