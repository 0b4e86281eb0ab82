"""Class means that may say "none of them": the rule, and what its numbers learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax import InputError
from metajax.losses import classify

KEY = jax.random.key(0)
NUMBERS = {"scale": 5.0, "bias": 2.0, "growth": 0.7}
LABELS = np.array([0, 0, 0, 1, -1])  # three clips of one class, one of the other, one that is not said
ASKED = np.array([0, 1, 2, 2])  # 2: neither


def embed(params, x, key):
    return x * params["w"]


LEARNER, OBJECTIVE = mj.open_set(embed, classify, 2, **NUMBERS)
DRAW = np.random.default_rng(0)
SUPPORT, QUERY = DRAW.normal(size=(5, 3)).astype(np.float32), DRAW.normal(size=(4, 3)).astype(np.float32)
EPISODE = mj.Episode(mj.Batch(jnp.asarray(SUPPORT), jnp.asarray(LABELS)), mj.Batch(QUERY, jnp.asarray(ASKED)))


def theta():
    return LEARNER.init({"w": jnp.array([1.0, 2.0, 0.5])}, KEY)


def expected():
    """The logits by hand, in double precision."""
    z, q = (a.astype(np.float64) * [1.0, 2.0, 0.5] for a in (SUPPORT, QUERY))
    means = np.stack([z[:3].mean(0), z[3]])
    cosines = [[a @ p / np.linalg.norm(a) / np.linalg.norm(p) for p in means] for a in q]
    return np.concatenate([5 * np.array(cosines) - 0.7 * np.log([3, 1]), np.full((4, 1), 2.0)], 1)


def test_logits_are_those_of_the_rule():
    phi, _ = mj.adapt(LEARNER, theta(), EPISODE.support, KEY, 1)
    assert phi.counts.tolist() == [3, 1]
    np.testing.assert_allclose(LEARNER.predict(theta(), phi, QUERY, None), expected(), atol=1e-5)
    running = LEARNER.predict(theta(), phi, QUERY.reshape(2, 2, 3), None)  # windows of two pieces of audio
    np.testing.assert_allclose(running.reshape(4, 3), expected(), atol=1e-5)


def test_its_numbers_learn_to_be_calibrated():
    """The slope of the bias is the mean probability of none less how often it is none; the others by differences."""
    slopes = jax.jit(jax.grad(lambda t: OBJECTIVE(t, EPISODE, KEY)[0]))(theta())
    p = np.exp(expected()) / np.exp(expected()).sum(1, keepdims=True)
    np.testing.assert_allclose(slopes["unknown"]["bias"], np.mean(p[:, 2] - (ASKED == 2)), atol=1e-5)
    rest = p - np.eye(3)[ASKED]
    cosines = (expected()[:, :2] + 0.7 * np.log([3, 1])) / 5
    np.testing.assert_allclose(slopes["unknown"]["scale"], np.mean((rest[:, :2] * cosines).sum(1)), atol=1e-5)
    np.testing.assert_allclose(slopes["unknown"]["growth"], -np.mean(rest[:, 0] * np.log(3)), atol=1e-5)
    assert np.abs(slopes["params"]["w"]).max() > 1e-3


def test_before_any_step_all_is_finite_and_a_missing_class_is_an_error():
    phi = LEARNER.start(theta(), EPISODE.support, KEY)
    assert np.isfinite(LEARNER.predict(theta(), phi, QUERY, None)).all()
    with pytest.raises(InputError, match=r"support set has classes \[0\], expected every one of 0..1"):
        LEARNER.step(theta(), phi, EPISODE.support._replace(y=jnp.zeros(5, int)), KEY)
