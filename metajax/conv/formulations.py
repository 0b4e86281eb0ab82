"""The ways to compute a convolution and its kernel's gradient for a group of tasks, and which of them is fast where."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import product
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.conv import winograd
from metajax.errors import InputError

Formulation = Literal["auto", "direct", "products", "winograd"]
Pads: TypeAlias = tuple[tuple[int, int], ...]  # zeros before and after, for each axis of space; below 0: cells cut off
FEW = 4  # features
# features and outputs, their product, and cells, from which Winograd's sums cost less than they save, on CPU
BROAD, WIDE, LARGE = 2**5, 2**11, 2**7
# bytes that stay in a core's cache, and those of a block of examples, beside which there is more: Winograd's six times
CACHE, BLOCK = 2**20, {"direct": 5 * 2**17, "winograd": 5 * 2**15}
# layouts by the number of axes of space
LAYOUTS = {1: ("NTC", "TIO", "NTC"), 2: ("NHWC", "HWIO", "NHWC")}

_CURRENT: ContextVar[Formulation] = ContextVar("formulation", default="auto")


@contextmanager
def formulation(name: Formulation) -> Iterator[None]:
    """Within it, how every convolution that is traced, and all its derivatives, are computed: for benchmarks and tests.

    It changes speed and rounding alone, and nothing in a function that `jax.jit` has traced before.

    Args:
      name: `direct`: one task after the other; `products`: one matrix product of all tasks; `winograd`: 3x3 kernels at
        stride 1 with a third of the multiplications, all others direct; `auto`, as without it: by device and shape, on
        CPU the fastest measured.

    Raises:
      InputError: another name.
    """
    if name not in get_args(Formulation):
        raise InputError(f"name is {name!r}, expected one of {', '.join(get_args(Formulation))}.")
    token = _CURRENT.set(name)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Formulation:
    """The formulation of what is traced now."""
    return _CURRENT.get()


def chosen(formulation: Formulation, platform: str, groups: int, cells: int, kernel: Sequence[int]) -> str:
    """What `auto` is for so many groups, cells of one result, and `[*taps, features, outputs]`, as measured."""
    *taps, features, outputs = kernel
    if formulation == "auto":
        if platform != "cpu":
            return "products" if groups > 1 else "direct"
        wide = min(features, outputs) >= BROAD and features * outputs >= WIDE
        formulation = "winograd" if wide and cells >= LARGE else "direct"
    return "direct" if formulation == "winograd" and taps != [3, 3] else formulation


def conv_groups(x: Array, kernel: Array, pads: Pads, formulation: Formulation, platform: str) -> Array:
    """conv for groups: x `[b, n, *space, features]`, kernel `[b, *taps, features, outputs]`."""
    cells = math.prod(reached(x.shape[2:-1], kernel.shape[1:-2], pads))
    way = chosen(formulation, platform, len(x), cells, kernel.shape[1:])
    if way == "products":
        return _conv_products(x, kernel, pads)
    once = partial(winograd.conv3x3 if way == "winograd" else _conv_one, pads=pads)

    def one(x: Array, kernel: Array) -> Array:
        if (count := num_blocks(len(x), x.nbytes, platform, way)) == 1:
            return once(x, kernel)
        y = jax.lax.map(lambda x: once(x, kernel), x.reshape(count, -1, *x.shape[1:]))
        return y.reshape(len(x), *y.shape[2:])

    return _one_by_one(one, x, kernel)


def kernel_grad_groups(x: Array, g: Array, pads: Pads, formulation: Formulation, platform: str) -> Array:
    """kernel_grad for groups: x `[b, n, *space, features]`, g `[b, n, *out, outputs]`."""
    shape = [*reached(x.shape[2:-1], g.shape[2:-1], pads), x.shape[-1], g.shape[-1]]
    way = chosen(formulation, platform, len(x), math.prod(g.shape[2:-1]), shape)
    once = partial(winograd.kernel_grad3x3 if way == "winograd" else _tap_products, pads=pads)

    def one(x: Array, g: Array) -> Array:
        if (way == "direct" and x.shape[-1] <= FEW) or (count := num_blocks(len(x), x.nbytes, platform, way)) == 1:
            return once(x, g)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # a sum in half precision would lose digits
        zeros = jnp.zeros((math.prod(shape[:-2]), g.shape[-1], x.shape[-1]), wide)
        blocks = [a.reshape(count, -1, *a.shape[1:]) for a in (x, g)]
        return jax.lax.scan(lambda total, pair: (total + once(*pair), None), zeros, blocks)[0].astype(x.dtype)

    grads = jax.vmap(once)(x, g) if way == "products" else _one_by_one(one, x, g)
    return grads.mT.reshape(len(x), *shape)


def _one_by_one(f: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """f of every group."""
    return f(a[0], b[0])[None] if len(a) == 1 else jax.lax.map(lambda pair: f(*pair), (a, b))


def num_blocks(n: int, nbytes: int, platform: str, way: str = "direct") -> int:
    """On CPU the least number of equal blocks of examples that are small; 1 where all of them, `nbytes`, are."""
    if platform != "cpu" or (way == "direct" and nbytes <= CACHE):
        return 1
    return next((b for b in range(1, n) if n % b == 0 and nbytes <= b * BLOCK[way]), max(n, 1))


def reached(space: Sequence[int], taps: Sequence[int], pads: Pads) -> list[int]:
    """Cells of the result along each axis of space; of its own inverse the taps."""
    return [size + low + high - tap + 1 for size, tap, (low, high) in zip(space, taps, pads, strict=True)]


def padded(x: Array, pads: Pads) -> Array:
    """x `[n, *space, features]` with zeros around."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in ((0, 0), *pads, (0, 0))])


