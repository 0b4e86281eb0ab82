"""Makers of loss functions `(params, batch, key) -> (scalar, metrics)`."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from metajax.core import Batch, KeyArray, LossFn, Metrics, Params, Scalar
from metajax.errors import InputError
from metajax.models.multitask import Multitask

MultiBatch: TypeAlias = dict[str, Batch]  # by task; y are labels [n], -1 for an example without one
MultiLosses: TypeAlias = Callable[
    [Params, MultiBatch], tuple[Float[Array, " tasks"], Bool[Array, " tasks"], Metrics]
]  # the losses of the tasks, which of them have a label, metrics


def classify(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], smoothing: float = 0.0
) -> tuple[Scalar, Metrics]:
    """Mean softmax cross-entropy and accuracy.

    Args:
      logits: scores, `[n, classes]`.
      labels: classes in 0..classes - 1, `[n]`.
      smoothing: share of the target spread evenly over all classes.

    Returns:
      The mean loss in nats, and metrics `loss` and `accuracy` (unsmoothed).
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = nats
    if smoothing:
        targets = optax.smooth_labels(jnp.eye(logits.shape[-1], dtype=logits.dtype)[labels], smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, {"loss": nats, "accuracy": (logits.argmax(-1) == labels).mean(dtype=logits.dtype)}


def cross_entropy(
    apply: Callable[[Params, PyTree], Array], labels: Literal["episode", "corpus"] = "episode", smoothing: float = 0.0
) -> LossFn:
    """Softmax cross-entropy of a model's logits.

    Args:
      apply: `(params, x) -> logits [n, classes]`.
      labels: which numbering of the classes the model predicts: within the episode, or within the corpus.
      smoothing: label smoothing.

    Returns:
      `loss_fn(params, batch, key)` for batches whose `y` is a `Labels`.
    """

    def loss_fn(params: Params, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return classify(apply(params, batch.x), getattr(batch.y, labels), smoothing)

    return loss_fn


def squared_error(apply: Callable[[Params, PyTree], Array]) -> LossFn:
    """Mean squared error of a model's outputs.

    Args:
      apply: `(params, x) -> predictions`, of the shape of `y`.

    Returns:
      `loss_fn(params, batch, key)` with metric `loss`.

    Raises:
      InputError: when called, predictions and targets differ in shape.
    """

    def loss_fn(params: Params, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        predictions = apply(params, batch.x)
        if predictions.shape != batch.y.shape:
            raise InputError(f"predictions have shape {predictions.shape}, targets {batch.y.shape}; expected the same.")
        loss = jnp.square(predictions - batch.y).mean()
        return loss, {"loss": loss}

    return loss_fn


def multitask_losses(model: Multitask, *, normalize: bool = False) -> MultiLosses:
    """The cross-entropy of each task, L_i = the mean over its labelled examples of -log p_i(y | x).

    Masks only leave examples out of the mean: the model must not mix examples, as transductive statistics do.

    Args:
      model: its heads give the tasks and their order.
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

    def losses_fn(params: Params, batch: MultiBatch) -> tuple[Float[Array, " tasks"], Bool[Array, " tasks"], Metrics]:
        logits = model.apply(params, {task: examples.x for task, examples in batch.items()})
        check_labels(model.heads, batch)
        dtype = jnp.result_type(*logits.values())
        losses, present, metrics = [], [], {}
        for task, classes in model.heads.items():
            if task in batch:
                nats, accuracy, labelled = masked(logits[task], batch[task].y)
            else:
                nats, accuracy, labelled = jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), bool)
            losses.append(nats / math.log(classes) if normalize else nats)
            present.append(labelled)
            metrics[f"{task}_loss"] = jnp.where(labelled, nats, jnp.nan)
            metrics[f"{task}_accuracy"] = jnp.where(labelled, accuracy, jnp.nan)
        stacked, labelled = jnp.stack(losses), jnp.stack(present)
        return stacked, labelled, metrics | {"loss": jnp.where(labelled.any(), stacked.sum(), jnp.nan)}

    return losses_fn


def masked(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    """Mean cross-entropy and accuracy over the examples whose label is not -1, and whether there are any (else 0)."""
    known = labels != -1
    valid = (labels >= 0) & (labels < logits.shape[-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    nats = jnp.where(known, jnp.where(valid, nats, jnp.nan), 0)  # a label out of range must not pass for another
    hits = (known & (logits.argmax(-1) == labels)).astype(logits.dtype)
    count = jnp.maximum(known.sum(), 1)
    return nats.sum() / count, hits.sum() / count, known.any()


def check_labels(heads: dict[str, int], batch: MultiBatch) -> None:
    """Raise InputError where a concrete label is out of range, or none is there at all."""
    labelled = False
    for task, examples in batch.items():
        if isinstance(examples.y, jax.core.Tracer):
            labelled = True
            continue
        y, classes = np.asarray(examples.y), heads[task]
        if (wrong := (y < -1) | (y >= classes)).any():
            raise InputError(
                f"The labels of task {task!r} hold {y[wrong][0]}, expected 0..{classes - 1}, or -1 for an example "
                "without a label."
            )
        labelled |= bool((y >= 0).any())
    if not labelled:
        raise InputError(f"All tasks are masked: no example of {', '.join(batch) or 'an empty batch'} has a label.")


def total(losses: Float[Array, " tasks"], weights: Sequence[float] | Float[Array, " tasks"] | None = None) -> Scalar:
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


def multitask_loss(
    model: Multitask, weights: Sequence[float] | Float[Array, " tasks"] | None = None, *, normalize: bool = False
) -> LossFn:
    """The weighted sum of `multitask_losses` as a loss function, e.g. for `joint`.

    Args:
      model: its heads give the tasks and their order.
      weights: as in `total`.
      normalize: as in `multitask_losses`.

    Returns:
      `loss_fn(params, batch, key)` for a `Batch({task: x}, {task: y})`; metrics as in `multitask_losses`, their `loss`
      the unweighted sum.

    Raises:
      InputError: when called, as `multitask_losses` and `total`, or where inputs and labels are of different tasks.
    """
    losses_fn = multitask_losses(model, normalize=normalize)

    def loss_fn(params: Params, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        if set(batch.x) != set(batch.y):
            raise InputError(f"The batch has inputs of {', '.join(batch.x)} but labels of {', '.join(batch.y)}.")
        losses, present, metrics = losses_fn(params, {task: Batch(x, batch.y[task]) for task, x in batch.x.items()})
        return jnp.where(present.any(), total(losses, weights), jnp.nan), metrics

    return loss_fn
