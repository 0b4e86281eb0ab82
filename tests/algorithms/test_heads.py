"""Class means, one-hot labels and linear heads where a label is unknown, and logistic heads of any strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError, Labels
from metajax.algorithms.heads import classes_of, logistic_weights, onehot, prototypes, ridge_weights
from tests.conftest import normal

KEY = jax.random.key(0)
Y = jnp.array([0, -1, 1, 2, 0, -1])
KNOWN = np.array([0, 2, 3, 4])


SOLVERS = (jax.jit(ridge_weights), jax.jit(logistic_weights))


def test_an_unknown_label_counts_nowhere():
    z = normal(6, 4)
    members = onehot(Y, 3, z.dtype)
    np.testing.assert_array_equal(members[KNOWN], np.eye(3)[[0, 1, 2, 0]])
    assert not members[1].any()
    means = np.stack([(z[0] + z[4]) / 2, z[2], z[3]])
    for y in (Y, Labels(Y, jnp.zeros(6, jnp.int32))):
        np.testing.assert_allclose(prototypes(z, y, 3), means, rtol=1e-6)
        np.testing.assert_array_equal(classes_of(y), Y)
    for weights in SOLVERS:
        all_rows, known = (weights(z[rows], members[rows], jnp.array(0.5)) for rows in (np.arange(6), KNOWN))
        np.testing.assert_allclose(all_rows, known, atol=1e-5)


def test_labels_that_are_not_there_are_told_of(unchecked):
    z = jnp.ones((6, 4))
    with pytest.raises(InputError, match="This method needs labels, but the batch has none"):
        prototypes(z, (), 3)
    with pytest.raises(InputError, match=r"support set has classes \[0, 1\], expected every one of 0..2"):
        prototypes(z, jnp.where(Y == 2, -1, Y), 3)
    with pytest.raises(InputError, match=r"labels hold 3, expected 0\.\.2, or -1"):
        prototypes(z, Y.at[1].set(3), 3)
    # traced, they show in what comes of them
    found = jax.jit(prototypes, static_argnums=2)(z, jnp.where(Y == 2, -1, Y), 3)
    assert np.isnan(found[2]).all() and np.isfinite(found[:2]).all()
    assert np.isnan(jax.jit(prototypes, static_argnums=2)(z, Y.at[1].set(3), 3)).all()
    y = jax.jit(onehot, static_argnums=(1, 2))(Y.at[1].set(3), 3, jnp.float32)
    for weights in SOLVERS:
        for z in jnp.ones((6, 2)), jnp.ones((6, 9)):
            assert np.isnan(weights(z, y, jnp.array(0.5))).any()


def optimum(z, y, strength):
    """The logistic weights by Newton steps on W itself, in double precision, and their size."""
    z, size = np.asarray(z, np.float64), y.shape[1] * z.shape[1]
    w = np.zeros((z.shape[1], y.shape[1]))
    for _ in range(200):
        scores = z @ w
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        wrong = np.where(y == 0, p, 0)
        slope = z.T @ (wrong - y * wrong.sum(1, keepdims=True)) + strength * w
        spread = p[:, :, None] * (np.eye(y.shape[1]) - p[:, None])
        hessian = np.einsum("ni,ncd,nj->icjd", z, spread, z).reshape(size, size) + strength * np.eye(size)
        step = np.linalg.solve(hessian, slope.ravel()).reshape(w.shape)
        # the length of a step that keeps every score within the reach of the quadratic model
        w -= step * min(1, 1 / np.abs(z @ step).max())
        if np.abs(step).max() <= 1e-12 * np.abs(w).max():
            return w, float(np.abs(w).max())
    raise AssertionError("no optimum found")


@jax.jit
def slope(z, y, strength):
    """Derivative of the sum of the first class's weights."""
    return jax.grad(lambda z: logistic_weights(z, y, strength)[:, 0].sum())(z)


@pytest.mark.parametrize("strength", [1.0, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(("n", "features", "classes"), [(10, 3, 2), pytest.param(10, 12, 5, marks=pytest.mark.slow)])
def test_logistic_weights_are_exact_in_single_precision(n, features, classes, scale, strength):
    """Classes far apart, hardly any strength, more examples than features and fewer."""
    z = (scale * np.random.default_rng(0).normal(size=(n, features))).astype(np.float32)
    y = np.eye(classes, dtype=np.float32)[np.arange(n) % classes]
    wanted, size = optimum(z, y, strength)
    found = np.asarray(SOLVERS[1](z, y, np.float32(strength)))
    np.testing.assert_allclose(found / size, wanted / size, atol=2e-6)
    found = np.asarray(slope(z, y, np.float32(strength)))
    with jax.enable_x64(True):
        wanted = np.asarray(slope(*(np.asarray(a, np.float64) for a in (z, y, strength))))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())
