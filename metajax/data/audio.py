"""Audio files and waves: any recording as mono float32 samples at the asked rate."""

import io
import math
import os
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import erfc

from metajax.errors import InputError

_MAX_RATE = 384_000  # Hz: a higher rate in a header is damage, and would ask for a filter of gigabytes
_REACH = 256  # samples of the lower rate after which the low pass has died out: 2e-8 of its peak
_BLOCK = 2**17  # samples transformed at a time: bounds the memory that a long wave takes
_UNKNOWN_BYTES = 0x7FFF0000  # what streaming programs write as data size starts here and ends at 0xFFFFFFFF
_UNKNOWN_FRAMES = 2**62
# What libsndfile's log says of the sizes in the headers of WAV, AIFF, RF64, AU and W64.
_SIZES = re.compile(r"^ *(?:data|SSND|Riff size|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_OGG_PAGE = 65_307  # bytes, at most
_MP3_FRAMES = 2 * 1441  # bytes; encoders pad the end with up to two frames


def read_audio(
    path: str | os.PathLike, sample_rate: int, *, start: float = 0.0, duration: float | None = None
) -> Float32[np.ndarray, " samples"]:
    """Read a WAV, FLAC, OGG or MP3 file, or a segment of it, as the mean of its channels at `sample_rate`.

    A segment is read without what follows it and, save in OGG (where libsndfile seeks inexactly), what comes before.
    What is cut short is refused: in WAV (also RF64, WAVEX) and AIFF by the size in the header, for any segment, but
    for streamed files, whose header gives 2 GiB and more or no size; in OGG by the missing end-of-stream page, for any
    segment; in FLAC when the segment reaches the cut or a damaged frame; in MP3 when the segment reaches the end, by
    the Xing header. Without that header the length is an estimate: the file is refused where that proves wrong, but a
    cut can pass unseen, as can damage within OGG and MP3, which the decoders skip. Other formats of libsndfile are
    read with fewer checks.

    Args:
        path: the file.
        sample_rate: of the result, in Hz.
        start: of the segment, in seconds.
        duration: of the segment, in seconds, kept to within one sample; to the end of the file where None.

    Returns:
        The samples, nominally in [-1, 1].

    Raises:
        InputError: the file is missing, empty, cut short or not audio, the segment does not lie within it, or a sample
            is not finite.

    Example:
        ``wave = read_audio("seven.flac", 16000, start=0.5, duration=1.0)``
    """
    path = Path(path)
    _check_rate(sample_rate, "sample_rate")
    if not 0 <= start < math.inf:
        raise InputError(f"{path}: start is {start} s, expected 0 or more")
    if duration is not None and not 0 < duration < math.inf:
        raise InputError(f"{path}: duration is {duration} s, expected more than 0")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}, expected an audio file")
    try:
        # By descriptor, because soundfile treats some file names specially.
        with open(path, "rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            wave, rate = _read(sound, file, path, start, duration), sound.samplerate
    except soundfile.LibsndfileError as error:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes), expected an audio file") from error
        reason = error.error_string.rstrip(". ")
        raise InputError(f"{path} is not an audio file, is damaged or is cut short (libsndfile: {reason})") from error
    except (OSError, MemoryError) as error:
        raise InputError(f"{path} cannot be read ({error or 'out of memory'})") from error
    _check_finite(wave, path)
    return resample(wave, rate, sample_rate)


