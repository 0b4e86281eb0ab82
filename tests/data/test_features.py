"""Log-mel spectrograms and cepstra, against librosa."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from metajax.data.features import FeatureSettings, check_settings, endpointed, log_mel, loudest, mel_filterbank, mfcc
from metajax.errors import InputError
from tests.conftest import LOW

# Compiling is most of the time.
SETTINGS = [
    FeatureSettings(),
    FeatureSettings(sample_rate=8000, window=200, hop=80, fft_size=256, num_mels=24, low=20, high=4000),
    FeatureSettings(sample_rate=22050, window=1024, hop=256, fft_size=1024, num_mels=80, low=0, high=11025),
    FeatureSettings(window=401, hop=133, fft_size=600, num_mels=13, low=100, high=3000),
]


@pytest.fixture(scope="module")
def librosa():
    """The oracle, none of it compiled: where it is new, Numba takes half a minute over what is not called here."""
    plain = lambda *args, **_: args[0] if args and callable(args[0]) else lambda f: f  # noqa: E731
    numba = SimpleNamespace(**dict.fromkeys(("jit", "stencil", "vectorize", "guvectorize"), plain))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", numba)
        module = pytest.importorskip("librosa", reason="librosa is the oracle")
        yield module


def wave_of(settings):
    """Noise and a chirp over all frequencies."""
    time = np.arange(settings.num_samples) / settings.sample_rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * noise + 0.5 * np.sin(np.pi * settings.high * time**2)).astype(np.float32)


def librosa_log_mel(librosa, wave, settings):
    extra = settings.fft_size - settings.window  # librosa centres the window in the FFT frame
    power = librosa.feature.melspectrogram(
        y=np.pad(wave.astype(np.float64), (extra // 2, extra - extra // 2)),
        sr=settings.sample_rate, n_fft=settings.fft_size, hop_length=settings.hop, win_length=settings.window,
        center=False, power=2.0, n_mels=settings.num_mels, fmin=settings.low, fmax=settings.high,
    )  # fmt: skip
    return np.log(power + 1e-10).T


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_log_mel_and_mfcc_are_those_of_librosa(librosa, settings):
    wave = wave_of(settings)
    wanted = librosa_log_mel(librosa, wave, settings)
    given, cepstra = jax.jit(lambda wave: (log_mel(wave, settings), mfcc(wave, settings)))(wave)
    assert given.dtype == jnp.float32 and given.shape == wanted.shape == (settings.num_frames, settings.num_mels)
    np.testing.assert_allclose(given, wanted, atol=1e-4)
    wanted = librosa.feature.mfcc(S=wanted.T, n_mfcc=13).T
    np.testing.assert_allclose(cepstra, wanted, atol=2e-4)


def test_endpointed_cepstra_are_those_of_the_loud_part_alone():
    """Against scipy; neither level, nor channel, nor where the word lies, nor its length changes them."""
    draw = np.random.default_rng(0)
    word = np.cumsum(draw.normal(size=(31, 40)), 0)
    word += 8 - np.log(np.exp(word).sum(1, keepdims=True))  # one level throughout

    def clip(before, word, size=90):
        quiet = -3 + 0.1 * draw.normal(size=(size, 40))
        quiet[before : before + len(word)] = word
        return jnp.asarray(quiet, jnp.float32)

    run = jax.jit(endpointed)
    found = run(clip(20, word))
    clamped = np.maximum(word, word.max() - 6 * np.log(10))
    wanted = scipy.fft.dct(clamped, norm="ortho", axis=1)[:, 1:13]
    place = np.linspace(0, 30, 20)
    wanted = np.stack([np.interp(place, np.arange(31), band) for band in wanted.T], 1)
    np.testing.assert_allclose(found, (wanted - wanted.mean(0)).ravel(), atol=1e-4)
    np.testing.assert_allclose(run(clip(43, word)), found, atol=1e-4)
    np.testing.assert_allclose(run(clip(20, word) + 2.0), found, atol=1e-4)
    slow = np.repeat(word, 2, 0)
    assert np.corrcoef(run(clip(10, slow)), found)[0, 1] > 0.95
    assert np.isfinite(run(jnp.zeros((90, 40)))).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_filterbank_is_that_of_librosa(librosa, settings):
    wanted = librosa.filters.mel(
        sr=settings.sample_rate, n_fft=settings.fft_size, n_mels=settings.num_mels, fmin=settings.low,
        fmax=settings.high,
    )  # fmt: skip
    np.testing.assert_allclose(mel_filterbank(settings), wanted.T, atol=1e-8, rtol=1e-5)


def test_a_tone_is_strongest_in_its_band():
    settings = FeatureSettings()
    centres = np.arange(settings.fft_size // 2 + 1)[np.argmax(mel_filterbank(settings), axis=0)] * 16000 / 512
    for band in (3, 15, 30, 39):
        tone = np.sin(2 * np.pi * centres[band] * np.arange(16000) / 16000).astype(np.float32)
        assert (np.argmax(log_mel(jnp.asarray(tone), settings), axis=1) == band).all()


def test_jit_and_vmap_change_nothing():
    settings = FeatureSettings(seconds=0.2)
    waves = jnp.stack([wave_of(settings), wave_of(settings)[::-1]])
    given = jax.jit(jax.vmap(lambda wave: log_mel(wave, settings)))(waves)
    np.testing.assert_allclose(given, np.stack([log_mel(wave, settings) for wave in waves]), atol=1e-4)


def test_frames_lie_within_the_wave_and_silence_is_the_floor():
    settings = FeatureSettings()
    assert settings.num_frames == 98 and settings.num_samples == 16000
    for samples, frames in [(400, 1), (559, 1), (560, 2), (16000, 98)]:
        given = jax.jit(lambda wave: log_mel(wave, settings))(np.zeros(samples, np.float32))
        assert given.shape == (frames, 40)
        np.testing.assert_allclose(given, np.log(1e-10), rtol=1e-6)
    with pytest.raises(InputError, match="399 samples"):
        log_mel(jnp.zeros(399), settings)


def test_cepstra_keep_the_energy_of_the_frame():
    settings = FeatureSettings(seconds=0.1)
    wave = jnp.asarray(wave_of(settings))
    spectra, cepstra = jax.jit(lambda wave: (log_mel(wave, settings), mfcc(wave, settings, 40)))(wave)
    np.testing.assert_allclose(np.square(cepstra).sum(1), np.square(spectra).sum(1), rtol=1e-5)
    for number in (0, 41):
        with pytest.raises(InputError, match="num_coefficients"):
            mfcc(wave, settings, number)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 513},
        {"window": 0},
        {"hop": 0},
        {"num_mels": -1},
        {"sample_rate": 16000.0},
        {"low": -1.0},
        {"low": 7600.0},
        {"high": 8001.0},
        {"high": float("nan")},
        {"seconds": 0.0249},
        {"seconds": float("inf")},
        {"num_mels": 256},
    ],
)
def test_settings_that_do_not_fit_are_refused(change):
    check_settings(FeatureSettings())
    settings = FeatureSettings(**change)
    for function in (check_settings, mel_filterbank, lambda settings: log_mel(jnp.zeros(16000), settings)):
        with pytest.raises(InputError, match=next(iter(change))):
            function(settings)


@pytest.mark.parametrize("low", LOW)
def test_the_loudest_part_is_that_of_the_word_whatever_lies_below_it(low):
    settings = FeatureSettings()
    time = np.arange(48000) / 16000
    word = np.where(abs(time - 2) < 0.25, 0.1 * np.sin(2 * np.pi * 300 * time) * np.sin(np.pi * (time - 1.75) / 0.5), 0)
    noise = 1e-4 * np.random.default_rng(0).normal(size=48000)
    features = np.asarray(log_mel(jnp.asarray(word + noise + LOW[low](time), jnp.float32), settings))
    kept = loudest(features, settings)
    start = next(i for i in range(len(features)) if (features[i] == kept[0]).all())
    assert kept.shape == (98, 40) and 128 <= start <= 174  # the second holds 1.75 s to 2.25 s, in frames of 10 ms
    np.testing.assert_array_equal(kept, features[start : start + 98])


def test_the_loudest_part_has_the_most_power():
    settings = FeatureSettings(seconds=0.1, low=20.0, high=200.0, num_mels=3)  # no band above the hum
    features = np.random.default_rng(0).normal(size=(50, 3))
    sums = [np.exp(features[start : start + 8]).sum() for start in range(43)]
    np.testing.assert_array_equal(loudest(features, settings), features[np.argmax(sums) :][:8])
