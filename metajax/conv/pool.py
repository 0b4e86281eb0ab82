"""Max pooling, and what a normalised, pooled convolution of few features needs, without the convolution's result.

The first convolution of an image network turns one feature into many: next to no work, but its result is the largest
array of all, and writing and reading that, forward and backward, took as long as half of all other layers on CPU.
"""

import math
from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.conv.formulations import num_blocks, padded, windows
from metajax.conv.primitives import conv, same_pads


def conv_moments(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], each: bool = False
) -> tuple[Float[Array, "*n outputs"], Float[Array, "*n outputs"]]:
    """Mean and variance of every feature of conv(x, kernel), from those of what its taps see.

    E[y] = k^T E[p] and Var[y] = k^T Cov[p] k for y = k^T p, where p is a patch of x under the taps; in single precision
    or better.

    Args:
      x: inputs, `[n, *space, features]`.
      kernel: weights, `[taps..., features, outputs]`.
      each: of every example by itself.

    Returns:
      `[outputs]` each, or `[n, outputs]`.
    """
    space, taps = x.shape[1:-1], kernel.shape[:-2]
    x, kernel = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (x, kernel))
    x = jnp.moveaxis(padded(x, same_pads(space, taps)), -1, 0)[..., None]
    patches = jnp.stack(windows(x, space, taps))  # [taps, features, n, *space, 1]
    patches = patches.reshape(patches.shape[0] * patches.shape[1], len(x[0]) if each else 1, -1)
    mean = patches.mean(-1)
    centred = patches - mean[..., None]
    covariance = jnp.einsum("ins,jns->nij", centred, centred) / patches.shape[-1]
    k = kernel.reshape(-1, kernel.shape[-1])
    moments = mean.T @ k, jnp.einsum("if,nij,jf->nf", k, covariance, k)
    return moments if each else (moments[0][0], moments[1][0])


def conv_max_pool(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], size: int = 2
) -> Float[Array, "n *out outputs"]:
    """max_pool(conv(x, kernel), size), on CPU by blocks of examples that stay in a core's cache; computed again for
    the gradient."""

    @jax.checkpoint
    def part(x: Array) -> Array:
        return max_pool(conv(x, kernel), size)

    nbytes = x.nbytes // x.shape[-1] * kernel.shape[-1]
    count = num_blocks(len(x), nbytes, jax.default_backend())
    if count == 1:
        return part(x)
    y = jax.lax.map(part, x.reshape(count, -1, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def max_pool(x: Float[Array, "n *space features"], size: int = 2) -> Float[Array, "n *out features"]:
    """Maximum over blocks of `size` along every axis of space; a remainder at the end is left out.

    The gradient goes to the first of equal values. That of `reduce_window` is ten times slower on CPU.
    """
    for axis in range(1, x.ndim - 1):
        x = jax.lax.slice_in_dim(x, 0, x.shape[axis] // size * size, axis=axis)
    return _largest(x.reshape([len(x), *(n for cells in x.shape[1:-1] for n in (cells // size, size)), x.shape[-1]]))


@jax.custom_jvp
def _largest(x: Array) -> Array:
    """The largest of every block, `[n, *out, features]` of `[n, *(out, size), features]`."""
    return _winners(x)[0]


@_largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """A choice by number, not by comparing x with the maximum: XLA may compute x once more, rounded differently."""
    (x,), (tangent,) = primals, tangents
    best, number = _winners(x)
    axes = tuple(range(2, x.ndim - 1, 2))
    sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    chosen = jnp.expand_dims(number, axes) == jnp.arange(math.prod(sizes)).reshape(sizes)
    return best, jnp.where(chosen, tangent, 0).sum(axes)


def _winners(x: Array) -> tuple[Array, Array]:
    """The largest of every block and its number, the first of equals."""
    best, *others = (
        x[(slice(None), *(index for j in place for index in (slice(None), j)))]
        for place in product(*map(range, x.shape[2:-1:2]))
    )
    number = jnp.zeros(best.shape, int)
    for i, cell in enumerate(others, 1):
        later = cell > best
        best, number = jnp.where(later, cell, best), jnp.where(later, i, number)
    return best, number
