"""Masked prediction: its loss written out, what is masked, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError
from metajax.algorithms.masked import _spans
from metajax.models import tcresnet8
from tests.conftest import normal

KEY = jax.random.key(0)
BANDS = 3


def encode(params, x, key):
    """Frames of stride 4: the mean of what is near, through weights."""
    n, time, bands = x.shape
    pooled = jnp.pad(x, ((0, 0), (0, -time % 4), (0, 0))).reshape(n, -1, 4, bands).mean(2)
    near = sum(jnp.roll(pooled, shift, 1) for shift in (-1, 0, 1))
    return jnp.tanh(near @ params["w"])


def episode(x):
    """Clips without labels."""
    return mj.Episode(mj.Batch(x[:2], ()), mj.Batch(x[2:], ()))


def test_spans_are_masked_in_every_clip_and_no_more():
    hidden = np.asarray(_spans(KEY, 300, 50, 8, 0.35))  # two spans of 8
    assert hidden.any(1).all() and hidden.sum(1).min() >= 9 and hidden.sum(1).max() == 16
    for row in hidden:
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int))))[::2]
        assert len(runs) <= 2 and runs.min() >= 8
    assert (np.abs(hidden[:, 7:43].mean(0) - 0.37) < 0.15).all()  # wherever
    assert np.asarray(_spans(KEY, 3, 10, 8, 0.1)).sum(1).tolist() == [8, 8, 8]  # at least one


def test_the_loss_is_that_of_masked_frames_alone(x64):
    x, w = normal(5, 22, BANDS), normal(BANDS, 6, seed=1)
    how = mj.masked_prediction(encode, features=6, bands=BANDS, stride=4, span=5)
    theta = how.learner.init({"w": w}, KEY)
    theta["decoder"]["dense0"]["kernel"] = normal(6, 4 * BANDS, seed=2)
    loss, metrics = how.objective(theta, episode(x), KEY)
    hidden = np.asarray(_spans(jax.random.split(KEY)[0], 5, 22, 5, 0.4))
    z = np.asarray(encode({"w": w}, jnp.where(hidden[..., None], 0, x), None))
    said = np.asarray(z @ theta["decoder"]["dense0"]["kernel"]).reshape(5, 24, BANDS)[:, :22]
    np.testing.assert_allclose(loss, np.square(said - x)[hidden].mean(), rtol=1e-6)
    assert metrics["loss"] == loss
    phi, _ = mj.adapt(how.learner, theta, mj.Batch(x, ()), KEY, 1)
    assert phi == () and how.learner.predict(theta, phi, x, None).shape == x.shape


def test_what_repeats_is_learned_and_the_encoder_with_it():
    """Clips that are the same in all frames: what is masked is seen beside it."""
    how = mj.masked_prediction(encode, features=16, bands=BANDS, stride=4, span=4)
    theta = how.learner.init({"w": normal(BANDS, 16, scale=0.3)}, KEY)
    optimizer = optax.adam(0.02)

    def step(carry, key):
        theta, state = carry
        clips = episode(jnp.broadcast_to(jax.random.normal(key, (12, 1, BANDS)), (12, 24, BANDS)))
        loss, grads = jax.value_and_grad(lambda theta: how.objective(theta, clips, key)[0])(theta)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(theta, updates), state), loss

    run = jax.jit(lambda theta: jax.lax.scan(step, (theta, optimizer.init(theta)), jax.random.split(KEY, 150)))
    (learned, _), losses = run(theta)
    assert losses[-5:].mean() < 0.4 * losses[0]
    assert np.abs(learned["params"]["w"] - theta["params"]["w"]).max() > 0.05


def test_frames_of_tcresnet_are_what_it_averages():
    x = normal(2, 13, 8)
    whole, frames = (tcresnet8(normalization="group", width=0.25, pooled=pooled) for pooled in (True, False))
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda a: draw(size=a.shape).astype(np.float32), jax.eval_shape(whole.init, KEY, x))
    z, mean = jax.jit(lambda params: (frames.apply(params, x), whole.apply(params, x)))(params)
    assert z.shape == (2, 2, 12)
    np.testing.assert_allclose(z.mean(1), mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0}, "span is 0, expected 1 or more"),
        ({"share": 1.0}, "share is 1.0, expected more than 0 and less than 1"),
        ({"span": 23}, "1 spans of 23 frames do not fit in 22 frames"),
        ({"stride": 3}, "6 frames of stride 3 do not cover the 22 frames"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        how = mj.masked_prediction(encode, **{"features": 6, "bands": BANDS, "stride": 4, "span": 5} | options)
        theta = how.learner.init({"w": jnp.ones((BANDS, 6))}, KEY)
        how.objective(theta, episode(jnp.ones((5, 22, BANDS))), KEY)
