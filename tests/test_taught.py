"""Words taught by a clip each: what is learned, and what is found in running audio."""

import doctest

import jax.numpy as jnp
import numpy as np

from metajax import taught
from metajax.taught import Spotting, hearing, learned, listen, spot
from tests.conftest import normal


def found(p, **how):
    state, told = Spotting(), []
    for count, one in enumerate(p):
        state, new = spot(state, np.array(one), **how)
        told += [(new.middle, new.word, new.p, count)] if new else []
    return told


def stretch(word, *p):
    return [[q if word == i else 0.0 for i in range(2)] for q in p]


SILENCE = [[0.0, 0.0]] * 10


def test_examples():
    assert doctest.testmod(taught).failed == 0


def test_a_stretch_is_one_word_and_of_two_that_are_near_the_likelier_is_told():
    p = [*SILENCE, *stretch(1, 0.6, 0.9, 0.6), *SILENCE]
    assert found(p) == [(11.0, 1, 0.9, 20)]
    assert found(p, sure=0.7) == [(11.0, 1, 0.9, 20)] and found(p, sure=0.95) == []
    # two words in a row are near; the second is likelier, then the first
    for first, second, word in ((0.7, 0.8, 1), (0.8, 0.7, 0)):
        both = [*SILENCE, *stretch(0, first, first), *stretch(1, second, second), *SILENCE]
        assert [one[1] for one in found(both)] == [word]
        assert [one[1] for one in found(both, apart=1)] == [0, 1]
    far = [*SILENCE, *stretch(0, 0.8), *SILENCE, *stretch(1, 0.7), *SILENCE]
    assert [(middle, word) for middle, word, _, _ in found(far)] == [(10, 0), (21, 1)]


def test_running_audio_gives_the_same_in_blocks_of_any_size():
    hop, samples, draw = 4, 12, np.random.default_rng(0)
    sound = draw.uniform(size=80 * hop).astype(np.float32) * 0.02
    for place in (10, 11, 12, 40, 41, 42):
        sound[place * hop : (place + 1) * hop] += 1.0

    def heard(x):
        """How full a window is."""
        windows = (x.shape[1] - samples) // hop + 1
        full = np.stack([x[0, i * hop : i * hop + samples].mean() for i in range(windows)]).clip(0, 1)
        return jnp.asarray(np.stack([full, 0 * full, 1 - full], 1)[None])

    how = {"samples": samples, "hop": hop, "sure": 0.9}
    results = [list(listen(heard, sound.reshape(-1, size * hop), **how)) for size in (1, 2, 8, 80)]
    assert all(result == results[0] for result in results)
    assert [one.middle for one in results[0]] == [11.5 * hop, 41.5 * hop] and results[0][0].p > 0.95


def test_words_are_the_means_of_their_clips():
    z = normal(5, 8)
    z /= jnp.linalg.norm(z, axis=1, keepdims=True)
    said, unknown = ["b", "a", "b", "a", "b"], {"scale": 10.0, "bias": 2.0, "growth": 0.5}
    known = learned(z, said, unknown)
    assert known.words == ["b", "a"]
    means = np.stack([np.asarray(z)[np.array(said) == word].mean(0) for word in known.words])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    x = normal(7, 8, seed=1)
    cosine = np.asarray(x) @ means.T / np.linalg.norm(x, axis=1, keepdims=True)
    logits = np.concatenate([10 * cosine - 0.5 * np.log([3, 2]), np.full((7, 1), 2.0)], 1)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(hearing(known, unknown)(x), expected, atol=1e-5)
