"""Outer steps and the loop around them."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import (
    Batch,
    DivergedError,
    Episode,
    InputError,
    MetaState,
    checkpoint,
    evaluate,
    fit,
    in_phases,
    init_state,
    meta_step,
)
from metajax.losses import classify, classify_corpus, squared_error
from metajax.parallel import hoisted, replicate, task_mesh
from metajax.recipes import by_chance
from metajax.tasks.episodes import episodes
from tests.conftest import assert_close, differs, equations, mlp, mlp_params, words

KEY = jax.random.key(0)
THETA = {"params": mlp_params()}
OUTER = optax.sgd(0.1)
OBJECTIVE = metajax.maml(mlp, squared_error, optax.sgd(0.3), 1).objective


def sample(key):
    x_key, y_key = jax.random.split(key)
    x, y = jax.random.normal(x_key, (2, 4, 3)), jax.random.normal(y_key, (2, 4, 4))
    return Episode(Batch(x[0], y[0]), Batch(x[1], y[1]))


def single_gradients(key, num_tasks):
    """The gradient of each task of an outer step, one at a time."""
    gradient = jax.jit(jax.grad(lambda theta, episode, key: OBJECTIVE(theta, episode, key)[0]))
    item_key, key = jax.random.split(key)
    for item, task_key in zip(jax.random.split(item_key, num_tasks), jax.random.split(key, num_tasks), strict=True):
        yield gradient(THETA, sample(item), task_key)


def test_a_meta_step_descends_the_mean_gradient():
    state, metrics = jax.jit(meta_step(OBJECTIVE, OUTER, sample, 4))(init_state(THETA, OUTER, 1), KEY)
    mean = jax.tree.map(lambda *g: sum(g) / 4, *single_gradients(KEY, 4))
    assert_close(state.theta, jax.tree.map(lambda p, g: p - 0.1 * g, THETA, mean), 1e-6)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(mean))), rtol=1e-5
    )
    assert int(state.count) == 1


@cache
def plain_step(tasks):
    return jax.jit(meta_step(OBJECTIVE, OUTER, sample, tasks))(init_state(THETA, OUTER, 1), KEY)


@pytest.mark.parametrize(
    ("tasks", "chunk", "devices"),
    [
        (4, 2, 1),
        (4, 1, 2),
        (4, None, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((5, None, 2), (3, 1, 2))),
    ],
)
def test_chunks_and_devices_change_nothing(tasks, chunk, devices):
    if jax.device_count() < devices:
        pytest.skip(f"{jax.device_count()} device, needs {devices}")
    mesh = task_mesh(tasks) if devices > 1 else None
    assert mesh is None or mesh.size == 2
    step, plain = meta_step(OBJECTIVE, OUTER, sample, tasks, chunk=chunk, mesh=mesh), plain_step(tasks)
    other = jax.jit(step)(init_state(THETA, OUTER, 1), KEY)
    assert_close(other[0].theta, plain[0].theta, 1e-6)
    assert_close(other[1], plain[1], 1e-6)


# a loss that falls by one in theta per step, until it is no longer finite
def counting(theta, episode, key):
    loss = jnp.where(theta["params"] > 2.5, jnp.nan, -theta["params"])
    return loss, {"loss": loss}


def steep(theta, episode, key):
    """A finite loss whose gradient is not."""
    loss = jnp.sqrt(0.0 * theta["params"])
    return loss, {"loss": loss}


def no_task(key):
    return Episode(Batch(jnp.zeros(1), jnp.zeros(1)), Batch(jnp.zeros(1), jnp.zeros(1)))


@pytest.mark.parametrize(("objective", "start"), [(counting, 3.0), (steep, 1.0)])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(objective, start):
    optimizer = optax.adam(1.0)
    state = init_state({"params": jnp.asarray(start)}, optimizer, 10, average=0.3)
    new, metrics = jax.jit(meta_step(objective, optimizer, no_task, 2))(state, KEY)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(metrics["loss"])


def test_fit_stops_where_the_loss_is_not_finite_and_keeps_the_last_good_state(tmp_path):
    optimizer = optax.sgd(1.0)
    state = init_state({"params": jnp.asarray(0.0)}, optimizer, 20)
    step = meta_step(counting, optimizer, no_task, 1)
    with pytest.raises(DivergedError, match=r"outer step 4;.*last\. A smaller .* learning rate is the usual cure"):
        fit(step, state, KEY, num_tasks=1, block=5, validate_every=10, folder=tmp_path, progress=False)
    kept = checkpoint.restore(tmp_path / "last", state)
    assert (float(kept.theta["params"]), int(kept.count)) == (3.0, 3)
    with pytest.raises(DivergedError, match=r"outer step 4\. "):
        fit(step, state, KEY, num_tasks=1, block=5, validate_every=10, progress=False)
    assert float(state.theta["params"]) == 0  # the caller's arrays were not donated


def test_a_first_step_that_is_not_finite_is_not_blamed_on_the_rate():
    state = init_state({"params": jnp.asarray(3.0)}, OUTER, 20)
    with pytest.raises(DivergedError) as caught:
        fit(meta_step(counting, OUTER, no_task, 1), state, KEY, num_tasks=1, progress=False)
    assert str(caught.value) == (
        "The loss is not finite at outer step 1. At the first step no rate is to blame: look for inputs that are not "
        "finite, labels out of range and derivatives that are not finite, as that of a root at 0."
    )


def test_fit_stops_where_a_validation_is_not_finite_and_names_the_checkpoint_before_it(tmp_path):
    scores = iter((0.5, float("nan")))
    with pytest.raises(DivergedError, match=r"nan at outer step 8; the checkpoint before it is kept in .*last"):
        run(12, folder=tmp_path, validate=lambda theta: next(scores))
    assert int(checkpoint.restore(tmp_path / "last", init_state(THETA, ADAM, 12)).count) == 4
    with pytest.raises(DivergedError, match=r"nan at outer step 4\."):
        run(12, validate=lambda theta: float("nan"))


ADAM = optax.adam(0.05)
CHEAP = metajax.joint(mlp, squared_error).objective  # what `fit` does is the same for any
STEP = meta_step(CHEAP, ADAM, sample, 2)
ONE_STEP = jax.jit(STEP)


def run(outer_steps, step=STEP, **options):
    options = {"block": 2, "validate_every": 4, "num_tasks": 2, "progress": False} | options
    return fit(step, init_state(THETA, ADAM, outer_steps), KEY, **options)


def loop(outer_steps):
    """The state and the losses of outer steps taken one by one."""
    state, losses = init_state(THETA, ADAM, outer_steps), []
    for number in range(outer_steps):
        state, metrics = ONE_STEP(state, jax.random.fold_in(KEY, number))
        losses.append(float(metrics["loss"]))
    return state, losses


def identical(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_phases_follow_one_another():
    """Here shares of 2.4 and 2.6 steps, rounded to where a phase ends; the last phase goes on."""

    def adds(by):
        return lambda state, key: (
            state._replace(theta=state.theta + by, count=state.count + 1), {"loss": state.theta},
        )  # fmt: skip

    steps = [adds(by) for by in (1, 10, 100)]
    step = in_phases([(0.24, steps[0]), (0.26, steps[1]), (0.5, steps[2])])
    state = MetaState(jnp.zeros(()), (), jnp.zeros((), jnp.int32), jnp.int32(10), (), ())
    thetas = []
    for _ in range(12):
        state, _ = jax.jit(step)(state, KEY)
        thetas.append(int(state.theta))
    assert thetas == [1, 2, 12, 22, 32, 132, 232, 332, 432, 532, 632, 732]
    alone = in_phases([(1.0, steps[1])])
    assert int(alone(state, KEY)[0].theta) == 742


def test_steps_by_chance_are_taken_in_proportion_to_their_weights():
    def adds(by):
        return lambda state, key: (state._replace(theta=state.theta + by), {"loss": jax.random.uniform(key)})

    step = jax.jit(jax.vmap(by_chance([(2.0, adds(1)), (0.0, adds(10)), (6.0, adds(100))]), (None, 0)))
    state = MetaState(jnp.zeros(()), (), jnp.zeros((), jnp.int32), jnp.int32(10), (), ())
    after, metrics = step(state, jax.random.split(KEY, 4000))
    values, counts = np.unique(after.theta, return_counts=True)
    assert values.tolist() == [1, 100] and abs(counts[0] - 1000) < 110  # four deviations
    rare = np.asarray(metrics["loss"])[after.theta == 1]
    assert abs(rare.mean() - 0.5) < 0.04  # what a step draws does not follow from which one it is


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_chances_that_are_no_weights_are_refused(weights):
    with pytest.raises(InputError, match="expected one or more, none below 0, not all 0"):
        by_chance([(weight, lambda state, key: (state, {})) for weight in weights])


@pytest.mark.parametrize(("shares", "told"), [((0.5, 0.4), "sum of 1"), ((1.5, -0.5), "sum of 1"), ((), "is empty")])
def test_phases_that_are_no_shares_are_refused(shares, told):
    with pytest.raises(InputError, match=told):
        in_phases([(share, lambda state, key: (state, {})) for share in shares])


def test_fit_is_a_loop_of_steps_keyed_by_their_number():
    state, losses = loop(5)
    result = run(5)
    assert_close(result.state.theta, state.theta, 1e-5)
    assert_close(result.theta, result.state.theta, 0)
    assert int(result.state.count) == 5
    assert result.validation is None
    assert result.seconds > 0
    assert result.first_step_seconds > 0
    assert len(set(losses)) == 5
    assert_close(run(5, block=4, validate_every=4).theta, result.theta, 1e-6)  # blocks change nothing


@pytest.mark.parametrize(("chunk", "devices"), [(None, 1), (1, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_no_corpus_becomes_a_constant_of_the_program(monkeypatch, chunk, devices):
    """Else it is compiled in, hashed and kept in the cache once for every program, and takes as much memory again."""
    if jax.device_count() < devices:
        pytest.skip(f"{jax.device_count()} device, needs {devices}")
    corpus = jax.random.normal(KEY, (1000, 3))

    def from_corpus(key):
        x = corpus[jax.random.randint(key, (4,), 0, len(corpus))]
        return Episode(Batch(x, jnp.zeros((4, 4))), Batch(x, jnp.ones((4, 4))))

    found = []

    def spy(f, **options):
        def call(*args):
            inner = (leaf for eqn in equations(f, *args) for leaf in jax.tree.leaves(eqn.params))
            found.append([const.shape for leaf in inner for const in getattr(leaf, "consts", ())])
            return hoisted(f, **options)(*args)

        return call

    monkeypatch.setattr("metajax.train.hoisted", spy)
    mesh = jax.make_mesh((devices,), ("tasks",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    step = meta_step(CHEAP, OUTER, from_corpus, 4, chunk=chunk, mesh=mesh)
    fit(step, replicate(init_state(THETA, OUTER, 1), mesh), KEY, num_tasks=4, progress=False)
    assert len(found) == 1
    assert corpus.shape not in found[0]


def test_fit_compiles_its_steps_once(caplog):
    """Also where the state lies on no device in particular, while the sampler's arrays do."""
    arrays = sample(KEY)
    step = meta_step(CHEAP, OUTER, lambda key: arrays, 2)
    theta = THETA | {"log_rate": jnp.log(0.1)}  # weakly typed
    with jax.log_compiles():
        fit(step, init_state(theta, OUTER, 5), KEY, num_tasks=2, block=2, validate_every=2, progress=False)
    assert sum("Compiling jit(opened)" in record.getMessage() for record in caplog.records) == 1


