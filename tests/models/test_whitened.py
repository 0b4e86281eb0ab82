"""Whitening against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.models import Model, whitened, whitening


def clips(count=400, size=3, classes=7):
    """Embeddings of words that scatter unlike in each direction."""
    draw = np.random.default_rng(0)
    label = np.arange(count) % classes
    spread = np.array([[3.0, 0, 0], [1, 0.5, 0], [0, 0, 0.1]])
    return 5 * draw.normal(size=(classes, size))[label] + draw.normal(size=(count, size)) @ spread + 2, label


def test_clips_of_a_class_then_scatter_alike_in_all_directions():
    x, label = clips()
    found = whitening(x, label, shrink=0.0)
    z = (x - np.asarray(found["mean"])) @ np.asarray(found["kernel"])
    rest = np.concatenate([z[label == c] - z[label == c].mean(0) for c in range(7)])
    np.testing.assert_allclose(rest.T @ rest / len(rest), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    # unknown labels count for the mean alone
    more = whitening(np.concatenate([x, x + 100]), np.concatenate([label, np.full(400, -1)]), shrink=0.0)
    np.testing.assert_allclose(more["kernel"], found["kernel"], rtol=1e-6)
    np.testing.assert_allclose(more["mean"], found["mean"] + 50, rtol=1e-5)


def test_shrunk_wholly_it_is_a_scaled_identity():
    kernel = np.asarray(whitening(*clips(), shrink=1.0)["kernel"])
    np.testing.assert_allclose(kernel, kernel[0, 0] * np.eye(3), atol=1e-6)


def test_a_whitened_model_gives_the_map_at_length_1():
    x, label = clips()
    net = whitened(
        Model(lambda key, x: {"scale": jnp.ones(())}, lambda p, x, key=None: p["scale"] * x, lambda p, x: {})
    )
    params = net.init(jax.random.key(0), x) | {"whitening": whitening(x, label)}
    z = (x - np.asarray(params["whitening"]["mean"])) @ np.asarray(params["whitening"]["kernel"])
    np.testing.assert_allclose(net.apply(params, x), z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("x", "label", "shrink", "says"),
    [
        (*clips(), 1.5, "shrink is 1.5, expected a number within 0..1."),
        (np.eye(3), np.arange(3), 0.1, "No two of 3 embeddings of 3 classes are of one class and differ."),
        (np.eye(5)[:2], np.zeros(2, int), 0.0, "shrink is 0.0, too small for 2 embeddings of 5 features."),
    ],
)
def test_bad_input(x, label, shrink, says):
    with pytest.raises(InputError) as error:
        whitening(x, label, shrink=shrink)
    assert str(error.value) == says


def test_a_silent_unit_gives_no_nan_and_an_adapter_that_nobody_reads_is_refused():
    net = whitened(Model(lambda key, x: {}, lambda p, x, key=None: x, lambda p, x: {}))
    params = net.init(jax.random.key(0), jnp.zeros((2, 3)))
    slope = jax.grad(lambda x: net.apply(params, x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(slope).all()
    with pytest.raises(InputError, match=r"params hold whitening.adapter"):
        net.apply({**params, "whitening": params["whitening"] | {"adapter": {}}}, jnp.ones((2, 3)))