def resample(wave: np.ndarray, from_rate: int, to_rate: int) -> Float32[np.ndarray, " samples"]:
    """Convert `wave` from `from_rate` to `to_rate`, both in Hz, by a linear-phase low pass.

    Its response at f is erfc(120 (f / nyquist - 0.975)) / 2, with the lower of the two Nyquist frequencies: flat to
    0.001 dB up to 0.95 of that and 99 dB down from there on, for aliases and images alike. The wave counts as zero
    beyond its ends; the result has ceil(samples * to_rate / from_rate) samples.

    Raises:
        InputError: a rate is not in 1..384000 Hz, or the wave is not one-dimensional.
    """
    _check_rate(from_rate, "from_rate")
    _check_rate(to_rate, "to_rate")
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1:
        raise InputError(f"wave has shape {wave.shape}, expected one dimension")
    if from_rate == to_rate or len(wave) == 0:
        return wave
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    # In steps of `down` samples, which become `up`: blocks are filtered as if periodic, and their margins dropped.
    steps, margin = -(-len(wave) // down), -(-_REACH // min(up, down))
    block = next_fast_len(min(steps, max(_BLOCK // max(up, down), 2 * margin)) + 2 * margin, real=True)
    hop = block - 2 * margin
    filled = -(-steps // hop) * hop
    padded = np.zeros((filled + 2 * margin) * down, np.float32)
    padded[margin * down :][: len(wave)] = wave
    result = np.empty(filled * up, np.float32)
    response = _low_pass(up, down, block)
    for start in range(0, filled, hop):
        spectrum = rfft(padded[start * down :][: block * down])[: len(response)]
        result[start * up :][: hop * up] = irfft(spectrum * response, block * up)[margin * up :][: hop * up]
    return result[: -(-len(wave) * up // down)]


def check_wave(wave: np.ndarray, name: str, min_samples: int) -> None:
    """Raise InputError where `wave`, called `name`, is not finite, is silent or has fewer than `min_samples` samples.

    Silent is a wave that never leaves +-1e-4, which is 3 steps of 16-bit audio.
    """
    if len(wave) < min_samples:
        raise InputError(f"{name} has {len(wave)} samples, expected at least {min_samples}")
    _check_finite(wave, name)
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < 1e-4:
        raise InputError(f"{name} is silent: its peak is {peak:g}, expected at least 0.0001")


def _read(
    sound: soundfile.SoundFile, file: io.BufferedReader, path: Path, start: float, duration: float | None
) -> np.ndarray:
    """Return the mean of the channels from `start` on, at the file's own rate."""
    rate, frames = sound.samplerate, sound.frames
    _check_rate(rate, f"{path}: its sample rate")
    if frames >= _UNKNOWN_FRAMES:
        raise InputError(f"{path} does not tell its length, expected {sound.format} with its length in the header")
    if frames == 0:
        raise InputError(f"{path} holds no samples")
    for promised, found in _SIZES.findall(sound.extra_info):
        if int(found) < int(promised) < _UNKNOWN_BYTES:
            raise InputError(f"{path} is cut short: its header promises {promised} bytes, it holds {found}")
    if sound.format == "OGG" and not _ends_stream(file):
        raise InputError(f"{path} is cut short: its OGG stream has no end-of-stream page")

    first = round(start * rate)
    last = frames if duration is None else first + round(duration * rate)
    if not first < last <= frames + 1:  # one more, because both ends were rounded
        end = "the end" if duration is None else f"{start + duration:g} s"
        raise InputError(f"{path} lasts {frames / rate:g} s, but the segment from {start:g} s to {end} is asked for")
    last = min(last, frames)
    skip = first if sound.format == "OGG" else 0
    sound.seek(first - skip)
    wave = sound.read(skip + last - first, dtype="float32", always_2d=True)
    if len(wave) < skip + last - first:
        found = first - skip + len(wave)
        raise InputError(f"{path} is cut short or damaged: {found} of its {frames} samples per channel can be read")
    if sound.format == "MP3" and last == frames:
        # After the last sample there may be tags, but not more than the padding in frames, which begin with 11 ones.
        rest = os.fstat(file.fileno()).st_size - file.seek(os.lseek(file.fileno(), 0, os.SEEK_CUR))
        head = file.read(2)
        if rest > _MP3_FRAMES and head[0] == 0xFF and head[1] >= 0xE0:
            raise InputError(f"{path} has no Xing header and more samples than the {frames} estimated: encode it again")
    return wave[skip:].mean(axis=1)


def _ends_stream(file: io.BufferedReader) -> bool:
    """Return whether the last OGG page is whole and carries the end-of-stream flag."""
    position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    file.seek(max(os.fstat(file.fileno()).st_size - _OGG_PAGE, 0))
    tail = file.read()
    os.lseek(file.fileno(), position, os.SEEK_SET)  # the descriptor is shared with libsndfile
    page = tail[tail.rfind(b"OggS\0") :]
    return len(page) >= 27 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _check_finite(wave: np.ndarray, name: object) -> None:
    if count := np.sum(~np.isfinite(wave)):
        raise InputError(f"{name} holds {count} samples that are NaN or infinite")


def _check_rate(rate: int, name: str) -> None:
    if not 0 < rate <= _MAX_RATE:
        raise InputError(f"{name} is {rate} Hz, expected 1 to {_MAX_RATE} Hz")


@lru_cache(maxsize=32)
def _low_pass(up: int, down: int, block: int) -> np.ndarray:
    """Return the gain at each frequency of a block of `block * down` samples that becomes one of `block * up`."""
    lower = block * min(up, down)
    frequency = np.arange(lower // 2 + 1) / (lower / 2)
    return (erfc(120 * (frequency - 0.975)) / 2 * (up / down)).astype(np.float32)
