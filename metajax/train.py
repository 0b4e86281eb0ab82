"""Meta-training: one outer step on given episodes, and the loop around it."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree
from tqdm import tqdm

from metajax import runs
from metajax.core import KeyArray, Metrics, Objective, Sampler, Theta
from metajax.errors import DivergedError, InputError, function
from metajax.losses.weighting import State
from metajax.names import named
from metajax.parallel import copied, hoist, hoisted, task_mean

Schedule = Callable[[Array], Array]  # of the share of the outer steps that is done, 0..1
_TOGETHER, _BYTES = 8, 2**24  # outer steps on episodes from the host in one call, and these in bytes, at most


class Average(NamedTuple):
    """A moving average of theta."""

    theta: Theta
    decay: Float[Array, ""]


class MetaState(NamedTuple):
    """All that an outer step changes."""

    theta: Theta
    opt_state: optax.OptState
    count: Int[Array, ""]  # type: ignore[assignment]  # outer steps taken; hides tuple.count
    total: Int[Array, ""]  # outer steps planned, for schedules and phases
    average: Average | tuple[()]  # () where none is kept
    kept: State  # of a weighting, () without


OuterStep = Callable[..., tuple[MetaState, Metrics]]  # (state, key), or (state, items, key)


def init_state(
    theta: Theta, optimizer: optax.GradientTransformation, outer_steps: int, *, average: float = 0.0, kept: State = ()
) -> MetaState:
    """The state before the first outer step; to have it on several devices, `replicate` it, not theta alone.

    Args:
      theta: from `Learner.init`.
      optimizer: outer optimiser, as of the step.
      outer_steps: how many are planned.
      average: decay d of a moving average of theta, which `fit` validates and returns in its place; 0 for none.
        average <- d_t average + (1 - d_t) theta with d_t = min(d, t / (t + 10)), which forgets the first steps.
      kept: what a weighting keeps, `weighting.init(num_tasks)`.

    Raises:
      InputError: `average` is not in 0 <= average < 1, or `outer_steps` is below 1.
    """
    if not 0 <= average < 1:
        raise InputError(f"average is {average}, expected 0 <= average < 1.")
    if outer_steps < 1:
        raise InputError(f"outer_steps is {outer_steps}, expected 1 or more.")
    mean = Average(jax.tree.map(jnp.copy, theta), jnp.float32(average)) if average else ()
    # one program: on its own, every array of zeros would be a program to compile
    opt_state = jax.jit(optimizer.init)(theta)
    return MetaState(theta, opt_state, jnp.zeros((), jnp.int32), jnp.int32(outer_steps), mean, kept)


def trained(state: MetaState) -> Theta:
    """What training gives: the moving average of theta where one is kept, else theta."""
    return state.average.theta if isinstance(state.average, Average) else state.theta


def descend(
    state: MetaState,
    grads: Theta,
    metrics: Metrics,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule | None = None,
    kept: State = (),
) -> tuple[MetaState, Metrics]:
    """theta <- theta + schedule(t / T) outer(-grads); what is not finite changes nothing and reports its loss as NaN.

    `theta["statistics"]`, where there are any, are no optimiser's business: s <- s - r grad with r = max(1 %, 1 / t),
    an exact moving average of x where the gradient is s - x.

    Args:
      state: before the step.
      grads: of theta.
      metrics: with `loss`.
      optimizer, schedule: as in `outer_step`.
      kept: what a weighting keeps after this step.

    Returns:
      The state after it, and the metrics with `grad_norm`.

    Raises:
      InputError: the metrics lack `loss`.
    """
    if "loss" not in metrics:
        raise InputError(f"The objective's metrics are {sorted(metrics)}, expected loss among them.")
    statistics = grads.get("statistics", {}) if isinstance(grads, dict) else {}
    if statistics:
        grads = grads | {"statistics": jax.tree.map(jnp.zeros_like, statistics)}
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.theta)
    if schedule is not None:
        factor = schedule(jnp.minimum(state.count / state.total, 1))
        updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
    if statistics:
        rate = jnp.maximum(0.01, 1 / (state.count + 1))
        updates = updates | {"statistics": jax.tree.map(lambda g: (-rate * g).astype(g.dtype), statistics)}
    theta, average = optax.apply_updates(state.theta, updates), state.average
    if isinstance(average, Average):
        d = jnp.minimum(average.decay, state.count / (state.count + 10))
        mean = jax.tree.map(lambda a, b: (d * a + (1 - d) * b).astype(a.dtype), average.theta, theta)
        average = average._replace(theta=mean)
    new = MetaState(theta, opt_state, state.count + 1, state.total, average, kept)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return state, metrics | {"grad_norm": norm, "loss": jnp.where(finite, metrics["loss"], jnp.nan)}


def outer_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any], Any] = lambda item: item,
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    schedule: Schedule | None = None,
) -> OuterStep:
    """One outer step: theta <- theta + outer(-grad_theta mean_i objective(theta, draw(item_i))).

    A step whose loss or gradient is not finite changes nothing and reports its loss as NaN.

    Args:
      objective: `(theta, episode, key) -> (scalar, metrics)`, with `loss` among the metrics.
      optimizer: outer optimiser, any optax transformation.
      draw: an episode from an item; the items are episodes by default.
      chunk: episodes at a time on each device; None for all.
      mesh: devices over which the episodes are spread; None for one.
      schedule: factor of the updates, of the share of the outer steps that is done, in 0..1.

    Returns:
      `(state, items, key) -> (state, metrics)`, pure and jittable, items with the leading axis tasks; metrics are means
      over the tasks, with `grad_norm`.

    Raises:
      InputError: the objective is no function or its metrics lack `loss`.
    """
    function("objective", objective, "an algorithm's `objective`")

    def weighted(
        theta: Theta, items: tuple[PyTree, Key[Array, " n"]], weights: Float[Array, " n"]
    ) -> tuple[Array, Metrics]:
        def one(item: tuple[PyTree, KeyArray]) -> tuple[Array, Metrics]:
            return objective(theta, draw(item[0]), item[1])

        if len(weights) == 1:  # a vmap of one costs seconds of tracing and compiling
            alone = one(jax.tree.map(lambda a: a[0], items))
            return jax.tree.map(lambda a: a * weights[0], alone)
        return jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), jax.vmap(one)(items))

    mean_gradient = task_mean(jax.grad(weighted, has_aux=True), chunk=chunk, mesh=mesh)

    def step(state: MetaState, items: PyTree, key: KeyArray) -> tuple[MetaState, Metrics]:
        grads, metrics = mean_gradient(state.theta, (items, jax.random.split(key, len(jax.tree.leaves(items)[0]))))
        return descend(state, grads, metrics, optimizer, schedule=schedule, kept=state.kept)

    return step


def meta_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Sampler,
    num_tasks: int,
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    schedule: Schedule | None = None,
) -> OuterStep:
    """`outer_step` on `num_tasks` episodes of `sample`, drawn on the device: `(state, key) -> (state, metrics)`."""
    step = outer_step(objective, optimizer, sample, chunk=chunk, mesh=mesh, schedule=schedule)

    def drawn(state: MetaState, key: KeyArray) -> tuple[MetaState, Metrics]:
        item_key, key = jax.random.split(key)
        return step(state, jax.random.split(item_key, num_tasks), key)

    return drawn


def in_phases(phases: Sequence[tuple[float, OuterStep]]) -> OuterStep:
    """One outer step for a training in phases: the step of the phase that `state.count` of `state.total` lies in.

    Args:
      phases: of each phase its share of the outer steps and its outer step, such as a `meta_step` on each objective of
        `multi_step_phases`; all of them on the same state.

    Returns:
      An outer step; beyond `state.total` it stays in the last phase.

    Raises:
      InputError: no phases, a negative share, or shares that do not sum to 1.
    """
    if not phases:
        raise InputError("phases is empty, expected one or more.")
    shares, steps = zip(*phases, strict=True)
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise InputError(f"The phases have shares {shares} of the outer steps, expected none below 0 and a sum of 1.")
    if len(steps) == 1:
        return steps[0]
    ends = np.cumsum(shares[:-1])

    def step(state: MetaState, *rest: Any) -> tuple[MetaState, Metrics]:
        return jax.lax.switch((state.count >= jnp.round(ends * state.total)).sum(), steps, state, *rest)

    return step


def block_of(step: OuterStep, key: KeyArray) -> Callable[..., tuple[MetaState, Metrics]]:
    """`(state, count, *items) -> (state, mean metrics)`: so many outer steps in one call, which donates the state.

    The key of an outer step depends on its number alone, so that a resumed run takes the steps of an uninterrupted one.
    Items, where the step takes any, have the leading axis outer steps, of which the first `count` are taken.
    """

    @partial(hoisted, donate=(0,))
    def block(state: MetaState, count: Int[Array, ""], *items: PyTree) -> tuple[MetaState, Metrics]:
        keyed = lambda state, *of: step(state, *of, jax.random.fold_in(key, state.count))  # noqa: E731
        consts, one, (_, shapes) = hoist(keyed, state, *jax.tree.map(lambda a: a[0], items))

        def add(i: Array, carry: tuple[MetaState, Metrics]) -> tuple[MetaState, Metrics]:
            state, metrics = one(consts, carry[0], *jax.tree.map(lambda a: a[i], items))
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, total = jax.lax.fori_loop(0, count, add, (state, zeros))
        return state, jax.tree.map(lambda a: a / count, total)

    return block


def streamed_block_of(
    step: OuterStep, key: KeyArray, episodes: Iterator[PyTree]
) -> Callable[[MetaState, Array], tuple[MetaState, Metrics]]:
    """As `block_of`, on episodes from the host, a few outer steps in one call, which the next ones are read during.

    Raises:
      InputError: when called, the iterator ends early, or its episodes change in shape.
    """
    run = block_of(step, key)
    first: dict[str, Any] = {}  # shapes and types of the first episodes, by name

    def following(state: MetaState, ahead: int) -> PyTree:
        items, at = next(episodes, None), lambda: int(state.count) + ahead + 1
        if items is None:
            raise InputError(f"episodes ended before outer step {at()} of {int(state.total)}.")
        kinds = {name: f"{jnp.result_type(a)}{list(np.shape(a))}" for name, a in named(items).items()}
        first.update({} if first else kinds)
        if odd := [name for name in first | kinds if kinds.get(name) != first.get(name)]:
            now, then = (shapes.get(odd[0], "nothing") for shapes in (kinds, first))
            raise InputError(f"episodes hold {now} in {odd[0]} at outer step {at()}, expected {then}, as at first.")
        return items

    def block(state: MetaState, count: Array) -> tuple[MetaState, Metrics]:
        left, steps, means = int(count), list[int](), list[Metrics]()
        while left:
            items = [following(state, 0)]
            sizes = [a.nbytes if isinstance(a, np.ndarray) else _BYTES for a in jax.tree.leaves(items)]
            most = max(1, min(_TOGETHER, _BYTES // max(sum(sizes), 1)))
            items += [following(state, ahead) for ahead in range(1, min(most, left))]
            # all calls have one shape, thus one program; what fills up the last of a block is not looked at
            filled = [*items, *[items[-1]] * (most - len(items))]
            stacked = jax.tree.map(lambda *a: np.stack(a) if len(a) > 1 else jnp.expand_dims(a[0], 0), *filled)
            state, metrics = run(state, jnp.int32(len(items)), stacked)
            left, steps, means = left - len(items), [*steps, len(items)], [*means, metrics]
            jax.block_until_ready(means[-2:-1])  # so at most two calls are under way
        mean = lambda *a: sum(n * np.asarray(b) for n, b in zip(steps, a, strict=True)) / count  # noqa: E731
        return state, jax.tree.map(mean, *means)

    return block


class Fit(NamedTuple):
    """What meta-training gives."""

    theta: Theta  # of the best validation, or the last where nothing validates; its average where one is kept
    state: MetaState  # the last state
    validation: float | None  # the best validation score
    seconds: float  # spent on outer steps, compilation and validation left out
    first_step_seconds: float  # from the call to the end of its first outer step, compilation included


def fit(
    step: OuterStep,
    state: MetaState,
    key: KeyArray,
    *,
    num_tasks: int | None = None,
    block: int = 50,
    seconds: float | None = None,
    episodes: Iterator[PyTree] | Callable[[int], PyTree] | None = None,
    validate: Callable[[Theta], float] | None = None,
    validate_every: int = 250,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    title: str = "meta-training",
) -> Fit:
    """Take the outer steps that `state` plans, a compiled block of them at a time.

    Args:
      step: from `meta_step`, `outer_step`, `in_phases` or `weighted_step`.
      state: from `init_state`; copied, so that the caller's arrays stay.
      key: fixes the tasks of all outer steps.
      num_tasks: tasks per outer step, to tell their rate; None to tell that of outer steps alone.
      block: outer steps in one compiled call; each gives one line of metrics, their means over the block.
      seconds: a budget of time on outer steps in place of their number; `state.total` then follows the rate measured.
      episodes: stacked episodes from the host for each outer step of an `outer_step`; None where it draws its own. An
        iterator, of which a resumed run passes over those taken, or a function of the step's number, as of a `Stream`.
      validate: score of a theta, larger is better.
      validate_every: outer steps between validations and checkpoints, in whole blocks.
      folder: gets `metrics.jsonl` and the checkpoints `last` (a `MetaState`) and `best` (a theta).
      resume: go on from `folder / "last"`.
      progress: show a progress bar with the rate and the time left, rarely where no terminal shows it.
      title: of the progress bar.

    Returns:
      The trained theta and how it came about.

    Raises:
      DivergedError: the loss, its gradient or the validation score is not finite.
      InputError: `resume` without a checkpoint that fits, a folder that holds a run without `resume`, or `episodes`
        that end early or change in shape.
    """
    began = time.perf_counter()
    state = copied(state)  # donation must not take the caller's arrays
    # bound to its devices from the start, as every step's result is: else the second call compiles again
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    state = jax.device_put(state, places)
    planned = state.total
    state, record = runs.begin(folder, state, resume=resume)
    if seconds is None:  # what the call plans, which may be more than the run to go on with did
        state = state._replace(total=planned)
    state = jax.device_put(state, places)
    done, first_step_seconds = int(state.count), 0.0
    if callable(episodes):
        episodes = map(episodes, itertools.count(done))
    elif episodes is not None:
        next(itertools.islice(episodes, done, done), None)
    run = block_of(step, key) if episodes is None else streamed_block_of(step, key, episodes)
    here, rate = 0, 0.0  # outer steps timed in this call, and how many in a second
    validated = done
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds between its lines: in a file they all stay
    bar = tqdm(total=int(state.total), initial=done, unit="step", desc=title, disable=not progress, mininterval=often)
    with bar:
        bar.set_postfix_str("compiling")
        while done < (total := int(state.total)) and (seconds is None or record.seconds < seconds):
            # the first call takes one step, so that the bar moves as soon as compilation is over
            count = 1 if not first_step_seconds else min(block - done % block, total - done)
            if seconds is not None and rate:
                count = min(count, max(1, round((seconds - record.seconds) * rate)))
            start = time.perf_counter()
            state, means = run(state, jnp.asarray(count))
            metrics = {name: float(value) for name, value in means.items()}
            now = time.perf_counter()
            if first_step_seconds:
                record, here = record._replace(seconds=record.seconds + now - start), here + count
                rate = here / (record.seconds - record.before)
                told = ", ".join(f"{k} {v:.3g}" for k, v in metrics.items())
                tasks = f"{count * num_tasks / (now - start):.0f} tasks/s, " if num_tasks else ""
                bar.set_postfix_str(f"{tasks}{told}", refresh=False)
                if seconds is not None:
                    bar.total = max(done + count, done + count + round((seconds - record.seconds) * rate))
                    state = state._replace(total=jax.device_put(np.int32(bar.total), places.total))
            first_step_seconds = first_step_seconds or now - began
            done += count
            bar.update(count)
            if not np.isfinite(metrics["loss"]):
                raise DivergedError(runs.diverged(folder, state))
            over = done >= int(state.total) or (seconds is not None and record.seconds >= seconds)
            record = record._replace(pending=(*record.pending, (count, metrics)))
            if not done % block or over:
                due = over or done - validated >= validate_every
                validated = done if due else validated
                record = runs.write(record, folder, state, trained(state), validate if due else None, save=due)
    theta = trained(state) if record.theta is None else record.theta
    return Fit(theta, state, record.best, record.seconds, first_step_seconds)
