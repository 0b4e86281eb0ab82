"""The core: theta is what all tasks share, phi is what one task learns.

Every method is a `Learner` (how one task is learned) and an `Objective` (what the outer optimiser descends).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from metajax.errors import InputError, expected

Params: TypeAlias = PyTree
Theta: TypeAlias = PyTree
Phi: TypeAlias = PyTree
Scalar: TypeAlias = Float[Array, ""]
KeyArray: TypeAlias = Key[Array, ""]
Metrics: TypeAlias = dict[str, Array]
Remat: TypeAlias = Literal["none", "step", "sqrt"]


class Batch(NamedTuple):
    """Examples of one task; the leading axis of every leaf runs over examples."""

    x: PyTree  # inputs, e.g. [ways * shots, time, mel]
    y: PyTree  # targets, e.g. `Labels` with fields of shape [ways * shots]; () where there are none


class Labels(NamedTuple):
    """The classes of a batch, numbered twice; -1 is unknown and counts nowhere."""

    episode: Array  # [n], in 0..ways - 1: the class within its episode, what few-shot learning predicts
    corpus: Array  # [n], in 0..classes - 1: the class within its corpus, what joint training predicts


class Utterances(NamedTuple):
    """Padded sequences: an `x` whose examples differ in length."""

    frames: Array  # [n, time, mel], anything past the lengths
    lengths: Array  # [n], how many frames count


class Transcripts(NamedTuple):
    """Padded token sequences: the `y` of speech recognition."""

    tokens: Array  # [n, length], in 1..vocabulary - 1 (0 is the blank), anything past the lengths
    lengths: Array  # [n], how many tokens count


class Episode(NamedTuple):
    """One task: a support set to learn from and a query set to be tested on."""

    support: Batch
    query: Batch


Apply: TypeAlias = Callable[[Params, PyTree, KeyArray | None], PyTree]  # a model; without a key deterministic
Error: TypeAlias = Callable[[PyTree, PyTree], tuple[Scalar, Metrics]]  # of outputs and targets: what is minimised
Objective: TypeAlias = Callable[[Theta, Episode, KeyArray], tuple[Scalar, Metrics]]
Sampler: TypeAlias = Callable[[KeyArray], Episode]


class Learner(NamedTuple):
    """How one task is learned: start phi, step it on the support set, predict with it."""

    init: Callable[[Params, KeyArray], Theta]  # model parameters, pretrained or fresh, to {"params": ..., and more}
    start: Callable[[Theta, Batch, KeyArray], Phi]  # phi before any step
    step: Callable[[Theta, Phi, Batch, KeyArray], Phi]  # one adaptation step on the support set
    predict: Callable[[Theta, Phi, PyTree, KeyArray | None], PyTree]  # the model's outputs for x, as the task has it
    max_steps: int | None = None  # steps that theta has parameters for, where it has them per step


class Algorithm(NamedTuple):
    """A learner and what its theta is trained to minimise."""

    learner: Learner
    objective: Objective


def adapt(
    learner: Learner,
    theta: Theta,
    support: Batch,
    key: KeyArray,
    num_steps: int,
    probe: Callable[[Phi], Any] | None = None,
    *,
    remat: Remat = "step",
) -> tuple[Phi, Any]:
    """Learn one task: phi_0 = start(theta, support), phi_{k+1} = step(theta, phi_k, support).

    Args:
      learner: how a task is learned.
      theta: what all tasks share.
      support: the examples to learn from.
      key: randomness of the start and of each step.
      num_steps: K, number of steps, 0 or more.
      probe: measured on phi after each of the steps 0..num_steps.
      remat: what a gradient through the adaptation keeps: all that a step computed ("none"), each step's phi ("step"),
        or that of every sqrt(K)-th step ("sqrt"); the rest is computed again.

    Returns:
      phi after `num_steps` steps, and the probe's results stacked to `[num_steps + 1, ...]` (None without a probe).

    Raises:
      InputError: `learner` or `support` is of another type, `num_steps` is no whole number, negative or beyond
        `learner.max_steps`, or `remat` is unknown.

    Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (for "sqrt").

    Example:
      >>> from metajax.inner import descent
      >>> from metajax.losses import squared_error
      >>> learner = descent(lambda params, x, key: params["w"] * x, squared_error, optax.sgd(0.5))
      >>> support = Batch(jnp.array([1.0]), jnp.array([3.0]))
      >>> theta = learner.init({"w": jnp.array(0.0)}, jax.random.key(0))
      >>> phi, _ = adapt(learner, theta, support, jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.array([2.0]), None).tolist()
      [6.0]
    """
    expected("learner", learner, Learner)
    expected("support", support, Batch)
    if not hasattr(num_steps, "__index__") or num_steps < 0:
        raise InputError(f"num_steps is {num_steps}, expected 0 or more adaptation steps.")
    if learner.max_steps is not None and num_steps > learner.max_steps:
        raise InputError(f"num_steps is {num_steps}, but theta has parameters for {learner.max_steps} steps only.")
    if remat not in get_args(Remat):
        raise InputError(f"remat is {remat!r}, expected one of {', '.join(get_args(Remat))}.")
    start_key, key = jax.random.split(key)
    phi = learner.start(theta, support, start_key)
    first = probe(phi) if probe else None

    def body(phi: Phi, key: KeyArray) -> tuple[Phi, Any]:
        phi = learner.step(theta, phi, support, key)
        return phi, probe(phi) if probe else None

    keys = jax.random.split(key, num_steps)
    run: Callable[[Phi, Any], tuple[Phi, Any]] = body if remat == "none" else _recomputed(body)
    if remat == "sqrt":
        length = max(math.isqrt(num_steps), 1)
        whole = num_steps // length * length

        @_recomputed
        def segment(phi: Phi, keys: Key[Array, " steps"]) -> tuple[Phi, Any]:
            return jax.lax.scan(run, phi, keys)

        phi, trace = jax.lax.scan(segment, phi, keys[:whole].reshape(-1, length))
        phi, rest = segment(phi, keys[whole:])
        rest = jax.tree.map(lambda a, b: jnp.concatenate([a.reshape(whole, *a.shape[2:]), b]), trace, rest)
    else:
        phi, rest = jax.lax.scan(run, phi, keys)
    return phi, jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, rest)


def _recomputed(f: Callable[[Phi, Any], tuple[Phi, Any]]) -> Callable[[Phi, Any], tuple[Phi, Any]]:
    """`jax.checkpoint(f)`, which hands on by itself what f leaves as it is: else every step keeps a copy of it."""

    def call(phi: Phi, x: Any) -> tuple[Phi, Any]:
        old, tree = jax.tree.flatten(phi)
        same: list[bool] = []

        @partial(jax.checkpoint, prevent_cse=False)
        def run(phi: Phi, x: Any) -> tuple[Phi, Any]:
            after, found = f(phi, x)
            if jax.tree.structure(after) == tree:  # type: ignore[operator]
                same[:] = [a is b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(phi), strict=True)]
            return after, found

        after, found = run(phi, x)
        if not any(same):
            return after, found
        leaves = zip(same, old, jax.tree.leaves(after), strict=True)
        return jax.tree.unflatten(tree, [a if kept else b for kept, a, b in leaves]), found

    return call


def query_loss(learner: Learner, error: Error, num_steps: int, *, remat: Remat = "step") -> Objective:
    """The default objective: L(theta) = error(predict(theta, phi_K(theta, support), query.x), query.y).

    Args:
      learner: how a task is learned.
      error: `(outputs, y) -> (scalar, metrics)` of the query set.
      num_steps: K, the number of adaptation steps before the query error is taken.
      remat: as in `adapt`.

    Returns:
      An objective; its gradient runs through the adaptation.

    Raises:
      InputError: when called, as `adapt`, and where the error gives no scalar with metrics.
    """

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, key = jax.random.split(key)
        phi, _ = adapt(learner, theta, episode.support, adapt_key, num_steps, remat=remat)
        return scalar(error(learner.predict(theta, phi, episode.query.x, key), episode.query.y))

    return objective


def scalar(result: Any) -> tuple[Any, Metrics]:
    """What an error gives, a scalar and metrics; an `InputError` if it is anything else."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(f"The error gives {type(result).__name__}, expected a pair: a scalar and metrics.")
    if jnp.shape(result[0]):
        told = f"The error has shape {jnp.shape(result[0])}"
        raise InputError(f"{told}, expected a scalar: take its mean over the batch.")
    return result


