"""The task axis: how the tasks of one outer step are laid over time and devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from metajax.errors import InputError


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
      chunk: tasks at a time on each device; None for all. 1 is fastest for per-task weights on CPU, where a batched matrix
        product gains nothing and falls out of the cache.
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
        shapes = jax.eval_shape(f, theta, keys[:size])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, keys: Key[Array, " chunk"]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, f(theta, keys)), None

        total, _ = jax.lax.scan(add, zeros, keys.reshape(num // size, size))
        return jax.tree.map(lambda a: a * (size / num), total)

    if mesh is None or mesh.size == 1:
        return chunked

    spec = jax.sharding.PartitionSpec

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec(), spec("tasks")), out_specs=spec(), check_vma=False)
    def sharded(theta: PyTree, keys: Key[Array, " tasks"]) -> Any:
        return jax.lax.pmean(chunked(theta, keys), "tasks")

    return sharded