def test_lines_of_metrics_are_means_over_their_block(tmp_path):
    _, losses = loop(4)
    run(4, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line.keys() == {"step", "seconds", "loss", "grad_norm"} for line in lines)
    np.testing.assert_allclose([line["loss"] for line in lines], [np.mean(losses[:2]), np.mean(losses[2:])], rtol=1e-5)


def test_fit_makes_its_folder(tmp_path):
    run(2, folder=tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run" / "metrics.jsonl").exists()


def test_a_fresh_run_in_an_old_folder_is_refused_and_nothing_lost(tmp_path):
    run(4, folder=tmp_path)
    with pytest.raises(InputError, match="already holds metrics"):
        run(4, folder=tmp_path)
    assert [line["step"] for line in checkpoint.read_lines(tmp_path / "metrics.jsonl")] == [2, 4]


def test_fit_keeps_the_best_theta(tmp_path):
    scores, seen = iter([0.2, 0.9, 0.5]), []

    def validate(theta):
        seen.append(jax.tree.map(np.asarray, theta))
        return next(scores)

    result = run(12, folder=tmp_path, validate=validate)
    assert result.validation == 0.9
    identical(result.theta, seen[1])
    identical(checkpoint.restore(tmp_path / "best", THETA), seen[1])
    assert differs(result.theta, result.state.theta, 1e-4)
    validations = [line.get("validation") for line in checkpoint.read_lines(tmp_path / "metrics.jsonl")]
    assert validations == [None, 0.2, None, 0.9, None, 0.5]


def test_an_algorithm_is_no_objective(unchecked):
    with pytest.raises(InputError, match="objective is of type Algorithm, expected a function, such as an algorithm's"):
        meta_step(metajax.joint(mlp, squared_error), OUTER, sample, 2)


def test_an_objective_without_a_loss_among_its_metrics_is_refused():
    step = meta_step(lambda *args: (OBJECTIVE(*args)[0], {"accuracy": jnp.ones(())}), OUTER, sample, 2)
    with pytest.raises(InputError, match=r"metrics are \['accuracy'\], expected loss among them"):
        jax.eval_shape(step, init_state(THETA, OUTER, 1), KEY)


@pytest.mark.parametrize("chunk", [None, 1])
def test_fit_traces_its_step_once(chunk):
    traces, at_validation = [], []

    def objective(theta, episode, key):
        traces.append(1)
        return CHEAP(theta, episode, key)

    step = meta_step(objective, ADAM, sample, 2, chunk=chunk)
    run(9, step, validate=lambda theta: at_validation.append(len(traces)) or 0.0)
    assert len(at_validation) == 3
    assert at_validation[0] == len(traces) == 1


def test_bad_arguments_of_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="resume needs the folder"):
        run(4, resume=True)
    with pytest.raises(InputError, match="last: no checkpoint there"):
        run(4, resume=True, folder=tmp_path)


