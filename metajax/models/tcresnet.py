"""TC-ResNet8: temporal convolution over log-mel frames, mel bins as channels."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.layers import Conv, Norm, Normalization
from metajax.models.model import Model, check_shape, from_linen


class TCResNet8(nn.Module):
    """A first convolution and three residual blocks of two; mean over time, unless off; a linear head, if asked."""

    num_outputs: int | None
    normalization: Normalization
    width: float
    pooled: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"]) -> Array:
        check_shape(x, "n time mel")

        def norm(x: Array, name: str) -> Array:
            return Norm(self.normalization, name=f"norm{name}")(x)

        first, *rest = (round(self.width * c) for c in (16, 24, 32, 48))
        x = Conv(first, (3,), name="conv0")(x)
        for i, features in enumerate(rest, 1):
            y = jax.nn.relu(norm(Conv(features, (9,), 2, name=f"conv{i}a")(x), f"{i}a"))
            y = norm(Conv(features, (9,), name=f"conv{i}b")(y), f"{i}b")
            x = jax.nn.relu(norm(Conv(features, (1,), 2, name=f"short{i}")(x), f"{i}s"))
            x = jax.nn.relu(y + x)
        x = x.mean(1) if self.pooled else x
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def tcresnet8(
    num_outputs: int | None = None,
    *,
    normalization: Normalization = "transductive",
    width: float = 1.0,
    pooled: bool = True,
    dropout: float = 0.0,
) -> Model:
    """TC-ResNet8 (65 k parameters at width 1) on log-mels `[n, time, mel]`.

    Parameters are `conv0.kernel`, then of blocks i = 1..3 `conv<i>a`, `conv<i>b`, `short<i>` (kernels alone) and their
    `norm<i>a`, `norm<i>b`, `norm<i>s` (scale and bias), and `head`.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, 48 * width]`.
      normalization: one of `transductive`, `support`, `group`, `layer`; see `Norm`.
      width: multiplies the channels 16, 24, 32, 48.
      pooled: over time; else an output for every 8 frames, `[n, time / 8, ...]` rounded up.
      dropout: probability that a feature of the embedding is dropped, where `apply` has a key, as in training. The
        parameters are the same without, so that a model without recognises.

    Returns:
      The model.

    Raises:
      InputError: when called, inputs of another shape, or an unknown normalisation.

    Reference: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices", Interspeech 2019.
    """
    return from_linen(TCResNet8(num_outputs, normalization, width, pooled, dropout))
