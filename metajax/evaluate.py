"""Adaptation curves: how good a model is after 0, 1, 2, ... steps on a new task."""

import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from metajax.core import Episode, Error, KeyArray, Learner, Metrics, Phi, Sampler, Theta, adapt, scalar
from metajax.errors import InputError
from metajax.parallel import hoisted, over_tasks, replicate


def evaluate(
    learner: Learner,
    error: Error,
    theta: Theta,
    sample: Sampler,
    key: KeyArray,
    num_tasks: int,
    num_steps: int,
    *,
    chunk: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> Metrics:
    """Query metrics of fresh tasks after each adaptation step.

    Every call compiles; `run = mj.hoisted(lambda theta: mj.evaluate(learner, error, theta, ...))` does so once.

    Args:
      learner: how a task is learned.
      error: `(outputs, y) -> (scalar, metrics)` of the query set, such as `classify`.
      theta: what all tasks share.
      sample: task distribution.
      key: fixes the tasks: equal keys give equal tasks, also for another learner.
      num_tasks: number of tasks.
      num_steps: adaptation steps.
      chunk: tasks at a time on each device.
      mesh: devices over which the tasks are spread, from `task_mesh(num_tasks)`; None for one.

    Returns:
      Metrics, each of shape `[num_tasks, num_steps + 1]`.
    """

    def one(theta: Theta, key: KeyArray) -> Metrics:
        return curve(learner, error, theta, drawn(sample, key), key, num_steps)

    def curves(theta: Theta, keys: Key[Array, " tasks"]) -> Metrics:
        return jax.lax.map(lambda key: one(theta, key), keys, batch_size=None if chunk == 1 else chunk)

    keys = jax.random.split(key, num_tasks)
    run = curves if mesh is None else over_tasks(curves, mesh)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((theta, keys)))
    if traced:
        return run(theta, keys)
    return hoisted(run)(theta if mesh is None else replicate(theta, mesh), keys)


def drawn(sample: Sampler, key: KeyArray) -> Episode:
    """The episode of `evaluate`'s key of a task."""
    return sample(jax.random.split(key, 3)[0])


def curve(learner: Learner, error: Error, theta: Theta, episode: Episode, key: KeyArray, num_steps: int) -> Metrics:
    """Query metrics of one task after each of the steps 0..num_steps, `[num_steps + 1]`."""
    _, adapt_key, query_key = jax.random.split(key, 3)

    def probe(phi: Phi) -> Metrics:
        return scalar(error(learner.predict(theta, phi, episode.query.x, query_key), episode.query.y))[1]

    return adapt(learner, theta, episode.support, adapt_key, num_steps, probe)[1]


def adaptation_ms(learner: Learner, theta: Theta, sample: Sampler, num_steps: int) -> float:
    """Median milliseconds to learn one task on one device, compiled."""
    support = hoisted(sample)(jax.random.key(0)).support
    run = jax.jit(lambda theta, support, key: adapt(learner, theta, support, key, num_steps)[0])
    theta = jax.device_put(jax.tree.map(np.asarray, theta), jax.devices()[0])
    times = []
    for i in range(22):
        start = time.perf_counter()
        jax.block_until_ready(run(theta, support, jax.random.key(i)))
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[2:]))


def mean_ci95(values: Float[ArrayLike, "tasks ..."]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over tasks and half the width of its 95 % confidence interval, 1.96 * std / sqrt(tasks)."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        raise InputError(f"{len(array)} task, expected at least 2 for a confidence interval.")
    return array.mean(0), 1.96 * array.std(0, ddof=1) / np.sqrt(len(array))


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over a few runs, and half the width of its 95 % interval by Student's t; None for a single run."""
    from scipy.stats import t  # a third of a second

    array = np.asarray(values, np.float64)
    half = float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
    return {"mean": float(array.mean()), "ci95": half}


def over_runs(values: Sequence[Float[np.ndarray, " _tasks"]]) -> dict[str, float | None]:
    """As `over_seeds` of the means of several runs; of a single one, over its tasks."""
    if len(values) > 1:
        return over_seeds([float(value.mean()) for value in values])
    mean, half = mean_ci95(values[0][:, None])
    return {"mean": float(mean[0]), "ci95": float(half[0])}
