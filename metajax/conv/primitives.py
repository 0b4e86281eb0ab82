"""Convolution that stays fast under per-task weights, in first and second order.

vmapped over weights, `jax.lax.conv` becomes a grouped convolution and its derivatives stranger ones still, all slow on
CPU. Here the two bilinear maps

    conv(x, k)[t]        = sum_j x[t + j - low] k[j]         (stride 1, x zero beyond its ends)
    kernel_grad(x, g)[j] = sum_t x[t + j - low]^T g[t]

are primitives that differentiate into each other alone and carry a group axis of their own for per-task weights, so
that any order of derivative, forward or reverse, under any vmap, runs as one of the two. A stride becomes a reshape.
How far x is padded, `pads`, low and high for each axis of space, belongs to them: padded outside, their derivatives
would compute the gradients of the padding too, with 9 taps on 13 frames more than half as much again. So does the
`formulation` in which `formulations.py` computes them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from metajax.conv.formulations import Formulation, Pads, conv_groups, current, kernel_grad_groups, padded, reached
from metajax.errors import InputError


def conv(
    x: Float[Array, "n *space features"], kernel: Float[Array, "*taps"], stride: int = 1, pads: Pads | None = None
) -> Float[Array, "n *out outputs"]:
    """Convolution with SAME padding, y[t] = sum_j x[stride * t + j - left] @ kernel[j], over one or two axes of space.

    Args:
      x: inputs, `[n, time, features]` or `[n, time, mel, features]`.
      kernel: weights, `[taps..., features, outputs]`.
      stride: step along every axis of space.
      pads: zeros before and after along each axis of space, in place of SAME padding, at stride 1.

    Returns:
      `[n, ceil(time / stride), ..., outputs]`, equal to `jax.lax.conv_general_dilated` with SAME padding.

    Raises:
      InputError: x and kernel do not fit each other, or there are `pads` at another stride.
    """
    if x.ndim != kernel.ndim or x.ndim not in (3, 4) or x.shape[-1] != kernel.shape[-2] or x.dtype != kernel.dtype:
        raise InputError(
            f"x is {x.dtype} of shape {x.shape} and kernel {kernel.dtype} of shape {kernel.shape}, "
            "expected one type, [n, *space, features] and [*taps, features, outputs] with one or two axes of space."
        )
    if pads is not None and stride != 1:
        raise InputError(f"stride is {stride}, expected 1 where pads are given.")
    taps = kernel.shape[:-2]
    pads = same_pads(x.shape[1:-1], taps, stride) if pads is None else pads
    if stride == 1:
        return conv_p.bind(x[None], kernel[None], pads=pads, formulation=current())[0]
    # a strided convolution is a dense one over blocks of `stride` cells, each block's cells counted as features
    ends = [(0, -tap % stride) for tap in taps]
    kernel = _fold(jnp.pad(kernel, [*ends, (0, 0), (0, 0)]), stride, range(len(taps)))
    x = _fold(padded(x, pads), stride, range(1, 1 + len(taps)))
    return conv_p.bind(x[None], kernel[None], pads=((0, 0),) * len(taps), formulation=current())[0]


def same_pads(space: Sequence[int], taps: Sequence[int], stride: int = 1) -> Pads:
    """SAME padding, up to whole blocks of `stride` cells."""
    pads = []
    for size, tap in zip(space, taps, strict=True):
        out = math.ceil(size / stride)
        left = max((out - 1) * stride + tap - size, 0) // 2
        pads.append((left, (out + math.ceil(tap / stride) - 1) * stride - left - size))
    return tuple(pads)


def _fold(x: Array, stride: int, space: Sequence[int]) -> Array:
    """Blocks of `stride` cells along the axes `space` as features, joined to the axis after the last of them."""
    first, last = space[0], space[-1] + 1
    blocks = [part for size in x.shape[first:last] for part in (size // stride, stride)]
    x = x.reshape([*x.shape[:first], *blocks, *x.shape[last:]])
    cells = list(range(first, first + 2 * len(space), 2))
    x = x.transpose([*range(first), *cells, *(axis + 1 for axis in cells), *range(first + 2 * len(space), x.ndim)])
    axis = last + len(space)
    return x.reshape([*x.shape[:last], -1, *x.shape[axis + 1 :]])


conv_p = Primitive("metajax_conv")
kernel_grad_p = Primitive("metajax_conv_kernel_grad")


def _conv_shape(x: Any, kernel: Any, pads: Pads, formulation: Formulation) -> Any:
    out = reached(x.shape[2:-1], kernel.shape[1:-2], pads)
    return x.update(shape=(*x.shape[:2], *out, kernel.shape[-1]))


def _kernel_grad_shape(x: Any, g: Any, pads: Pads, formulation: Formulation) -> Any:
    taps = reached(x.shape[2:-1], g.shape[2:-1], pads)
    return x.update(shape=(x.shape[0], *taps, x.shape[-1], g.shape[-1]))


def _input_grad(g: Array, kernel: Array, pads: Pads, **how: Formulation) -> Array:
    """The transpose of conv in x: g with the flipped kernel, itself a conv."""
    taps = kernel.shape[1:-2]
    around = tuple((tap - 1 - low, tap - 1 - high) for tap, (low, high) in zip(taps, pads, strict=True))
    return conv_p.bind(g, jax.lax.rev(kernel, range(1, 1 + len(taps))).mT, pads=around, **how)


def _batch_both(primitive: Primitive, args: Sequence[Array], dims: Sequence[int], **how: Any) -> tuple[Array, int]:
    """vmap over both operands: more groups."""
    a, b = (jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True))
    y = primitive.bind(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), **how)
    return y.reshape(a.shape[0], -1, *y.shape[1:]), 0


def _merge(a: Array, dim: int, axis: int) -> tuple[Array, int]:
    """Move the vmapped axis in front of `axis` (counted without it) and _merge the two."""
    size = a.shape[dim]
    a = jnp.moveaxis(a, dim, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :]), size


def _unmerge(y: Array, size: int, axis: int) -> tuple[Array, int]:
    """Undo `_merge` on a result; returns the vmapped axis's place too."""
    return y.reshape(*y.shape[:axis], size, -1, *y.shape[axis + 1 :]), axis


