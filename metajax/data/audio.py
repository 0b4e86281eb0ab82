"""Audio files and waves: any recording as mono float32 samples at the asked rate."""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from metajax.data import mp3, ogg, wav
from metajax.data.mp3 import Stream
from metajax.errors import InputError

_RATES = (6_000, 384_000)  # Hz: below there is no speech, above only damage
_BLOCK = 2**19  # samples per channel read at a time: bounds the memory that a long file takes
_UNKNOWN_BYTES = 0x7FFF0000  # what streaming programs write as data size starts here and ends at 0xFFFFFFFF
_UNKNOWN_FRAMES = 2**62
# What libsndfile's log says of the sizes in the headers of AIFF, RF64, AU and W64.
_SIZES = re.compile(r"^ *(?:data|SSND|Riff size|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_OTHERS = {
    rb"....ftyp": "an MPEG-4 file (m4a, mp4, 3gp)",
    rb"\x1aE\xdf\xa3": "a WebM or Matroska file",
    rb"#!AMR": "an AMR file",
    rb"0&\xb2u": "a Windows Media file",
    rb"\xff[\xf0\xf1\xf8\xf9]|ADIF": "an AAC file",
    rb"\s*<(?i:!doctype|html|\?xml)": "a web page",
    rb"version https://git-lfs": "a Git LFS pointer: fetch the file itself",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf": "a packed archive",
}


def read_audio(
    path: str | os.PathLike, sample_rate: int, *, start: float = 0.0, duration: float | None = None
) -> Float32[np.ndarray, " samples"]:
    """Read a WAV, FLAC, OGG or MP3 file, or a segment of it, as the mean of its channels at `sample_rate`.

    Where the channels cancel one another the loudest is taken. A segment is read without what follows it and, save in
    OGG (where libsndfile seeks inexactly), what comes before. The length of WAV and MP3 is found without faith in
    their headers, and streams that follow one another in an OGG file are all read.

    What is cut short is refused: in WAV, RF64 and AIFF by the sizes in the header, save those of streamed and
    unfinished files; in OGG and MP3 by the last page or frame, MP3 also by the count in a Xing header; in FLAC when
    the segment reaches the cut or a damaged frame. A cut between two pages or frames can pass unseen, as can damage
    within the pages of OGG and the frames of MP3, which the decoders skip. Other formats of libsndfile are read with
    fewer checks.

    Args:
        path: the file.
        sample_rate: of the result, in Hz.
        start: of the segment, in seconds.
        duration: of the segment, in seconds, kept to within one sample; to the end of the file where None, or where it
            is beyond it by 10 ms or less, as lists round.

    Returns:
        The samples, nominally in [-1, 1].

    Raises:
        InputError: the file is missing, empty, cut short, not audio or of a rate below speech, the segment does not
            lie within it, or a sample is not finite.

    Example:
        ``wave = read_audio("seven.flac", 16000, start=0.5, duration=1.0)``
    """
    path = Path(path)
    _check_rate(sample_rate, "sample_rate")
    if not 0 <= start < math.inf:
        raise InputError(f"{path}: start is {start} s, expected 0 or more.")
    if duration is not None and not 0 < duration < math.inf:
        raise InputError(f"{path}: duration is {duration} s, expected more than 0.")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}, expected an audio file.")
    try:
        with open(path, "rb", buffering=0) as file, ExitStack() as stack:
            return _read(_streams(file, path, stack), path, sample_rate, start, duration)
    except soundfile.LibsndfileError as error:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes), expected an audio file.") from error
        reason = error.error_string.rstrip(". ")
        raise InputError(f"{path} is not an audio file, is damaged or is cut short (libsndfile: {reason}).") from error
    except (OSError, MemoryError) as error:
        raise InputError(f"{path} cannot be read ({error or 'out of memory'}).") from error


def resample(wave: np.ndarray, from_rate: int, to_rate: int) -> Float32[np.ndarray, " samples"]:
    """Convert `wave` from `from_rate` to `to_rate`, both in Hz, by a linear-phase low pass (soxr, high quality).

    It is flat to 0.01 dB up to 0.91 of the lower Nyquist frequency, 3 dB down at 0.95 and 125 dB from 1 on. The
    wave counts as zero beyond its ends; the result has samples * to_rate / from_rate samples, rounded.

    Raises:
        InputError: a rate is not in 1..384000 Hz, or the wave is not one-dimensional.
    """
    _check_rate(from_rate, "from_rate")
    _check_rate(to_rate, "to_rate")
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1:
        raise InputError(f"wave has shape {wave.shape}, expected one dimension.")
    return wave if from_rate == to_rate else soxr.resample(wave, from_rate, to_rate)


