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
    length, riff = file.seek(0, io.SEEK_END), 8 + int.from_bytes(_read(file, 4, 4), "little")
    at, size, name, block = 12, 0, b"", 1
    while name != b"data" and at < length:
        at += size + size % 2
        name, size = struct.unpack("<4sI", _read(file, at, 8))
        if name == b"fmt ":
            block = max(int.from_bytes(_read(file, at + 20, 2), "little"), 1)
        at += 8
    rest = length - at
    if name != b"data" or size == rest or size >= _UNKNOWN:
        return None
    if size > rest:
        if riff != length and size != length and not (size % block and size // block == rest / block):
            raise InputError(f"{path} is cut short: its header promises {size} bytes of samples, it holds {rest}.")
    else:
        tail = _read(file, at + size, 1 << 16)
        if tail.startswith(b"RIFF", size % 2):
            raise InputError(f"{path} is several WAV files joined into one (at byte {at + size}), expected one.")
        if tail.startswith(_TAGS) or not tail.strip(b"\0") or _chunks(file, at + size + size % 2, max(length, riff)):
            return None
    content = bytearray(_read(file, 0, length))
    content[at - 4 : at] = min(rest // block * block, 0xFFFFFFFF).to_bytes(4, "little")
    content[4:8] = min(length - 8, 0xFFFFFFFF).to_bytes(4, "little")
    return io.BytesIO(content)


def _chunks(file: io.FileIO, at: int, end: int) -> bool:
    """Return whether chunks fill the file from `at` to `end`, to within a byte of padding."""
    while at + 8 <= end:
        name, size = struct.unpack("<4sI", _read(file, at, 8))
        if min(name) < 32 or max(name) > 126:
            return False
        at += 8 + size + size % 2
    return abs(at - end) <= 1


def _read(file: io.FileIO, at: int, size: int) -> bytes:
    """Read `size` bytes; beyond the end they are zero."""
    file.seek(at)
    return file.read(size).ljust(min(size, 8), b"\0")
