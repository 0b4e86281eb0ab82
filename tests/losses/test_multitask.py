"""The losses of several tasks: against numpy, what masks and absent tasks change, weights, and bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, Episode, InputError, joint, maml
from metajax.losses import multitask_error, multitask_losses
from metajax.losses.multitask import total
from tests.conftest import assert_close

KEY = jax.random.key(0)
HEADS = {"words": 4, "image": 3, "speakers": 2}  # image comes before speakers in the alphabet, words after both
SIZES = {"words": 5, "image": 3, "speakers": 4}
Y = {"words": jnp.array([0, 1, 2, 3, 0]), "image": jnp.array([2, 0, 1]), "speakers": jnp.array([1, 0, 0, 1])}


def apply(params, x, key=None):
    return {task: jnp.tanh(x[task] @ params["shared"]) @ params["heads"][task] for task in x}


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)])


@pytest.fixture(scope="module")
def several():
    """Parameters and a batch of all tasks."""
    keys = iter(jax.random.split(KEY, 9))
    heads = {task: jax.random.normal(next(keys), (5, classes)) for task, classes in HEADS.items()}
    params = {"shared": jax.random.normal(next(keys), (6, 5)), "heads": heads}
    return params, {task: Batch(jax.random.normal(next(keys), (n, 6)), Y[task]) for task, n in SIZES.items()}


@jax.jit
def measure(params, batch):
    """Losses, presence and metrics, and the gradient of each loss, stacked."""
    losses_fn = multitask_losses(apply, HEADS, normalize=True)
    return losses_fn(params, batch), jax.jacrev(lambda params: losses_fn(params, batch)[0])(params)


LOSSES, SCALED = (jax.jit(multitask_losses(apply, HEADS, normalize=normalize)) for normalize in (False, True))


def parts(batch):
    return ({task: examples[i] for task, examples in batch.items()} for i in range(2))


def test_losses_against_their_definition(several):
    params, batch = several
    logits = apply(params, {task: examples.x for task, examples in batch.items()})
    wanted = [cross_entropy(logits[task], Y[task]) for task in HEADS]
    losses, present, metrics = LOSSES(params, batch)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert present.tolist() == [True, True, True]
    np.testing.assert_allclose(metrics["loss"], sum(wanted), rtol=1e-5)
    np.testing.assert_allclose([metrics[f"{task}_loss"] for task in HEADS], wanted, rtol=1e-5)
    hits = [(np.argmax(logits[task], 1) == Y[task]).mean() for task in HEADS]
    np.testing.assert_allclose([metrics[f"{task}_accuracy"] for task in HEADS], hits)
    scaled, _, more = SCALED(params, batch)
    np.testing.assert_allclose(scaled, np.array(wanted) / np.log([4, 3, 2]), rtol=1e-5)
    np.testing.assert_allclose(more["loss"], scaled.sum(), rtol=1e-6)
    np.testing.assert_allclose(more["words_loss"], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(total(losses, [0.5, 3.0, 1.0]), losses @ np.array([0.5, 3, 1]), rtol=1e-5)
    np.testing.assert_allclose(total(losses), sum(wanted), rtol=1e-5)


@pytest.mark.slow
def test_the_error_is_the_weighted_sum_and_serves_any_method(several):
    params, batch = several
    x, y = parts(batch)
    weights = {"image": 0.5, "words": 1.0, "speakers": 2.0}
    loss, metrics = jax.jit(multitask_error(weights))(apply(params, x), y)
    losses, _, wanted = LOSSES(params, batch)
    np.testing.assert_allclose(loss, losses @ np.array([1, 0.5, 2]), rtol=1e-6)
    assert_close(metrics, wanted, 1e-6)
    episode = Episode(Batch(x, y), Batch(x, y))
    learner, objective = joint(apply, multitask_error())
    value = jax.jit(objective)(learner.init(params, KEY), episode, KEY)[0]
    np.testing.assert_allclose(value, losses.sum(), rtol=1e-6)
    learner, objective = maml(apply, multitask_error(weights), optax.sgd(0.1), 1)
    grads = jax.jit(jax.grad(lambda params: jnp.vdot(LOSSES(params, batch)[0], jnp.array([1, 0.5, 2]))))(params)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    after = LOSSES(moved, batch)[0] @ np.array([1, 0.5, 2])
    np.testing.assert_allclose(jax.jit(objective)(learner.init(params, KEY), episode, KEY)[0], after, rtol=1e-5)


def test_precision_is_that_of_the_parameters(several, x64):
    for dtype in (jnp.float32, jnp.float64):
        params, batch = jax.tree.map(
            lambda a, dtype=dtype: a.astype(dtype) if a.dtype.kind == "f" else a, (several[0], several[1])
        )
        losses, _, metrics = SCALED(params, {"image": batch["image"]})
        found = {a.dtype for a in (losses, total(losses, [1.0, 2.0, 1.0]), *metrics.values())}
        assert found == {jnp.dtype(dtype)}


def test_tasks_without_heads_labels_or_outputs_are_refused(several, unchecked):
    params, batch = several
    x, y = parts(batch)
    logits = apply(params, x)
    with pytest.raises(InputError, match="task 'video', but there are heads for words, image, speakers only"):
        multitask_losses(apply, HEADS)(params, batch | {"video": batch["image"]})
    with pytest.raises(InputError, match="outputs of words, image, speakers but labels of image"):
        multitask_error()(logits, {"image": y["image"]})
    with pytest.raises(InputError, match=r"outputs of words, image, speakers but labels of no task"):
        multitask_error()(logits, ())
    with pytest.raises(InputError, match="This error needs labels, but the batch has none"):
        multitask_error()(logits, y | {"image": ()})
    with pytest.raises(InputError, match="weights hold nothing for task 'image', expected one for each"):
        multitask_error({"words": 1.0, "speakers": 1.0})(logits, y)


@pytest.mark.parametrize("wrong", [-2, 3])
def test_labels_out_of_range_are_refused(several, wrong):
    params, batch = several
    batch = batch | {"image": batch["image"]._replace(y=jnp.array([0, wrong, -1]))}
    losses_fn = multitask_losses(apply, HEADS)
    with pytest.raises(InputError, match=rf"labels of task 'image' hold {wrong}, expected 0\.\.2, or -1"):
        losses_fn(params, batch)
    with pytest.raises(InputError, match=f"hold {wrong}"):  # concrete although compiled
        jax.jit(lambda params: losses_fn(params, batch))(params)
    losses, _, metrics = jax.jit(losses_fn)(params, batch)
    assert np.isfinite(losses[0]) and np.isnan(losses[1]) and np.isnan(metrics["loss"])


def test_all_tasks_masked_is_refused(several):
    params, batch = several
    batch = {task: Batch(x, jnp.full_like(y, -1)) for task, (x, y) in batch.items()}
    losses_fn = multitask_losses(apply, HEADS)
    with pytest.raises(InputError, match="All tasks are masked: no example of words, image, speakers has a label"):
        losses_fn(params, batch)
    with pytest.raises(InputError, match="All tasks are masked: no example of an empty batch has a label"):
        jax.jit(losses_fn)(params, {})
    losses, present, metrics = jax.jit(losses_fn)(params, batch)
    assert not losses.any() and not present.any() and np.isnan(metrics["loss"])
    x, y = parts(batch)
    assert np.isnan(jax.jit(multitask_error())(apply(params, x), y)[0])


@pytest.mark.parametrize("wrong", [-0.5, math.nan, math.inf])
def test_weights_must_be_finite_and_not_negative(wrong):
    losses = jnp.ones(2)
    for weights in ([1.0, wrong], jnp.array([1.0, wrong])):
        with pytest.raises(InputError, match=f"weights hold {wrong}, expected finite numbers, 0 or more"):
            total(losses, weights)
        with pytest.raises(InputError, match=f"weights hold {wrong}"):
            jax.jit(lambda losses, weights=weights: total(losses, weights))(losses)


def test_there_is_one_weight_for_each_loss(unchecked):
    for weights in ([1.0], jnp.ones(3)):
        with pytest.raises(InputError, match=f"There are 2 losses but {len(weights)} weights, expected one for each"):
            total(jnp.ones(2), weights)
    assert jax.jit(total)(jnp.ones(2), jnp.array([1.0, 2.0])) == 3
