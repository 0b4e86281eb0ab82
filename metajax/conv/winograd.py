"""Convolution by 3x3 kernels with a third of the multiplications, for CPUs, where they are what takes time.

    y = A^T [ (G k G'^T) (B^T x B') ] A'                   for every tile of 4 x 2 results, products over the features
    dk = G^T [ sum over tiles (A g A'^T) (B^T x B') ] G'   its kernel's gradient

Winograd's F(4, 3) along the first axis of space and F(2, 3) along the second: 24 products where the definition has 72.
Both axes by F(4, 3) would have 18, but what it saves goes into the sums around them. Rounding errors are about three
times those of the definition.

Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_Matrix = Sequence[Sequence[int | float]]

# along each axis: results of a tile, and B^T, G, A^T
TILE = (4, 2)
INPUTS: tuple[_Matrix, _Matrix] = (
    ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
     (0, 4, 0, -5, 0, 1)),
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
)  # fmt: skip
KERNEL: tuple[_Matrix, _Matrix] = (
    ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
     (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
    ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
)  # fmt: skip
OUTPUTS: tuple[_Matrix, _Matrix] = (
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)


def conv3x3(
    x: Float[Array, "n height width features"],
    kernel: Float[Array, "3 3 features outputs"],
    pads: Sequence[tuple[int, int]],
) -> Float[Array, "n out_height out_width outputs"]:
    """y[t] = sum_j x[t + j - low] @ kernel[j], with `pads`, low and high for each axis, zeros around x."""
    out = [size + low + high - 2 for size, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    count = [-(-size // tile) for size, tile in zip(out, TILE, strict=True)]
    seen = _planes(x, pads, count, INPUTS)
    turn, flat = (a.astype(seen.dtype) for a in (np.kron(*KERNEL), kernel.reshape(9, -1)))
    weights = jnp.matmul(turn, flat, precision="highest")
    y = seen @ weights.reshape(-1, *kernel.shape[2:])
    y = y.reshape(len(KERNEL[0]), len(KERNEL[1]), len(x), *count, -1)
    y = jnp.stack(_combined(OUTPUTS[1], list(y.swapaxes(0, 1))), -2)
    y = jnp.stack(_combined(OUTPUTS[0], list(y)), 2).reshape(len(x), count[0] * TILE[0], count[1] * TILE[1], -1)
    return y[:, : out[0], : out[1]].astype(x.dtype)


def kernel_grad3x3(
    x: Float[Array, "n height width features"],
    g: Float[Array, "n out_height out_width outputs"],
    pads: Sequence[tuple[int, int]],
) -> Float[Array, "9 outputs features"]:
    """sum_t g[t]^T x[t + j - low] of every tap j."""
    count = [-(-size // tile) for size, tile in zip(g.shape[1:-1], TILE, strict=True)]
    seen = _planes(x, pads, count, INPUTS)
    grads = _planes(g, [(0, 0), (0, 0)], count, [tuple(zip(*matrix, strict=True)) for matrix in OUTPUTS])
    products = jnp.einsum("pto,ptc->poc", grads, seen)
    taps = jnp.matmul(np.kron(*KERNEL).T.astype(seen.dtype), products.reshape(len(products), -1), precision="highest")
    return taps.reshape(9, *products.shape[1:]).astype(x.dtype)


def _planes(x: Array, pads: Sequence[tuple[int, int]], count: Sequence[int], matrices: Sequence[_Matrix]) -> Array:
    """M cells M'^T of every tile, one matrix for each axis: `[planes, n * tiles, features]`, at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # its sums would take the digits of half precision
    sides = [len(matrix[0]) for matrix in matrices]
    ends = [
        (low, (c - 1) * tile + side - size - low, 0)
        for size, (low, _), c, tile, side in zip(x.shape[1:-1], pads, count, TILE, sides, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    x = jnp.stack(_combined(matrices[0], [x[:, i :: TILE[0]][:, : count[0]] for i in range(sides[0])]))
    x = jnp.stack(_combined(matrices[1], [x[..., j :: TILE[1], :][..., : count[1], :] for j in range(sides[1])]), 1)
    return x.reshape(len(x) * x.shape[1], -1, x.shape[-1])


def _combined(matrix: _Matrix, parts: Sequence[Array]) -> list[Array]:
    """matrix @ parts, its zeros left out."""
    used = [[float(m) * part for m, part in zip(row, parts, strict=True) if m] for row in matrix]
    return [sum(rest, first) for first, *rest in used]
