"""Features of speech: log-mel spectrograms and cepstra, in JAX."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metajax.core import Utterances
from metajax.errors import InputError

IntLike = TypeVar("IntLike", int, np.ndarray, Array)

FLOOR = 1e-10  # added to the mel power: -100 dB of full scale
_HUM = 250.0  # Hz: bands below may hold hum, rumble and thumps


class FeatureSettings(NamedTuple):
    """How a wave becomes features; static, not to be traced."""

    sample_rate: int = 16000  # Hz
    window: int = 400  # length of the Hann window, in samples
    hop: int = 160  # from one frame to the next, in samples
    fft_size: int = 512  # frames are padded with zeros to it
    num_mels: int = 40
    low: float = 60.0  # lower edge of the first band, in Hz
    high: float = 7600.0  # upper edge of the last band, in Hz
    seconds: float = 1.0  # length that every clip of a corpus is brought to

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def num_frames(self) -> int:
        """Frames of a clip; all lie within it."""
        return frames_of(self.num_samples, self)


def check_settings(settings: FeatureSettings) -> None:
    """Raise InputError where `settings` do not fit together."""
    for name in ("sample_rate", "window", "hop", "fft_size", "num_mels"):
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}, expected a whole number, 1 or more.")
    if settings.window > settings.fft_size:
        raise InputError(f"window is {settings.window} samples, expected at most fft_size = {settings.fft_size}.")
    nyquist = settings.sample_rate / 2
    if not 0 <= settings.low < settings.high <= nyquist:
        bounds = f"low is {settings.low} Hz and high is {settings.high} Hz"
        raise InputError(f"{bounds}, expected 0 <= low < high <= {nyquist:g} Hz, half the sample rate.")
    if not settings.window / settings.sample_rate <= settings.seconds < float("inf"):
        raise InputError(f"seconds is {settings.seconds}, expected at least one window of {settings.window} samples.")
    if empty := int(np.sum(~_filters(settings).any(axis=0))):
        resolution = f"num_mels = {settings.num_mels} is too many for fft_size = {settings.fft_size}"
        raise InputError(f"{resolution}: {empty} mel bands lie between two FFT frequencies.")


def mel_filterbank(settings: FeatureSettings) -> Float[np.ndarray, "frequency mel"]:
    """Return the weights of FFT powers in mel bands: triangles of area 1 Hz, spaced evenly on Slaney's mel scale.

    Returns:
        `[fft_size // 2 + 1, num_mels]` float32.

    Raises:
        InputError: the settings do not fit together.

    Reference:
        Slaney, Auditory Toolbox (1998); the same as librosa's default.
    """
    check_settings(settings)
    return _filters(settings).astype(np.float32)


def log_mel(wave: Float[Array, " samples"], settings: FeatureSettings) -> Float[Array, "time mel"]:
    """Return ln(1e-10 + sum_f filter[f, m] |rfft(hann * frame)[f]|^2) of every frame that lies within `wave`.

    Args:
        wave: at `settings.sample_rate`, of any length from one window on.
        settings: static.

    Returns:
        `[1 + (samples - window) // hop, num_mels]`.

    Raises:
        InputError: the settings do not fit together, or `wave` is shorter than one window.

    Example:
        ``features = jax.jit(jax.vmap(lambda wave: log_mel(wave, FeatureSettings())))(waves)``
    """
    filters = mel_filterbank(settings)
    window = settings.window
    if wave.shape[0] < window:
        raise InputError(f"wave has {wave.shape[0]} samples, expected at least one window of {window}.")
    power = powers(wave, window, settings.hop, settings.fft_size)
    return jnp.log(jnp.dot(power, filters, precision=jax.lax.Precision.HIGHEST) + FLOOR)


def powers(wave: Float[Array, "*n samples"], window: int, hop: int, fft_size: int) -> Float[Array, "*n time frequency"]:
    """Return |rfft(hann * frame)|^2 of every frame that lies within the wave, padded with zeros to `fft_size`."""
    starts = hop * np.arange(1 + (wave.shape[-1] - window) // hop)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = wave[..., starts[:, None] + np.arange(window)]
    spectrum = jnp.fft.rfft(frames * hann.astype(jnp.promote_types(wave.dtype, jnp.float32)), fft_size)
    return spectrum.real**2 + spectrum.imag**2


def log_mels(waves: Utterances, settings: FeatureSettings) -> Utterances:
    """`log_mel` of each of `[n, samples]` waves with lengths in samples: `[n, time, mel]` with lengths in frames.

    Only frames that lie within a wave's length count; those past them see silence.
    """
    lengths = frames_of(waves.lengths, settings)
    frames = jax.vmap(lambda wave: log_mel(wave, settings))(waves.frames)
    inside = jnp.arange(frames.shape[1]) < lengths[:, None]
    return Utterances(jnp.where(inside[..., None], frames, jnp.log(FLOOR)), lengths)


def frames_of(samples: IntLike, settings: FeatureSettings) -> IntLike:
    """Frames that lie within so many samples, one window or more."""
    return 1 + (samples - settings.window) // settings.hop


def loudest(features: Float[np.ndarray, "time mel"], settings: FeatureSettings) -> Float[np.ndarray, "kept mel"]:
    """Return the `settings.num_frames` successive frames of a longer log-mel with the most power above 250 Hz.

    What lies below, hum, rumble, thumps and offsets, leaks into the lowest bands and can be louder than any word.
    """
    heard = _edges(settings)[:-2] >= _HUM
    power = np.exp(features[:, heard] if heard.any() else features, dtype=np.float64).sum(axis=1)
    total = np.concatenate([[0.0], np.cumsum(power)])
    start = int(np.argmax(total[settings.num_frames :] - total[: -settings.num_frames]))
    return features[start : start + settings.num_frames]


def mfcc(
    wave: Float[Array, " samples"], settings: FeatureSettings, num_coefficients: int = 13
) -> Float[Array, "time coefficient"]:
    """Return the first coefficients of the orthonormal DCT-II of each frame of `log_mel(wave, settings)`.

    Raises:
        InputError: as `log_mel`, or `num_coefficients` is not in 1..num_mels.
    """
    if not 1 <= num_coefficients <= settings.num_mels:
        raise InputError(f"num_coefficients is {num_coefficients}, expected 1 to num_mels = {settings.num_mels}.")
    return _cepstra(log_mel(wave, settings), num_coefficients)


def endpointed(
    features: Float[Array, "time mel"], num_frames: int = 20, num_coefficients: int = 13
) -> Float[Array, " values"]:
    """Return one clip's log-mel as a vector that needs no learning: cepstra of its loud part, however long that is.

    The part is from the first to the last frame whose level is above the middle between the clip's loudest and its
    10 % quietest; of it there are `num_frames` frames, evenly spaced and interpolated linearly. The 0th cepstrum, the
    level, is left out; of the others their mean over the frames, the channel, is subtracted. What lies 60 dB below the
    clip's maximum is raised to that.
    """
    level = jax.nn.logsumexp(features, axis=1)
    loud = level >= (jnp.quantile(level, 0.1) + level.max()) / 2
    first, last = loud.argmax(), len(loud) - 1 - loud[::-1].argmax()
    raised = jnp.maximum(features, features.max() - 6 * np.log(10))
    place, at = jnp.linspace(first, last, num_frames), jnp.arange(len(loud))
    frames = jax.vmap(lambda band: jnp.interp(place, at, band), 1, 1)(_cepstra(raised, num_coefficients)[:, 1:])
    return (frames - frames.mean(0)).reshape(-1)


def _cepstra(features: Float[Array, "time mel"], count: int) -> Float[Array, "time coefficient"]:
    """The first coefficients of the orthonormal DCT-II of each frame."""
    bands, order = features.shape[1], np.arange(count)
    basis = np.cos(np.pi / bands * (np.arange(bands)[:, None] + 0.5) * order)
    basis *= np.sqrt(np.where(order == 0, 1, 2) / bands)
    return jnp.dot(features, basis.astype(np.float32), precision=jax.lax.Precision.HIGHEST)


def _edges(settings: FeatureSettings) -> np.ndarray:
    """The lower edge, centre and upper edge of each band, in Hz: three successive entries."""
    low, high = _to_mel(np.array([settings.low, settings.high]))
    return _to_hertz(np.linspace(low, high, settings.num_mels + 2))


def _filters(settings: FeatureSettings) -> np.ndarray:
    edges = _edges(settings)
    frequencies = np.fft.rfftfreq(settings.fft_size, 1 / settings.sample_rate)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


# Slaney's scale: 3 mel per 200 Hz up to 1 kHz, from there on 27 mel per factor of 6.4.
def _to_mel(hertz: np.ndarray) -> np.ndarray:
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
