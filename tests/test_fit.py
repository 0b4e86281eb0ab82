"""Training that stops and goes on, follows a plan or a budget of time, and takes episodes from the host."""

import jax
import numpy as np
import optax
import pytest

from metajax import InputError, checkpoint, fit, in_phases, init_state, meta_step, outer_step, trained
from metajax.parallel import replicate, task_mesh
from tests.conftest import assert_close, differs
from tests.test_train import ADAM, CHEAP, KEY, OUTER, STEP, THETA, identical, loop, run, sample


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    score = lambda theta: float(theta["params"]["b0"].sum())  # noqa: E731
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


@pytest.mark.slow
def test_a_state_with_random_keys_of_its_own_resumes(tmp_path):
    """Here that of noise on the outer gradients."""
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(5)), OUTER)

    def trained_for(steps, **options):
        state = init_state(THETA, noisy, steps)
        return fit(meta_step(CHEAP, noisy, sample, 2), state, KEY, num_tasks=2, block=2, progress=False, **options)

    trained_for(2, folder=tmp_path)
    whole = trained_for(4).theta
    assert differs(whole, THETA, 1e-3)
    identical(trained_for(4, folder=tmp_path, resume=True).theta, whole)


@pytest.mark.slow
def test_a_training_in_phases_resumes_within_its_second_and_keeps_its_average(tmp_path):
    """A tenth of the gradient from the fourth step on."""

    def scaled(rate):
        def objective(*args):
            loss, metrics = CHEAP(*args)
            return rate * loss, metrics

        return meta_step(objective, OUTER, sample, 2)

    def phased(phases, folder=None, **options):
        state = init_state(THETA, OUTER, 10, average=0.3)
        options |= {"num_tasks": 2, "block": 2, "validate_every": 4, "progress": False, "folder": folder}
        return fit(in_phases(phases), state, KEY, **options)

    steps = [(0.3, scaled(1.0)), (0.7, scaled(0.1))]
    whole = phased(steps)
    assert differs(whole.theta, whole.state.theta, 1e-4)
    scores = iter((0.0,))
    with pytest.raises(StopIteration):  # dies at step 8; the last checkpoint is of step 4
        phased(steps, tmp_path, validate=lambda theta: next(scores))
    resumed = phased(steps, tmp_path, resume=True)
    identical(resumed.state, whole.state)
    for share in (0.0, 1.0):  # neither phase alone does the same
        alone = phased([(share, steps[0][1]), (1 - share, steps[1][1])])
        assert differs(alone.theta, whole.theta, 1e-4)


@pytest.mark.slow
def test_a_run_resumes_where_theta_alone_was_placed(tmp_path):
    mesh = task_mesh(2)
    step = meta_step(CHEAP, ADAM, sample, 2, mesh=mesh)

    def placed(outer_steps, **options):
        state = init_state(replicate(THETA, mesh), ADAM, outer_steps)
        options |= {"num_tasks": 2, "block": 2, "validate_every": 4, "progress": False}
        return fit(step, state, KEY, **options)

    placed(4, folder=tmp_path)
    resumed = placed(8, folder=tmp_path, resume=True)
    identical(resumed.state, placed(8).state)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(resumed.state)} == {2}


@pytest.mark.slow
def test_the_average_of_theta_is_validated_kept_and_resumed(tmp_path):
    seen = []
    identical(trained(init_state(THETA, ADAM, 1, average=0.3)), THETA)

    def average(outer_steps, **options):
        options |= {"block": 2, "validate_every": 4, "num_tasks": 2, "progress": False}
        return fit(STEP, init_state(THETA, ADAM, outer_steps, average=0.3), KEY, **options)

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
    with pytest.raises(InputError, match="average is 1.0"):
        init_state(THETA, ADAM, 1, average=1.0)
    with pytest.raises(InputError, match="outer_steps is 0, expected 1 or more"):
        init_state(THETA, ADAM, 0)


@pytest.mark.slow
def test_a_block_that_does_not_divide_validate_every_validates_at_the_end_of_a_block(tmp_path):
    for folder, block, steps, wanted in (("a", 3, 8, [6, 8]), ("b", 100, 4, [4]), ("c", 2, 6, [2, 4, 6])):
        options = {"validate_every": 1 if folder == "c" else 4, "folder": tmp_path / folder}
        run(steps, block=block, validate=lambda theta: 0.5, **options)
        lines = checkpoint.read_lines(tmp_path / folder / "metrics.jsonl")
        assert [line["step"] for line in lines if "validation" in line] == wanted
    assert int(run(4, block=100).state.count) == 4


def streamed(outer_steps):
    """The items that `STEP` draws, as a host would give them: stacked episodes, an outer step each."""
    for number in range(outer_steps):
        item_key, _ = jax.random.split(jax.random.fold_in(KEY, number))
        yield jax.tree.map(np.asarray, jax.vmap(sample)(jax.random.split(item_key, 2)))


def taken(state, items, key):
    return outer_step(CHEAP, ADAM)(state, items, jax.random.split(key)[1])


@pytest.mark.slow
def test_streamed_episodes_give_what_drawn_ones_give_and_resume_where_they_stopped(tmp_path):
    drawn = run(8)
    given = run(8, taken, episodes=streamed(8))
    assert_close(given.theta, drawn.theta, 1e-5)
    run(4, taken, episodes=streamed(4), folder=tmp_path)
    resumed = run(8, taken, episodes=streamed(8), folder=tmp_path, resume=True)
    identical(resumed.state, given.state)
    assert [line["step"] for line in checkpoint.read_lines(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8]


def test_episodes_that_end_early_or_change_in_shape_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^episodes ended before outer step 6 of 8\.$"):
        run(8, taken, episodes=streamed(5))
    run(4, taken, episodes=streamed(4), folder=tmp_path)
    with pytest.raises(InputError, match=r"^episodes ended before outer step 5 of 8\.$"):
        run(8, taken, episodes=streamed(1), folder=tmp_path, resume=True)

    def other(change):
        yield from streamed(2)
        yield change(next(streamed(1)))

    told = (
        r"^episodes hold float32\[2, 3, 3\] in support\.x at outer step 3, expected float32\[2, 4, 3\], as at first\.$"
    )
    with pytest.raises(InputError, match=told):
        run(8, taken, episodes=other(lambda task: jax.tree.map(lambda a: a[:, :3], task)))
    with pytest.raises(InputError, match=r"hold nothing in query\.y at outer step 3, expected float32"):
        run(8, taken, episodes=other(lambda task: task._replace(query=task.query._replace(y=()))))


def test_a_budget_of_time_ends_training_and_the_schedule_follows_it():
    """The plan is far too long; the share of the steps done still comes to 1 at the end."""
    shares = []

    def watched(objective):
        def step(state, key):
            state, metrics = objective(state, key)
            jax.debug.callback(lambda a: shares.append(float(a)), (state.count - 1) / state.total)
            return state, metrics

        return step

    result = run(10**6, watched(STEP), block=20, seconds=0.5)
    count = int(result.state.count)
    assert 0.3 < result.seconds < 20 and 1 < count < 10**6
    assert shares[0] < 1e-3 and 0.5 < shares[-1] <= 1.0
    assert int(result.state.total) < 2 * count
    short = run(30, block=10, seconds=0.0)
    assert int(short.state.count) <= 1
