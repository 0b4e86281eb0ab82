"""Convolution and normalisation as layers. What a normalisation knows of the other examples is a named setting."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.conv import conv
from metajax.errors import InputError

Normalization = Literal["transductive", "support", "group", "layer"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
GROUPS = 8


class Conv(nn.Module):
    """Convolution without bias, parameter `kernel`; `taps` gives its size along each axis of space."""

    features: int
    taps: tuple[int, ...]
    stride: int = 1

    def __call__(self, x: Float[Array, "n *space features"]) -> Array:
        return conv(x, self.weights(x.shape[-1]), self.stride)

    @nn.compact
    def weights(self, features: int) -> Float[Array, "*taps"]:
        """The kernel for inputs of so many features."""
        return self.param("kernel", nn.initializers.he_normal(), (*self.taps, features, self.features))


class Norm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + 1e-5) + bias, with the statistics that `normalization` names.

    - `transductive`: of all examples of the batch at hand, so a query example is helped by the other queries;
    - `support`: `mean` and `variance` among the parameters, where a learner has put those of the support set, so that
      each query example stands alone; of the batch at hand, which then is the support set, where there are none;
    - `group`: of each example and each of 8 groups of features, or as many as divide them;
    - `layer`: of each example and all its features.

    There are no running statistics: theta is all that training leaves.
    """

    normalization: Normalization

    @property
    def each(self) -> bool:
        """Whether every example has statistics of its own."""
        return self.normalization in ("group", "layer")

    def __call__(self, x: Float[Array, "n *space features"]) -> Array:
        _, factor, shift = self.affine(*moments(x, self.each), x.ndim)
        return (x * factor + shift).astype(x.dtype)

    @nn.compact
    def affine(
        self, mean: Float[Array, "*n features"], variance: Float[Array, "*n features"], ndim: int
    ) -> tuple[Array, Array, Array]:
        """Scale, factor and shift of y = factor * x + shift, for x of so many axes whose features have these moments.

        They are those of the whole batch, `[features]`, or, where `each`, those of every example, `[n, features]`.
        """
        if self.normalization not in NORMALIZATIONS:
            raise InputError(f"normalization is {self.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}.")
        features = mean.shape[-1]
        scale = _wide(self.param("scale", nn.initializers.ones, (features,)))
        bias = _wide(self.param("bias", nn.initializers.zeros, (features,)))
        if self.normalization == "support":
            if self.is_mutable_collection("statistics"):  # asked for by `Model.statistics`
                self.put_variable("statistics", "mean", mean)
                self.put_variable("statistics", "variance", variance)
            elif self.has_variable("params", "mean"):
                mean, variance = (_wide(self.get_variable("params", name)) for name in ("mean", "variance"))
        if self.each:
            groups = 1 if self.normalization == "layer" else max(g for g in range(1, GROUPS + 1) if features % g == 0)
            parts = (a.reshape(len(a), groups, -1) for a in (mean, variance))
            mean, variance = (
                jnp.repeat(a, features // groups, -1).reshape(len(a), *[1] * (ndim - 2), features)
                for a in _joined(*parts)
            )
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        return scale, factor, bias - mean * factor


def moments(x: Float[Array, "n *space features"], each: bool = False) -> tuple[Array, Array]:
    """Mean and variance of every feature, E[(x - a)^2] - (E[x] - a)^2 for the constant a = E[x]; `[features]`.

    Without a, float32 would lose its digits. With it as a constant the derivative has no term through the mean, which
    is zero anyway and costs a pass over x; the last term is zero but for its second derivative. With `each` of every
    example by itself, `[n, features]`.
    """
    axes, x = tuple(range(1 if each else 0, x.ndim - 1)), _wide(x)
    mean = x.mean(axes)
    a = jax.lax.stop_gradient(mean)
    return mean, jnp.square(x - jnp.expand_dims(a, axes)).mean(axes) - jnp.square(mean - a)


def _joined(mean: Float[Array, "*n parts"], variance: Float[Array, "*n parts"]) -> tuple[Array, Array]:
    """Mean and variance of equal parts taken together; `[n]`."""
    whole = mean.mean(-1)
    return whole, (variance + jnp.square(mean - whole[..., None])).mean(-1)


def _wide(x: Array) -> Array:
    """At least single precision, which statistics need."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
