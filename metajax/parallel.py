"""The task axis: how the tasks of one outer step are laid over time and devices."""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from metajax.errors import InputError


def use_all_cores(cache: Path | None = None) -> None:
    """Set JAX up for many small tasks; call it before anything else touches JAX.

    On CPU every core becomes a device, so that tasks spread over cores, and on Linux freed memory stays with the
    process: giving the temporaries of every step back to the kernel costs half of the time in page faults.

    Args:
      cache: folder that keeps compiled functions from run to run; None for none.

    Raises:
      InputError: JAX has started already, on another number of devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jax.config.jax_num_cpu_devices != cores:  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_num_cpu_devices", cores)
        except RuntimeError as error:
            raise InputError("use_all_cores comes too late: call it before any array or key is made.") from error
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small programs take seconds too
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; others keep their defaults
            trim_threshold, top_pad, mmap_max = -1, -2, -4
            for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
                libc.mallopt(option, value)


def hoist(f: Callable[..., Any], *args: Any) -> tuple[list[Any], Callable[..., Any], Any]:
    """Trace `f` once, and take out the arrays that it closes over.

    Args:
      f: a function of trees of arrays.
      *args: arguments, or ones of the same shapes.

    Returns:
      The arrays within `f`; `opened` with `opened(arrays, *args) = f(*args)`, for arguments of these shapes; the
      shapes of the result.
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)

    def opened(consts: list[Any], *args: Any) -> Any:
        leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return closed.consts, opened, shapes


def hoisted(f: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`jax.jit(f)` that takes the arrays which `f` closes over as arguments; they lie where its first argument does.

    `jax.jit` writes such arrays, here whole corpora, into each compiled program, unless the environment has
    `JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS=1` before JAX is imported.

    Args:
      f: a function of trees of arrays.
      donate: the arguments whose buffers the result may take.

    Returns:
      The compiled function, for each set of shapes, types and devices of its arguments.
    """
    if getattr(jax.config, "jax_use_simplified_jaxpr_constants", False):
        return jax.jit(f, donate_argnums=donate)
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        where = getattr(leaves[0], "sharding", None)
        devices = where and frozenset(where.device_set)
        kind = structure, devices, *((a.shape, a.dtype, a.weak_type) for a in map(jax.typeof, leaves))
        if kind not in compiled:
            consts, opened, _ = hoist(f, *args)
            run = jax.jit(opened, donate_argnums=tuple(i + 1 for i in donate))
            compiled[kind] = partial(run, jax.device_put(consts, where))
        return compiled[kind](*args)

    return call


def run_once(f: Callable[..., Any], *args: Any) -> Any:
    """`jax.jit(f)(*args)`, untraced, of a program that runs once: not optimised on CPU, it compiles 4 times as fast."""
    options: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(f, compiler_options=options)(*args)


def replicate(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Copy a tree to every device of `mesh`."""
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """A copy of a tree, one program for all of its arrays; those of the caller outlive a donation of the copy.

    No leaf stays weakly typed, as `jnp.log(0.1)` is: a step's result is not, and would be compiled for again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)


def over_tasks(f: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """`f(theta, keys [n]) -> tree with leading axis n`, with the tasks spread over the devices of `mesh`.

    Where they do not divide evenly, the first ones are computed again at the end and left out; `keys` may be any tree.
    """
    spec = jax.sharding.PartitionSpec
    even = jax.shard_map(f, mesh=mesh, in_specs=(spec(), spec("tasks")), out_specs=spec("tasks"), check_vma=False)

    def spread(theta: PyTree, keys: PyTree) -> Any:
        num = len(jax.tree.leaves(keys)[0])
        if not num % mesh.size:
            return even(theta, keys)
        filled = jnp.arange(-(-num // mesh.size) * mesh.size) % num
        return jax.tree.map(lambda a: a[:num], even(theta, jax.tree.map(lambda a: a[filled], keys)))

    return spread


def task_mesh(num_tasks: int) -> jax.sharding.Mesh:
    """A mesh with one axis, `tasks`, over as many devices as finish `num_tasks` soonest: no more than have work."""
    each = -(-num_tasks // jax.device_count())
    count = -(-num_tasks // each)
    return jax.make_mesh((count,), ("tasks",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def task_mean(
    f: Callable[[PyTree, PyTree, Float[Array, " n"]], Any],
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[PyTree, PyTree], Any]:
    """The mean of `f` over all tasks, a chunk at a time on each device.

    Args:
      f: `(theta, items [n], weights [n]) -> tree`, a sum over n tasks, each times its weight.
      chunk: tasks at a time on each device; None for all. 1 is fastest for per-task weights on CPU, where a batched
        matrix product gains nothing and falls out of the cache.
      mesh: devices, with one axis `tasks`; None for one. Where the tasks do not divide evenly, some are computed once
        more with weight 0.

    Returns:
      `(theta, items) -> tree`, items any tree with the leading axis tasks.

    Raises:
      InputError: `chunk` is below 1, or the tasks do not divide into chunks on a device.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}, expected 1 or more tasks at a time.")

    def chunked(theta: PyTree, items: PyTree, weights: Float[Array, " n"]) -> Any:
        num = len(weights)
        size = num if chunk is None else min(chunk, num)
        if num % size:
            raise InputError(f"{num} tasks on a device do not divide into chunks of {size}.")
        if size == num:
            return f(theta, items, weights)
        # traced once, for the shapes of the sum too, and its arrays left where `hoisted` finds them
        consts, once, shapes = hoist(f, theta, jax.tree.map(lambda a: a[:size], items), weights[:size])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, some: tuple[Any, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, once(consts, theta, *some)), None

        parts = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (items, weights))
        return jax.lax.scan(add, zeros, parts)[0]

    spec, over = jax.sharding.PartitionSpec, () if mesh is None or mesh.size == 1 else ("tasks",)

    def summed(theta: PyTree, items: PyTree, weights: Float[Array, " n"]) -> Any:
        total = chunked(theta, items, weights)
        if not over:
            return total
        flat, restored = ravel_pytree(total)  # on CPU every sum over devices costs some 50 us, whatever its size
        return restored(jax.lax.psum(flat, over))

    if over:
        given = spec(), spec("tasks"), spec("tasks")
        summed = jax.shard_map(summed, mesh=mesh, in_specs=given, out_specs=spec(), check_vma=False)

    def mean(theta: PyTree, items: PyTree) -> Any:
        num, devices = len(jax.tree.leaves(items)[0]), mesh.size if mesh else 1
        filled = jnp.arange(-(-num // devices) * devices)
        if len(filled) > num:
            items = jax.tree.map(lambda a: a[filled % num], items)
        return summed(theta, items, jnp.where(filled < num, 1 / num, 0.0))

    return mean
