"""MP3 files: an index of their frames, and the samples that those decode to.

libsndfile estimates the length of an MP3 file without a Xing header, and stops there. So the frames are counted here,
and decoded by miniaudio: 1.6 MB and maintained, where PyAV would bring 35 MB of FFmpeg, which tells of no cut either.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from metajax.errors import InputError

_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MPEG 1; what follows is of 2 and 2.5
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_WARM_UP = 64  # frames: a frame takes up to 511 bytes from those before it, which hold 7 bytes or more each
_DECODER_DELAY = 529  # samples, of every decoder of layer III
_HEADER = re.compile(rb"\0*(Xing|Info)...(.)", re.DOTALL)  # where other frames have their side information


class Mp3(NamedTuple):
    """The index of an MP3 file.

    Fields:
        rate: in Hz.
        samples: per channel, without the encoder's delay and padding where a header tells them.
        skip: samples of the delay.
        frame: samples of a frame.
        begins, ends: of each frame, in bytes of the file.
    """

    rate: int
    samples: int
    skip: int
    frame: int
    begins: list[int]
    ends: list[int]


def index(content: bytes, path: Path) -> Mp3 | None:
    """Find the frames of an MP3 file, past tags and what else is no frame, as decoders do.

    Args:
        content: of the file.
        path: for messages.

    Returns:
        The index, None where the file holds no frames of layer III.

    Raises:
        InputError: the last frame is not whole, a Xing header promises more frames than there are, or files were
            joined, which a second such header or another kind of frames tells.
    """
    at, kind, header, promised = _resume(content, 0), None, b"", 0
    begins: list[int] = []
    ends: list[int] = []
    while at < len(content):
        if (frame := _parse(content[at : at + 4])) is None:
            at = _resume(content, at)
            continue
        size, *this_kind = frame
        head = content[at : at + size]
        tag = _HEADER.match(head, 6, 48)
        if kind is not None and (tag or this_kind != kind):
            raise InputError(f"{path} is several MP3 files joined into one (at byte {at}), expected one.")
        if at + size > len(content):
            if promised > len(ends) or not promised:
                raise InputError(f"{path} is cut short: its last MP3 frame is not whole.")
            break
        kind, at = this_kind, at + size
        if tag:
            header = head[tag.start(1) :]
            promised = int.from_bytes(header[8:12], "big") if header[7] & 1 else 0
        else:
            begins.append(at - size)
            ends.append(at)
    if promised > len(ends) + 1:  # some encoders count the header
        raise InputError(f"{path} is cut short: its header promises {promised} MP3 frames, it holds {len(ends)}.")
    if kind is None:
        return None
    samples, rate, _ = kind
    # Behind the fields that the flags name: nine letters for the encoder, twelve more bytes, and 12 bits for each.
    fields = sum(size for bit, size in enumerate((4, 4, 100, 4)) if header and header[7] >> bit & 1)
    delay, padding = divmod(int.from_bytes(header[29 + fields :][:3], "big"), 1 << 12)
    skip, whole = delay + _DECODER_DELAY if delay or padding else 0, len(ends) * samples
    return Mp3(rate, max(min(whole - delay - padding, whole - skip), 0), skip, samples, begins, ends)


def decode(content: bytes, mp3: Mp3, first: int, last: int, path: Path) -> Float32[np.ndarray, "samples channels"]:
    """Decode the samples `first` to `last` (not with it), without what lies before and after them.

    Raises:
        InputError: the frames are damaged.
    """
    import miniaudio  # 40 ms, and few corpora are MP3

    begin, end = (first + mp3.skip) // mp3.frame, -(-(last + mp3.skip) // mp3.frame)
    warm, wanted = max(begin - _WARM_UP, 0), (end - begin) * mp3.frame
    try:
        decoded = miniaudio.mp3_read_f32(content[mp3.begins[warm] : mp3.ends[end - 1]])
    except miniaudio.DecodeError as error:
        raise InputError(f"{path} is damaged: its MP3 frames {begin} to {end - 1} cannot be decoded.") from error
    wave = np.frombuffer(decoded.samples, np.float32).reshape(-1, decoded.nchannels)[-wanted:]
    missing = wanted - len(wave)
    if missing > (_WARM_UP * mp3.frame if begin == 0 else 0):
        raise InputError(f"{path} is damaged: {missing} samples of its MP3 frames {begin} to {end - 1} are missing.")
    # The first frames of a recording that was cut out of another lack the bytes before them.
    wave = np.pad(wave, ((missing, 0), (0, 0)))
    return wave[first + mp3.skip - begin * mp3.frame :][: last - first]


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
