"""Meta-training: one outer step, and the loop around it."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from tqdm import tqdm

from metajax import checkpoint
from metajax.core import KeyArray, Metrics, Objective, Sampler, Theta
from metajax.errors import InputError
from metajax.parallel import copied, hoisted, task_mean, traced


class MetaState(NamedTuple):
    """All that an outer step changes."""

    theta: Theta
    opt_state: optax.OptState
    count: Int[Array, ""]  # type: ignore[assignment]  # outer steps taken; hides tuple.count


OuterStep = Callable[[MetaState, KeyArray], tuple[MetaState, Metrics]]


def init_state(theta: Theta, optimizer: optax.GradientTransformation) -> MetaState:
    """The state before the first outer step; to have it on several devices, `replicate` it, not theta alone."""
    # one program: on its own, every array of zeros would be a program to compile
    return MetaState(theta, jax.jit(optimizer.init)(theta), jnp.zeros((), jnp.int32))


class Averaged(NamedTuple):
    """State of an `averaged` optimiser."""

    average: Theta
    inner: optax.OptState
    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """`optimizer`, keeping beside its state a moving average of theta that `average_of` reads and `fit` returns.

    It must be the outermost transformation: within an `optax.chain` nobody finds the average.

    average <- d average + (1 - d) theta after step t = 0, 1, ..., with d = min(decay, t / (t + 10)), which forgets the
    first steps. Updates stay as they are: the average takes no part in training.

    Raises:
      InputError: `decay` is not in 0 <= decay < 1.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay is {decay}, expected 0 <= decay < 1.")

    def init(theta: Theta) -> Averaged:
        return Averaged(jax.tree.map(jnp.copy, theta), optimizer.init(theta), jnp.zeros((), jnp.int32))

    def update(grads: Theta, state: Averaged, theta: Theta) -> tuple[Theta, Averaged]:
        updates, inner = optimizer.update(grads, state.inner, theta)
        d = jnp.minimum(decay, state.count / (state.count + 10))
        new = optax.apply_updates(theta, updates)
        average = jax.tree.map(lambda a, b: (d * a + (1 - d) * b).astype(a.dtype), state.average, new)
        return updates, Averaged(average, inner, state.count + 1)

    return optax.GradientTransformation(init, update)


def average_of(state: MetaState) -> Theta:
    """The moving average of theta where an `averaged` optimiser keeps one, else theta itself."""
    return state.opt_state.average if isinstance(state.opt_state, Averaged) else state.theta


def meta_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Sampler,
    num_tasks: int,
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> OuterStep:
    """One outer step: theta <- theta + outer(-grad_theta mean_i objective(theta, episode_i)).

    A step whose loss or gradient is not finite changes nothing and reports its loss as NaN.

    Args:
      objective: `(theta, episode, key) -> (scalar, metrics)`, with `loss` among the metrics.
      optimizer: outer optimiser, any optax transformation.
      sample: task distribution; runs on the device inside the step.
      num_tasks: episodes per outer step.
      chunk: episodes at a time on each device; None for all.
      mesh: devices over which the episodes are spread; None for one.

    Returns:
      `(state, key) -> (state, metrics)`, pure and jittable; metrics are means over the tasks, with `grad_norm`.

    Raises:
      InputError: the objective's metrics lack `loss`.
    """

    def weighted_objective(
        theta: Theta, keys: Key[Array, " tasks"], weights: Float[Array, " tasks"]
    ) -> tuple[Array, Metrics]:
        def one(key: KeyArray) -> tuple[Array, Metrics]:
            sample_key, key = jax.random.split(key)
            return objective(theta, sample(sample_key), key)

        if len(keys) == 1:  # a vmap of one costs seconds of tracing and compiling
            return jax.tree.map(lambda a: a * weights[0], one(keys[0]))
        return jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), jax.vmap(one)(keys))

    mean_gradient = task_mean(jax.grad(weighted_objective, has_aux=True), chunk=chunk, mesh=mesh)

    def step(state: MetaState, key: KeyArray) -> tuple[MetaState, Metrics]:
        grads, metrics = mean_gradient(state.theta, jax.random.split(key, num_tasks))
        if "loss" not in metrics:
            raise InputError(f"The objective's metrics are {sorted(metrics)}, expected loss among them.")
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.theta)
        new = MetaState(optax.apply_updates(state.theta, updates), opt_state, state.count + 1)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return state, metrics | {"grad_norm": norm, "loss": jnp.where(finite, metrics["loss"], jnp.nan)}

    return step


