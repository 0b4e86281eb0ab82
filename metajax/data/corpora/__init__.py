"""The readers of corpora by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from metajax.data.corpora import arabic, espeak, fsdd, manifest, speech_commands
from metajax.data.corpus import Recordings
from metajax.errors import InputError

READERS: dict[str, Callable[..., Recordings]] = {
    "espeak": espeak.read,
    "fsdd": fsdd.read,
    "arabic": arabic.read,
    "speech_commands": speech_commands.read,
    "manifest": manifest.read,
}
_NOISE: dict[str, Callable[[str | Path], list[Path]]] = {
    "arabic": arabic.noise_files,
    "speech_commands": speech_commands.noise_files,
}


def read(
    name: str, root: str | Path | None = None, *, on_error: Literal["raise", "skip"] = "raise", **options: Any
) -> Recordings:
    """List the clips of a corpus.

    Args:
        name: one of `READERS`.
        root: the corpus's folder, or the manifest file; None for espeak, which speaks its clips itself.
        on_error: "skip" leaves missing files of a manifest to `load(..., on_error="skip")`.
        options: further arguments of the reader, e.g. `languages` of espeak; of a manifest `folder`, which its paths
            are relative to.

    Raises:
        InputError: there is no such corpus, a root is missing or too much, or the reader's own.

    Example:
        ``recordings = read("espeak", languages=["de", "sw"])``
    """
    if name not in READERS:
        raise InputError(f"The corpus is {name!r}, expected one of {', '.join(READERS)}.")
    if name == "espeak":
        if root is not None:
            raise InputError(f"The corpus espeak is made on the spot and reads no folder, found root = {root}.")
        return espeak.read(**options)
    if root is None:
        raise InputError(f"The corpus {name} needs a root: the folder that holds it, or the manifest file.")
    if name == "manifest":
        return manifest.read(root, root=options.pop("folder", None), on_error=on_error, **options)
    return READERS[name](root, **options)


def noise_files(name: str, root: str | Path | None) -> list[Path]:
    """Return the recordings of background noise that come with a corpus; none where it has none."""
    return _NOISE[name](root) if name in _NOISE and root is not None else []
