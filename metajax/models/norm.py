"""Normalisation, a named setting: it decides what a model may know about the other examples of its batch."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.errors import InputError
from metajax.models.conv import max_pool

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
    `max_pool(y, pool)`: as y rises with scale * x, the largest x are chosen first, and only those are normalised.
    """

    normalization: Normalization

    @nn.compact
    def __call__(self, x: Float[Array, "n *space features"], num_reference: int | None = None, pool: int = 1) -> Array:
        features = x.shape[-1]
        if self.normalization not in NORMALIZATIONS:
            raise InputError(f"normalization is {self.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}.")
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        if self.normalization in ("transductive", "support"):
            source = x[:num_reference] if self.normalization == "support" else x
            axes = tuple(range(x.ndim - 1))
            mean, variance = moments(source, axes)
            factor = scale * jax.lax.rsqrt(variance + 1e-5)
            return pooled(x, scale, pool) * factor + (bias - mean * factor)
        groups = 1 if self.normalization == "layer" else max(g for g in range(1, GROUPS + 1) if features % g == 0)
        source, x = (a.reshape(*a.shape[:-1], groups, -1) for a in (x, pooled(x, scale, pool)))
        axes = (*range(1, x.ndim - 2), x.ndim - 1)
        mean, variance = moments(source, axes, keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return y.reshape(*y.shape[:-2], features) * scale + bias


def moments(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> tuple[Array, Array]:
    """Mean and variance, E[(x - a)^2] - (E[x] - a)^2 for the constant a = E[x].

    Without a, float32 would lose its digits. With it as a constant the derivative has no term through the mean, which
    is zero anyway and costs a pass over x; the last term is zero but for its second derivative.
    """
    mean = x.mean(axes, keepdims=keepdims)
    a = jax.lax.stop_gradient(mean)
    centred = x - (a if keepdims else jnp.expand_dims(a, axes))
    return mean, jnp.square(centred).mean(axes, keepdims=keepdims) - jnp.square(mean - a)


def pooled(x: Array, scale: Array, size: int) -> Array:
    """The x of each block of `size` where scale * x is largest."""
    if size == 1:
        return x
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    return sign * max_pool(sign * x, size)
