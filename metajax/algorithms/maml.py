"""MAML: learn an initialisation from which few gradient steps suffice."""

from typing import Any

from metajax.core import Algorithm, Apply, Error, Remat, query_loss
from metajax.errors import InputError
from metajax.inner import Inner, descent


def maml(
    apply: Apply,
    error: Error,
    inner: Inner,
    num_steps: int,
    *,
    support_error: Error | None = None,
    remat: Remat = "step",
    **how: Any,
) -> Algorithm:
    """Model-agnostic meta-learning.

    phi_0 = theta;  phi_{k+1} = phi_k - alpha grad error(phi_k, support);  min_theta E error(phi_K, query).

    Args:
      apply: the model, `(params, x, key) -> outputs`.
      error: `(outputs, y) -> (scalar, metrics)` of the query set.
      inner: inner optimiser, any optax transformation, or one for each theta, as in `descent`.
      num_steps: K, inner steps while training.
      support_error: what the inner steps minimise, such as an error without labels; None for `error`.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **how: passed to `descent`: `part`, `rule`, `first_order`, `mode`, `proximal`.

    Returns:
      The algorithm.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj, optax
      >>> line = lambda params, x, key: params["slope"] * x
      >>> algorithm = maml(line, mj.losses.squared_error, optax.sgd(0.5), 1)
      >>> theta = algorithm.learner.init({"slope": jnp.array(0.0)}, jax.random.key(0))
      >>> points = mj.Batch(jnp.array([1.0]), jnp.array([3.0]))
      >>> float(algorithm.objective(theta, mj.Episode(points, points), jax.random.key(0))[0])
      0.0
    """
    learner = descent(apply, support_error or error, inner, **how)
    return Algorithm(learner, query_loss(learner, error, num_steps, remat=remat))


def chosen(method: str, how: dict[str, Any], **own: Any) -> dict[str, Any]:
    """`how` with what the method chooses itself; an `InputError` where `how` has it, too."""
    if twice := own.keys() & how.keys():
        raise InputError(f"{min(twice)} is given, but {method} has one of its own: give another to maml.")
    return how | own
