"""What rooms, noises, lines and amplifiers make of a wave: measured, each against what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve, welch

from metajax import InputError, Utterances
from metajax.data import acoustics as parts

RATE = 16000
DRAW = np.random.default_rng(0)
WAVE = DRAW.normal(size=6000).astype(np.float32)


def decibel(ratio):
    return 10 * np.log10(ratio)


def test_convolution_is_that_of_the_loop_whatever_lies_behind():
    response = jnp.asarray(DRAW.normal(size=900), jnp.float32)
    expected = fftconvolve(WAVE.astype(float), np.asarray(response, float))
    longer = np.pad(WAVE, (0, 1777))
    np.testing.assert_allclose(parts.convolved(jnp.asarray(WAVE), response), expected[:6000], atol=2e-4)
    np.testing.assert_allclose(parts.convolved(jnp.asarray(longer), response)[:6000], expected[:6000], atol=2e-4)


@pytest.mark.parametrize(("rt60", "direct"), [(0.2, 0.0), (0.6, -6.0), (1.0, 10.0)])
def test_a_room_decays_in_the_time_asked_by_schroeders_integration(rt60, direct):
    """The energy still to come, -5 to -25 dB of all that follows the direct sound, extrapolated to -60."""
    responses = jax.vmap(lambda key: parts.room(jax.random.normal(key, (RATE,)), rt60, direct, RATE))
    found = np.asarray(responses(jax.random.split(jax.random.key(1), 8)), float)
    assert (found[:, 0] == 1).all()
    np.testing.assert_allclose(decibel(1 / np.square(found[:, 1:]).sum(1)), direct, atol=0.01)
    for response in found:
        left = decibel(np.cumsum(np.square(response[:0:-1]))[::-1] / np.square(response[1:]).sum())
        first, last = np.argmax(left < -5), np.argmax(left < -25)
        slope = np.polyfit(np.arange(first, last) / RATE, left[first:last], 1)[0]
        assert abs(-60 / slope / rt60 - 1) < 0.1


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_the_ratio_of_signal_to_noise_is_the_one_asked_within_the_utterance(snr):
    noise, length = jnp.asarray(parts.coloured(-1.0, 9000)[:6000]), 4100
    added = np.asarray(parts.add_noise(jnp.asarray(WAVE), noise, snr, length) - WAVE, float)
    found = decibel(np.square(WAVE[:length].astype(float)).sum() / np.square(added[:length]).sum())
    assert found == pytest.approx(snr, abs=1e-3)
    silent = parts.add_noise(jnp.asarray(WAVE), jnp.zeros(6000), snr, length)
    np.testing.assert_array_equal(silent, WAVE)


def test_a_line_passes_its_band_alone():
    low, high = 300.0, 3400.0
    tone = lambda f: jnp.sin(2 * jnp.pi * f * jnp.arange(8000) / RATE)  # noqa: E731
    frequency = jnp.array([150.0, low, 450.0, 1000.0, 3250.0, high, 3550.0, 6000.0])
    found = jax.vmap(lambda f: parts.band(tone(f), low, high, RATE))(frequency)[:, 1000:7000]
    gain = decibel(2 * np.square(np.asarray(found, float)).mean(1))
    np.testing.assert_allclose(gain[[2, 3, 4]], 0, atol=0.05)
    np.testing.assert_allclose(gain[[1, 5]], -6.02, atol=0.2)
    assert gain[[0, 6, 7]].max() < -40
    np.testing.assert_allclose(found[3], tone(1000.0)[1000:7000], atol=5e-3)  # without delay
    np.testing.assert_allclose(parts.band(jnp.asarray(WAVE), 0.0, RATE / 2, RATE), WAVE, atol=1e-5)
    padded = parts.band(jnp.asarray(np.pad(WAVE, (0, 700))), low, high, RATE)[:6000]
    np.testing.assert_allclose(padded, parts.band(jnp.asarray(WAVE), low, high, RATE), atol=1e-5)


def test_what_is_overdriven_is_cut_off_where_asked():
    found = np.asarray(parts.overdriven(jnp.asarray(WAVE), 9.0))
    limit = np.abs(WAVE).max() * 10 ** (-9 / 20)
    np.testing.assert_allclose(found, np.clip(WAVE, -limit, limit), atol=1e-6)
    assert (np.abs(found) >= limit * 0.9999).mean() == pytest.approx((np.abs(WAVE) >= limit).mean(), abs=1e-3) and (
        np.abs(WAVE) >= limit
    ).mean() > 0.05
    np.testing.assert_array_equal(parts.overdriven(jnp.asarray(WAVE), 0.0), WAVE)


def test_a_recording_begins_anew_where_it_ends():
    np.testing.assert_array_equal(parts.looped(jnp.arange(5.0), 3, 9), [3, 4, 0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0, 1.0])
def test_noise_has_its_colour(slope):
    noise = parts.coloured(slope, 1 << 17)
    frequency, power = welch(noise, RATE, nperseg=1024)
    inside = (frequency > 100) & (frequency < 7500)
    found = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert found == pytest.approx(slope, abs=0.1) and noise.std() == pytest.approx(1, rel=1e-5)
    assert (parts.coloured(slope, 64) != parts.coloured(slope, 64, seed=1)).any()


def test_babble_is_the_sum_of_voices():
    waves = Utterances(np.stack([np.full(40, 2.0), np.full(40, -3.0)]).astype(np.float32), np.array([30, 25]))
    one = parts.babble(waves, 1, 500)
    assert one.shape == (500,) and set(np.sign(one)) == {-1, 1}
    assert len(set(np.abs(one).round(5))) == 1  # every utterance has the same power, and none of the padding is in it
    assert one.std() == pytest.approx(1, rel=1e-5)
    assert len(set(np.abs(parts.babble(waves, 4, 500)).round(5))) > 1
    with pytest.raises(InputError, match="babble of 0 voices of 2 utterances, expected sound and a voice"):
        parts.babble(waves, 0, 10)


def test_recordings_of_noise_have_equal_parts_of_equal_power(tmp_path):
    paths = [tmp_path / name for name in ("loud.wav", "quiet.wav", "silent.wav")]
    tone = np.sin(2 * np.pi * 1000 * np.arange(4 * 8000) / 8000)
    soundfile.write(paths[0], DRAW.uniform(-0.9, 0.9, 50000), RATE)
    soundfile.write(paths[1], 0.01 * tone[: 8000 // 4], 8000)  # a quarter of a second of another rate
    soundfile.write(paths[2], np.concatenate([np.zeros(30000), tone]), RATE)
    noise = parts.recorded(paths[:2], 40000, RATE)
    loud, quiet = np.split(noise, 2)
    assert noise.dtype == np.float32 and loud.std() == pytest.approx(1, abs=0.01) and not (loud == quiet).any()
    begun = soundfile.read(paths[0])[0][:20000]
    np.testing.assert_allclose(loud, begun / np.sqrt(np.mean(begun**2)), rtol=1e-5)
    np.testing.assert_array_equal(quiet[:4000], quiet[4000:8000])
    assert np.sqrt(np.mean(quiet**2)) == pytest.approx(1, abs=0.01)
    assert np.abs(np.fft.rfft(quiet[:4000])).argmax() == 1000 * 4000 // RATE
    for given, told in (
        ((), "paths is empty, expected a recording of noise or more"),
        (paths[2:], "silent.wav is silent"),
        ([tmp_path / "none.wav"], "none.wav"),
    ):
        with pytest.raises(InputError, match=told):
            parts.recorded(given, 20000, RATE)
