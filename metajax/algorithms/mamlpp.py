"""MAML++: MAML with a loss, rates and normalisation parameters for every step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from metajax.algorithms.multi_step import multi_step_loss
from metajax.core import Algorithm, Batch, KeyArray, Learner, LossFn, Metrics, Params, Remat, Scalar, Theta
from metajax.inner import Fast, descent


def mamlpp(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    weights: Sequence[float] | None = None,
    shared: tuple[str, ...] = ("norm",),
    remat: Remat = "step",
    **options: Any,
) -> Algorithm:
    """How to train your MAML: theta = (params, rates, norms).

    phi_0 = params;  phi_{k+1} = phi_k + rates_k * inner(grad_phi loss((phi_k, norms_k), support)), a rate per layer;
    min_theta E sum_k weights_k loss((phi_k, norms_k), query).

    The outer step is not seen here: anneal the weights and the order of derivatives with `multi_step_phases`.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`, params a dict of layers.
      inner: inner optimiser, any optax transformation; its rate is where the learned ones start.
      num_steps: K, inner steps while training, and the most that theta has rates for.
      weights: of the query losses after steps 1..K, or 0..K; None for 1 / K each.
      shared: prefixes of the layers that tasks share: normalisation layers, of which theta holds a copy for each of
        steps 0..K and which the inner loop leaves alone; () for none.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **options: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "rates", "norms"}`: rates `[K]` per layer, norms `[K + 1, ...]`.

    Raises:
      InputError: `num_steps` is below 1, `weights` is of another length, or `adapt` is asked for more than K steps.

    Reference: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.
    """

    def init(params: Params) -> Theta:
        norms = {name: layer for name, layer in params.items() if name.startswith(shared)}
        params = {name: layer for name, layer in params.items() if name not in norms}
        return {
            "params": params,
            "rates": {name: jnp.ones(num_steps, jax.tree.leaves(layer)[0].dtype) for name, layer in params.items()},
            "norms": jax.tree.map(lambda leaf: jnp.stack([leaf] * (num_steps + 1)), norms),
        }

    def at(theta: Theta, count: Array) -> Theta:
        return theta | {name: jax.tree.map(lambda leaf: leaf[count], theta[name]) for name in ("rates", "norms")}

    def precondition(theta: Theta, updates: Params) -> Params:
        return jax.tree.map(lambda rate, layer: jax.tree.map(lambda u: rate * u, layer), theta["rates"], updates)

    one = descent(
        loss_fn,
        inner,
        split=lambda theta: theta["params"],
        join=lambda theta, params: theta["norms"] | params,
        precondition=precondition,
        **options,
    )

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        phi = one.start(theta, support, key)
        return Fast(phi.params, (phi.opt_state, jnp.zeros((), jnp.int32)))

    def step(theta: Theta, phi: Fast, support: Batch, key: KeyArray) -> Fast:
        opt_state, count = phi.opt_state
        phi = one.step(at(theta, count), Fast(phi.params, opt_state), support, key)
        return Fast(phi.params, (phi.opt_state, count + 1))

    def loss(theta: Theta, phi: Fast, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return one.loss(at(theta, phi.opt_state[1]), phi, batch, key)

    learner = Learner(init, start, step, loss, max_steps=num_steps)
    return Algorithm(learner, multi_step_loss(learner, num_steps, weights, remat=remat))
