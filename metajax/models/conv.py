"""Convolution and pooling that stay fast under per-task weights, in first and second order.

vmapped over weights, `jax.lax.conv` becomes a grouped convolution and its derivatives stranger ones still, all slow on
CPU. Here the two bilinear maps

    conv(x, k)[t]        = sum_j x[t + j - low] k[j]         (stride 1, x zero beyond its ends)
    kernel_grad(x, g)[j] = sum_t x[t + j - low]^T g[t]

are primitives that differentiate into each other alone and carry a group axis of their own for per-task weights, so
that any order of derivative, forward or reverse, under any vmap, runs as one of the two. A stride becomes a reshape.
How far x is padded, `pads`, low and high for each axis of space, belongs to them: padded outside, their derivatives
would compute the gradients of the padding too, with 9 taps on 13 frames more than half as much again.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pads: TypeAlias = tuple[tuple[int, int], ...]  # zeros before and after, for each axis of space; below 0: cells cut off


def conv(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], stride: int = 1
) -> Float[Array, "n *out outputs"]:
    """Convolution with SAME padding, y[t] = sum_j x[stride * t + j - left] @ kernel[j], over one or two axes of space.

    Args:
      x: inputs, `[n, time, features]` or `[n, time, mel, features]`.
      kernel: weights, `[taps..., features, outputs]`.
      stride: step along every axis of space.

    Returns:
      `[n, ceil(time / stride), ..., outputs]`, equal to `jax.lax.conv_general_dilated` with SAME padding.
    """
    taps = kernel.shape[:-2]
    pads = same_pads(x.shape[1:-1], taps, stride)
    if stride == 1:
        return conv_p.bind(x[None], kernel[None], pads=pads)[0]
    # a strided convolution is a dense one over blocks of `stride` cells, each block's cells counted as features
    ends = [(0, -tap % stride) for tap in taps]
    kernel = fold(jnp.pad(kernel, [*ends, (0, 0), (0, 0)]), stride, range(len(taps)))
    x = fold(padded(x[None], pads)[0], stride, range(1, 1 + len(taps)))
    return conv_p.bind(x[None], kernel[None], pads=((0, 0),) * len(taps))[0]


def same_pads(space: Sequence[int], taps: Sequence[int], stride: int = 1) -> Pads:
    """SAME padding, up to whole blocks of `stride` cells."""
    pads = []
    for size, tap in zip(space, taps, strict=True):
        out = math.ceil(size / stride)
        left = max((out - 1) * stride + tap - size, 0) // 2
        pads.append((left, (out + math.ceil(tap / stride) - 1) * stride - left - size))
    return tuple(pads)


def padded(x: Array, pads: Pads) -> Array:
    """x `[b, n, *space, features]` with zeros around."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in ((0, 0), (0, 0), *pads, (0, 0))])