def in_phases(phases: Sequence[tuple[float, OuterStep]], outer_steps: int) -> OuterStep:
    """One outer step for a training in phases: the step of the phase that `state.count` lies in.

    Args:
      phases: of each phase its share of the outer steps and its outer step, such as a `meta_step` on each objective of
        `multi_step_phases`; all of them on the same state.
      outer_steps: total number of outer steps.

    Returns:
      `(state, key) -> (state, metrics)`; beyond `outer_steps` it stays in the last phase.

    Raises:
      InputError: no phases, a negative share, or shares that do not sum to 1.
    """
    if not phases:
        raise InputError("phases is empty, expected one or more.")
    shares, steps = zip(*phases, strict=True)
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise InputError(f"The phases have shares {shares} of the outer steps, expected none below 0 and a sum of 1.")
    ends = np.round(np.cumsum(shares[:-1]) * outer_steps)

    def step(state: MetaState, key: KeyArray) -> tuple[MetaState, Metrics]:
        return jax.lax.switch((state.count >= ends).sum(), steps, state, key)

    return step


class Fit(NamedTuple):
    """What meta-training gives."""

    theta: Theta  # of the best validation, or the last where nothing validates; its average where one is kept
    state: MetaState  # the last state
    validation: float | None  # the best validation score
    seconds: float  # spent on outer steps, compilation and validation left out
    first_step_seconds: float  # from the call to the end of its first outer step, compilation included


class DivergedError(ArithmeticError):
    """The loss, its gradient or a validation is not finite; the message says when, and which state is kept where."""


