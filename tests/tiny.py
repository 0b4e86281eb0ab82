"""Networks of a convolution or two in place of real ones, which take minutes to compile in the programs of a script."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from metajax.losses.ctc import blank_after
from metajax.models import Model, from_linen
from metajax.models.frames import frames_of, quarter_rate


class Recogniser(nn.Module):
    outputs: int | None

    @nn.compact
    def __call__(self, inputs):
        x, lengths = quarter_rate(*frames_of(inputs), 8, "layer")
        return x if self.outputs is None else blank_after(nn.Dense(self.outputs, name="head")(x), lengths)


class Words(nn.Module):
    outputs: int | None
    features: int
    pooled: bool

    @nn.compact
    def __call__(self, x):
        # windows that do not overlap: a convolution as one product, whose gradient is fast without optimisation, too
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0))).reshape(len(x), -1, 8 * x.shape[2])
        x = nn.Dense(self.features, name="conv0")(x)
        x = nn.relu(nn.LayerNorm(name="norm0")(x))
        x = x.mean(1) if self.pooled else x
        return x if self.outputs is None else nn.Dense(self.outputs, name="head")(x)


def ear(outputs: int | None, normalization: str, width: float, pooled: bool, name: str) -> nn.Module:
    """As the module `TCResNet8` within `metajax.models.fusion`."""
    return Words(outputs, round(48 * width), pooled, name=name)


def recogniser(**_: Any) -> Callable[[int | None], Model]:
    """As `metajax.models.recogniser`, whatever the network."""
    return lambda outputs: from_linen(Recogniser(outputs))


def tcresnet8(outputs: int | None = None, *, width: float = 1.0, pooled: bool = True, **_: Any) -> Model:
    """As `metajax.models.tcresnet8`: as many features, a frame for 8."""
    return from_linen(Words(outputs, round(48 * width), pooled))


def network(*_: Any, width: float, **__: Any) -> Callable[[int | None], Model]:
    """As `metajax.models.network`, whatever its name."""
    return lambda outputs: tcresnet8(outputs, width=width)
