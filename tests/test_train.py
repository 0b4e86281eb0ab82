"""Outer steps and the loop around them."""

import json

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
from metajax.losses import cross_entropy
from metajax.parallel import hoisted, replicate, task_mesh
from metajax.tasks.episodes import episodes
from metajax.train import average_of, averaged
from tests.conftest import assert_close, differs, equations, mlp_params, square_loss, words

KEY = jax.random.key(0)
THETA = jax.jit(mlp_params)(KEY)
OUTER = optax.sgd(0.1)
OBJECTIVE = metajax.maml(square_loss, optax.sgd(0.3), 1).objective


def sample(key):
    x_key, y_key = jax.random.split(key)
    x, y = jax.random.normal(x_key, (2, 4, 3)), jax.random.normal(y_key, (2, 4, 4))
    return Episode(Batch(x[0], y[0]), Batch(x[1], y[1]))


def single_gradients(key, num_tasks):
    """The gradient of each task of an outer step, one at a time."""
    gradient = jax.jit(jax.grad(lambda theta, episode, key: OBJECTIVE(theta, episode, key)[0]))
    for task in jax.random.split(key, num_tasks):
        sample_key, task_key = jax.random.split(task)
        yield gradient(THETA, sample(sample_key), task_key)


def test_a_meta_step_descends_the_mean_gradient():
    state, metrics = jax.jit(meta_step(OBJECTIVE, OUTER, sample, 4))(init_state(THETA, OUTER), KEY)
    mean = jax.tree.map(lambda *g: sum(g) / 4, *single_gradients(KEY, 4))
    assert_close(state.theta, jax.tree.map(lambda p, g: p - 0.1 * g, THETA, mean), 1e-6)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(mean))), rtol=1e-5
    )
    assert int(state.count) == 1


@pytest.mark.parametrize(("tasks", "chunk", "devices"), [(4, 2, 1), (4, 1, 2), (4, None, 2), (5, None, 2), (3, 1, 2)])
def test_chunks_and_devices_change_nothing(tasks, chunk, devices):
    if jax.device_count() < devices:
        pytest.skip(f"{jax.device_count()} device, needs {devices}")
    mesh = task_mesh(tasks) if devices > 1 else None
    assert mesh is None or mesh.size == 2
    plain, other = (
        jax.jit(meta_step(OBJECTIVE, OUTER, sample, tasks, **options))(init_state(THETA, OUTER), KEY)
        for options in ({}, {"chunk": chunk, "mesh": mesh})
    )
    assert_close(other[0].theta, plain[0].theta, 1e-6)
    assert_close(other[1], plain[1], 1e-6)


# a loss that falls by one in theta per step, until it is no longer finite
def counting(theta, episode, key):
    loss = jnp.where(theta > 2.5, jnp.nan, -theta)
    return loss, {"loss": loss}


def steep(theta, episode, key):
    """A finite loss whose gradient is not."""
    loss = jnp.sqrt(0.0 * theta)
    return loss, {"loss": loss}


def no_task(key):
    return Episode(Batch(jnp.zeros(1), jnp.zeros(1)), Batch(jnp.zeros(1), jnp.zeros(1)))


@pytest.mark.parametrize(("objective", "start"), [(counting, 3.0), (steep, 1.0)])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(objective, start):
    optimizer = optax.adam(1.0)
    state = init_state(jnp.asarray(start), optimizer)
    new, metrics = jax.jit(meta_step(objective, optimizer, no_task, 2))(state, KEY)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(metrics["loss"])


def test_fit_stops_where_the_loss_is_not_finite_and_keeps_the_last_good_state(tmp_path):
    optimizer = optax.sgd(1.0)
    state = init_state(jnp.asarray(0.0), optimizer)
    step = meta_step(counting, optimizer, no_task, 1)
    with pytest.raises(DivergedError, match=r"outer step 4.*last"):
        fit(step, state, KEY, 20, num_tasks=1, block=5, validate_every=10, folder=tmp_path, progress=False)
    kept = checkpoint.restore(tmp_path / "last", state)
    assert (float(kept.theta), int(kept.count)) == (3.0, 3)
    with pytest.raises(DivergedError, match=r"outer step 4\. "):
        fit(step, state, KEY, 20, num_tasks=1, block=5, validate_every=10, progress=False)
    assert float(state.theta) == 0  # the caller's arrays were not donated


def test_fit_stops_where_a_validation_is_not_finite_and_names_the_checkpoint_before_it(tmp_path):
    scores = iter((0.5, float("nan")))
    with pytest.raises(DivergedError, match=r"nan at outer step 8; the checkpoint before it is kept in .*last"):
        run(12, folder=tmp_path, validate=lambda theta: next(scores))
    assert int(checkpoint.restore(tmp_path / "last", init_state(THETA, ADAM)).count) == 4
    with pytest.raises(DivergedError, match=r"nan at outer step 4\."):
        run(12, validate=lambda theta: float("nan"))


