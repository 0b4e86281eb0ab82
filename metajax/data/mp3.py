"""MP3 files: their frames, counted, and the samples that those decode to.

libsndfile estimates the length of an MP3 file without a Xing header, and stops there. So the frames are counted here,
and decoded by miniaudio: 1.6 MB and maintained, where PyAV would bring 35 MB of FFmpeg, which tells of no cut either.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.errors import InputError

_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MPEG 1; what follows is of 2 and 2.5
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_WARM_UP = 64  # frames: a frame takes up to 511 bytes from those before it, which hold 7 bytes or more each
_DECODER_DELAY = 529  # samples, of every decoder of layer III
_HEADER = re.compile(rb"\0*(Xing|Info)....", re.DOTALL)  # where other frames have their side information


class Stream(NamedTuple):
    """Sound of one rate.

    Fields:
        rate: in Hz.
        frames: samples per channel.
        blocks: (first, last) -> the samples from first to last (not with it), piece by piece: `[samples, channels]`
            float32.
    """

    rate: int
    frames: int
    blocks: Callable[[int, int], Iterator[np.ndarray]]


def stream(content: bytes, path: Path, block: int) -> Stream | None:
    """Find the frames of an MP3 file, past what is no frame before and after them, tags above all.

    The encoder's delay and padding are left out where a header tells them. Any part is read without the rest.

    Args:
        content: of the file.
        path: for messages.
        block: samples to decode at a time.

    Returns:
        The sound, None where the file holds no frames of layer III.

    Raises:
        InputError: the last frame is not whole, a Xing header promises more frames than there are, what is no frame or
            one of another kind stands between frames; or, when read, frames cannot be decoded.
    """
    kind, header, bounds = _index(content, path)
    if not kind:
        return None
    import miniaudio  # 40 ms, and few corpora are MP3

    samples, rate, _ = kind
    # They stand behind the fields that the flags name, nine letters for the encoder and twelve more bytes.
    fields = sum(size for bit, size in enumerate((4, 4, 100, 4)) if header and header[7] >> bit & 1)
    delay, padding = divmod(int.from_bytes(header[29 + fields :][:3], "big"), 1 << 12)
    skip, whole = delay + _DECODER_DELAY if delay or padding else 0, (len(bounds) - 1) * samples

    def decode(first: int, last: int) -> np.ndarray:
        begin, end = (first + skip) // samples, -(-(last + skip) // samples)
        warm, wanted = max(begin - _WARM_UP, 0), (end - begin) * samples
        try:
            decoded = miniaudio.mp3_read_f32(content[bounds[warm] : bounds[end]])
        except miniaudio.DecodeError as error:
            raise InputError(f"{path} is damaged: its MP3 frames {begin} to {end} cannot be decoded.") from error
        wave = np.frombuffer(decoded.samples, np.float32).reshape(-1, decoded.nchannels)[-wanted:]
        missing = wanted - len(wave)
        if missing > (_WARM_UP * samples if begin == 0 else 0):
            raise InputError(f"{path} is damaged: of its MP3 frames {begin} to {end}, {missing} samples are missing.")
        # The first frames of a recording that was cut out of another lack the bytes before them.
        return np.pad(wave, ((missing, 0), (0, 0)))[first + skip - begin * samples :][: last - first]

    def blocks(first: int, last: int) -> Iterator[np.ndarray]:
        return (decode(at, min(at + block, last)) for at in range(first, last, block))

    return Stream(rate, max(min(whole - delay - padding, whole - skip), 0), blocks)


def _index(content: bytes, path: Path) -> tuple[tuple[int, ...], bytes, list[int]]:
    """Return samples, rate and whether mono of all frames, the Xing header, and the bounds of the frames."""
    at, header, promised = _resume(content, 0), b"", 0
    kind: tuple[int, ...] = ()
    bounds = [at]
    while at < len(content):
        frame = _parse(content[at : at + 4])
        if (frame is None or (kind and frame[1:] != kind)) and _resume(content, at) == len(content):
            break  # tags
        end = at + frame[0] if frame else at
        head = content[at:end]
        tag = _HEADER.match(head, 6, 48)
        if frame is None or (kind and (tag or frame[1:] != kind)):
            raise InputError(f"{path} is damaged or several MP3 files joined into one (at byte {at}), expected one.")
        if end > len(content):
            if not promised or promised >= len(bounds):
                raise InputError(f"{path} is cut short: its last MP3 frame is not whole.")
            break
        kind = frame[1:]
        if tag:
            header = head[tag.start(1) :]
            promised = int.from_bytes(header[8:12], "big") if header[7] & 1 else 0
            bounds = []
        bounds.append(end)
        at = end
    if promised > len(bounds):  # some encoders count the header
        held = len(bounds) - 1
        raise InputError(f"{path} is cut short: its header promises {promised} MP3 frames, it holds {held}.")
    return kind, header, bounds


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> tuple[int, int, int, bool] | None:
    """Return bytes, samples, rate and whether mono of a frame of layer III with a bit rate, from its header."""
    word = int.from_bytes(head, "big") if len(head) == 4 else 0
    version, kbps, rate = word >> 19 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or word >> 17 & 3 != 1 or kbps in (0, 15) or rate == 3:
        return None
    samples, halvings, table = {3: (1152, 0, _KBPS_1), 2: (576, 1, _KBPS_2), 0: (576, 2, _KBPS_2)}[version]
    hertz = (44100, 48000, 32000)[rate] >> halvings
    return samples * 125 * table[kbps] // hertz + (word >> 9 & 1), samples, hertz, word >> 6 & 3 == 3


def _resume(content: bytes, at: int) -> int:
    """Return where a frame comes next that another of its kind follows, or that ends the file."""
    while (at := content.find(b"\xff", at)) >= 0:
        if frame := _parse(content[at : at + 4]):
            end = at + frame[0]
            following = _parse(content[end : end + 4])
            if end == len(content) or (following and following[1:] == frame[1:]):
                return at
        at += 1
    return len(content)
