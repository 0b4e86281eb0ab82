"""The core, the inner loop and evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from metajax import (
    Algorithm,
    Batch,
    Episode,
    InputError,
    Part,
    Rule,
    adapt,
    ascribe,
    closed_form,
    descent,
    evaluate,
    mean_ci95,
    mix,
    only,
    query_loss,
    rates,
)
from metajax.losses import classify, entropy, squared_error
from metajax.parallel import task_mesh
from tests.conftest import as_it_is, assert_close, differs, mlp, mlp_params


def random_batch(key, n=6):
    x_key, y_key = jax.random.split(key)
    return Batch(jax.random.normal(x_key, (n, 3)), jax.random.normal(y_key, (n, 4)))


def random_episode(key):
    support_key, query_key = jax.random.split(key)
    return Episode(random_batch(support_key), random_batch(query_key, 5))


def noisy(params, x, key=None):
    """A model that depends on its key, as one with dropout does."""
    return mlp(params, x if key is None else x + 0.1 * jax.random.normal(key, x.shape))


def square_loss(params, batch):
    return squared_error(mlp(params, batch.x), batch.y)[0]


KEY = jax.random.key(0)
PARAMS = mlp_params()
THETA = {"params": PARAMS}
EPISODE = jax.jit(random_episode)(jax.random.key(1))
PLAIN = descent(mlp, squared_error, optax.sgd(0.1))
INNERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
}


@pytest.mark.parametrize("name", INNERS)
def test_adapt_is_a_loop_of_steps_and_its_probe_sees_every_phi(name):
    learner = descent(mlp, squared_error, INNERS[name])
    key = jax.random.key(2)
    phi, trace = jax.jit(lambda theta: adapt(learner, theta, EPISODE.support, key, 3, lambda phi: phi.own))(THETA)

    @jax.jit
    def step(params, state):
        grads = jax.grad(square_loss)(params, EPISODE.support)
        updates, state = INNERS[name].update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, INNERS[name].init(PARAMS)
    wanted = [params]
    for _ in range(3):
        params, state = step(params, state)
        wanted.append(params)

    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(trace))
    assert_close(jax.tree.map(lambda a: a[0], trace), PARAMS, 0)
    assert_close(trace, jax.tree.map(lambda *a: jnp.stack(a), *wanted), 1e-5)
    assert_close(phi.own, jax.tree.map(lambda a: a[-1], trace), 0)
    assert int(phi.count) == 3
    assert differs(wanted[0], wanted[3], 1e-2)
    assert_close(learner.predict(THETA, phi, EPISODE.query.x, None), mlp(phi.own, EPISODE.query.x), 1e-6)


def test_theta_is_a_dict_with_the_parameters_of_the_model():
    assert_close(PLAIN.init(PARAMS, KEY), THETA, 0)
    with pytest.raises(
        InputError, match=r"theta holds params but no 'rates': it is not what this learner's init gives"
    ):
        adapt(descent(mlp, squared_error, optax.sgd(0.1), rule=rates()), THETA, EPISODE.support, KEY, 1)


def test_adapt_without_steps_or_probe():
    phi, trace = adapt(PLAIN, THETA, EPISODE.support, KEY, 0)
    assert trace is None
    assert_close(phi.own, PARAMS, 0)
    _, trace = adapt(PLAIN, THETA, EPISODE.support, KEY, 0, lambda phi: phi.own["b0"])
    assert_close(trace, PARAMS["b0"][None], 0)


def test_adapt_refuses_a_number_of_steps_that_means_nothing_and_an_unknown_remat(unchecked):
    with pytest.raises(InputError, match=r"num_steps is -1"):
        adapt(PLAIN, THETA, EPISODE.support, KEY, -1)
    with pytest.raises(InputError, match=r"remat is 'all', expected one of none, step, sqrt"):
        adapt(PLAIN, THETA, EPISODE.support, KEY, 1, remat="all")
    with pytest.raises(InputError, match=r"mode is 'forward', expected one of reverse, mixed"):
        descent(mlp, squared_error, optax.sgd(0.1), mode="forward")


WRONG = {  # what a newcomer may hand over: to `descent`, to `adapt`, and what is told
    "a model": ({"apply": Algorithm(PLAIN, mlp)}, {}, "apply is of type Algorithm, expected a function"),
    "a rate": ({"inner": 0.1}, {}, "inner is of type float, expected GradientTransformation"),
    "no metrics": ({"error": lambda outputs, y: outputs.mean()}, {}, "error gives .*, expected a pair"),
    "an algorithm": ({}, {"learner": Algorithm(PLAIN, mlp)}, "learner is of type Algorithm, expected Learner"),
    "an episode": ({}, {"support": EPISODE}, "support is of type Episode, expected Batch"),
    "parameters": ({}, {"theta": PARAMS}, "theta holds .*b0.* but no 'params'"),
    "part of a step": ({}, {"num_steps": 1.5}, "num_steps is 1.5, expected 0 or more adaptation steps"),
    "another's theta": ({"inner": lambda theta: optax.sgd(0.1, theta["momentum"])}, {}, "params but no 'momentum'"),
    "a part of nothing": ({"part": Part(lambda *_: {}, lambda theta: {}, lambda theta, own, count: PARAMS)}, {},
        r"part\.split gives no parameter"),
    "another shape": ({"rule": Rule(lambda own: {}, lambda theta, updates, count: jax.tree.map(jnp.sum, updates))}, {},
        "rule's updates are of another structure or shape"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_newcomer_may_confuse_is_told_in_one_sentence(unchecked, wrong):
    made, given, told = WRONG[wrong]
    rest = {"theta": THETA, "support": EPISODE.support, "num_steps": 1}
    with pytest.raises(InputError, match=told):
        learner = descent(**{"apply": mlp, "error": squared_error, "inner": optax.sgd(0.1)} | made)
        adapt(**{"learner": learner, "key": KEY} | rest | given)


def test_what_a_part_or_a_rule_adds_to_theta_is_a_dict(unchecked):
    learner = descent(mlp, squared_error, optax.sgd(0.1), rule=Rule(lambda own: jnp.ones(()), lambda *given: given[1]))
    with pytest.raises(InputError, match=r"init of a part or rule gives .*, expected a dict: what it adds to theta"):
        learner.init(PARAMS, KEY)


def test_every_step_has_a_key_of_its_own_and_equal_keys_give_equal_phi():
    def record(params, x, key):
        return params @ jax.random.normal(key, (2,))

    learner = descent(record, as_it_is, optax.sgd(1.0))
    theta = {"params": jnp.zeros(2)}
    run = jax.jit(lambda key: adapt(learner, theta, EPISODE.support, key, 4, lambda phi: phi.own)[1])
    trace = run(jax.random.key(3))
    noise = -np.diff(trace, axis=0)[:, 0]
    assert len(np.unique(noise.round(5))) == 4
    np.testing.assert_array_equal(trace, run(jax.random.key(3)))
    assert differs(trace, run(jax.random.key(4)), 1e-2)


def test_a_part_leaves_the_rest_of_theta_alone():
    learner = descent(mlp, squared_error, optax.sgd(0.1), part=only("w1", "b1"))
    phi, _ = adapt(learner, THETA, EPISODE.support, KEY, 2)
    assert set(phi.own) == {"w1", "b1"}
    split = {name: PARAMS[name] for name in ("w1", "b1")}
    grads = jax.grad(lambda own: square_loss(PARAMS | own, EPISODE.support))(split)
    once, _ = adapt(learner, THETA, EPISODE.support, KEY, 1)
    assert_close(once.own, jax.tree.map(lambda p, g: p - 0.1 * g, split, grads), 1e-6)
    outputs = learner.predict(THETA, phi, EPISODE.query.x, None)
    assert_close(outputs, mlp(PARAMS | phi.own, EPISODE.query.x), 1e-6)


def test_first_order_changes_the_gradient_and_not_the_value():
    def value_and_grad(first_order):
        learner = descent(mlp, squared_error, optax.sgd(0.3), first_order=first_order)
        objective = query_loss(learner, squared_error, 2)
        return jax.jit(jax.value_and_grad(lambda theta: objective(theta, EPISODE, KEY)[0]))(THETA)

    (value, grads), (first_value, first_grads) = value_and_grad(False), value_and_grad(True)
    assert_close(first_value, value, 1e-6)
    assert differs(grads, first_grads, 1e-3)


def test_closed_form_starts_at_zeros_and_further_steps_change_nothing():
    def solve(theta, support, key):
        return {"mean": support.x.mean(0) + theta["params"], "count": jnp.int32(len(support.x))}

    def predict(theta, phi, x, key):
        return phi["mean"].sum()

    learner = closed_form(solve, predict, init=lambda params, key: {"params": params + 1})
    theta = learner.init(jnp.zeros(3), KEY)
    assert_close(theta, {"params": jnp.ones(3)}, 0)
    _, trace = adapt(learner, theta, EPISODE.support, KEY, 3, lambda phi: phi)
    assert trace["count"].dtype == jnp.int32
    assert trace["count"].tolist() == [0, 6, 6, 6]
    np.testing.assert_array_equal(trace["mean"][0], 0)
    for step in (1, 2, 3):
        np.testing.assert_allclose(trace["mean"][step], EPISODE.support.x.mean(0) + 1, rtol=1e-6)


def test_the_gradient_of_ascribe_is_the_direction():
    direction = mlp_params(7)
    assert_close(jax.grad(ascribe)(PARAMS, direction), direction, 0)
    # a direction computed from theta counts as a constant
    squares = jax.tree.map(jnp.square, PARAMS)
    assert_close(jax.grad(lambda theta: ascribe(theta, jax.tree.map(jnp.square, theta)))(PARAMS), squares, 0)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_mix_refuses_weights_that_mean_nothing(weight):
    one = query_loss(PLAIN, squared_error, 1)
    with pytest.raises(InputError, match=f"weight is {weight}, expected a finite number, 0 or more"):
        mix(one, one, weight)


def test_mix_is_the_weighted_sum_in_value_and_gradient():
    one, other = (query_loss(descent(noisy, squared_error, optax.sgd(rate)), squared_error, 1) for rate in (0.1, 0.5))
    (mixed, a, b) = (
        jax.jit(jax.value_and_grad(lambda theta, f=f: f(theta, EPISODE, KEY), has_aux=True))(THETA)
        for f in (mix(one, other, 0.25), one, other)
    )
    assert_close(mixed[0][0], a[0][0] + 0.25 * b[0][0], 1e-6)
    assert_close(mixed[0][1], a[0][1], 1e-6)
    assert differs(a[1], b[1], 1e-3)
    assert_close(mixed[1], jax.tree.map(lambda a, b: a + 0.25 * b, a[1], b[1]), 1e-5)


def test_support_and_query_errors_are_scalars():
    learner = descent(mlp, lambda outputs, y: (outputs.mean(-1), {}), optax.sgd(0.1))
    told = r"error has shape \(6,\), expected a scalar: take its mean over the batch"
    with pytest.raises(InputError, match=told):
        adapt(learner, THETA, EPISODE.support, KEY, 1)
    objective = query_loss(PLAIN, lambda outputs, y: (outputs.mean(-1), {}), 1)
    with pytest.raises(InputError, match=r"error has shape \(5,\), expected a scalar"):
        objective(THETA, EPISODE, KEY)


def test_a_support_set_without_labels_needs_an_error_without_them(unchecked):
    support = EPISODE.support._replace(y=())
    with pytest.raises(
        InputError, match="unlabelled support set needs a support_error without them, such as `entropy`"
    ):
        adapt(descent(mlp, classify, optax.sgd(0.1)), THETA, support, KEY, 1)
    learner = descent(mlp, entropy, optax.sgd(0.1))
    _, values = adapt(
        learner, THETA, support, KEY, 3, lambda phi: entropy(learner.predict(THETA, phi, support.x, None), ())[0]
    )
    assert (np.diff(values) < 0).all()


def test_the_evaluation_curve_is_a_loop_of_adapt():
    learner = descent(noisy, squared_error, optax.sgd(0.1))
    key = jax.random.key(5)
    curve = jax.jit(lambda theta: evaluate(learner, squared_error, theta, random_episode, key, 3, 2))(THETA)

    @partial(jax.jit, static_argnums=3)
    def by_hand(episode, adapt_key, key, steps):
        phi, _ = adapt(learner, THETA, episode.support, adapt_key, steps)
        return squared_error(learner.predict(THETA, phi, episode.query.x, key), episode.query.y)[0]

    assert curve["loss"].shape == (3, 3)
    for task, task_key in enumerate(jax.random.split(key, 3)):
        sample_key, adapt_key, loss_key = jax.random.split(task_key, 3)
        episode = random_episode(sample_key)
        for steps in range(3):
            wanted = by_hand(episode, adapt_key, loss_key, steps)
            np.testing.assert_allclose(curve["loss"][task, steps], wanted, rtol=1e-5)


@pytest.mark.slow
def test_evaluation_in_chunks_and_over_devices_changes_nothing_and_other_learners_meet_the_same_tasks():
    def curve(learner, chunk, mesh=None):
        options = {"chunk": chunk, "mesh": mesh}
        return jax.jit(
            lambda theta: evaluate(learner, squared_error, theta, random_episode, jax.random.key(5), 5, 1, **options)
        )(THETA)["loss"]

    one = curve(PLAIN, 1)
    np.testing.assert_allclose(curve(PLAIN, 2), one, rtol=1e-5)  # 5 = 2 + 2 + 1
    spread = curve(PLAIN, 1, task_mesh(5))  # on two devices 3 and 2
    np.testing.assert_allclose(spread, one, rtol=1e-5)
    held = random_episode(KEY)  # an array that the sampler closes over lies on one device
    sample = lambda key: jax.tree.map(lambda a: a + jax.random.normal(key), held)  # noqa: E731
    found = [
        evaluate(PLAIN, squared_error, THETA, sample, KEY, 3, 1, mesh=mesh)["loss"] for mesh in (None, task_mesh(3))
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)
    adam = curve(descent(mlp, squared_error, optax.adam(0.1)), 1)
    np.testing.assert_allclose(adam[:, 0], one[:, 0], rtol=1e-6)
    assert differs(adam[:, 1], one[:, 1], 1e-3)


def test_nan_outputs_never_pass_for_an_accuracy():
    """A class is what argmax makes of NaN: that of a model which answers nothing is NaN, at every step."""

    def sample(key):
        batch = Batch(jax.random.normal(key, (4, 3)), jnp.array([0, 1, 0, 0]))
        return Episode(batch, batch)

    broken = descent(lambda params, x, key: jnp.nan * mlp(params, x), classify, optax.sgd(0.1))
    metrics = jax.jit(lambda theta: evaluate(broken, classify, theta, sample, KEY, 2, 1))(THETA)
    assert np.isnan(metrics["accuracy"]).all() and metrics["accuracy"].shape == (2, 2)


def test_annotations_are_checked():
    """By the import hook: of a function of a module, and of all closures that one line makes."""
    with pytest.raises(TypeCheckError, match="values"):
        mean_ci95(jnp.ones(3, int))
    for algorithm in (descent(mlp, squared_error, optax.sgd(0.1)) for _ in range(2)):
        assert algorithm.init({"w": jnp.ones(3)}, KEY)
        with pytest.raises(TypeCheckError, match="key"):
            algorithm.init({"w": jnp.ones(3)}, 0)


def test_mean_and_confidence_interval():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    mean, half = mean_ci95(jnp.asarray(values))
    for column in range(3):
        v = [float(a) for a in values[:, column]]
        average = sum(v) / 50
        deviation = (sum((a - average) ** 2 for a in v) / 49) ** 0.5
        np.testing.assert_allclose(mean[column], average, rtol=1e-9)
        np.testing.assert_allclose(half[column], 1.96 * deviation / 50**0.5, rtol=1e-9)