def fit(
    step: OuterStep,
    state: MetaState,
    key: KeyArray,
    outer_steps: int,
    *,
    num_tasks: int,
    block: int = 50,
    validate: Callable[[Theta], float] | None = None,
    validate_every: int = 250,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    title: str = "meta-training",
) -> Fit:
    """Take `outer_steps` outer steps, a compiled block of them at a time.

    The key of an outer step depends on its number alone, so a resumed run takes the same steps as an uninterrupted one.

    Args:
      step: from `meta_step`, `in_phases` or `weighting.weighted_step`.
      state: from `init_state` or `weighting.init_weighted`; copied, so that the caller's arrays stay.
      key: fixes the tasks of all outer steps.
      outer_steps: total number of outer steps.
      num_tasks: tasks per outer step, for the rate.
      block: outer steps in one compiled call; each gives one line of metrics, their means over the block.
      validate: score of a theta, larger is better.
      validate_every: outer steps between validations and checkpoints, a multiple of `block`.
      folder: gets `metrics.jsonl` and the checkpoints `last` (a `MetaState`) and `best` (a theta).
      resume: go on from `folder / "last"`.
      progress: show a progress bar with tasks/s and the time left.
      title: of the progress bar.

    Returns:
      The trained theta and how it came about.

    Raises:
      DivergedError: the loss, its gradient or the validation score is not finite.
      InputError: `resume` without a checkpoint that fits, or a folder that holds a run without `resume`.
    """
    if validate_every % block:
        raise InputError(f"validate_every is {validate_every}, expected a multiple of block, {block}.")
    began = time.perf_counter()
    log = folder / "metrics.jsonl" if folder else None
    best, theta, seconds = None, None, 0.0
    if folder and not resume:
        checkpoint.make_folder(folder)
        if taken := [name for name in ("metrics.jsonl", "last", "best") if (folder / name).exists()]:
            raise InputError(f"{folder} already holds {taken[0]} of another run; choose another folder, or resume.")
    state = copied(state)  # donation must not take the caller's arrays
    # bound to its devices from the start, as every step's result is: else the second call compiles again
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    state = jax.device_put(state, places)
    if resume:
        if folder is None or log is None:
            raise InputError("resume needs the folder of the run to go on from.")
        state = jax.device_put(checkpoint.restore(folder / "last", state), places)
        lines = [line for line in checkpoint.read_lines(log) if line["step"] <= int(state.count)]
        checkpoint.write_lines(log, lines)
        best = max((line["validation"] for line in lines if "validation" in line), default=None)
        theta = checkpoint.restore(folder / "best", state.theta) if best is not None else None
        seconds = lines[-1]["seconds"] if lines else 0.0

    @partial(hoisted, donate=(0,))
    def steps(state: MetaState, count: Int[Array, ""]) -> tuple[MetaState, Metrics]:
        one, (_, shapes) = traced(lambda state: step(state, jax.random.fold_in(key, state.count)), state)

        def add(_: Array, carry: tuple[MetaState, Metrics]) -> tuple[MetaState, Metrics]:
            state, total = carry
            state, metrics = one(state)
            return state, jax.tree.map(jnp.add, total, metrics)

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, total = jax.lax.fori_loop(0, count, add, (state, zeros))
        return state, jax.tree.map(lambda a: a / count, total)

    done, first_step_seconds = int(state.count), 0.0
    pending: list[tuple[int, dict[str, float]]] = []  # the calls of a block, for its line of metrics
    bar = tqdm(total=outer_steps, initial=done, unit="step", desc=title, disable=not progress)
    with bar:
        while done < outer_steps:
            # the first call takes one step, so that the bar moves as soon as compilation is over
            count = 1 if not first_step_seconds else min(block - done % block, outer_steps - done)
            start = time.perf_counter()
            state, means = steps(state, jnp.asarray(count))
            metrics = {name: float(value) for name, value in means.items()}
            now = time.perf_counter()
            if first_step_seconds:
                seconds += now - start
                rate = count * num_tasks / (now - start)
                bar.set_postfix_str(f"{rate:.0f} tasks/s, " + ", ".join(f"{k} {v:.3g}" for k, v in metrics.items()))
            first_step_seconds = first_step_seconds or now - began
            done += count
            bar.update(count)
            pending.append((count, metrics))
            if not np.isfinite(metrics["loss"]):
                if folder:
                    checkpoint.save(folder / "last", state)
                kept = f"; the state before it is kept in {folder / 'last'}" if folder else ""
                raise DivergedError(
                    f"The loss is no longer finite at outer step {int(state.count) + 1}{kept}. "
                    "A smaller inner or outer learning rate is the usual cure."
                )
            if done % block and done < outer_steps:
                continue
            total = sum(n for n, _ in pending)
            line = {name: sum(n * call[name] for n, call in pending) / total for name in metrics}
            pending = []
            due = done % validate_every == 0 or done == outer_steps
            if due and validate is not None:
                line["validation"] = validate(average_of(state))
                if not np.isfinite(line["validation"]):
                    before = ""
                    if folder and checkpoint.exists(folder / "last"):
                        before = f"; the checkpoint before it is kept in {folder / 'last'}"
                    raise DivergedError(f"The validation score is {line['validation']} at outer step {done}{before}.")
                if best is None or line["validation"] > best:
                    best, theta = line["validation"], copied(average_of(state))
                    if folder:
                        checkpoint.save(folder / "best", theta)
            if log:
                checkpoint.append_line(log, {"step": done, "seconds": seconds} | line)
            if folder and due:
                checkpoint.save(folder / "last", state)
    return Fit(average_of(state) if theta is None else theta, state, best, seconds, first_step_seconds)
