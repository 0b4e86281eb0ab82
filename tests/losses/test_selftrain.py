"""Errors without labels: entropy and class confusion of a recogniser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError
from metajax.losses import ctc, pseudo, pseudo_labels, suta
from metajax.losses.ctc import blank_after

LOGITS = np.random.default_rng(0).normal(size=(3, 6, 4)) * 2
FRAMES = np.array([6, 4, 5])


def by_loops(logits, temperature, weight):
    """As the paper's code does it, utterance by utterance."""
    total = 0
    for row, frames in zip(logits, FRAMES, strict=True):
        p = np.exp(row[:frames] / temperature)
        p /= p.sum(-1, keepdims=True)
        said = row[:frames].argmax(-1) != 0
        entropy = -(p[said] * np.log(p[said])).sum(-1).mean()
        confusion = p.T @ p
        confusion = confusion / confusion.sum(1)
        total += weight * entropy + (1 - weight) * (confusion.sum() - np.trace(confusion)) / p.shape[1]
    return total / len(logits)


@pytest.mark.parametrize(("temperature", "weight"), [(2.5, 0.3), (1.0, 1.0), (1.0, 0.0)])
def test_suta_is_what_the_loops_give(x64, temperature, weight):
    logits = blank_after(jnp.asarray(LOGITS), jnp.asarray(FRAMES))
    error = jax.jit(partial(suta, temperature=temperature, weight=weight))
    loss, metrics = error(logits)
    np.testing.assert_allclose(loss, by_loops(LOGITS, temperature, weight), rtol=1e-12)
    np.testing.assert_allclose(loss, weight * metrics["entropy"] + (1 - weight) * metrics["confusion"], rtol=1e-12)
    longer = jnp.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=-jnp.inf).at[:, 6:, 0].set(0)
    np.testing.assert_allclose(error(longer)[0], loss, rtol=1e-12)
    slope = jax.jit(jax.grad(lambda logits: error(logits)[0]))(logits)
    assert np.isfinite(slope).all() and not slope[1, 4:].any() and slope[0].any()


def test_what_is_certain_costs_nothing():
    logits = jnp.where(jax.nn.one_hot(jnp.array([[0, 1, 1, 2]]), 3) > 0, 0.0, -200.0)
    np.testing.assert_allclose(suta(logits, (), temperature=1.0)[0], 0, atol=1e-6)
    silent = jnp.zeros((1, 4, 3)).at[..., 0].set(1.0)  # blank at every frame: confusion alone
    assert suta(silent)[1]["entropy"] == 0 and suta(silent)[0] > 0
    nothing = blank_after(jnp.zeros((1, 4, 3)), jnp.array([0]))
    assert suta(nothing)[0] == 0


def test_an_unlabelled_step_is_one_call():
    """maml with suta as support error: y is never read, and theta's gradient runs through the step."""
    apply = lambda params, x, key: jnp.einsum("ntf,fv->ntv", x, params["w"])  # noqa: E731
    learner, objective = mj.maml(apply, ctc, optax.sgd(1.0), 1, support_error=suta)
    x = jnp.asarray(LOGITS, jnp.float32)
    y = mj.Transcripts(jnp.array([[1], [2], [3]]), jnp.ones(3, int))
    theta = learner.init({"w": jnp.eye(4)}, jax.random.key(0))
    episode = mj.Episode(mj.Batch(x, ()), mj.Batch(x, y))
    probe = lambda phi: suta(apply(phi.own, x, None))[0]  # noqa: E731
    errors = jax.jit(lambda: mj.adapt(learner, theta, episode.support, jax.random.key(0), 3, probe))()[1]
    assert (np.diff(errors) < 0).all()
    slope = jax.jit(jax.grad(lambda theta: objective(theta, episode, jax.random.key(0))[0]))(theta)
    assert np.isfinite(slope["params"]["w"]).all() and slope["params"]["w"].any()


