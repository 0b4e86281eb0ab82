"""What a room, a noise, a line and an amplifier make of a wave: the parts of `tasks.scenarios`, and noises to add.

The parts take one wave, `[samples]`, and numbers, on the device, and are deterministic. A wave must be zero past its
end; what then lies past it does not change what lies before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from metajax.core import KeyArray, Scalar, Utterances
from metajax.data.audio import check_wave, read_audio
from metajax.errors import InputError

Wave: TypeAlias = Float[Array, " samples"]
Number: TypeAlias = float | Scalar
TAPS = 511  # of `band`: an edge is 100 Hz wide at 16 kHz


def convolved(wave: Wave, response: Float[Array, " taps"]) -> Wave:
    """Return sum_k response(k) wave(t - k) for each sample t of `wave`, by Fourier transform."""
    from scipy.fft import next_fast_len  # a quarter of a second

    size = next_fast_len(len(wave) + len(response) - 1, real=True)
    product = jnp.fft.rfft(wave, size) * jnp.fft.rfft(response, size)
    return jnp.fft.irfft(product, size)[: len(wave)].astype(wave.dtype)


def room(normal: Float[Array, " taps"], rt60: Number, direct_db: Number, sample_rate: int) -> Float[Array, " taps"]:
    """Impulse response of a room: h(0) = 1, the direct sound, and h(t) = g n(t) 10^(-3 t / rt60), the sound in decay.

    Args:
        normal: n, normally distributed; its length is the response's.
        rt60: seconds in which the sound falls by 60 dB, the same at all frequencies.
        direct_db: ratio of the direct sound's energy to that of all that follows, which g sets.
        sample_rate: in Hz.

    Reference: Polack, "La transmission de l'énergie sonore dans les salles", 1988.
    """
    tail = (normal * 10 ** (-3 * jnp.arange(len(normal)) / sample_rate / rt60)).at[0].set(0)
    return (tail * jnp.sqrt(10 ** (-direct_db / 10) / jnp.square(tail).sum())).at[0].set(1)


def looped(recording: Wave, start: int | Int[Array, ""], samples: int) -> Float[Array, " part"]:
    """Return `samples` samples of a recording from `start` on, which begins anew where it ends."""
    return recording[(start + jnp.arange(samples)) % len(recording)]


def add_noise(wave: Wave, noise: Wave, snr_db: Number, length: int | Int[Array, ""]) -> Wave:
    """Return wave + g noise, g such that their powers within `length` have the ratio `snr_db`."""
    inside = jnp.arange(len(wave)) < length
    power, noise_power = (jnp.where(inside, jnp.square(a), 0).sum() for a in (wave, noise))
    return wave + noise * jnp.sqrt(power / jnp.maximum(noise_power, 1e-30) * 10 ** (-snr_db / 10))


def band(wave: Wave, low: Number, high: Number, sample_rate: int) -> Wave:
    """Return what of the wave lies between two frequencies in Hz, at which it is halved; without delay.

    A difference of sincs under a Hamming window, of `TAPS` taps: within the band to 0.3 %, below -50 dB outside it, but
    within 100 Hz of an edge. From 0 to half the sample rate nothing changes.
    """
    at = np.arange(TAPS) - TAPS // 2
    below = [2 * f / sample_rate * jnp.sinc(2 * f / sample_rate * at) for f in (high, low)]
    response = (below[0] - below[1]) * np.hamming(TAPS).astype(np.float32)
    return convolved(jnp.pad(wave, (0, TAPS // 2)), response)[TAPS // 2 :]


def overdriven(wave: Wave, over_db: Number) -> Wave:
    """Return the wave with its peaks cut off at `over_db` below the highest of them."""
    limit = jnp.abs(wave).max() * 10 ** (-over_db / 20)
    return jnp.clip(wave, -limit, limit)


def coloured(slope: float, samples: int, seed: int = 0) -> Float32[np.ndarray, " samples"]:
    """Noise whose power is as f^slope: white 0, pink -1, brown -2, blue 1; of power 1, and it loops without a step."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    return (noise / noise.std()).astype(np.float32)


def babble(waves: Utterances, voices: int, samples: int, seed: int = 0) -> Float32[np.ndarray, " samples"]:
    """Many voices at once: the sum of so many strings of utterances drawn at random, each of power 1; so is the sum.

    Args:
        waves: `[n, samples]` with lengths; of no speaker who is to be recognised.
        voices: at a time.
        samples: of the noise.
        seed: of the draw.

    Raises:
        InputError: there is no voice or no sound.
    """
    if voices < 1 or not np.any(waves.lengths):
        raise InputError(f"babble of {voices} voices of {len(waves.lengths)} utterances, expected sound and a voice.")
    draw, total = np.random.default_rng(seed), np.zeros(samples)
    for _ in range(voices):
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < samples:
            row = draw.integers(len(waves.lengths))
            wave = np.asarray(waves.frames[row])[: int(waves.lengths[row])]
            parts.append(wave / max(float(np.sqrt(np.mean(np.square(wave)))), 1e-9) if len(wave) else wave)
        total += np.concatenate(parts)[:samples]
    return (total / total.std()).astype(np.float32)


def recorded(paths: Sequence[Path], samples: int, sample_rate: int) -> Float32[np.ndarray, " samples"]:
    """Recordings of noise one after the other: of each the beginning, an equal part of all, with power 1.

    Args:
        paths: of the recordings; what of one is shorter than its part is repeated.
        samples: of the noise.
        sample_rate: in Hz.

    Raises:
        InputError: there is none, or one cannot be read or is silent in its part.
    """
    if not paths:
        raise InputError("paths is empty, expected a recording of noise or more.")
    parts, share = [], -(-samples // len(paths))
    for path in paths:
        check_wave(wave := read_audio(path, sample_rate)[:share], str(path), 1, sample_rate)
        parts.append(np.resize(wave / np.sqrt(np.mean(np.square(wave))), share))
    return np.concatenate(parts)[:samples]


def disturbed(waves: Float[Array, "n samples"], key: KeyArray, sample_rate: int) -> Float[Array, "n samples"]:
    """Each wave as from a room, noise, level and place in time of its own: an augmentation.

    RT60 from 0.1 to 0.5 s, direct sound from -3 to 17 dB, noise from white to dull at 5 to 40 dB, level from -20 to
    0 dB, shift of up to 0.1 s, around the end.

    Args:
        waves: 0 past their ends.
        key: of the draw.
        sample_rate: in Hz.
    """

    def one(wave: Wave, key: KeyArray) -> Wave:
        tail, hiss, draw = jax.random.split(key, 3)
        rt60, direct, level, snr, dull, shift = jax.random.uniform(draw, (6,))
        response = room(jax.random.normal(tail, (sample_rate // 4,)), 0.1 + 0.4 * rt60, 20 * direct - 3, sample_rate)
        noise = jax.random.normal(hiss, wave.shape)
        noise = noise + 3 * dull * jnp.convolve(noise, jnp.ones(8) / 8, "same")
        heard = jnp.roll(convolved(wave, response), jnp.round((2 * shift - 1) * sample_rate / 10).astype(int))
        return 10 ** (level - 1) * add_noise(heard, noise, 5 + 35 * snr, len(wave))

    return jax.vmap(one)(waves, jax.random.split(key, len(waves)))
