"""Two ways to learn one task: gradient steps, and a closed form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metajax.core import Batch, KeyArray, Learner, LossFn, Metrics, Params, Phi, Scalar, Theta


class Fast(NamedTuple):
    """phi of gradient-based learners: the fast weights and their inner optimiser's state."""

    params: PyTree
    opt_state: optax.OptState


def descent(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    *,
    split: Callable[[Theta], Params] = lambda theta: theta,
    join: Callable[[Theta, Params], Params] = lambda theta, params: params,
    first_order: bool = False,
) -> Learner:
    """Learn a task by gradient steps on its support loss.

    phi_0 = split(theta);  phi_{k+1} = phi_k + inner(-grad_phi loss(join(theta, phi_k), support)).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: any optax transformation. Adam needs `eps_root > 0`, or its second derivative is not finite.
      split: the part of theta that a task learns; all of it by default.
      join: the model's parameters from theta and a task's part.
      first_order: drop the second derivative: the step's gradient counts as a constant (FOMAML).

    Returns:
      A learner whose phi is a `Fast`.
    """

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        params = split(theta)
        return Fast(params, inner.init(params))

    def step(theta: Theta, phi: Fast, support: Batch, key: KeyArray) -> Fast:
        grads = jax.grad(lambda params: loss_fn(join(theta, params), support, key)[0])(phi.params)
        grads = jax.lax.stop_gradient(grads) if first_order else grads
        updates, opt_state = inner.update(grads, phi.opt_state, phi.params)
        return Fast(optax.apply_updates(phi.params, updates), opt_state)

    def loss(theta: Theta, phi: Fast, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return loss_fn(join(theta, phi.params), batch, key)

    return Learner(lambda params: params, start, step, loss)


def closed_form(
    solve: Callable[[Theta, Batch, KeyArray], Phi],
    loss: Callable[[Theta, Phi, Batch, KeyArray], tuple[Scalar, Metrics]],
    init: Callable[[Params], Theta] = lambda params: params,
) -> Learner:
    """Learn a task in one step: phi_0 = 0;  phi_1 = solve(theta, support); further steps change nothing.

    Args:
      solve: phi from theta and the support set.
      loss: `(theta, phi, batch, key) -> (scalar, metrics)`.
      init: theta from model parameters.

    Returns:
      A learner whose phi is what `solve` returns.
    """

    def start(theta: Theta, support: Batch, key: KeyArray) -> Phi:
        shapes = jax.eval_shape(solve, theta, support, key)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def step(theta: Theta, phi: Phi, support: Batch, key: KeyArray) -> Phi:
        return solve(theta, support, key)

    return Learner(init, start, step, loss)