@pytest.mark.slow
def test_pseudo_labels_are_what_is_heard_and_count_from_the_floor_on(x64):
    """Of three utterances one is sure, one is not, and one is silent: the loss is CTC of the first alone."""
    p = np.full((3, 5, 4), 0.02)
    heard = np.array([[1, 1, 0, 3, 0], [2, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    sure = np.array([[0.94, 0.9, 0.5, 0.86, 0.94], [0.94, 0.94, 0.6, 0.94, 0.94], [0.94] * 5])
    for row, frame in np.ndindex(3, 5):
        p[row, frame] = (1 - sure[row, frame]) / 3
        p[row, frame, heard[row, frame]] = sure[row, frame]
    logits = blank_after(jnp.log(p), jnp.array([5, 4, 5]))
    mean = (0.94 * 0.9 * 0.86) ** (1 / 3)  # of the frames in which a token is heard
    labels = pseudo_labels(logits, mean - 1e-9)
    assert labels.transcripts.tokens[:2, :2].tolist() == [[1, 3], [2, 1]]
    assert labels.transcripts.lengths.tolist() == [2, 2, 0] and labels.trusted.tolist() == [1, 0, 0]
    assert not pseudo_labels(logits, mean + 1e-9).trusted.any() and pseudo_labels(logits, 0.7).trusted[1]
    sloped = jax.jit(jax.value_and_grad(pseudo, has_aux=True))
    alone = lambda logits: ctc(logits[:1], mj.Transcripts(jnp.array([[1, 3]]), jnp.array([2])))[0]  # noqa: E731
    (value, metrics), slope = sloped(logits, labels)
    expected, expected_slope = jax.jit(jax.value_and_grad(alone))(logits)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-9)
    assert slope[0].any() and not slope[1:].any() and metrics["trusted"] == pytest.approx(1 / 3)
    (value, _), slope = sloped(logits, pseudo_labels(logits, 1.0))
    assert value == 0 and not slope.any()
    with pytest.raises(InputError, match=r"floor is 0.0, expected more than 0 and at most 1"):
        pseudo_labels(logits, 0.0)


@pytest.mark.slow
def test_the_first_pass_labels_every_step_and_no_gradient_runs_through_it(x64):
    """K steps are those of CTC on the transcripts that theta hears, whatever is heard on the way."""
    apply = lambda params, x, key: jnp.einsum("ntf,fv->ntv", x, params["w"])  # noqa: E731
    x, theta = jnp.asarray(LOGITS), {"params": {"w": jnp.eye(4)}}
    label = partial(pseudo_labels, floor=0.6)
    labels = label(x)
    assert 0 < labels.trusted.sum() < 3
    known = np.flatnonzero(labels.trusted)
    text = jax.tree.map(lambda a: a[known], labels.transcripts)
    descend = partial(mj.descent, apply, inner=optax.sgd(2.0))
    own, told = mj.first_pass(descend(error=pseudo), label), descend(error=ctc)
    target = mj.Transcripts(jnp.array([[1], [2], [3]]), jnp.ones(3, int))

    def loss(theta, learner, support):
        return mj.query_loss(learner, ctc, 3)(theta, mj.Episode(support, mj.Batch(x, target)), jax.random.key(0))[0]

    slopes = [
        jax.jit(jax.value_and_grad(partial(loss, learner=learner, support=support)))(theta)
        for learner, support in ((own, mj.Batch(x, ())), (told, mj.Batch(x[known], text)))
    ]
    for one, other in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    phi, _ = mj.adapt(own, theta, mj.Batch(x, ()), jax.random.key(0), 3)
    np.testing.assert_array_equal(phi.y.transcripts.tokens, labels.transcripts.tokens)
    after = label(own.predict(theta, phi, x, None)).transcripts
    assert (after.tokens != labels.transcripts.tokens).any()  # it would now hear something else


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"weight is 1.5 and temperature 2.5"):
        suta(jnp.zeros((1, 2, 3)), weight=1.5)
    with pytest.raises(InputError, match="temperature 0"):
        suta(jnp.zeros((1, 2, 3)), temperature=0.0)
