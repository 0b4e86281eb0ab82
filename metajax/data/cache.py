"""Arrays kept on disk, each file with its own checksum."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metajax.errors import InputError

_DIGEST, _DIGEST_BYTES = "blake2b", 64


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` to `path`, whole or not at all.

    The file is a checksum, then the names and the arrays in numpy's own format. It is written under a temporary name
    in the same folder and then renamed, so that a reader never sees half of it.

    Raises:
        OSError: the file cannot be written; what was written of it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            file.write(bytes(_DIGEST_BYTES))
            np.save(file, np.array(list(arrays)), allow_pickle=False)
            for array in arrays.values():
                np.save(file, array, allow_pickle=False)
            file.seek(_DIGEST_BYTES)
            digest = hashlib.file_digest(file, _DIGEST).digest()
            file.seek(0)
            file.write(digest)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays that `write` put into `path`, bit for bit, or None where there is no such file.

    Raises:
        InputError: the file is not as it was written (cut short, or bits changed).
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  (closed below, outside of this try)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        expected = file.read(_DIGEST_BYTES)
        if hashlib.file_digest(file, _DIGEST).digest() != expected:
            raise InputError(f"cache file {path} is damaged: its checksum does not fit its contents.")
        file.seek(_DIGEST_BYTES)
        names = np.load(file, allow_pickle=False)
        return {str(name): np.load(file, allow_pickle=False) for name in names}


def default_folder() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/metajax`, or `~/.cache/metajax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metajax"