def ascribe(theta: Theta, direction: Theta) -> Scalar:
    """<theta, stop_gradient(direction)>: a scalar whose gradient in theta is `direction`.

    Args:
      theta: what all tasks share.
      direction: what stands in for the gradient of a method that has no loss of its own (Reptile, iMAML, evolution
        strategies); the outer optimiser steps against it, so for Reptile it is theta - phi.

    Returns:
      A scalar; only its gradient means anything.
    """
    return optax.tree.vdot(theta, jax.lax.stop_gradient(direction))


def mix(objective: Objective, other: Objective, weight: float | Scalar) -> Objective:
    """The sum L(theta) + weight * L_other(theta), e.g. MAML alongside the joint loss.

    Args:
      objective: the first objective, whose metrics are reported.
      other: the second objective, on the same theta and the same episode; it needs of theta what it reads alone, so
        the joint loss goes with any method that has the same model.
      weight: weight of the second; it may be traced, as that of a schedule is.

    Returns:
      The mixed objective.

    Raises:
      InputError: `weight` is negative or not finite (where it is concrete).
    """
    if not isinstance(weight, jax.core.Tracer) and not 0 <= float(weight) < math.inf:
        raise InputError(f"weight is {float(weight)}, expected a finite number, 0 or more.")

    def mixed(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        value, metrics = objective(theta, episode, key)
        return value + weight * other(theta, episode, key)[0], metrics

    return mixed


def combined(theta: Theta, more: Theta) -> Theta:
    """Both dicts as one; an `InputError` where they share a name."""
    if not isinstance(more, dict):
        raise InputError(f"init of a part or rule gives {type(more).__name__}, expected a dict: what it adds to theta.")
    if shared := theta.keys() & more.keys():
        raise InputError(f"Two parts or rules add {min(shared)!r} to theta, expected each to add names of its own.")
    return theta | more


def held(theta: Theta, name: str, like: PyTree = None) -> Any:
    """theta[name]; an `InputError` where theta has none, or one of another structure than `like`."""
    if name not in theta:
        raise InputError(f"theta holds {', '.join(theta)} but no {name!r}: it is not what this learner's init gives.")
    if like is not None and jax.tree.structure(theta[name]) != jax.tree.structure(like):  # type: ignore[operator]
        raise InputError(f"theta[{name!r}] was made for other parameters than those that adapt: for another part.")
    return theta[name]