def fold(x: Array, stride: int, space: Sequence[int]) -> Array:
    """Blocks of `stride` cells along the axes `space` as features, joined to the axis after the last of them."""
    first, last = space[0], space[-1] + 1
    blocks = [part for size in x.shape[first:last] for part in (size // stride, stride)]
    x = x.reshape([*x.shape[:first], *blocks, *x.shape[last:]])
    cells = list(range(first, first + 2 * len(space), 2))
    x = x.transpose([*range(first), *cells, *(axis + 1 for axis in cells), *range(first + 2 * len(space), x.ndim)])
    axis = last + len(space)
    return x.reshape([*x.shape[:last], -1, *x.shape[axis + 1 :]])


def windows(x: Array, out: Sequence[int], taps: Sequence[int]) -> list[Array]:
    """What each tap sees, in order, of `[..., *space, features]`: `[..., *out, features]`."""
    places = (tuple(slice(j, j + o) for j, o in zip(offset, out, strict=True)) for offset in product(*map(range, taps)))
    return [x[(..., *place, slice(None))] for place in places]


def conv_impl(x: Array, kernel: Array, pads: Pads) -> Array:
    """conv for groups: x `[b, n, *space, features]`, kernel `[b, *taps, features, outputs]`."""
    if x.shape[0] == 1:
        return conv_one(x[0], kernel[0], pads)[None]
    x, taps = padded(x, pads), kernel.shape[1:-2]
    out = [size - tap + 1 for size, tap in zip(x.shape[2:-1], taps, strict=True)]
    seen = jnp.concatenate(windows(x, out, taps), -1).reshape(x.shape[0], -1, math.prod(taps) * x.shape[-1])
    y = seen @ kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    return y.reshape(*x.shape[:2], *out, kernel.shape[-1])


def kernel_grad_impl(x: Array, g: Array, pads: Pads) -> Array:
    """kernel_grad for groups: x `[b, n, *space, features]`, g `[b, n, *out, outputs]`."""
    return jax.vmap(tap_products)(padded(x, pads), g).mT.reshape(kernel_grad_shape(x, g, pads).shape)


def conv_one(x: Array, kernel: Array, pads: Pads) -> Array:
    """conv of one group."""
    return jax.lax.conv_general_dilated(x, kernel, [1] * len(pads), pads, dimension_numbers=LAYOUTS[len(pads)])


def tap_products(x: Array, g: Array) -> Array:
    """kernel_grad of one group, padded, `[taps, outputs, features]`."""
    out, features = g.shape[1:-1], x.shape[-1]
    taps = [size - o + 1 for size, o in zip(x.shape[1:-1], out, strict=True)]
    flat = g.reshape(-1, g.shape[-1])
    if features <= FEW:  # all taps and features as rows of one product, which reads g once
        rows = jnp.stack(windows(jnp.moveaxis(x, -1, 0)[..., None], out, taps))
        return (rows.reshape(-1, len(flat)) @ flat).reshape(len(rows), features, -1).mT
    # g^T x: transposed in memory, once for all taps; products that transpose on the fly take up to twice as long on CPU
    flat = jax.lax.optimization_barrier(flat.T)
    return jnp.stack([flat @ seen.reshape(flat.shape[1], -1) for seen in windows(x, out, taps)])


def conv_cpu(x: Array, kernel: Array, pads: Pads) -> Array:
    """conv for groups on CPU, one after the other, by blocks of examples that fit into a core's cache."""

    def one(x: Array, kernel: Array) -> Array:
        if (count := num_blocks(len(x), x.nbytes)) == 1:
            return conv_one(x, kernel, pads)
        y = jax.lax.map(lambda x: conv_one(x, kernel, pads), x.reshape(count, -1, *x.shape[1:]))
        return y.reshape(len(x), *y.shape[2:])

    return one_by_one(one, x, kernel)


def kernel_grad_cpu(x: Array, g: Array, pads: Pads) -> Array:
    """kernel_grad for groups on CPU, likewise."""

    def one(x: Array, g: Array) -> Array:
        def part(x: Array, g: Array) -> Array:
            return tap_products(padded(x[None], pads)[0], g)

        if x.shape[-1] <= FEW or (count := num_blocks(len(x), x.nbytes)) == 1:
            return part(x, g)
        shape = jax.eval_shape(part, x, g)
        blocks = [a.reshape(count, -1, *a.shape[1:]) for a in (x, g)]
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.scan(lambda total, pair: (total + part(*pair), None), zeros, blocks)[0]

    return one_by_one(one, x, g).mT.reshape(kernel_grad_shape(x, g, pads).shape)


def one_by_one(f: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """f of every group."""
    return f(a[0], b[0])[None] if len(a) == 1 else jax.lax.map(lambda pair: f(*pair), (a, b))


def num_blocks(n: int, nbytes: int) -> int:
    """The least number of equal blocks of examples that are small; 1 where all of them, `nbytes`, are."""
    return next((b for b in range(1, n) if n % b == 0 and nbytes <= b * BLOCK), n) if nbytes > CACHE else 1


FEW = 4  # features
CACHE, BLOCK = 2**20, 5 * 2**17  # bytes that stay in a core's cache, and those of a block, beside which there is more
# layouts by the number of axes of space
LAYOUTS = {1: ("NTC", "TIO", "NTC"), 2: ("NHWC", "HWIO", "NHWC")}
conv_p = Primitive("metajax_conv")
kernel_grad_p = Primitive("metajax_conv_kernel_grad")


def reached(space: Sequence[int], taps: Sequence[int], pads: Pads) -> list[int]:
    """Cells of the result along each axis of space; of its own inverse the taps."""
    return [size + low + high - tap + 1 for size, tap, (low, high) in zip(space, taps, pads, strict=True)]


def conv_shape(x: Any, kernel: Any, pads: Pads) -> Any:
    out = reached(x.shape[2:-1], kernel.shape[1:-2], pads)
    return x.update(shape=(*x.shape[:2], *out, kernel.shape[-1]))


def kernel_grad_shape(x: Any, g: Any, pads: Pads) -> Any:
    taps = reached(x.shape[2:-1], g.shape[2:-1], pads)
    return x.update(shape=(x.shape[0], *taps, x.shape[-1], g.shape[-1]))


def input_grad(g: Array, kernel: Array, pads: Pads) -> Array:
    """The transpose of conv in x: g with the flipped kernel, itself a conv."""
    taps = kernel.shape[1:-2]
    around = tuple((tap - 1 - low, tap - 1 - high) for tap, (low, high) in zip(taps, pads, strict=True))
    return conv_p.bind(g, jax.lax.rev(kernel, range(1, 1 + len(taps))).mT, pads=around)


def batch_both(primitive: Primitive, args: Sequence[Array], dims: Sequence[int], pads: Pads) -> tuple[Array, int]:
    """vmap over both operands: more groups."""
    a, b = (jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True))
    y = primitive.bind(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), pads=pads)
    return y.reshape(a.shape[0], -1, *y.shape[1:]), 0


def merge(a: Array, dim: int, axis: int) -> tuple[Array, int]:
    """Move the vmapped axis in front of `axis` (counted without it) and merge the two."""
    size = a.shape[dim]
    a = jnp.moveaxis(a, dim, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :]), size


