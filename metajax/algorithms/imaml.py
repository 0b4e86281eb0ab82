"""iMAML: the meta-gradient of the inner optimum, whatever path led there."""

from typing import Any

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
    Params,
    Phi,
    Remat,
    Scalar,
    Theta,
    adapt,
    ascribe,
)
from metajax.inner import descent


def imaml(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    strength: float = 1.0,
    cg_steps: int = 5,
    remat: Remat = "step",
    **options: Any,
) -> Algorithm:
    """MAML with implicit gradients.

    phi_K descends loss(phi, support) + strength / 2 |phi - theta|^2 from theta;
    the meta-gradient is (I + H / strength)^-1 grad loss(phi_K, query), H the Hessian of the support loss at phi_K.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training; the meta-gradient is right where they come near the optimum.
      strength: of the pull towards theta; it should exceed the size of the Hessian's most negative eigenvalue.
      cg_steps: steps of conjugate gradient, each one Hessian-vector product.
      remat: accepted as by all; no gradient runs through the inner steps.
      **options: passed to `descent`; `first_order` and `mode` change nothing.

    Returns:
      The algorithm; the value of its objective means nothing, its metrics are those of the query at phi_K.

    Reference: Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019.
    """

    def proximal(pair: tuple[Theta, Params], batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        value, metrics = loss_fn(pair[1], batch, key)
        squares = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), *pair)
        return value + strength / 2 * optax.tree.sum(squares), metrics

    def query(theta: Theta, phi: Phi, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return loss_fn(phi.params, batch, key)

    learner = descent(proximal, inner, join=lambda theta, params: (theta, params), **options)._replace(loss=query)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, loss_key = jax.random.split(key)
        phi, _ = adapt(learner, jax.lax.stop_gradient(theta), episode.support, adapt_key, num_steps, remat=remat)
        slope, metrics = jax.grad(loss_fn, has_aux=True)(phi.params, episode.query, loss_key)
        # reverse over reverse, since a loss may hold a custom_vjp; H is symmetric
        gradient = jax.grad(lambda params: loss_fn(params, episode.support, adapt_key)[0])
        _, hessian = jax.vjp(gradient, phi.params)

        def system(v: Params) -> Params:
            return jax.tree.map(lambda v, h: v + h / strength, v, hessian(v)[0])

        direction, _ = jax.scipy.sparse.linalg.cg(system, slope, maxiter=cg_steps, tol=1e-10)
        return ascribe(theta, direction), metrics

    return Algorithm(learner, objective)
