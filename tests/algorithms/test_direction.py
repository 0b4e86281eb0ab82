"""Reptile and iMAML, whose gradient runs through no inner step, and FiLM's and the context's parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, Episode, InputError, adapt, context, film, imaml, joint, maml, mix, only, rates, reptile
from metajax.algorithms.parts import shifted
from metajax.losses import squared_error
from tests.algorithms.test_gradient import (
    KEY,
    STEPS,
    descend,
    loss,
    made,
    network,
    parameters,
    slope,
    task,
    value_and_grad,
)
from tests.conftest import as_it_is, assert_close, differs, quadratic


def reptile_phi(params, batch):
    for _ in range(STEPS):
        params = descend(params, slope(params, batch))
    return params


def test_reptile_gradient_is_theta_minus_phi(x64):
    theta, (support, query) = parameters(), task()
    both = Batch(*(jnp.concatenate(pair) for pair in zip(support, query, strict=True)))
    algorithm, _ = made(reptile)
    phi = jax.jit(reptile_phi)(theta, both)
    _, grads = value_and_grad(algorithm, {"params": theta})
    assert_close(grads["params"], jax.tree.map(jnp.subtract, theta, phi), 1e-12)
    metrics = jax.jit(algorithm.objective)({"params": theta}, task(), KEY)[1]
    assert_close(metrics["loss"], loss(phi, query), 1e-12)


def test_reptile_of_a_head_moves_the_head_alone(x64):
    algorithm, theta = made(reptile, part=only("head"))
    _, grads = value_and_grad(algorithm, theta)
    assert differs(grads["params"]["head"], jax.tree.map(jnp.zeros_like, grads["params"]["head"]), 1e-3)
    assert all((leaf == 0).all() for name in ("dense0", "norm0") for leaf in jax.tree.leaves(grads["params"][name]))


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
    algorithm = imaml(quadratic, as_it_is, optax.sgd(rate), steps, strength=strength, cg_steps=8)
    given = {"params": jnp.asarray(theta)}
    _, grads = value_and_grad(algorithm, given, episode)
    grads = grads["params"]
    np.testing.assert_allclose(grads, wanted, rtol=1e-9)
    _, metrics = jax.jit(algorithm.objective)(given, episode, KEY)
    np.testing.assert_allclose(metrics["loss"], (phi - q) @ b @ (phi - q) / 2, rtol=1e-9)
    if steps == 400:  # the same as the gradient through all the steps

        def proximal(theta):
            phi = theta
            for _ in range(steps):
                phi = phi - rate * (a @ (phi - c) + strength * (phi - theta))
            return (phi - q) @ b @ (phi - q) / 2

        step = 1e-5 * np.eye(4)
        np.testing.assert_allclose(grads, [(proximal(theta + e) - proximal(theta - e)) / 2e-5 for e in step], rtol=1e-6)


def test_imaml_of_a_head_is_the_implicit_function_theorem_in_head_and_body(x64):
    """h*(body, h) = argmin |Z h - y|^2 / (n o) + s / 2 |h - h_0|^2 is ridge regression; its gradient by differences."""
    strength = 0.5
    draw = np.random.default_rng(8).normal
    (x, y), (x_query, y_query) = ((draw(size=(n, 3)), draw(size=(n, 2))) for n in (6, 5))
    body, head, direction = draw(size=(3, 3)), draw(size=(3, 2)), (draw(size=(3, 3)), draw(size=(3, 2)))
    episode = Episode(*(Batch(jnp.asarray(a), jnp.asarray(b)) for a, b in ((x, y), (x_query, y_query))))

    def linear(params, x, key):
        return x @ params["body"] @ params["head"]

    def value(body, head):
        z = x @ body
        best = np.linalg.solve(2 / y.size * z.T @ z + strength * np.eye(3), 2 / y.size * z.T @ y + strength * head)
        return np.square(x_query @ body @ best - y_query).mean()

    algorithm = imaml(linear, squared_error, optax.sgd(0.2), 2000, strength=strength, cg_steps=8, part=only("head"))
    theta = {"params": {"body": jnp.asarray(body), "head": jnp.asarray(head)}}
    found, grads = value_and_grad(algorithm, theta, episode)
    np.testing.assert_allclose(found, value(body, head), rtol=1e-9)
    up, down = (value(body + s * direction[0], head + s * direction[1]) for s in (1e-5, -1e-5))
    slope = (grads["params"]["body"] * direction[0]).sum() + (grads["params"]["head"] * direction[1]).sum()
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-6)


def test_a_rule_that_would_not_be_learned_is_refused():
    for factory, told in ((reptile, "Reptile does not differentiate"), (imaml, "iMAML's optimum does not depend")):
        with pytest.raises(InputError, match=f"rule is given, but {told}"):
            made(factory, rule=rates())


@pytest.mark.slow
def test_any_method_mixes_with_the_joint_loss(x64):
    """The value of both and the gradient of both, whatever else theta holds."""
    other = joint(network, squared_error).objective
    for factory, options in ((reptile, {}), (maml, {"rule": rates()}), (maml, {"part": context(3)})):
        algorithm, theta = made(factory, **options)
        mixed = value_and_grad(algorithm._replace(objective=mix(algorithm.objective, other, 0.5)), theta)
        one, two = (value_and_grad(algorithm._replace(objective=f), theta) for f in (algorithm.objective, other))
        assert_close(mixed, jax.tree.map(lambda a, b: a + 0.5 * b, one, two), 1e-12)


def test_the_context_moves_the_named_leaves_by_about_a_gradient_step(x64):
    """At context -F @ g the shift is -F' F g, on average -g."""
    params = parameters()
    part = context(4000, "*.scale")
    theta = {"params": params} | part.init(params, jax.random.key(0))
    maps = theta["context"]
    assert {name: m.shape for name, m in maps.items()} == {"norm0.scale": (4000, 5)}
    assert_close(part.join(theta, part.split(theta), jnp.int32(0)), params, 0)
    gradient = jnp.arange(1.0, 6.0)
    moved = shifted(params, maps, -maps["norm0.scale"] @ gradient)
    np.testing.assert_allclose(params["norm0"]["scale"] - moved["norm0"]["scale"], gradient, atol=0.4)
    assert differs(maps, part.init(params, jax.random.key(1))["context"], 1e-3)


def test_film_scales_scales_and_shifts_the_other_vectors(x64):
    algorithm, theta = made(maml, part=film())
    assert set(theta["film"]) == {"norm0.scale", "norm0.bias", "head.bias"}
    phi, _ = adapt(algorithm.learner, theta, task().support, KEY, 2)
    params = jax.tree.map(lambda a: a, theta["params"])
    params["norm0"] = {
        "scale": params["norm0"]["scale"] * (1 + phi.own["norm0.scale"]),
        "bias": params["norm0"]["bias"] + phi.own["norm0.bias"],
    }
    params["head"]["bias"] = params["head"]["bias"] + phi.own["head.bias"]
    x = task().query.x
    assert_close(algorithm.learner.predict(theta, phi, x, None), network(params, x), 1e-12)
    assert differs(network(params, x), network(theta["params"], x), 1e-2)
