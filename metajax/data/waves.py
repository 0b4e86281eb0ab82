"""Words as waves of one length, for encoders that take samples."""

import warnings

import numpy as np
from jaxtyping import Float, Float16

from metajax.data.audio import above_hum, check_wave
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_BATCH = 256  # clips read at a time


def word_waves(
    recordings: Recordings, *, seconds: float = 1.0, silence: float = 0.125, sample_rate: int = 16000
) -> Float16[np.ndarray, "clips samples"]:
    """The loudest part of every clip, or all of it, in the middle of silence; in half precision, to save memory.

    Args:
        recordings: from a reader of `metajax.data.corpora`.
        seconds: kept of a longer clip.
        silence: seconds before and after.
        sample_rate: in Hz.

    Raises:
        InputError: the reader's own, for the first clip that cannot be used.
    """
    waves: list[np.ndarray] = []
    clips = len(recordings.clip_names)
    for start in range(0, clips, _BATCH):
        for wave in recordings.read(list(range(start, min(start + _BATCH, clips))), sample_rate):
            if isinstance(wave, InputError):
                raise wave
            check_wave(wave, recordings.clip_names[len(waves)], 1, sample_rate)
            sizes = round(seconds * sample_rate), round(silence * sample_rate)
            waves.append(placed(wave, *sizes, sample_rate=sample_rate).astype(np.float16))
    return np.stack(waves)


def placed(
    wave: Float[np.ndarray, " samples"], size: int, around: int, name: str = "", sample_rate: int = 16000
) -> Float[np.ndarray, " kept"]:
    """The `size` samples with the most energy above 250 Hz, or all, in the middle of zeros, `around` on both sides.

    A warning tells where a wave with a `name` is cut.
    """
    start = 0
    if len(wave) > size:
        total = np.cumsum(np.concatenate([[0.0], np.square(above_hum(wave, sample_rate), dtype=np.float64)]))
        start = int(np.argmax(total[size:] - total[:-size]))
    if name and len(wave) > size:
        first, last, whole = (samples / sample_rate for samples in (start, start + size, len(wave)))
        told = f"{name} lasts {whole:.1f} s, of which the loudest part counts, {first:.2f} to {last:.2f} s."
        warnings.warn(told, stacklevel=2)
    wave = wave[start : start + size]
    before = (size - len(wave)) // 2
    return np.pad(wave, (around + before, around + size - len(wave) - before))
