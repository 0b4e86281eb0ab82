"""How closed-form heads solve their systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.algorithms.heads import logistic_weights, ridge_weights
from tests.conftest import assert_close, equations, normal

pytestmark = pytest.mark.usefixtures("x64")
FEATURES = 4


@pytest.mark.parametrize("weights", (ridge_weights, pytest.param(logistic_weights, marks=pytest.mark.slow)))
def test_no_batch_of_systems_is_factorised_at_once_on_cpu(weights):
    """jaxlib's batched LU waits for ever where the devices are as many as the cores."""

    def loss(z):
        return jnp.square(weights(z, jnp.eye(3), jnp.ones(()))).sum()

    z = normal(4, 3, FEATURES)
    one, batched = jax.jit(jax.grad(loss)), jax.jit(jax.vmap(jax.grad(loss)))
    found = equations(batched, z)
    assert {eqn.invars[0].aval.ndim for eqn in found if eqn.primitive.name == "lu"} == {2}
    assert_close(batched(z), np.stack([one(a) for a in z]), 1e-12)
