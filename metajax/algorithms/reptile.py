"""Reptile: move theta towards what tasks learn."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.core import Algorithm, Apply, Episode, Error, KeyArray, Metrics, Scalar, Theta, adapt, ascribe
from metajax.errors import InputError
from metajax.inner import Part, descent, everything


def reptile(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    support_error: Error | None = None,
    part: Part = everything(),  # noqa: B008  (pure functions)
    **how: Any,
) -> Algorithm:
    """The meta-gradient is own_0 - own_K, where own_0 = split(theta) and own_{k+1} = own_k - alpha grad error(batch).

    While training phi sees support and query as one batch, the same at every step (the paper draws minibatches), so the
    metrics are those of seen examples; at test it sees the support set alone. What no task changes is not learned.

    Args:
      apply, error, inner, num_steps, support_error: as in `maml`.
      part: what of the model a task learns.
      **how: passed to `descent`, but for `rule`, which would never be learned.

    Returns:
      The algorithm; the value of its objective means nothing, its metrics are those of the query at phi_K.

    Raises:
      InputError: a `rule` is given.

    Reference: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018.

    Example:
      >>> import metajax as mj
      >>> points = mj.Batch(jnp.ones(1), jnp.ones(1))
      >>> algorithm = reptile(lambda p, x, key: p["c"] * x, mj.losses.squared_error, optax.sgd(0.25), 1)
      >>> task = mj.Episode(points, points)
      >>> slope = jax.grad(lambda c: algorithm.objective({"params": {"c": c}}, task, jax.random.key(0))[0])
      >>> float(slope(0.0))  # from 0 half of the way to 1
      -0.5
    """
    if "rule" in how:
        raise InputError("rule is given, but Reptile does not differentiate the inner steps: it would not be learned.")
    learner = descent(apply, support_error or error, inner, part=part, **how)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, key = jax.random.split(key)
        start = jax.lax.stop_gradient(theta)
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
        phi, _ = adapt(learner, start, batch, adapt_key, num_steps)
        _, metrics = error(learner.predict(start, phi, episode.query.x, key), episode.query.y)
        own = part.split(theta)
        return ascribe(own, jax.tree.map(jnp.subtract, own, phi.own)), metrics

    return Algorithm(learner, objective)
