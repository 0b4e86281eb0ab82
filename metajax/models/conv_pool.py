"""What a normalised, pooled convolution of few features needs, without the convolution's result.

The first convolution of an image network turns one feature into many: next to no work, but its result is the largest
array of all, and writing and reading that, forward and backward, took as long as half of all other layers on CPU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.models.conv import conv, max_pool, num_blocks, padded, same_pads, windows


def conv_moments(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], each: bool = False
) -> tuple[Float[Array, "*n outputs"], Float[Array, "*n outputs"]]:
    """Mean and variance of every feature of conv(x, kernel), from those of what its taps see.

    E[y] = k^T E[p] and Var[y] = k^T Cov[p] k for y = k^T p, where p is a patch of x under the taps.

    Args:
      x: inputs, `[n, *space, features]`.
      kernel: weights, `[taps..., features, outputs]`.
      each: of every example by itself.

    Returns:
      `[outputs]` each, or `[n, outputs]`.
    """
    space, taps = x.shape[1:-1], kernel.shape[:-2]
    x = jnp.moveaxis(padded(x[None], same_pads(space, taps))[0], -1, 0)[..., None]
    patches = jnp.stack(windows(x, space, taps))  # [taps, features, n, *space, 1]
    patches = patches.reshape(patches.shape[0] * patches.shape[1], len(x[0]) if each else 1, -1)
    mean = patches.mean(-1)
    centred = patches - mean[..., None]
    covariance = jnp.einsum("ins,jns->nij", centred, centred) / patches.shape[-1]
    k = kernel.reshape(-1, kernel.shape[-1])
    moments = mean.T @ k, jnp.einsum("if,nij,jf->nf", k, covariance, k)
    return moments if each else (moments[0][0], moments[1][0])


def conv_max_pool(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], size: int
) -> Float[Array, "n *out outputs"]:
    """max_pool(conv(x, kernel), size), on CPU by blocks of examples that stay in a core's cache; computed again for
    the gradient."""

    @jax.checkpoint
    def part(x: Array) -> Array:
        return max_pool(conv(x, kernel), size)

    nbytes = x.nbytes // x.shape[-1] * kernel.shape[-1]
    count = num_blocks(len(x), nbytes) if jax.default_backend() == "cpu" else 1
    if count == 1:
        return part(x)
    y = jax.lax.map(part, x.reshape(count, -1, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])