def _batch_conv(args: Sequence[Array], dims: Sequence[Any], **how: Any) -> tuple[Array, int]:
    (x, kernel), (x_dim, kernel_dim) = args, dims
    if kernel_dim is None:  # shared weights: more examples
        x, size = _merge(x, x_dim, 1)
        return _unmerge(conv_p.bind(x, kernel, **how), size, 1)
    if x_dim is None:  # shared inputs: more outputs
        kernel, size = _merge(kernel, kernel_dim, kernel.ndim - 2)
        return _unmerge(conv_p.bind(x, kernel, **how), size, x.ndim - 1)
    return _batch_both(conv_p, args, dims, **how)


def _batch_kernel_grad(args: Sequence[Array], dims: Sequence[Any], **how: Any) -> tuple[Array, int]:
    (x, g), (x_dim, g_dim) = args, dims
    if g_dim is None:  # more features
        x, size = _merge(x, x_dim, x.ndim - 2)
        return _unmerge(kernel_grad_p.bind(x, g, **how), size, x.ndim - 2)
    if x_dim is None:  # more outputs
        g, size = _merge(g, g_dim, g.ndim - 2)
        return _unmerge(kernel_grad_p.bind(x, g, **how), size, x.ndim - 1)
    return _batch_both(kernel_grad_p, args, dims, **how)


for primitive, groups, shape, batch in (
    (conv_p, conv_groups, _conv_shape, _batch_conv),
    (kernel_grad_p, kernel_grad_groups, _kernel_grad_shape, _batch_kernel_grad),
):
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("pads", "formulation")))
    primitive.def_abstract_eval(shape)
    for platform in (None, "cpu"):
        lowered = mlir.lower_fun(partial(groups, platform=platform or "other"), multiple_results=False)
        mlir.register_lowering(primitive, lowered, platform=platform)
    batching.primitive_batchers[primitive] = batch
ad.defbilinear(
    conv_p,
    lambda g, x, kernel, **how: _input_grad(g, kernel, **how),
    lambda g, x, kernel, **how: kernel_grad_p.bind(x, g, **how),
)
ad.defbilinear(
    kernel_grad_p, lambda w, x, g, **how: _input_grad(g, w, **how), lambda w, x, g, **how: conv_p.bind(x, w, **how)
)