def unmerge(y: Array, size: int, axis: int) -> tuple[Array, int]:
    """Undo `merge` on a result; returns the vmapped axis's place too."""
    return y.reshape(*y.shape[:axis], size, -1, *y.shape[axis + 1 :]), axis


def batch_conv(args: Sequence[Array], dims: Sequence[Any], pads: Pads) -> tuple[Array, int]:
    (x, kernel), (x_dim, kernel_dim) = args, dims
    if kernel_dim is None:  # shared weights: more examples
        x, size = merge(x, x_dim, 1)
        return unmerge(conv_p.bind(x, kernel, pads=pads), size, 1)
    if x_dim is None:  # shared inputs: more outputs
        kernel, size = merge(kernel, kernel_dim, kernel.ndim - 2)
        return unmerge(conv_p.bind(x, kernel, pads=pads), size, x.ndim - 1)
    return batch_both(conv_p, args, dims, pads)


def batch_kernel_grad(args: Sequence[Array], dims: Sequence[Any], pads: Pads) -> tuple[Array, int]:
    (x, g), (x_dim, g_dim) = args, dims
    if g_dim is None:  # more features
        x, size = merge(x, x_dim, x.ndim - 2)
        return unmerge(kernel_grad_p.bind(x, g, pads=pads), size, x.ndim - 2)
    if x_dim is None:  # more outputs
        g, size = merge(g, g_dim, g.ndim - 2)
        return unmerge(kernel_grad_p.bind(x, g, pads=pads), size, x.ndim - 1)
    return batch_both(kernel_grad_p, args, dims, pads)


for primitive, impl, on_cpu, shape, batch in (
    (conv_p, conv_impl, conv_cpu, conv_shape, batch_conv),
    (kernel_grad_p, kernel_grad_impl, kernel_grad_cpu, kernel_grad_shape, batch_kernel_grad),
):
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="pads"))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    batching.primitive_batchers[primitive] = batch
ad.defbilinear(
    conv_p,
    lambda g, x, kernel, pads: input_grad(g, kernel, pads),
    lambda g, x, kernel, pads: kernel_grad_p.bind(x, g, pads=pads),
)
ad.defbilinear(
    kernel_grad_p,
    lambda w, x, g, pads: input_grad(g, w, pads),
    lambda w, x, g, pads: conv_p.bind(x, w, pads=pads),
)


def max_pool(x: Float[Array, "n *space features"], size: int = 2) -> Float[Array, "n *out features"]:
    """Maximum over blocks of `size` along every axis of space; a remainder at the end is left out.

    The gradient goes to the first of equal values. That of `reduce_window` is ten times slower on CPU.
    """
    for axis in range(1, x.ndim - 1):
        x = jax.lax.slice_in_dim(x, 0, x.shape[axis] // size * size, axis=axis)
    return largest(x.reshape([len(x), *(n for cells in x.shape[1:-1] for n in (cells // size, size)), x.shape[-1]]))


@jax.custom_jvp
def largest(x: Array) -> Array:
    """The largest of every block, `[n, *out, features]` of `[n, *(out, size), features]`."""
    return winners(x)[0]


@largest.defjvp
def largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """A choice by number, not by comparing x with the maximum: XLA may compute x once more, rounded differently."""
    (x,), (tangent,) = primals, tangents
    best, number = winners(x)
    axes = tuple(range(2, x.ndim - 1, 2))
    sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    chosen = jnp.expand_dims(number, axes) == jnp.arange(math.prod(sizes)).reshape(sizes)
    return best, jnp.where(chosen, tangent, 0).sum(axes)


def winners(x: Array) -> tuple[Array, Array]:
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
