"""The multi-step loss: query errors after every inner step, for any learner."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metajax.core import (
    Algorithm,
    Episode,
    Error,
    KeyArray,
    Learner,
    Metrics,
    Objective,
    Phi,
    Remat,
    Scalar,
    Theta,
    adapt,
    query_loss,
    scalar,
)
from metajax.errors import InputError


def multi_step_weights(progress: float, num_steps: int) -> tuple[float, ...]:
    """Weights of the query errors after steps 1..K: equal at progress 0, all on the last step at progress 1.

    Raises:
      InputError: `num_steps` is below 1, or `progress` not in 0..1.
    """
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, expected 1 or more: each step has a weight of its own.")
    if not 0 <= progress <= 1:
        raise InputError(f"progress is {progress}, expected a number in 0..1.")
    early = (1 - progress) / num_steps
    return (*[early] * (num_steps - 1), 1 - early * (num_steps - 1))


def multi_step_loss(
    learner: Learner, error: Error, num_steps: int, weights: Sequence[float] | None = None, *, remat: Remat = "step"
) -> Objective:
    """L(theta) = sum_k weights_k error(predict(theta, phi_k(theta, support), query.x), query.y).

    Args:
      learner: how a task is learned.
      error: `(outputs, y) -> (scalar, metrics)` of the query set.
      num_steps: K, inner steps.
      weights: of the query errors after steps 1..K, or 0..K; None for 1 / K each.
      remat: as in `adapt`.

    Returns:
      An objective, whose metrics are those after the last step; `query_loss` where that step has all the weight.

    Raises:
      InputError: `num_steps` is below 1, `weights` is of another length, or, when called, as `query_loss`.

    Reference: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.
    """
    equal = multi_step_weights(0.0, num_steps)
    weights = equal if weights is None else tuple(weights)
    if len(weights) not in (num_steps, num_steps + 1):
        raise InputError(f"weights has {len(weights)} entries, expected {num_steps} or, with step 0, {num_steps + 1}.")
    if not any(weights[:-1]) and weights[-1] == 1:  # the query is then needed once
        return query_loss(learner, error, num_steps, remat=remat)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, key = jax.random.split(key)

        def probe(phi: Phi) -> tuple[Scalar, Metrics]:
            return scalar(error(learner.predict(theta, phi, episode.query.x, key), episode.query.y))

        _, (values, metrics) = adapt(learner, theta, episode.support, adapt_key, num_steps, probe, remat=remat)
        value = jnp.asarray(weights, values.dtype) @ values[-len(weights) :]
        return value, jax.tree.map(lambda a: a[-1], metrics)

    return objective


def multi_step_phases(
    make: Callable[..., Algorithm],
    num_steps: int,
    *,
    phases: Sequence[tuple[float, bool, float]] = ((0.25, True, 0.0), (0.25, False, 0.5), (0.5, False, 1.0)),
) -> list[tuple[float, Objective]]:
    """The annealing of MAML++: objectives on the same theta, to be trained with one after the other.

    Args:
      make: `(weights=, first_order=) -> algorithm`, such as `partial(mamlpp, apply, error, inner, num_steps)`.
      num_steps: K, inner steps.
      phases: of each phase its share of the outer steps, whether it is first order, and the progress of
        `multi_step_weights`.

    Returns:
      Each phase's share of the outer steps and its objective.
    """
    return [
        (share, make(weights=multi_step_weights(progress, num_steps), first_order=first_order).objective)
        for share, first_order, progress in phases
    ]
