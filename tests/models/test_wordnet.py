"""The network of words, on frames and on waves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data.augment import among_speech
from metajax.data.features import endpointed, log_mel
from metajax.errors import InputError
from metajax.models.wordnet import CEPSTRA, FRONT_END, on_waves, word_net
from tests.conftest import normal


@pytest.mark.slow
def test_clips_have_vectors_of_length_1_each_of_its_own_and_the_level_of_a_wave_does_not_count():
    model = word_net(6, width=8, heads=2)
    waves = jnp.asarray(normal(3, 8000, scale=0.1) * np.linspace(0.1, 1, 8000, dtype=np.float32))
    heard = on_waves(model)
    params = jax.jit(heard.init)(jax.random.key(1), waves)
    apply = jax.jit(heard.apply)
    plain = jax.jit(lambda params, x: model.apply(params, jax.vmap(among_speech)(x)))
    found = np.asarray(apply(params, waves))
    frames = np.asarray(jax.jit(jax.vmap(lambda wave: log_mel(wave, FRONT_END)))(waves))
    place = np.arange(48)
    assert frames.shape[1] == 48
    mean = 0
    for tempo in (1, 1.18, 1 / 1.18):  # about the middle, with the band's minimum around what is faster
        at = 23.5 + (place - 23.5) / tempo
        inside = ((at >= 0) & (at <= 47))[:, None]
        one = [[np.interp(at, place, band) for band in clip.T] for clip in frames]
        one = np.where(inside, np.swapaxes(one, 1, 2), frames.min(1, keepdims=True))
        mean = mean + np.asarray(plain(params, one.astype(np.float32)))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    known = np.stack([endpointed(jnp.asarray(clip)) for clip in frames])
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    cosines = (mean @ mean.T + CEPSTRA * known @ known.T) / (1 + CEPSTRA)
    np.testing.assert_allclose(found @ found.T, cosines, atol=1e-4)
    np.testing.assert_allclose(found[:, :6], mean / (1 + CEPSTRA) ** 0.5, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    other = np.where(
        np.arange(3)[:, None] == 0, waves, np.float32(0.3)
    )  # a clip's vector does not know the other clips
    np.testing.assert_allclose(apply(params, other)[0], found[0], atol=1e-6)
    np.testing.assert_allclose(apply(params, 3 * np.asarray(waves)), found, atol=1e-3)
    assert params["attention"]["kernel"].shape == (8, 2) and params["map"]["kernel"].shape == (16, 6)


def test_inputs_of_another_shape_are_refused(unchecked):
    with pytest.raises(InputError, match=r"expected \[n, time, mel\]"):
        word_net(6, width=8).init(jax.random.key(0), jnp.zeros((98, 40)))
