"""The core, the inner loop, losses and evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, Episode, InputError, Labels, adapt, ascribe, closed_form, descent, evaluate, mean_ci95, mix
from metajax.core import query_loss
from metajax.losses import classify, cross_entropy
from metajax.parallel import task_mesh
from tests.conftest import assert_close, differs, mlp, mlp_params, square_loss


def random_batch(key, n=6):
    x_key, y_key = jax.random.split(key)
    return Batch(jax.random.normal(x_key, (n, 3)), jax.random.normal(y_key, (n, 4)))


def random_episode(key):
    support_key, query_key = jax.random.split(key)
    return Episode(random_batch(support_key), random_batch(query_key, 5))


def noisy_loss(params, batch, key):
    """A loss that depends on its key, as one with dropout does."""
    return square_loss(params, batch._replace(x=batch.x + 0.1 * jax.random.normal(key, batch.x.shape)), key)


KEY = jax.random.key(0)
THETA = jax.jit(mlp_params)(KEY)
EPISODE = jax.jit(random_episode)(jax.random.key(1))
INNERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
}


@pytest.mark.parametrize("name", INNERS)
def test_adapt_is_a_loop_of_steps_and_its_probe_sees_every_phi(name):
    learner = descent(square_loss, INNERS[name])
    key = jax.random.key(2)
    phi, trace = jax.jit(lambda theta: adapt(learner, theta, EPISODE.support, key, 3, lambda phi: phi.params))(THETA)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda params: square_loss(params, EPISODE.support, key)[0])(params)
        updates, state = INNERS[name].update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = THETA, INNERS[name].init(THETA)
    wanted = [params]
    for _ in range(3):
        params, state = step(params, state)
        wanted.append(params)

    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(trace))
    assert_close(jax.tree.map(lambda a: a[0], trace), THETA, 0)
    assert_close(trace, jax.tree.map(lambda *a: jnp.stack(a), *wanted), 1e-5)
    assert_close(phi.params, jax.tree.map(lambda a: a[-1], trace), 0)
    assert differs(wanted[0], wanted[3], 1e-2)


def test_adapt_without_steps_or_probe():
    learner = descent(square_loss, optax.sgd(0.1))
    phi, trace = adapt(learner, THETA, EPISODE.support, KEY, 0)
    assert trace is None
    assert_close(phi.params, THETA, 0)
    _, trace = adapt(learner, THETA, EPISODE.support, KEY, 0, lambda phi: phi.params["b0"])
    assert_close(trace, THETA["b0"][None], 0)


def test_adapt_refuses_a_negative_number_of_steps():
    with pytest.raises(InputError, match=r"num_steps is -1"):
        adapt(descent(square_loss, optax.sgd(0.1)), THETA, EPISODE.support, KEY, -1)


def test_every_step_has_a_key_of_its_own_and_equal_keys_give_equal_phi():
    def record(params, batch, key):
        return params @ jax.random.normal(key, (2,)), {}

    learner = descent(record, optax.sgd(1.0))
    run = jax.jit(lambda key: adapt(learner, jnp.zeros(2), EPISODE.support, key, 4, lambda phi: phi.params)[1])
    trace = run(jax.random.key(3))
    noise = -np.diff(trace, axis=0)[:, 0]
    assert len(np.unique(noise.round(5))) == 4
    np.testing.assert_array_equal(trace, run(jax.random.key(3)))
    assert differs(trace, run(jax.random.key(4)), 1e-2)


def test_split_and_join_leave_the_rest_of_theta_alone():
    def split(theta):
        return {name: theta[name] for name in ("w1", "b1")}

    learner = descent(square_loss, optax.sgd(0.1), split=split, join=lambda theta, params: theta | params)
    phi, _ = adapt(learner, THETA, EPISODE.support, KEY, 2)
    assert set(phi.params) == {"w1", "b1"}
    grads = jax.grad(lambda p: square_loss(THETA | p, EPISODE.support, KEY)[0])(split(THETA))
    once, _ = adapt(learner, THETA, EPISODE.support, KEY, 1)
    assert_close(once.params, jax.tree.map(lambda p, g: p - 0.1 * g, split(THETA), grads), 1e-6)
    loss, _ = learner.loss(THETA, phi, EPISODE.query, KEY)
    assert_close(loss, square_loss(THETA | phi.params, EPISODE.query, KEY)[0], 1e-6)


def test_first_order_changes_the_gradient_and_not_the_value():
    key = KEY

    def value_and_grad(first_order):
        objective = query_loss(descent(square_loss, optax.sgd(0.3), first_order=first_order), 2)
        return jax.jit(jax.value_and_grad(lambda theta: objective(theta, EPISODE, key)[0]))(THETA)

    (value, grads), (first_value, first_grads) = value_and_grad(False), value_and_grad(True)
    assert_close(first_value, value, 1e-6)
    assert differs(grads, first_grads, 1e-3)


def test_closed_form_starts_at_zeros_and_further_steps_change_nothing():
    def solve(theta, support, key):
        return {"mean": support.x.mean(0) + theta, "count": jnp.int32(len(support.x))}

    learner = closed_form(solve, lambda theta, phi, batch, key: (phi["mean"].sum(), {}), init=lambda params: params + 1)
    theta = learner.init(jnp.zeros(3))
    assert_close(theta, jnp.ones(3), 0)
    _, trace = adapt(learner, theta, EPISODE.support, KEY, 3, lambda phi: phi)
    assert trace["count"].dtype == jnp.int32
    assert trace["count"].tolist() == [0, 6, 6, 6]
    np.testing.assert_array_equal(trace["mean"][0], 0)
    for step in (1, 2, 3):
        np.testing.assert_allclose(trace["mean"][step], EPISODE.support.x.mean(0) + 1, rtol=1e-6)


def test_the_gradient_of_ascribe_is_the_direction():
    direction = mlp_params(jax.random.key(7))
    assert_close(jax.grad(ascribe)(THETA, direction), direction, 0)
    # a direction computed from theta counts as a constant
    squares = jax.tree.map(jnp.square, THETA)
    assert_close(jax.grad(lambda theta: ascribe(theta, jax.tree.map(jnp.square, theta)))(THETA), squares, 0)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_mix_refuses_weights_that_mean_nothing(weight):
    one = query_loss(descent(noisy_loss, optax.sgd(0.1)), 1)
    with pytest.raises(InputError, match=f"weight is {weight}, expected a finite number, 0 or more"):
        mix(one, one, weight)


def test_mix_is_the_weighted_sum_in_value_and_gradient():
    key = KEY
    one, other = (query_loss(descent(noisy_loss, optax.sgd(rate)), 1) for rate in (0.1, 0.5))
    (mixed, a, b) = (
        jax.jit(jax.value_and_grad(lambda theta, f=f: f(theta, EPISODE, key), has_aux=True))(THETA)
        for f in (mix(one, other, 0.25), one, other)
    )
    assert_close(mixed[0][0], a[0][0] + 0.25 * b[0][0], 1e-6)
    assert_close(mixed[0][1], a[0][1], 1e-6)
    assert differs(a[1], b[1], 1e-3)
    assert_close(mixed[1], jax.tree.map(lambda a, b: a + 0.25 * b, a[1], b[1]), 1e-5)


def test_the_evaluation_curve_is_a_loop_of_adapt():
    learner = descent(noisy_loss, optax.sgd(0.1))
    key = jax.random.key(5)
    curve = jax.jit(lambda theta: evaluate(learner, theta, random_episode, key, 3, 2))(THETA)

    @partial(jax.jit, static_argnums=3)
    def by_hand(episode, adapt_key, loss_key, steps):
        phi, _ = adapt(learner, THETA, episode.support, adapt_key, steps)
        return learner.loss(THETA, phi, episode.query, loss_key)[0]

    assert curve["loss"].shape == (3, 3)
    for task, task_key in enumerate(jax.random.split(key, 3)):
        sample_key, adapt_key, loss_key = jax.random.split(task_key, 3)
        episode = random_episode(sample_key)
        for steps in range(3):
            wanted = by_hand(episode, adapt_key, loss_key, steps)
            np.testing.assert_allclose(curve["loss"][task, steps], wanted, rtol=1e-5)


def test_evaluation_in_chunks_and_over_devices_changes_nothing_and_other_learners_meet_the_same_tasks():
    def curve(learner, chunk, mesh=None):
        options = {"chunk": chunk, "mesh": mesh}
        return jax.jit(lambda theta: evaluate(learner, theta, random_episode, jax.random.key(5), 5, 1, **options))(
            THETA
        )

    one = curve(descent(square_loss, optax.sgd(0.1)), 1)["loss"]
    np.testing.assert_allclose(curve(descent(square_loss, optax.sgd(0.1)), 2)["loss"], one, rtol=1e-5)  # 5 = 2 + 2 + 1
    np.testing.assert_allclose(curve(descent(square_loss, optax.sgd(0.1)), 5)["loss"], one, rtol=1e-5)
    spread = curve(descent(square_loss, optax.sgd(0.1)), 1, task_mesh(5))["loss"]  # on two devices 3 and 2
    np.testing.assert_allclose(spread, one, rtol=1e-5)
    adam = curve(descent(square_loss, optax.adam(0.1)), 1)["loss"]
    np.testing.assert_allclose(adam[:, 0], one[:, 0], rtol=1e-6)
    assert differs(adam[:, 1], one[:, 1], 1e-3)


def test_mean_and_confidence_interval():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    mean, half = mean_ci95(jnp.asarray(values))
    for column in range(3):
        v = [float(a) for a in values[:, column]]
        average = sum(v) / 50
        deviation = (sum((a - average) ** 2 for a in v) / 49) ** 0.5
        np.testing.assert_allclose(mean[column], average, rtol=1e-9)
        np.testing.assert_allclose(half[column], 1.96 * deviation / 50**0.5, rtol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_against_its_definition(smoothing):
    logits = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    loss, metrics = classify(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    np.testing.assert_allclose(loss, -(target * log_p).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], -log_p[np.arange(7), labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == labels).mean(), rtol=1e-6)


def test_cross_entropy_takes_the_labels_it_is_told_to():
    batch = Batch(EPISODE.support.x, Labels(jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([3, 3, 0, 0, 2, 2])))
    for name in ("episode", "corpus"):
        loss, _ = cross_entropy(mlp, name)(THETA, batch, KEY)
        assert_close(loss, classify(mlp(THETA, batch.x), getattr(batch.y, name))[0], 0)
