"""The outer step of joint multi-task training, under a weighting of the tasks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.core import Batch, KeyArray, Metrics, Params
from metajax.losses.weighting import Losses, Present, Weighting, combine, gram_matrix
from metajax.train import MetaState, OuterStep, Schedule, descend


def weighted_step(
    losses: Callable[[Params, dict[str, Batch]], tuple[Losses, Present, Metrics]],
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    sample: Callable[[KeyArray], dict[str, Batch]],
    *,
    schedule: Schedule | None = None,
) -> OuterStep:
    """One step of joint training: shared <- shared + outer(-sum_i w_i g_i), of `params["shared"]`.

    The other parameters descend sum_i w_i L_i where the weighting weighs losses, and the plain sum where it combines
    gradients (PCGrad, MGDA, CAGrad, Nash-MTL). Under plain SGD mind the length of d, which is that of a mean of
    gradients for MGDA and CAGrad and the root of the number of tasks for Nash-MTL; Adam does not see it. A step whose
    loss or gradient is not finite changes nothing, the weighting's state included, and reports its loss as NaN.

    Args:
      losses: `(params, batch) -> (losses, present, metrics)`, e.g. from `multitask_losses`; metrics hold `loss`.
      weighting: how the tasks are weighed.
      optimizer: any optax transformation, of all parameters.
      sample: draws the batches of the tasks; runs on the device inside the step.
      schedule: as in `outer_step`.

    Returns:
      `(state, key) -> (state, metrics)`, pure and jittable, on states with `theta = {"params": ...}` and
      `kept = weighting.init(num_tasks)`; metrics are those of `losses` with `grad_norm` and the weights, `weight_0`,
      `weight_1`, ... in the order of the losses.
    """

    def step(state: MetaState, key: KeyArray) -> tuple[MetaState, Metrics]:
        sample_key, key = jax.random.split(key)
        batch = sample(sample_key)

        def of(params: Params, shared: Params) -> tuple[Losses, tuple[Present, Metrics]]:
            values, present, metrics = losses(params | {"shared": shared}, batch)
            return values, (present, metrics)

        params = state.theta["params"]
        values, pullback, (present, metrics) = jax.vjp(of, params, params["shared"], has_aux=True)
        if not weighting.by_gradient:
            weights, kept = weighting.weigh(state.kept, values, present, None, key)
            grads, shared = pullback(weights)
        else:
            each = jax.vmap(lambda one: pullback(one)[1])(jnp.eye(len(values), dtype=values.dtype))
            weights, kept = weighting.weigh(state.kept, values, present, gram_matrix(each), key)
            outer = weights if weighting.heads else present.astype(values.dtype)
            grads, shared = pullback(outer)[0], combine(weights, each)
        metrics = metrics | {f"weight_{i}": weight for i, weight in enumerate(weights)}
        return descend(state, {"params": grads | {"shared": shared}}, metrics, optimizer, schedule=schedule, kept=kept)

    return step
