"""WAV files whose header gives wrong sizes: what recorders leave that never went back to finish it."""

import io
import struct
from pathlib import Path

from metajax.errors import InputError

_UNKNOWN = 0x7FFF0000  # what streaming programs write as size starts here and ends at 0xFFFFFFFF
_TAGS = (b"TAG", b"ID3", b"APETAGEX")  # not chunks, but written behind the last


def repaired(file: io.FileIO, path: Path) -> io.BytesIO | None:
    """Return a WAV file with true sizes in its header, None where libsndfile reads it rightly as it is.

    The samples end where the header says, unless what follows is no chunk; a file that is shorter is whole all the
    same where the RIFF size is that of the file, or the data size that of the file or no whole number of blocks.

    Args:
        file: at any position, which is not kept.
        path: for messages.

    Raises:
        InputError: the file is cut short, or holds a second WAV file after the first.
    """
    length, riff = file.seek(0, io.SEEK_END), 8 + struct.unpack("<I", _read(file, 4, 4))[0]
    at, block = 12, 1
    while True:
        name, size = struct.unpack("<4sI", _read(file, at, 8).ljust(8, b"\0"))
        if name == b"fmt ":
            block = max(struct.unpack("<H", _read(file, at + 20, 2).ljust(2, b"\0"))[0], 1)
        at += 8
        if name == b"data" or at >= length:
            break
        at += size + size % 2
    rest = length - at
    if name != b"data" or size == rest or size >= _UNKNOWN:
        return None
    if size > rest:
        if riff != length and size != length and not (size % block and size // block == rest / block):
            raise InputError(f"{path} is cut short: its header promises {size} bytes of samples, it holds {rest}.")
    else:
        tail = _read(file, at + size, 1 << 16)
        if tail[size % 2 :].startswith(b"RIFF") or tail.startswith(b"RIFF"):
            raise InputError(f"{path} holds a second WAV file after the first, expected one: they were joined.")
        if tail.startswith(_TAGS) or not tail.strip(b"\0") or _chunks(file, at + size + size % 2, max(length, riff)):
            return None
    content = bytearray(_read(file, 0, length))
    content[at - 4 : at] = struct.pack("<I", min(rest // block * block, 0xFFFFFFFF))
    content[4:8] = struct.pack("<I", min(length - 8, 0xFFFFFFFF))
    return io.BytesIO(content)


def _chunks(file: io.FileIO, at: int, end: int) -> bool:
    """Return whether chunks fill the file from `at` to `end`, to within a byte of padding."""
    while at + 8 <= end:
        name, size = struct.unpack("<4sI", _read(file, at, 8).ljust(8, b"\0"))
        if not all(32 <= letter < 127 for letter in name):
            return False
        at += 8 + size + size % 2
    return abs(at - end) <= 1


def _read(file: io.FileIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size) or b""
