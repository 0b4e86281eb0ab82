"""Reptile and iMAML, whose gradient runs through no inner step, and FiLM's parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, Episode, InputError, Referenced, imaml, reptile
from metajax.algorithms.film import film_apply, film_init
from tests.algorithms.test_gradient import (
    KEY,
    RATE,
    STEPS,
    descend,
    loss_fn,
    made,
    parameters,
    slope,
    task,
    value_and_grad,
)
from tests.conftest import assert_close, differs, quadratic


def reptile_phi(params, batch):
    for _ in range(STEPS):
        params = descend(params, slope(params, batch))
    return params


def test_reptile_gradient_is_theta_minus_phi(x64):
    theta, (support, query) = parameters(), task()
    both = Batch(*(jnp.concatenate(pair) for pair in zip(support, query, strict=True)))
    for on, batch in (("both", both), ("support", support)):
        algorithm, _ = made(reptile, on=on)
        phi = jax.jit(reptile_phi)(theta, batch)
        assert_close(value_and_grad(algorithm, theta)[1], jax.tree.map(jnp.subtract, theta, phi), 1e-12)
        metrics = jax.jit(algorithm.objective)(theta, task(), KEY)[1]
        assert_close(metrics["loss"], loss_fn(phi, query, KEY)[0], 1e-12)


def test_reptile_on_both_normalises_by_the_support_set(x64):
    """With `Referenced` queries the joined inputs keep the support set as reference, each example once."""
    seen = []

    def recording(params, batch, key):
        seen.append(batch.x)
        x = batch.x.x - batch.x.reference.mean(0) if isinstance(batch.x, Referenced) else batch.x - batch.x.mean(0)
        return loss_fn(params, batch._replace(x=x), key)

    support, query = task()
    episode = Episode(support, query._replace(x=Referenced(query.x, support.x)))
    algorithm = reptile(recording, optax.sgd(RATE), STEPS)
    _, grads = value_and_grad(algorithm, parameters(), episode)
    assert (seen[0].x.shape, seen[0].reference.shape) == ((10, 3), (4, 3))
    mean = support.x.mean(0)
    both = Batch(jnp.concatenate([support.x, query.x]) - mean, jnp.concatenate([support.y, query.y]))
    phi = jax.jit(reptile_phi)(parameters(), both)
    assert_close(grads, jax.tree.map(jnp.subtract, parameters(), phi), 1e-12)


@pytest.mark.parametrize("steps", [2, 400])
def test_imaml_is_the_implicit_function_theorem_on_a_quadratic(x64, steps):
    """phi* = (A + s)^-1 (A c + s theta), d phi* / d theta = s (A + s)^-1; before it the same matrix at phi_K."""
    strength, rate = 2.0, 0.1
    draw = np.random.default_rng(6).normal
    a, b = (m @ m.T / 4 + np.eye(4) for m in draw(size=(2, 4, 4)))
    c, q, theta = draw(size=(3, 4))
    best = np.linalg.solve(a + strength * np.eye(4), a @ c + strength * theta)
    contraction = np.linalg.matrix_power(np.eye(4) - rate * (a + strength * np.eye(4)), steps)
    phi = best + contraction @ (theta - best)
    wanted = strength * np.linalg.solve(a + strength * np.eye(4), b @ (phi - q))

    pairs = ((jnp.asarray(m), jnp.asarray(v)) for m, v in ((a, c), (b, q)))
    episode = Episode(*(Batch(pair, jnp.zeros(1)) for pair in pairs))
    algorithm = imaml(quadratic, optax.sgd(rate), steps, strength=strength, cg_steps=8)
    _, grads = value_and_grad(algorithm, jnp.asarray(theta), episode)
    np.testing.assert_allclose(grads, wanted, rtol=1e-9)
    _, metrics = jax.jit(algorithm.objective)(jnp.asarray(theta), episode, KEY)
    np.testing.assert_allclose(metrics["loss"], (phi - q) @ b @ (phi - q) / 2, rtol=1e-9)
    if steps == 400:  # the same as the gradient through all the steps

        def proximal(theta):
            phi = theta
            for _ in range(steps):
                phi = phi - rate * (a @ (phi - c) + strength * (phi - theta))
            return (phi - q) @ b @ (phi - q) / 2

        step = 1e-5 * np.eye(4)
        np.testing.assert_allclose(grads, [(proximal(theta + e) - proximal(theta - e)) / 2e-5 for e in step], rtol=1e-6)


def test_bad_choice_of_reptile_batch(unchecked):
    with pytest.raises(InputError, match=r"on is 'query'"):
        made(reptile, params={}, on="query")


def test_film_moves_the_named_leaves_by_about_a_gradient_step(x64):
    """At context -film @ g the shift is -film' film g, on average -g."""
    params = parameters()
    film = film_init(params, 4000, ("scale",), 0)
    assert {name: m.shape for name, m in film.items()} == {"norm0.scale": (4000, 5)}
    assert_close(film_apply(params, film, jnp.zeros(4000)), params, 0)
    gradient = jnp.arange(1.0, 6.0)
    moved = film_apply(params, film, -film["norm0.scale"] @ gradient)
    np.testing.assert_allclose(params["norm0"]["scale"] - moved["norm0"]["scale"], gradient, atol=0.4)
    other = film_init(params, 4000, ("scale",), 1)
    assert differs(film, other, 1e-3)