def windows(x: Array, out: Sequence[int], taps: Sequence[int]) -> list[Array]:
    """What each tap sees, in order, of `[..., *space, features]`: `[..., *out, features]`."""
    places = (tuple(slice(j, j + o) for j, o in zip(offset, out, strict=True)) for offset in product(*map(range, taps)))
    return [x[(..., *place, slice(None))] for place in places]


def _conv_products(x: Array, kernel: Array, pads: Pads) -> Array:
    """conv of all groups as one matrix product, batched over them."""
    x, taps = jax.vmap(partial(padded, pads=pads))(x), kernel.shape[1:-2]
    out = [size - tap + 1 for size, tap in zip(x.shape[2:-1], taps, strict=True)]
    seen = jnp.concatenate(windows(x, out, taps), -1).reshape(x.shape[0], -1, math.prod(taps) * x.shape[-1])
    y = seen @ kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    return y.reshape(*x.shape[:2], *out, kernel.shape[-1])


def _conv_one(x: Array, kernel: Array, pads: Pads) -> Array:
    """conv of one group."""
    return jax.lax.conv_general_dilated(x, kernel, [1] * len(pads), pads, dimension_numbers=LAYOUTS[len(pads)])


def _tap_products(x: Array, g: Array, pads: Pads) -> Array:
    """kernel_grad of one group, `[taps, outputs, features]`."""
    x = padded(x, pads)
    out, features = g.shape[1:-1], x.shape[-1]
    taps = [size - o + 1 for size, o in zip(x.shape[1:-1], out, strict=True)]
    flat = g.reshape(-1, g.shape[-1])
    if features <= FEW:  # all taps and features as rows of one product, which reads g once
        rows = jnp.stack(windows(jnp.moveaxis(x, -1, 0)[..., None], out, taps))
        return (rows.reshape(-1, len(flat)) @ flat).reshape(len(rows), features, -1).mT
    # g^T x: transposed in memory, once for all taps; products that transpose on the fly take up to twice as long on CPU
    flat = jax.lax.optimization_barrier(flat.T)
    return jnp.stack([flat @ seen.reshape(flat.shape[1], -1) for seen in windows(x, out, taps)])
