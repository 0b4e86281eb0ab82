"""MAML++: MAML with a loss, rates and normalisation parameters for every step."""

from collections.abc import Sequence
from typing import Any

import optax

from metajax.algorithms.multi_step import multi_step_loss
from metajax.algorithms.parts import everything, norms_by_step
from metajax.algorithms.rules import rates_by_step
from metajax.core import Algorithm, Apply, Error, Remat
from metajax.inner import Part, descent


def mamlpp(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    weights: Sequence[float] | None = None,
    norms: tuple[str, ...] = ("*norm*",),
    support_error: Error | None = None,
    part: Part | None = None,
    remat: Remat = "step",
    **how: Any,
) -> Algorithm:
    """How to train your MAML: `part=norms_by_step(K)`, `rule=rates_by_step(K)` and the multi-step loss.

    phi_{k+1} = phi_k + rates_k * inner(grad_phi error(apply((phi_k, norms_k), support))), a rate per array;
    min_theta E sum_k weights_k error(apply((phi_k, norms_k), query)).

    The outer step is not seen here: anneal the weights and the order of derivatives with `multi_step_phases`. Unlike
    the paper, normalisation keeps no running statistics, here per step; the outer rate's schedule is the caller's.

    Args:
      apply, error, support_error, remat: as in `maml`.
      inner: inner optimiser, any optax transformation; its rate is where the learned ones start.
      num_steps: K, inner steps while training, and the most that theta has rates for.
      weights: of the query errors after steps 1..K, or 0..K; None for 1 / K each.
      norms: patterns of the normalisation layers, of which theta holds a copy for each of the steps 0..K and which no
        task changes; () for none.
      part: what of the other layers a task learns; None for all.
      **how: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "rates", "norms"}`.

    Raises:
      InputError: `num_steps` is below 1, `weights` is of another length, a pattern of `norms` matches no parameter (a
        network without normalisation takes `norms=()`), or `adapt` is asked for more than K steps.

    Reference: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> apply = lambda p, x, key: p["norm"]["scale"] * x @ p["head"]
      >>> learner = mamlpp(apply, mj.losses.squared_error, optax.sgd(0.5), 3).learner
      >>> theta = learner.init({"norm": {"scale": jnp.ones(2)}, "head": jnp.zeros((2, 1))}, jax.random.key(0))
      >>> theta["rates"]["head"].shape, theta["norms"]["norm.scale"].shape
      ((3,), (4, 2))
    """
    part = norms_by_step(num_steps, *norms, part=part) if norms else part or everything()
    learner = descent(apply, support_error or error, inner, part=part, rule=rates_by_step(num_steps), **how)
    return Algorithm(learner, multi_step_loss(learner, error, num_steps, weights, remat=remat))