ADAM = optax.adam(0.05)
STEP = meta_step(OBJECTIVE, ADAM, sample, 2)
ONE_STEP = jax.jit(STEP)


def run(outer_steps, step=STEP, **options):
    options = {"block": 2, "validate_every": 4, "num_tasks": 2, "progress": False} | options
    return fit(step, init_state(THETA, ADAM), KEY, outer_steps, **options)


def loop(outer_steps):
    """The state and the losses of outer steps taken one by one."""
    state, losses = init_state(THETA, ADAM), []
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
        return lambda state, key: (MetaState(state.theta + by, (), state.count + 1), {"loss": state.theta})

    steps = [adds(by) for by in (1, 10, 100)]
    step = in_phases([(0.24, steps[0]), (0.26, steps[1]), (0.5, steps[2])], 10)
    state = MetaState(jnp.zeros(()), (), jnp.zeros((), jnp.int32))
    thetas = []
    for _ in range(12):
        state, _ = jax.jit(step)(state, KEY)
        thetas.append(int(state.theta))
    assert thetas == [1, 2, 12, 22, 32, 132, 232, 332, 432, 532, 632, 732]
    alone = in_phases([(1.0, steps[1])], 10)
    assert int(alone(state, KEY)[0].theta) == 742


@pytest.mark.parametrize(("shares", "told"), [((0.5, 0.4), "sum of 1"), ((1.5, -0.5), "sum of 1"), ((), "is empty")])
def test_phases_that_are_no_shares_are_refused(shares, told):
    with pytest.raises(InputError, match=told):
        in_phases([(share, lambda state, key: (state, {})) for share in shares], 10)


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


@pytest.mark.parametrize(("chunk", "devices"), [(None, 1), (1, 1), (1, 2)])
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
    step = meta_step(OBJECTIVE, OUTER, from_corpus, 4, chunk=chunk, mesh=mesh)
    fit(step, replicate(init_state(THETA, OUTER), mesh), KEY, 1, num_tasks=4, progress=False)
    assert len(found) == 1
    assert corpus.shape not in found[0]


