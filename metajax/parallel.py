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
from jaxtyping import Array, Key, PyTree

from metajax.errors import InputError


def use_all_cores(cache: Path | None = None) -> None:
    """Set JAX up for many small tasks; call it before anything else touches JAX.

    On CPU every core becomes a device, so that tasks spread over cores, and on Linux freed memory stays with the
    process: giving the temporaries of every step back to the kernel costs half of the time in page faults.

    Args:
      cache: folder that keeps compiled functions from run to run; None for none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jax.config.jax_num_cpu_devices != cores:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", cores)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small programs take seconds too
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; others keep their defaults
            trim_threshold, top_pad, mmap_max = -1, -2, -4
            for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
                libc.mallopt(option, value)


def hoisted(f: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Compile `f` at its first call, with the arrays it closes over as arguments.

    `jax.jit` writes such arrays, here whole corpora, into each compiled program.

    Args:
      f: a function of trees of arrays, always called with the same shapes.
      donate: the arguments whose buffers the result may take.

    Returns:
      The compiled function; the arrays lie where the first call's first argument does.
    """
    run = None

    def call(*args: Any) -> Any:
        nonlocal run
        if run is None:
            closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
            consts = jax.device_put(closed.consts, jax.tree.leaves(args)[0].sharding)

            def flat(consts: list[Array], *args: Any) -> Any:
                leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves(args))
                return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

            run = partial(jax.jit(flat, donate_argnums=tuple(i + 1 for i in donate)), consts)
        return run(*args)

    return call


def replicate(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Copy a tree to every device of `mesh`."""
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def over_tasks(
    f: Callable[[PyTree, Key[Array, " tasks"]], Any], mesh: jax.sharding.Mesh
) -> Callable[[PyTree, Key[Array, " tasks"]], Any]:
    """`f(theta, keys [n]) -> tree with leading axis n`, with the tasks spread over the devices of `mesh`."""
    spec = jax.sharding.PartitionSpec
    return jax.shard_map(f, mesh=mesh, in_specs=(spec(), spec("tasks")), out_specs=spec("tasks"), check_vma=False)


def task_mesh(num_tasks: int) -> jax.sharding.Mesh:
    """A mesh with one axis, `tasks`, over the largest number of devices that divides `num_tasks`."""
    count = max(n for n in range(1, jax.device_count() + 1) if num_tasks % n == 0)
    return jax.make_mesh((count,), ("tasks",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def task_mean(
    f: Callable[[PyTree, Key[Array, " tasks"]], Any], *, chunk: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Callable[[PyTree, Key[Array, " tasks"]], Any]:
    """The mean of `f(theta, keys)` over all tasks, a chunk at a time on each device.

    Args:
      f: `(theta, keys [n]) -> tree`, a mean over n tasks.
      chunk: tasks at a time on each device; None for all. 1 is fastest for per-task weights on CPU, where a batched
        matrix product gains nothing and falls out of the cache.
      mesh: devices, with one axis `tasks`; None for one device.

    Returns:
      `(theta, keys [tasks]) -> tree`.

    Raises:
      InputError: the tasks do not divide into chunks and devices.
    """

    def chunked(theta: PyTree, keys: Key[Array, " tasks"]) -> Any:
        num = keys.shape[0]
        size = num if chunk is None else min(chunk, num)
        if num % size:
            raise InputError(f"{num} tasks on a device do not divide into chunks of {size}.")
        if size == num:
            return f(theta, keys)
        once = jax.jit(f)  # traced for its shapes and for the loop together
        shapes = jax.eval_shape(once, theta, keys[:size])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, keys: Key[Array, " chunk"]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, once(theta, keys)), None

        total, _ = jax.lax.scan(add, zeros, keys.reshape(num // size, size))
        return jax.tree.map(lambda a: a * (size / num), total)

    if mesh is None or mesh.size == 1:
        return chunked

    spec = jax.sharding.PartitionSpec

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec(), spec("tasks")), out_specs=spec(), check_vma=False)
    def sharded(theta: PyTree, keys: Key[Array, " tasks"]) -> Any:
        return jax.lax.pmean(chunked(theta, keys), "tasks")

    return sharded
