"""The readers of corpora by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from metajax.data.corpora import (
    arabic,
    audiofolder,
    common_voice,
    espeak,
    espeak_phrases,
    fsdd,
    kaldi,
    lhotse,
    librispeech,
    manifest,
    nemo,
    speech_commands,
    speechbrain,
    timit,
)
from metajax.data.corpora.kinds import located, recognise
from metajax.data.corpus import Recordings
from metajax.errors import InputError

__all__ = ["READERS", "noise_files", "read", "recognise", "with_synthetic"]

READERS: dict[str, Callable[..., Recordings]] = {
    "espeak": espeak.read,
    "fsdd": fsdd.read,
    "arabic": arabic.read,
    "speech_commands": speech_commands.read,
    "manifest": manifest.read,
    "librispeech": librispeech.read,
    "common_voice": common_voice.read,
    "timit": timit.read,
    "nemo": nemo.read,
    "kaldi": kaldi.read,
    "audiofolder": audiofolder.read,
    "lhotse": lhotse.read,
    "speechbrain": speechbrain.read,
    "espeak_phrases": espeak_phrases.read,
}
_SPOKEN = ("espeak", "espeak_phrases")  # which read no folder
_WORDS = ("espeak", "fsdd", "arabic", "speech_commands")  # whose readers take no on_error
_LISTS = ("manifest", "nemo", "kaldi", "lhotse", "speechbrain")  # whose paths may be of another folder
_FILES = ("manifest", "nemo", "lhotse", "speechbrain")  # which read a list, or the only one in a folder
_NOISE: dict[str, Callable[[str | Path], list[Path]]] = {
    "arabic": arabic.noise_files,
    "speech_commands": speech_commands.noise_files,
}


def read(
    name: str, root: str | Path | None = None, *, on_error: Literal["raise", "skip"] = "raise", **options: Any
) -> Recordings:
    """List the clips of a corpus.

    Args:
        name: one of `READERS`; "auto" for the one that `recognise` finds.
        root: the corpus's folder, the list's file or a folder that holds no other; None where eSpeak NG speaks.
        on_error: "skip" leaves missing files of a list to `load(..., on_error="skip")`.
        options: further arguments of the reader, e.g. `languages` of espeak; of a list `folder`, which its paths are
            relative to and must lie in.

    Raises:
        InputError: there is no such corpus, a root is missing or too much, or the reader's own.

    Example:
        ``recordings = read("espeak", languages=["de", "sw"])``
    """
    if root is not None and (name == "auto" or (name in _FILES and Path(root).is_dir())):
        found, root = located(root)
        name = found if name == "auto" else name
    if name not in (*READERS, "auto"):
        raise InputError(f"The corpus is {name!r}, expected one of {', '.join(READERS)}.")
    if name in _SPOKEN:
        if root is not None:
            raise InputError(f"The corpus {name} is made on the spot and reads no folder, found root = {root}.")
        return READERS[name](**options)
    if root is None:
        raise InputError(f"The corpus {name} needs a root: the folder that holds it, or the list's file.")
    if name not in _WORDS:
        options["on_error"] = on_error
    if "folder" in options:
        if name not in _LISTS:
            raise InputError(f"The corpus {name} takes no folder: its paths lie in root.")
        options["root"] = options.pop("folder")
    return READERS[name](root, **options)


def with_synthetic(name: str, root: str | Path | None, clips_per_label: int) -> list[Recordings]:
    """A corpus to test on, then synthetic speech to learn from, in none of its languages and in no Semitic one.

    Args:
        name, root: as of `read`.
        clips_per_label: clips of each number by eSpeak NG; 0 for none, as for a corpus that is itself its speech.
    """
    found = [read(name, root)]
    if clips_per_label and name != "espeak":
        own = ("en",) if name in ("fsdd", "speech_commands") else ()
        found.append(read("espeak", clips_per_label=clips_per_label, exclude=(*espeak.SEMITIC, *own)))
    return found


def noise_files(name: str, root: str | Path | None) -> list[Path]:
    """Return the recordings of background noise that come with a corpus; none where it has none."""
    return _NOISE[name](root) if name in _NOISE and root is not None else []
