"""The recipe that scripts train with: AdamW with warm-up, cosine decay and clipping, tasks spread over the devices."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from metajax import checkpoint
from metajax.core import KeyArray, Metrics, Objective, Params, Sampler, Theta
from metajax.errors import InputError
from metajax.parallel import replicate, run_once, task_mesh
from metajax.train import Fit, MetaState, OuterStep, fit, in_phases, init_state, meta_step

WARMUP = 0.1  # share of the outer steps
Samplers = Sampler | Sequence[tuple[float, Sampler]]  # or several, with weights


def warmup_cosine(progress: Array) -> Array:
    """A factor of the updates that rises to 1 within the first tenth and falls to 0 as a cosine by the end."""
    rising = progress / WARMUP
    falling = 0.5 * (1 + jnp.cos(jnp.pi * (progress - WARMUP) / (1 - WARMUP)))
    return jnp.where(progress < WARMUP, jnp.minimum(rising + 0.01, 1), falling)


def adamw(outer_rate: float = 2e-3, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a norm of 10."""
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(outer_rate, weight_decay=weight_decay))


def by_chance(choices: Sequence[tuple[float, OuterStep]]) -> OuterStep:
    """One outer step that takes one of several at random, with probabilities in proportion to their weights.

    So a training on utterances in buckets, a `meta_step` on each, pads no batch beyond its own bucket.

    Args:
      choices: weights and outer steps, all of them on the same state.

    Raises:
      InputError: there is none, or a weight is negative, or not finite, or all are 0.

    Example:
      ``step = by_chance([(weight, meta_step(objective, optimizer, sample, 4)) for weight, sample in buckets])``
    """
    weights, steps = [weight for weight, _ in choices], [step for _, step in choices]
    if not weights or not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise InputError(f"The weights of the choices are {weights}, expected one or more, none below 0, not all 0.")
    shares = jnp.array(weights) / sum(weights)

    def step(state: MetaState, key: KeyArray) -> tuple[MetaState, Metrics]:
        place, key = jax.random.split(key)
        return jax.lax.switch(jax.random.choice(place, len(steps), p=shares), steps, state, key)

    return step


def fresh(init: Callable[[KeyArray, Any], Params], sample: Sampler, key: KeyArray) -> Params:
    """A network's parameters for the inputs of `sample`, made by one compiled program."""
    x = jax.eval_shape(sample, key).support.x
    return run_once(init, key, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x))


def meta_train(
    phases: list[tuple[float, Objective]],
    theta: Theta,
    sample: Samplers,
    key: KeyArray,
    outer_steps: int,
    *,
    optimizer: optax.GradientTransformation,
    num_tasks: int = 4,
    chunk: int | None = None,
    average: float = 0.0,
    validate: Callable[[Theta], float] | None = None,
    **options: Any,
) -> Fit:
    """Train theta on objectives that follow each other, each with its share of the outer steps.

    Args:
      phases: shares, with a sum of 1, and objectives; `[(1.0, algorithm.objective)]` for one.
      theta: from `Learner.init`.
      sample: task distribution; or several with their weights, of which each outer step draws one, such as buckets.
      key: fixes the tasks of all outer steps.
      outer_steps: number of outer steps; under `seconds` the first guess of it.
      optimizer: such as `adamw()`; its updates follow `warmup_cosine`.
      num_tasks: episodes per outer step.
      chunk: episodes at a time on each device; None for all.
      average: decay of theta's moving average; 0 for none.
      validate: score of a theta, larger is better.
      **options: passed to `fit`: `seconds`, `folder`, `resume`, `title`, `validate_every`.

    Returns:
      As `fit`.
    """
    mesh = task_mesh(num_tasks)
    how: dict[str, Any] = {"chunk": chunk, "mesh": mesh, "schedule": warmup_cosine}

    def step(objective: Objective) -> OuterStep:
        one = lambda sample: meta_step(objective, optimizer, sample, num_tasks, **how)  # noqa: E731
        return one(sample) if callable(sample) else by_chance([(weight, one(each)) for weight, each in sample])

    steps = [(share, step(objective)) for share, objective in phases]
    state = replicate(init_state(theta, optimizer, outer_steps, average=average), mesh)
    options = {"block": 25, "validate_every": 100} | options
    return fit(in_phases(steps), state, key, num_tasks=num_tasks, validate=validate, **options)


Length = tuple[float, int | None]  # seconds, and outer steps in their place


def course(folder: Path, key: KeyArray, num_tasks: int = 4) -> Callable[..., Any]:
    """The training of all arms of a comparison, `trained_once` into a folder by the same recipe.

    Args:
      folder: of what was trained, by title.
      key: fixes the tasks, of the start and, others, of what goes on from there.
      num_tasks: episodes per outer step.

    Returns:
      `train(title, objective, theta, sample, (seconds, outer steps), rate) -> (theta, outer steps)`, where outer steps
      that are not None take the place of the time; `num_tasks` may be given again.
    """
    how: dict[str, Any] = {"num_tasks": num_tasks, "chunk": 1 if jax.default_backend() == "cpu" else None}

    def train(
        title: str, objective: Objective, theta: Theta, sample: Samplers, length: Length, rate: float, **more: Any
    ) -> tuple[Theta, Array]:
        seconds, outer_steps = length
        tasks = key if title == "start" else jax.random.fold_in(key, 1)
        return trained_once(
            folder / title, [(1.0, objective)], theta, sample, tasks, outer_steps or 500, title=title, average=0.98,
            optimizer=adamw(rate), seconds=None if outer_steps else seconds, **how | more,
        )  # fmt: skip

    return train


def trained_once(
    path: Path, phases: list[tuple[float, Objective]], theta: Theta, *args: Any, **how: Any
) -> tuple[Theta, Array]:
    """The theta of `meta_train(phases, theta, *args, **how)` and its outer steps, or what an earlier call left."""
    if not checkpoint.exists(path):
        fitted = meta_train(phases, theta, *args, **how)
        checkpoint.save(path, (fitted.theta, fitted.state.count))
    return checkpoint.restore(path, (theta, jnp.int32(0)))
