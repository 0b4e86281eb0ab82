"""The step of joint training that a weighting makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, checkpoint, fit, init_state, weighted_step
from metajax.losses.weighting import combine, equal, gradnorm, gram_matrix
from tests.conftest import assert_close, differs
from tests.losses.test_weighting import ALL, KEY, weigh


def hand_made(params, batch):
    """Two tasks with a shared matrix and a head each; the second is away where its batch is."""
    values = []
    for task in ("a", "b"):
        if task in batch:
            predicted = jnp.tanh(batch[task].x @ params["shared"]["w"]) @ params["heads"][task]
            values.append(jnp.square(predicted - batch[task].y).mean())
        else:
            values.append(jnp.zeros(()))
    losses = jnp.stack(values)
    return losses, jnp.array([task in batch for task in ("a", "b")]), {"loss": losses.sum()}


def hand_made_params():
    keys = jax.random.split(KEY, 3)
    heads = {"a": jax.random.normal(keys[0], (4,)), "b": jax.random.normal(keys[1], (4,))}
    return {"shared": {"w": jax.random.normal(keys[2], (3, 4))}, "heads": heads}


def started(optimizer, weighting, outer_steps=1, **options):
    theta = {"params": hand_made_params()}
    return init_state(theta, optimizer, outer_steps, kept=weighting.init(2), **options)


def sample(key):
    x_key, y_key = jax.random.split(key)
    x, y = jax.random.normal(x_key, (2, 5, 3)), jax.random.normal(y_key, (2, 5))
    return {"a": Batch(x[0], y[0]), "b": Batch(x[1], 10 * y[1])}


def test_products_and_sums_of_the_gradients_of_several_arrays(x64):
    a, b = jax.random.normal(KEY, (2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 5))
    flat = np.concatenate([a.reshape(2, -1), b], 1)
    np.testing.assert_allclose(gram_matrix({"a": a, "b": b}), flat @ flat.T, rtol=1e-12)
    weighed = combine(jnp.array([2.0, -1.0]), {"a": a, "b": b})
    np.testing.assert_allclose(np.append(weighed["a"], weighed["b"]), [2, -1] @ flat, rtol=1e-12)


def test_equal_weights_take_the_steps_of_the_plain_sum():
    optimizer, params = optax.adam(1e-2), hand_made_params()
    step = jax.jit(weighted_step(hand_made, equal(), optimizer, sample))
    state = started(optimizer, equal())

    @jax.jit
    def plain(params, opt_state, key):
        batch = sample(jax.random.split(key)[0])
        grads = jax.grad(lambda params: hand_made(params, batch)[0].sum())(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for number in range(5):
        key = jax.random.fold_in(KEY, number)
        state, metrics = step(state, key)
        params, opt_state = plain(params, opt_state, key)
        assert_close(state.theta["params"], params, 1e-6)
    assert (float(metrics["weight_0"]), float(metrics["weight_1"]), int(state.count)) == (1, 1, 5)


@pytest.mark.parametrize(
    "name", [pytest.param("gradnorm", marks=pytest.mark.slow), "pcgrad", pytest.param("nash", marks=pytest.mark.slow)]
)
def test_a_step_combines_shared_gradients_and_leaves_heads_to_their_losses(name, x64):
    weighting, optimizer, params = ALL[name], optax.sgd(1.0), hand_made_params()
    step = jax.jit(weighted_step(hand_made, weighting, optimizer, sample))
    state, metrics = step(started(optimizer, weighting), KEY)
    sample_key, key = jax.random.split(KEY)
    batch = sample(sample_key)
    each = jax.jit(jax.jacrev(lambda params: hand_made(params, batch)[0]))(params)
    g = np.asarray(each["shared"]["w"]).reshape(2, -1)
    w = np.asarray(weigh(weighting, g, hand_made(params, batch)[0], key=key)[0])
    np.testing.assert_allclose([metrics["weight_0"], metrics["weight_1"]], w, rtol=1e-6)
    np.testing.assert_allclose((params["shared"]["w"] - state.theta["params"]["shared"]["w"]).ravel(), w @ g, atol=1e-6)
    for i, task in enumerate(("a", "b")):
        expected = each["heads"][task][i] * (w[i] if name == "gradnorm" else 1)
        np.testing.assert_allclose(params["heads"][task] - state.theta["params"]["heads"][task], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["equal", "nash", "cagrad", "gradnorm"])
def test_a_batch_without_a_task_moves_what_the_others_share(name):
    optimizer, params = optax.sgd(0.1), hand_made_params()
    only = lambda key: {"a": sample(key)["a"]}  # noqa: E731
    state = started(optimizer, ALL[name])
    state, metrics = jax.jit(weighted_step(hand_made, ALL[name], optimizer, only))(state, KEY)
    assert metrics["weight_1"] == 0
    assert np.isfinite(metrics["loss"])
    assert differs(state.theta["params"]["shared"], params["shared"], 1e-4)
    np.testing.assert_array_equal(state.theta["params"]["heads"]["b"], params["heads"]["b"])


@pytest.mark.parametrize("name", [pytest.param("gradnorm", marks=pytest.mark.slow), "nash"])
def test_a_step_that_is_not_finite_changes_nothing(name):
    broken = lambda key: jax.tree.map(lambda a: a * jnp.nan, sample(key))  # noqa: E731
    optimizer = optax.adam(1e-2)
    state = started(optimizer, ALL[name], average=0.5)
    new, metrics = jax.jit(weighted_step(hand_made, ALL[name], optimizer, broken))(state, KEY)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(metrics["loss"])


@pytest.mark.slow
def test_fit_runs_the_step_and_resumes_exactly(tmp_path):
    optimizer, weighting = optax.adam(1e-2), gradnorm()
    step = weighted_step(hand_made, weighting, optimizer, sample)

    def run(outer_steps, folder, **options):
        state = started(optimizer, weighting, outer_steps, average=0.5)
        options |= {"num_tasks": 2, "block": 2, "validate_every": 4, "progress": False}
        return fit(step, state, KEY, folder=folder, **options)

    whole = run(8, tmp_path / "whole")
    run(4, tmp_path / "parts")
    parts = run(8, tmp_path / "parts", resume=True)
    for a, b in zip(jax.tree.leaves(parts.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(a, b)
    # the moving average is what training gives, and theta moves as without one
    one, plain, mean = jax.jit(step), started(optimizer, weighting, 8), {"params": hand_made_params()}
    for number in range(8):
        plain, _ = one(plain, jax.random.fold_in(KEY, number))
        d = min(0.5, number / (number + 10))
        mean = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * b, mean, plain.theta)
    assert_close(whole.state.theta, plain.theta, 1e-6)
    assert_close(whole.theta, mean, 1e-5)
    assert differs(whole.theta, plain.theta, 1e-3)
    lines = checkpoint.read_lines(tmp_path / "parts" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all({"loss", "grad_norm", "weight_0", "weight_1"} <= line.keys() for line in lines)
