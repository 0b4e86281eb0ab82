"""Cross-entropies of several tasks at once, by the name of the task."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from metajax.core import Apply, Batch, Error, Metrics, Params, Scalar
from metajax.errors import InputError
from metajax.losses.classify import check_labels, classify, labels_of

Losses: TypeAlias = Float[Array, " tasks"]
Present: TypeAlias = Bool[Array, " tasks"]
MultiLosses: TypeAlias = Callable[
    [Params, dict[str, Batch]], tuple[Losses, Present, Metrics]
]  # the losses of the tasks, which of them have a label, metrics


def multitask_losses(apply: Apply, heads: Mapping[str, int], *, normalize: bool = False) -> MultiLosses:
    """The cross-entropy of each task, L_i = the mean over its labelled examples of -log p_i(y | x).

    Masks only leave examples out of the mean: the model must not mix examples, as transductive statistics do.

    Args:
      apply: `(params, {task: x}) -> {task: logits [n, classes]}` for any of the tasks, e.g. that of `multitask`.
      heads: classes of each task, in the order of the losses.
      normalize: divide L_i by log(classes of i), the loss of a guess, so that every task starts near 1.

    Returns:
      `(params, batch) -> (losses, present, metrics)` for batches `{task: Batch(x, y)}` of any of the tasks, where y are
      labels `[n]`, -1 for an example without one. `losses` and `present` are `[tasks]`; a task that is absent or
      without a label has loss 0 and is not present. Metrics: `loss`, the sum of the losses, NaN where nothing has a
      label; `{task}_loss` in nats and `{task}_accuracy`, NaN where the task has no label.

    Raises:
      InputError: when called, a task of the batch has no head, a label is neither -1 nor one of the classes, or nothing
        has a label. The last two are seen where labels are concrete; where traced, the loss is NaN.
    """

    def losses_fn(params: Params, batch: dict[str, Batch]) -> tuple[Losses, Present, Metrics]:
        if unknown := [task for task in batch if task not in heads]:
            raise InputError(f"The batch holds task {unknown[0]!r}, but there are heads for {', '.join(heads)} only.")
        logits = apply(params, {task: examples.x for task, examples in batch.items()}, None)
        return _by_task(heads, logits, {task: examples.y for task, examples in batch.items()}, normalize)

    return losses_fn


def multitask_error(weights: Mapping[str, float | Scalar] | None = None) -> Error:
    """The weighted sum of the tasks' cross-entropies, sum_i w_i L_i, as an error for any method.

    Args:
      weights: w by task, 0 or more; None for 1 each.

    Returns:
      `error(outputs, y)` for logits `{task: [n, classes]}` and labels `{task: [n]}`, -1 for an example without one, of
      the same tasks. Metrics as in `multitask_losses`, their `loss` the unweighted sum.

    Raises:
      InputError: when called, as `multitask_losses` and `total`; outputs and labels are of different tasks; or a task
        has no weight.
    """

    def error(outputs: dict[str, Array], y: dict[str, Any]) -> tuple[Scalar, Metrics]:
        if not isinstance(y, Mapping) or set(outputs) != set(y):
            found = ", ".join(y) if isinstance(y, Mapping) else y
            raise InputError(f"There are outputs of {', '.join(outputs)} but labels of {found or 'no task'}.")
        if unweighed := [] if weights is None else [task for task in outputs if task not in weights]:
            raise InputError(f"weights hold nothing for task {unweighed[0]!r}, expected one for each task.")
        losses, present, metrics = _by_task(outputs, outputs, y, normalize=False)
        values = None if weights is None else [weights[task] for task in outputs]
        return jnp.where(present.any(), total(losses, values), jnp.nan), metrics

    return error


def _by_task(
    tasks: Iterable[str], logits: dict[str, Array], y: dict[str, Any], normalize: bool
) -> tuple[Losses, Present, Metrics]:
    """What `multitask_losses` returns."""
    labels = {task: labels_of(y[task]) for task in y}
    known = [check_labels(labels[task], logits[task].shape[-1], f" of task {task!r}") for task in labels]
    if not any(known):
        raise InputError(f"All tasks are masked: no example of {', '.join(y) or 'an empty batch'} has a label.")
    losses, present, metrics = [], [], dict[str, Array]()
    nothing = jnp.zeros((), jnp.promote_types(jnp.result_type(*logits.values()), jnp.float32))
    for task in tasks:
        there, nats, accuracy = jnp.zeros((), bool), nothing, nothing
        if task in labels:
            there = (labels[task] != -1).any()
            # some label in place of none, so that the gradient is 0 and not NaN
            nats, accuracy = classify(logits[task], jnp.where(there, labels[task], 0))[1].values()
            nats = jnp.where(there, nats, 0)
        losses.append(nats / math.log(logits[task].shape[-1]) if normalize and task in labels else nats)
        present.append(there)
        metrics[f"{task}_loss"] = jnp.where(there, nats, jnp.nan)
        metrics[f"{task}_accuracy"] = jnp.where(there, accuracy, jnp.nan)
    stacked, labelled = jnp.stack(losses), jnp.stack(present)
    return stacked, labelled, metrics | {"loss": jnp.where(labelled.any(), stacked.sum(), jnp.nan)}


def total(losses: Losses, weights: Sequence[float | Scalar] | Losses | None = None) -> Scalar:
    """The weighted sum sum_i w_i L_i of the tasks' losses.

    Args:
      losses: as from `multitask_losses`, `[tasks]`.
      weights: one for each task, in the same order; None for 1 each.

    Returns:
      The sum.

    Raises:
      InputError: the numbers of losses and weights differ, or a weight is negative or not finite (where concrete).
    """
    if weights is None:
        return losses.sum()
    if len(weights) != len(losses):
        raise InputError(f"There are {len(losses)} losses but {len(weights)} weights, expected one for each.")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(weights)):
        for weight in np.asarray(weights).tolist():
            if not 0 <= weight < math.inf:
                raise InputError(f"The weights hold {weight}, expected finite numbers, 0 or more.")
    return (jnp.asarray(weights, losses.dtype) * losses).sum()
