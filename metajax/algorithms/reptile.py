"""Reptile: move theta towards what tasks learn."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metajax.core import (
    Algorithm,
    Batch,
    Episode,
    KeyArray,
    LossFn,
    Metrics,
    Referenced,
    Remat,
    Scalar,
    Theta,
    adapt,
    ascribe,
)
from metajax.errors import InputError
from metajax.inner import descent


def joined(episode: Episode) -> Batch:
    """Support and query as one batch; `Referenced` inputs keep their reference."""
    support, query = episode
    if isinstance(query.x, Referenced):
        support = support._replace(x=Referenced(support.x, support.x))
    batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)
    return batch._replace(x=batch.x._replace(reference=query.x.reference)) if isinstance(query.x, Referenced) else batch


def reptile(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    on: Literal["both", "support"] = "both",
    remat: Remat = "step",
    **options: Any,
) -> Algorithm:
    """The meta-gradient is theta - phi_K, where phi_0 = theta and phi_{k+1} = phi_k - alpha grad loss(phi_k, batch).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      on: what phi is trained on during meta-training: support and query joined, so that the metrics are those of
        seen examples, or the support set alone. Adaptation at test sees the support set alone in any case.
      remat: accepted as by all; no gradient runs through the inner steps.
      **options: passed to `descent`; `first_order` and `mode` change nothing.

    Returns:
      The algorithm; the value of its objective means nothing, its metrics are those of the query at phi_K.

    Raises:
      InputError: `on` is unknown.

    Reference: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018.
    """
    if on not in ("both", "support"):
        raise InputError(f"on is {on!r}, expected one of both, support.")
    learner = descent(loss_fn, inner, **options)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, loss_key = jax.random.split(key)
        start = jax.lax.stop_gradient(theta)
        batch = joined(episode) if on == "both" else episode.support
        phi, _ = adapt(learner, start, batch, adapt_key, num_steps, remat=remat)
        _, metrics = learner.loss(start, phi, episode.query, loss_key)
        return ascribe(theta, jax.tree.map(jnp.subtract, start, phi.params)), metrics

    return Algorithm(learner, objective)
