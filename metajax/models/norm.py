"""Normalisation, a named setting: it decides what a model may know about the other examples of its batch."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.errors import InputError
from metajax.models.conv_pool import conv_max_pool, conv_moments, max_pool
from metajax.models.formulations import Formulation

Normalization = Literal["transductive", "support", "group", "layer"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
GROUPS = 8


class Norm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + 1e-5) + bias, with the statistics that `normalization` names.

    - `transductive`: of all examples of the batch at hand, so a query example is helped by the other queries;
    - `support`: of the first `num_reference` examples, the support set; each query example stands alone;
    - `group`: of each example and each of 8 groups of features, or as many as divide them;
    - `layer`: of each example and all its features.

    There are no running statistics: theta is all that training leaves. With `pool` the result is
    `max_pool(y, pool)`: as y rises with scale * x, the largest x are chosen first, and only those are normalised. With
    `kernel` and `pool` x is conv(x, kernel), which never exists as a whole: fast where x has few features.
    """

    normalization: Normalization

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n *space features"],
        num_reference: int | None = None,
        pool: int = 1,
        kernel: Float[Array, "*taps"] | None = None,
        formulation: Formulation = "auto",
    ) -> Array:
        features = (x if kernel is None else kernel).shape[-1]
        if self.normalization not in NORMALIZATIONS:
            raise InputError(f"normalization is {self.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}.")
        scale = wide(self.param("scale", nn.initializers.ones, (features,)))
        bias = wide(self.param("bias", nn.initializers.zeros, (features,)))
        source = x[:num_reference] if self.normalization == "support" else x
        each = self.normalization in ("group", "layer")
        mean, variance = moments(source, each) if kernel is None else conv_moments(wide(source), wide(kernel), each)
        if each:
            groups = 1 if self.normalization == "layer" else max(g for g in range(1, GROUPS + 1) if features % g == 0)
            mean, variance = (
                jnp.repeat(a, features // groups, -1).reshape(len(x), *[1] * (x.ndim - 2), features)
                for a in joined(mean.reshape(len(x), groups, -1), variance.reshape(len(x), groups, -1))
            )
        if pool > 1:
            sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
            if kernel is None:
                x = sign * max_pool(sign * x, pool)
            else:
                x = sign * conv_max_pool(x, sign * kernel, pool, formulation)
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        return (x * factor + (bias - mean * factor)).astype(x.dtype)


def wide(x: Array) -> Array:
    """At least single precision, which statistics need."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def moments(x: Float[Array, "n *space features"], each: bool = False) -> tuple[Array, Array]:
    """Mean and variance of every feature, E[(x - a)^2] - (E[x] - a)^2 for the constant a = E[x]; `[features]`.

    Without a, float32 would lose its digits. With it as a constant the derivative has no term through the mean, which
    is zero anyway and costs a pass over x; the last term is zero but for its second derivative. With `each` of every
    example by itself, `[n, features]`.
    """
    axes, x = tuple(range(1 if each else 0, x.ndim - 1)), wide(x)
    mean = x.mean(axes)
    a = jax.lax.stop_gradient(mean)
    return mean, jnp.square(x - jnp.expand_dims(a, axes)).mean(axes) - jnp.square(mean - a)


def joined(mean: Float[Array, "*n parts"], variance: Float[Array, "*n parts"]) -> tuple[Array, Array]:
    """Mean and variance of equal parts taken together; `[n]`."""
    whole = mean.mean(-1)
    return whole, (variance + jnp.square(mean - whole[..., None])).mean(-1)