def above_hum(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """A mono wave without most of what lies below 250 Hz, by which to tell where in it there is sound.

    Hum, rumble, thumps and offsets can be louder than any word. Twice, the mean over 4 ms around each sample is taken
    from it: 0 dB from 250 Hz on within 3 dB, -46 dB at 50 Hz, -93 dB at 10 Hz.
    """
    size = max(sample_rate // 250, 1)
    for _ in range(2):
        total = np.cumsum(np.pad(wave, ((size + 1) // 2, size // 2), "edge"), dtype=np.float64)
        wave = (wave - (total[size:] - total[:-size]) / size).astype(np.float32)
    return wave


def at_silences(wave: np.ndarray, sample_rate: int, longest: float) -> list[tuple[int, int]]:
    """Where to cut a wave into pieces of at most `longest` seconds: each at the quietest 0.2 s of its second half.

    Quiet is what is quiet above 250 Hz.

    Args:
        wave: mono samples.
        sample_rate: in Hz.
        longest: seconds, 0.5 or more.

    Returns:
        First sample of each piece and the one after its last; together they are the whole wave.

    Raises:
        InputError: `longest` is below 0.5.

    Example:
        ``pieces = [wave[first:last] for first, last in at_silences(wave, 16000, 20.0)]``
    """
    if not longest >= 0.5:
        raise InputError(f"longest is {longest} s, expected 0.5 or more.")
    most, size, bounds = int(longest * sample_rate), max(sample_rate // 100, 1), [0]
    if len(wave) <= most:
        return [(0, len(wave))]
    # sums over 20 frames of 10 ms; sums[i] is around the end of frame i + 9
    heard = above_hum(wave, sample_rate)[: len(wave) // size * size]
    power = np.square(heard, dtype=np.float64).reshape(-1, size).sum(1)
    sums = np.convolve(power, np.ones(20), "valid")
    while len(wave) - bounds[-1] > most:
        # no piece is shorter than a quarter of the longest, the last too
        low, high = bounds[-1] + most // 2, min(bounds[-1] + most, len(wave) - most // 4)
        frames = np.arange(-(-low // size), high // size + 1)
        quiet = sums[np.clip(frames - 10, 0, len(sums) - 1)]
        bounds.append(int(frames[len(quiet) - 1 - quiet[::-1].argmin()]) * size)
    return list(pairwise([*bounds, len(wave)]))


def check_wave(
    wave: np.ndarray, name: str, min_samples: int, sample_rate: int = 16_000, low: float = 60.0, high: float = 7600.0
) -> None:
    """Raise InputError where `wave`, called `name`, is not finite, is silent or has fewer than `min_samples` samples.

    Silent is a wave that nowhere reaches the level of a sine of amplitude 1e-4, 3 steps of 16-bit audio, counting what
    lies between `low` and `high` (in Hz) alone: an offset or hum is no sound.
    """
    if len(wave) < min_samples:
        raise InputError(f"{name} has {len(wave)} samples, expected at least {min_samples}.")
    _check_finite(wave, name)
    size, level = min(1024, len(wave)), 0.0
    # Blackman and Harris' window: 4 bins from a tone it is 92 dB down.
    turns = 2 * np.pi * np.arange(size) / size
    window = 0.35875 - 0.48829 * np.cos(turns) + 0.14128 * np.cos(2 * turns) - 0.01168 * np.cos(3 * turns)
    frequency, margin = np.arange(size // 2 + 1) * sample_rate / size, 4 * sample_rate / size
    heard = (frequency > low + margin) & (frequency < high - margin)
    for start in range(0, len(wave), size // 2):
        frame = wave[min(start, len(wave) - size) :][:size]
        power = np.square(np.abs(np.fft.rfft(frame * window)[heard])).sum()
        level = max(level, 2 * math.sqrt(power / np.square(window).sum() / size))
        if level >= 1e-4:
            return
    found = f"from {low:g} to {high:g} Hz its level is at most {level:.2g}"
    raise InputError(f"{name} is silent: {found}, expected 0.0001 or more.")


def _read(
    streams: list[Stream], path: Path, sample_rate: int, start: float, duration: float | None
) -> Float32[np.ndarray, " samples"]:
    """Return the segment, block by block mixed down and resampled."""
    rate, frames = streams[0].rate, sum(stream.frames for stream in streams)
    if rates := {stream.rate for stream in streams} - {rate}:
        raise InputError(f"{path} holds streams of {rate} Hz and of {rates.pop()} Hz, expected one rate.")
    _check_rate(rate, f"{path}: its sample rate", _RATES[0])
    if frames == 0:
        raise InputError(f"{path} holds no samples.")
    first = round(start * rate)
    last = frames if duration is None else first + round(duration * rate)
    # lists tell ends rounded to hundredths
    if not first < min(last, frames) or last > frames + max(1, rate // 100):
        end = "the end" if duration is None else f"{start + duration:g} s"
        raise InputError(f"{path} lasts {frames / rate:g} s, but the segment from {start:g} s to {end} is asked for.")
    convert = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32").resample_chunk
    parts, begin = [], 0
    for stream in streams:
        from_, to = max(first - begin, 0), min(last - begin, stream.frames)
        for block in stream.blocks(from_, to) if from_ < to else ():
            parts.append(convert(_mono(block, path)))
        begin += stream.frames
    return np.concatenate([*parts, convert(np.zeros(0, np.float32), last=True)])


def _streams(file: io.FileIO, path: Path, stack: ExitStack) -> list[Stream]:
    """Open what follows one another in `file`, with true lengths."""
    head = file.read(64)
    for start, name in _OTHERS.items():
        if re.match(start, head, re.DOTALL):
            raise InputError(f"{path} is {name}, expected WAV, FLAC, OGG or MP3.")
    contents: list[io.BytesIO | None] = [None]
    is_wav = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    if is_wav:
        contents = [wav.repaired(file, path)]
    elif head[:4] == b"OggS":
        contents = [io.BytesIO(link) for link in ogg.links(path.read_bytes(), path)]
    elif head.startswith((b"ID3", b"\xff")) and (found := mp3.stream(path.read_bytes(), path, _BLOCK)):
        return [found]
    file.seek(0)
    try:
        # By descriptor, because soundfile treats some file names specially.
        sounds = [soundfile.SoundFile(content or file.fileno(), closefd=False) for content in contents]
    except soundfile.LibsndfileError:
        if found := mp3.stream(path.read_bytes(), path, _BLOCK):
            return [found]
        raise
    for sound in sounds:
        stack.enter_context(sound)
        if sound.frames >= _UNKNOWN_FRAMES:
            raise InputError(f"{path} does not tell its length, expected {sound.format} with its length in the header.")
        for promised, held in _SIZES.findall("" if is_wav else sound.extra_info):
            if int(held) < int(promised) < _UNKNOWN_BYTES:
                raise InputError(f"{path} is cut short: its header promises {promised} bytes, it holds {held}.")
    return [_of_libsndfile(sound, path) for sound in sounds]


def _of_libsndfile(sound: soundfile.SoundFile, path: Path) -> Stream:
    is_ogg = sound.format == "OGG"

    def blocks(first: int, last: int) -> Iterator[np.ndarray]:
        # OGG seeks inexactly, and some codecs cannot: these are read from the start.
        at = sound.seek(first) if first > 0 and sound.seekable() and not is_ogg else 0
        # Not by sound.blocks, which fills up with whatever is in memory where the file ends early.
        while len(block := sound.read(min(_BLOCK, last - at), dtype="float32", always_2d=True)):
            yield block[max(first - at, 0) :]
            at += len(block)
        # The last packet of an OGG stream without an end can hold less than its page tells, by a packet at most.
        if at < last - (0.12 * sound.samplerate if is_ogg else 0):
            found = f"{at} of its {sound.frames} samples per channel can be read"
            raise InputError(f"{path} is cut short or damaged: {found}.")

    return Stream(sound.samplerate, sound.frames, blocks)


def _mono(block: np.ndarray, path: Path) -> np.ndarray:
    """Return the mean of the channels, or the loudest where they cancel; by differences, which leave out an offset."""
    _check_finite(block, path)
    if block.shape[1] == 1:
        return block[:, 0]
    mean = block.mean(axis=1, dtype=np.float64)
    power = np.square(np.diff(block.astype(np.float64), axis=0)).sum(axis=0)
    # Channels that have nothing in common leave ten times the power asked for here.
    cancel = np.square(np.diff(mean)).sum() * block.shape[1] < 0.1 * power.mean()
    return block[:, np.argmax(power)] if cancel else mean.astype(np.float32)


def _check_finite(wave: np.ndarray, name: object) -> None:
    if count := np.sum(~np.isfinite(wave)):
        raise InputError(f"{name} holds {count} samples that are NaN or infinite.")


def _check_rate(rate: int, name: str, lowest: int = 1) -> None:
    if not lowest <= rate <= _RATES[1]:
        raise InputError(f"{name} is {rate} Hz, expected {lowest} to {_RATES[1]} Hz.")