@pytest.mark.parametrize(
    ("labels", "learns"), [("corpus", True), pytest.param("episode", False, marks=pytest.mark.slow)]
)
def test_joint_training_learns_corpus_labels_and_stays_at_chance_on_episode_labels(labels, learns):
    """Episode labels are dealt anew in every episode: nothing that holds for all of them can be learned."""
    label, speaker = words(classes=4, speakers=4, takes=3)
    noise = np.random.default_rng(0).normal(size=(len(label), 4))
    features = jnp.asarray(np.eye(4)[label] + 0.1 * noise, jnp.float32)
    draw = episodes(features, label, speaker, ways=4, shots=1, queries=2)
    error = classify_corpus if labels == "corpus" else classify
    algorithm = metajax.joint(lambda params, x, key: x @ params, error)
    optimizer = optax.adam(0.1)
    state = init_state({"params": jnp.zeros((4, 4))}, optimizer, 60)
    step = meta_step(algorithm.objective, optimizer, draw, 8)
    theta = fit(step, state, KEY, num_tasks=8, block=30, validate_every=30, progress=False).theta
    curve = jax.jit(
        lambda theta: evaluate(algorithm.learner, error, theta, draw, jax.random.key(1), 100, 0, chunk=100)
    )(theta)
    accuracy = float(curve["accuracy"].mean())
    assert accuracy > 0.97 if learns else abs(accuracy - 0.25) < 0.08
