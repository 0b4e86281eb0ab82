"""Compiled functions, their arrays and their devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.parallel import hoisted, replicate, task_mean, task_mesh, use_all_cores

KEY = jax.random.key(0)


def test_task_mean_refuses_chunks_that_do_not_divide():
    with pytest.raises(InputError, match="5 tasks on a device do not divide into chunks of 2"):
        task_mean(lambda theta, keys, weights: theta, chunk=2)(jnp.zeros(()), jax.random.split(KEY, 5))
    with pytest.raises(InputError, match="chunk is 0"):
        task_mean(lambda theta, keys, weights: theta, chunk=0)


@pytest.mark.parametrize(("tasks", "devices"), [(1, 1), (2, 2), (3, 2), (25, 2)])
def test_a_mesh_leaves_no_core_idle_that_has_work(tasks, devices):
    assert task_mesh(tasks).size == min(devices, jax.device_count())


def test_a_hoisted_function_is_compiled_for_every_shape(caplog):
    """Also where the shape is part of the function, as in a mean."""
    offset = jnp.asarray([1.0])
    mean = hoisted(lambda x: (x["x"] + offset).mean())
    with jax.log_compiles():
        for size in (4, 8, 8, 4):
            assert float(mean({"x": jnp.arange(size, dtype=float)})) == (size + 1) / 2
        assert float(mean({"x": np.full((2, 2), 3.0, np.float32)})) == 4  # not on a device yet
    assert sum("Compiling jit(opened)" in record.getMessage() for record in caplog.records) == 3


def test_a_hoisted_function_keeps_the_types_of_its_arguments():
    """A Python number takes the type of the array it meets, an array has one of its own: as in `jax.jit`."""
    half = jnp.ones((), jnp.bfloat16)
    times = hoisted(lambda x: x * half)
    assert [times(x).dtype for x in (jnp.asarray(1.5), jnp.float32(1.5))] == [jnp.bfloat16, jnp.float32]


def test_a_hoisted_function_takes_arguments_on_other_devices():
    """Where they are, its arrays are, too: first on one device, then on two, then on the second alone."""
    offset = jnp.arange(4.0)
    add = hoisted(lambda x: x + offset)
    for x in (jnp.ones(4), replicate(jnp.ones(4), task_mesh(2)), jax.device_put(jnp.ones(4), jax.devices()[1])):
        for _ in range(2):
            result = add(x)
            np.testing.assert_array_equal(result, [1, 2, 3, 4])
            assert result.sharding.device_set == x.sharding.device_set


def test_setting_jax_up_too_late_is_refused(monkeypatch):
    jax.devices()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    with pytest.raises(InputError, match="use_all_cores comes too late"):
        use_all_cores()
