"""Errors of one model's outputs: cross-entropy with unknown and impossible labels, squares, entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, InputError, Labels, descent
from metajax.losses import classify, classify_corpus, entropy, squared_error
from tests.conftest import normal

KEY = jax.random.key(0)
Y = jnp.array([2, -1, 0, -1, 1])
KNOWN = np.array([0, 2, 4])


def by_hand(logits, labels):
    """Mean nats and accuracy over the known labels, in numpy."""
    pairs = [(row, label) for row, label in zip(np.asarray(logits, np.float64), labels.tolist(), strict=True)]
    pairs = [(row, label) for row, label in pairs if label >= 0]
    nats = [np.log(np.exp(row - row.max()).sum()) + row.max() - row[label] for row, label in pairs]
    return np.mean(nats), np.mean([row.argmax() == label for row, label in pairs])


def both(logits, y):
    """Loss and accuracy, compiled: labels are traced."""
    loss, metrics = jax.jit(classify)(logits, y)
    np.testing.assert_array_equal(loss, metrics["loss"])
    return np.array([loss, metrics["accuracy"]])


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_mean_is_over_the_known_labels(precision):
    with jax.enable_x64(precision == "float64"):
        logits = jax.random.normal(KEY, (5, 3), precision)
        tolerance = {"float32": 1e-6, "float64": 1e-14}[precision]
        for y in (Y, Labels(Y, -jnp.ones(5, jnp.int32))):
            np.testing.assert_allclose(both(logits, y), by_hand(logits, Y), rtol=tolerance)
            np.testing.assert_array_equal(both(logits, y), both(logits[KNOWN], Y[KNOWN]))
            assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(classify, logits, y))} == {jnp.dtype(precision)}
        loss, metrics = jax.jit(classify_corpus)(logits, Labels(Y[::-1], Y))
        np.testing.assert_allclose([loss, metrics["accuracy"]], by_hand(logits, Y), rtol=tolerance)


def test_an_unknown_label_has_no_part_in_the_gradient(x64):
    logits = normal(5, 3)
    found = jax.jit(jax.grad(lambda logits, y: classify(logits, y)[0]))(logits, Y)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.where((Y != -1)[:, None], p - np.eye(3)[np.asarray(Y)], 0) / 3
    np.testing.assert_allclose(found, wanted, atol=1e-15)
    # nor in anything else: not even where its logits are no numbers
    np.testing.assert_array_equal(both(logits.at[1].set(jnp.nan), Y), both(logits, Y))


@pytest.mark.parametrize("wrong", [3, 17, -2])
def test_a_label_out_of_range_is_refused_or_nan(wrong):
    logits, y = normal(5, 3), Y.at[2].set(wrong)
    with pytest.raises(InputError, match=rf"labels hold {wrong}, expected 0\.\.2, or -1 for an example without"):
        classify(logits, y)
    with pytest.raises(InputError, match=f"labels hold {wrong}"):  # concrete although compiled
        jax.jit(lambda logits: classify(logits, y)[0])(logits)
    assert np.isnan(both(logits, y)).all()
    assert np.isnan(jax.jit(jax.grad(lambda logits, y: classify(logits, y)[0]))(logits, y)[2]).all()


def test_without_a_known_label_there_is_nothing_to_learn_from():
    logits, y = normal(5, 3), jnp.full(5, -1)
    with pytest.raises(InputError, match=r"No label is known: all 5 are -1, expected one in 0\.\.2"):
        classify(logits, y)
    assert np.isnan(both(logits, y)).all()
    assert np.isnan(jax.jit(jax.grad(lambda logits, y: classify(logits, y)[0]))(logits, y)).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_output_is_not_taken_for_class_0(broken):
    logits = jnp.zeros((5, 3)).at[2].set(broken)
    assert np.isnan(both(logits, jnp.zeros(5, jnp.int32))).all()
    # a class that cannot be is no broken output
    np.testing.assert_allclose(both(jnp.zeros((5, 3)).at[:, 2].set(-jnp.inf), jnp.zeros(5, jnp.int32)), [np.log(2), 1])


def test_half_precision_is_summed_in_single_precision():
    for dtype in (jnp.bfloat16, jnp.float16):
        logits = normal(5, 3, scale=50, seed=2).astype(dtype)
        loss, metrics = classify(logits, Y)
        assert loss.dtype == metrics["accuracy"].dtype == jnp.float32
        np.testing.assert_allclose([loss, metrics["accuracy"]], by_hand(logits.astype(jnp.float32), Y), rtol=1e-6)


def test_an_unlabelled_support_set_is_told_of(unchecked):
    for y in ((), None, Labels((), jnp.zeros(5, jnp.int32))):
        with pytest.raises(InputError, match="This error needs labels, but the batch has none"):
            classify(jnp.zeros((5, 3)), y)
    learner = descent(lambda params, x, key: x @ params, classify, optax.sgd(0.1))
    theta = learner.init(jnp.ones((4, 3)), KEY)
    support = Batch(jnp.ones((5, 4)), ())
    with pytest.raises(InputError, match="This error needs labels"):
        learner.step(theta, learner.start(theta, support, KEY), support, KEY)
    with pytest.raises(InputError, match=r"y is of float32, expected `Labels` or integers"):
        classify(jnp.zeros((5, 3)), jnp.zeros(5))
    with pytest.raises(InputError, match="y is of dict"):
        classify(jnp.zeros((5, 3)), {"speech": Y})
    with pytest.raises(InputError, match=r"logits have shape \(4, 3\) and labels \(5,\)"):
        classify(jnp.zeros((4, 3)), Y)


def test_squared_error(unchecked):
    loss, metrics = squared_error(jnp.array([[1.0], [3.0]]), jnp.array([[0.0], [1.0]]))
    assert loss == metrics["loss"] == 2.5
    with pytest.raises(InputError, match=r"predictions have shape \(2, 1\), targets \(2,\); expected the same"):
        squared_error(jnp.zeros((2, 1)), jnp.zeros(2))


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_entropy_is_the_mean_over_examples_and_frames(shape, x64):
    logits = normal(*shape, scale=3)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    (loss, metrics), found = jax.jit(jax.value_and_grad(entropy, has_aux=True))(logits, ())
    np.testing.assert_allclose(loss, -(p * np.log(p)).sum(-1).mean(), rtol=1e-14)
    assert metrics == {"loss": loss} and jax.jit(entropy)(logits, Y)[0] == jax.jit(entropy)(logits)[0]
    slope = -p * (np.log(p) - (p * np.log(p)).sum(-1, keepdims=True)) / np.prod(shape[:-1])
    np.testing.assert_allclose(found, slope, atol=1e-14)


def test_entropy_of_what_is_certain():
    """An impossible class adds nothing, a certain one has no entropy and no gradient."""
    logits = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, -jnp.inf, -jnp.inf], [1e4, 0.0, 0.0]])
    value_and_slope = jax.jit(jax.value_and_grad(lambda logits: entropy(logits)[0]))
    loss, slope = value_and_slope(logits)
    np.testing.assert_allclose(loss, np.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    assert np.isnan(value_and_slope(logits.at[0, 0].set(jnp.nan))[0])
    assert jax.eval_shape(entropy, logits.astype(jnp.bfloat16))[0].dtype == jnp.float32