def test_fit_compiles_its_steps_once(caplog):
    """Also where the state lies on no device in particular, while the sampler's arrays do."""
    arrays = sample(KEY)
    step = meta_step(OBJECTIVE, OUTER, lambda key: arrays, 2)
    with jax.log_compiles():
        fit(step, init_state(THETA, OUTER), KEY, 5, num_tasks=2, block=2, validate_every=2, progress=False)
    assert sum("Compiling jit(opened)" in record.getMessage() for record in caplog.records) == 1


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    score = lambda theta: float(theta["b0"].sum())  # noqa: E731
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run(8, folder=tmp_path / "whole", validate=score)

    def killed(theta, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(theta)

    with pytest.raises(KeyboardInterrupt):
        run(8, folder=tmp_path / "parts", validate=killed)  # dies at step 8; the last checkpoint is of step 4
    resumed = run(8, folder=tmp_path / "parts", validate=score, resume=True)
    identical(resumed.state, whole.state)
    identical(resumed.theta, whole.theta)
    assert resumed.validation == whole.validation
    logs = [checkpoint.read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [[line["step"] for line in log] for log in logs] == [[2, 4, 6, 8]] * 2
    scores = [[line.get("validation") for line in log] for log in logs]
    assert scores[0] == scores[1]
    again = run(8, folder=tmp_path / "parts", resume=True)  # nothing left to do
    identical(again.state, whole.state)


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


def test_an_objective_without_a_loss_among_its_metrics_is_refused():
    step = meta_step(lambda *args: (OBJECTIVE(*args)[0], {"accuracy": jnp.ones(())}), OUTER, sample, 2)
    with pytest.raises(InputError, match=r"metrics are \['accuracy'\], expected loss among them"):
        step(init_state(THETA, OUTER), KEY)


def test_a_training_in_phases_resumes_within_its_second(tmp_path):
    """A tenth of the gradient from the fourth step on."""

    def scaled(rate):
        def objective(*args):
            loss, metrics = OBJECTIVE(*args)
            return rate * loss, metrics

        return meta_step(objective, OUTER, sample, 2)

    def phased(outer_steps, phases, folder=None, **options):
        options |= {"num_tasks": 2, "block": 2, "validate_every": 4, "progress": False, "folder": folder}
        return fit(in_phases(phases, 10), init_state(THETA, OUTER), KEY, outer_steps, **options)

    steps = [(0.3, scaled(1.0)), (0.7, scaled(0.1))]
    whole = phased(10, steps)
    phased(4, steps, tmp_path)
    identical(phased(10, steps, tmp_path, resume=True).state, whole.state)
    for share in (0.0, 1.0):  # neither phase alone does the same
        alone = phased(10, [(share, steps[0][1]), (1 - share, steps[1][1])])
        assert differs(alone.theta, whole.theta, 1e-4)


def test_a_run_resumes_where_theta_alone_was_placed(tmp_path):
    mesh = task_mesh(2)
    step = meta_step(OBJECTIVE, ADAM, sample, 2, mesh=mesh)

    def placed(outer_steps, **options):
        state = init_state(replicate(THETA, mesh), ADAM)
        options |= {"num_tasks": 2, "block": 2, "validate_every": 4, "progress": False}
        return fit(step, state, KEY, outer_steps, **options)

    placed(4, folder=tmp_path)
    resumed = placed(8, folder=tmp_path, resume=True)
    identical(resumed.state, placed(8).state)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(resumed.state)} == {2}


def test_the_average_of_theta_is_validated_kept_and_resumed(tmp_path):
    optimizer = averaged(ADAM, 0.3)
    step, state, seen = meta_step(OBJECTIVE, optimizer, sample, 2), init_state(THETA, optimizer), []
    assert_close(average_of(state), THETA, 0)

    def average(outer_steps, **options):
        options |= {"block": 2, "validate_every": 4, "num_tasks": 2, "progress": False}
        return fit(step, init_state(THETA, optimizer), KEY, outer_steps, **options)

    expected = THETA
    for number in range(8):
        d = min(0.3, number / (number + 10))
        theta = loop(number + 1)[0].theta
        expected = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * b, expected, theta)
    whole = average(8, folder=tmp_path / "whole", validate=lambda theta: seen.append(theta) or float(len(seen)))
    assert_close(whole.theta, expected, 1e-5)
    assert_close(whole.state.theta, theta, 1e-5)  # training itself does not see the average
    assert differs(whole.theta, theta, 1e-3)
    identical(seen[-1], whole.theta)
    average(4, folder=tmp_path / "parts")
    identical(average(8, folder=tmp_path / "parts", resume=True).theta, whole.theta)
    # a step that is not finite leaves the average alone
    optimizer = averaged(OUTER, 0.3)
    state = init_state(jnp.asarray(3.0), optimizer)
    identical(jax.jit(meta_step(counting, optimizer, no_task, 1))(state, KEY)[0], state)
    with pytest.raises(InputError, match="decay is 1.0"):
        averaged(OUTER, 1.0)


@pytest.mark.parametrize("chunk", [None, 1])
def test_fit_traces_its_step_once(chunk):
    traces, at_validation = [], []

    def objective(theta, episode, key):
        traces.append(1)
        return OBJECTIVE(theta, episode, key)

    step = meta_step(objective, ADAM, sample, 2, chunk=chunk)
    run(9, step, validate=lambda theta: at_validation.append(len(traces)) or 0.0)
    assert len(at_validation) == 3
    assert at_validation[0] == len(traces) == 1


def test_bad_arguments_of_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="validate_every is 5, expected a multiple of block, 2"):
        run(4, validate_every=5)
    with pytest.raises(InputError, match="resume needs the folder"):
        run(4, resume=True)
    with pytest.raises(InputError, match="last: no checkpoint there"):
        run(4, resume=True, folder=tmp_path)


@pytest.mark.parametrize(("labels", "learns"), [("corpus", True), ("episode", False)])
def test_joint_training_learns_corpus_labels_and_stays_at_chance_on_episode_labels(labels, learns):
    """Episode labels are dealt anew in every episode: nothing that holds for all of them can be learned."""
    label, speaker = words(classes=4, speakers=4, takes=3)
    noise = np.random.default_rng(0).normal(size=(len(label), 4))
    features = jnp.asarray(np.eye(4)[label] + 0.1 * noise, jnp.float32)
    draw = episodes(features, label, speaker, ways=4, shots=1, queries=2)
    algorithm = metajax.joint(cross_entropy(lambda params, x: x @ params, labels))
    optimizer = optax.adam(0.1)
    state = init_state(jnp.zeros((4, 4)), optimizer)
    step = meta_step(algorithm.objective, optimizer, draw, 8)
    theta = fit(step, state, KEY, 60, num_tasks=8, block=30, validate_every=30, progress=False).theta
    curve = jax.jit(lambda theta: evaluate(algorithm.learner, theta, draw, jax.random.key(1), 100, 0, chunk=100))(theta)
    accuracy = float(curve["accuracy"].mean())
    assert accuracy > 0.97 if learns else abs(accuracy - 0.25) < 0.08
