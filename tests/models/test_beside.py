"""An embedding beside a known one: cosines are averaged."""

import jax
import numpy as np

from metajax.models import mlp
from metajax.models.beside import beside
from tests.conftest import normal


def test_the_cosine_is_the_weighted_mean_of_both():
    x = normal(5, 4)
    model = mlp(hidden=(6,))
    both = beside(model, lambda one: one[:3] ** 2, 0.5)
    params = both.init(jax.random.key(1), x)

    def cosines(z):
        z = np.asarray(z) / np.linalg.norm(z, axis=1, keepdims=True)
        return z @ z.T

    told = (cosines(model.apply(params, x)) + 0.25 * cosines(x[:, :3] ** 2)) / 1.25
    np.testing.assert_allclose(cosines(both.apply(params, x)), told, atol=1e-5)
