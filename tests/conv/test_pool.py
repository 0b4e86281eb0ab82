"""A pooled, normalised convolution without the convolution's result, against the parts one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.conv import conv, conv_max_pool, conv_moments, max_pool
from tests.conftest import assert_close, normal
from tests.conv.test_conv import operands


@pytest.mark.parametrize(("space", "taps", "features"), [((6, 7), (3, 3), 1), ((5,), (4,), 2)])
def test_moments_are_those_of_the_result(x64, space, taps, features):
    x, kernel = operands(space, taps, (), features, dtype=np.float64)

    @jax.jit
    def all_of(x, kernel):
        return conv(x, kernel), [conv_moments(x, kernel, each) for each in (False, True)]

    y, moments = jax.tree.map(np.asarray, all_of(np.asarray(x) + 3, kernel))
    for (mean, variance), axes in zip(moments, (tuple(range(y.ndim - 1)), tuple(range(1, y.ndim - 1))), strict=True):
        np.testing.assert_allclose(mean, y.mean(axes), rtol=1e-12)
        np.testing.assert_allclose(variance, y.var(axes), rtol=1e-12)


def test_moments_keep_their_digits_in_single_precision():
    x, kernel = operands((6, 7), (1, 1), (), 1)
    variance = jax.jit(conv_moments)(np.asarray(x) + np.float32(1e3), kernel)[1]
    np.testing.assert_allclose(variance, np.square(np.asarray(kernel)[0, 0, 0]) * np.asarray(x).var(), rtol=1e-3)


@pytest.mark.parametrize(
    "block", [pytest.param(None, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.slow), 2 * 6 * 7 * 3 * 8]
)
def test_pooled_convolution_is_the_two_one_after_the_other(x64, monkeypatch, block):
    """As a whole, an example at a time, and two; values, first and second derivatives, also with weights per task."""
    if block is not None:
        monkeypatch.setattr("metajax.conv.formulations.CACHE", 0)
        monkeypatch.setattr("metajax.conv.formulations.BLOCK", {"direct": block})
    x, kernel = operands((6, 7), (3, 3), (3,), 1, dtype=np.float64)
    x = jnp.concatenate([x, 2 * x], 1)

    def all_of(f):
        def loss(x, kernel):
            return jnp.sin(f(x, kernel)).sum()

        def second_order(x, kernel):
            grads, vhp = jax.vjp(jax.grad(loss, (0, 1)), x, kernel)
            return f(x, kernel), grads, vhp(grads)

        return jax.jit(jax.vmap(second_order))(x, kernel)

    got, wanted = all_of(lambda x, kernel: conv_max_pool(x, kernel)), all_of(lambda x, k: max_pool(conv(x, k)))
    assert_close(got, wanted, 1e-11)


def test_the_gradient_of_a_maximum_is_not_lost_where_its_input_is_computed_twice(x64):
    """XLA may round it differently the second time, and then nothing equals the maximum (seen: NaN)."""

    def normalised(x):
        x = x - x.mean((0, 1, 2))
        return 1.3 * x * jax.lax.rsqrt(jnp.square(x).mean((0, 1, 2)) + 1e-5) + 0.1

    def loss(x):
        return jnp.sin(max_pool(jax.nn.relu(normalised(max_pool(normalised(x)))))).sum()

    x, direction = np.asarray(normal(2, 6, 17, 18, 3))
    value, slope = jax.jit(loss), jax.jit(jax.grad(loss))(x)
    along = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(np.vdot(slope, direction), along, rtol=1e-7)
