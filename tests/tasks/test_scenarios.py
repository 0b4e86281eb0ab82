"""Scenarios on top of samplers: one for a task, and none changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError, Utterances
from metajax.data import acoustics
from metajax.data.features import FeatureSettings, log_mel
from metajax.tasks.episodes import episodes, with_inputs
from metajax.tasks.groups import groups
from metajax.tasks.scenarios import Scenarios, scenarios
from tests.conftest import normal

SETTINGS = FeatureSettings(num_mels=8, window=200, fft_size=256, sample_rate=8000, hop=80, high=3800.0)
NOISES = jnp.asarray(np.stack([acoustics.coloured(slope, 3000) for slope in (0.0, -1.0, -2.0)]))
LENGTHS = np.array([2400, 1500, 2000, 1999])
WAVES = jnp.asarray(np.where(np.arange(2400) < LENGTHS[:, None], normal(4, 2400), np.float32(0)))
X = Utterances(WAVES, jnp.asarray(LENGTHS))
KEY = jax.random.key(3)
ALL = Scenarios(
    room=1.0, noise=1.0, kinds=(0, 2), line=1.0, clip=1.0, low=(200.0, 400.0), high=(2000.0, 3000.0), rt60=(0.1, 0.2)
)


@jax.jit
def hear(given, x, key):
    """One program for all scenarios: their values are traced."""
    return scenarios(given, NOISES, SETTINGS, longest=0.2)(x, key)


def alone(**parts):
    return Scenarios(**{"rt60": ALL.rt60, "low": ALL.low, "high": ALL.high} | parts)


CLEAN = jax.jit(scenarios(alone(), NOISES, SETTINGS, longest=0.2))


@pytest.mark.slow
def test_a_clean_scenario_is_the_corpus():
    found = CLEAN(X, KEY)
    alone_of = jax.jit(log_mel, static_argnums=1)
    for row, length in enumerate(LENGTHS[:2]):
        expected = alone_of(WAVES[row, :length], SETTINGS)
        assert found.lengths[row] == len(expected)
        np.testing.assert_allclose(found.frames[row, : len(expected)], expected, atol=1e-4)
        np.testing.assert_allclose(found.frames[row, len(expected) :], np.log(1e-10), rtol=1e-6)
    np.testing.assert_allclose(hear(alone(), X, KEY).frames, found.frames, atol=1e-4)
    words = jax.jit(scenarios(Scenarios(), NOISES, SETTINGS))(WAVES[:1], KEY)  # of one length: a plain array
    np.testing.assert_allclose(words, found.frames[:1], atol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        ALL,
        alone(room=1.0),
        alone(noise=1.0, kinds=(1, 1)),
        alone(line=1.0),
        alone(clip=1.0, over=(6.0, 6.0)),
    ],
    ids=["all", "room", "noise", "line", "clip"],
)
def test_each_part_is_heard_and_padding_changes_nothing(given):
    found, again, other = (hear(given, X, key) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(found.frames, again.frames)
    assert np.abs(found.frames - CLEAN(X, KEY).frames).max() > 0.5
    assert given.over == (6.0, 6.0) or (found.frames != other.frames).any()
    behind = Utterances(jnp.pad(WAVES, ((0, 0), (0, 400))) + (np.arange(2800) >= LENGTHS[:, None]), X.lengths)
    padded = hear(given, behind, KEY)
    frames = found.frames.shape[1]
    np.testing.assert_array_equal(padded.lengths, found.lengths)
    np.testing.assert_allclose(padded.frames[:, :frames], found.frames, atol=2e-3)
    np.testing.assert_allclose(np.exp(padded.frames[:, :frames]), np.exp(found.frames), rtol=1e-4, atol=1e-5)


def test_vmap_is_the_loop():
    keys = jax.random.split(KEY, 3)
    found = jax.jit(jax.vmap(lambda key: scenarios(ALL, NOISES, SETTINGS, longest=0.2)(X, key)))(keys)
    for row, key in enumerate(keys):
        np.testing.assert_allclose(np.exp(found.frames[row]), np.exp(hear(ALL, X, key).frames), rtol=1e-4, atol=1e-5)


def test_what_is_asked_is_what_is_drawn():
    """Rooms are heard with their probability, noise at its level: measured in the power of silence with noise."""
    tone = Utterances(jnp.full((1, 2400), 1.0).at[:, 600:].set(0), jnp.array([2400]))
    white = alone(noise=0.5, snr=(20.0, 20.0))
    keys = jax.random.split(KEY, 200)
    power = np.exp(jax.jit(jax.vmap(lambda key: hear(white, tone, key).frames[0, 10:]))(keys)).mean((1, 2))
    noisy = power > 1e-6
    assert abs(noisy.mean() - 0.5) < 0.12  # 3.4 standard deviations
    levels = 10 * np.log10(power[noisy])
    assert levels.std() < 1.0
    low = 10 * np.log10(np.exp(hear(white._replace(noise=1.0, snr=(0.0, 0.0)), tone, KEY).frames[0, 10:]).mean())
    assert low - levels.mean() == pytest.approx(20, abs=1.5)
    as_loud = jax.jit(log_mel, static_argnums=1)(NOISES[0] * np.sqrt(600 / 2400), SETTINGS)  # as the tone over all
    assert low == pytest.approx(10 * np.log10(np.exp(as_loud).mean()), abs=0.7)


def test_support_and_query_share_the_scenario_of_a_task():
    """Each wave is the same, so that in a room all must sound alike, and otherwise in another task."""
    same = Utterances(jnp.broadcast_to(WAVES[0], (8, 2400)), jnp.full(8, 2400))
    room = scenarios(alone(room=1.0), NOISES, SETTINGS, longest=0.2)
    label, speaker = np.repeat([0, 1], 4), np.tile([0, 1], 4)
    for sample in (
        groups(same, (), np.zeros(8, int), shots=2, queries=2),
        episodes(same, label, speaker, ways=2, shots=1, queries=1),
    ):
        heard = jax.jit(with_inputs(sample, room))
        one, other = heard(KEY), heard(jax.random.key(9))
        np.testing.assert_allclose(one.support.x.frames, one.query.x.frames, atol=1e-4)
        np.testing.assert_allclose(one.support.x.frames[0], one.query.x.frames[1], atol=1e-4)
        assert np.abs(one.support.x.frames - other.support.x.frames).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"room": 1.5}, "room is 1.5, expected a probability"),
        ({"snr": (10.0, 0.0)}, "snr is from 10.0 to 0.0, expected a range within -inf to inf"),
        ({"rt60": (0.2, 0.6)}, "rt60 is from 0.2 to 0.6, expected a range within 0.01 to 0.2"),
        ({"kinds": (0, 3)}, "kinds is from 0 to 3, expected a range within 0 to 2"),
        ({"high": (3000.0, 5000.0)}, "high is from 3000.0 to 5000.0, expected a range within 0 to 4000"),
        ({"over": (-1.0, 3.0)}, "over is from -1.0 to 3.0"),
    ],
)
def test_what_there_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        scenarios(ALL._replace(**change), NOISES, SETTINGS, longest=0.2)
