"""Which reader a folder or a list is for."""

import csv
from collections.abc import Callable
from pathlib import Path

from metajax.data.corpora import audiofolder, common_voice, manifest, nemo, speechbrain
from metajax.data.corpora.files import read_text
from metajax.data.corpora.rows import json_lines
from metajax.errors import InputError


def recognise(path: str | Path) -> str:
    """The name of the reader in `READERS` for a folder or a list, by what it holds; see `located`.

    Example:
        ``recordings = read(recognise(root), root)``
    """
    return located(path)[0]


def located(path: str | Path) -> tuple[str, Path]:
    """The name of the reader for a folder or a list, and what it reads: of a folder maybe the only list in it.

    Args:
        path: a folder as it unpacks or that holds one list, or a CSV, TSV or JSON lines file.

    Raises:
        InputError: it is not there, is for no reader, or holds several lists; tells what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        for name, told in _FOLDERS.items():
            if told(path):
                return name, path
        lists = {file: kind for file in sorted(path.iterdir()) if file.is_file() and (kind := _kind(file))}
        if len(lists) > 1:
            named = ", ".join(f"{file.name} ({name})" for file, name in lists.items())
            raise InputError(f"{path} holds {len(lists)} lists, expected the path of one of them: {named}.")
        for file, name in lists.items():
            return name, file
        for file in sorted(path.iterdir()):
            if file.is_file() and file.suffix.lower() in (".csv", ".tsv", *_JSON[:3]):
                read_text(file)  # a list that is not UTF-8 is told
        raise InputError(f"{path} is for no reader, expected a list in it or a folder such as {', '.join(_FOLDERS)}.")
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a corpus: a folder or a list.")
    fields, suffix = _fields(path), path.suffix.lower()
    for name, (needed, suffixes) in _LISTS.items():
        if set(needed) <= fields and suffix in suffixes:
            return name, path
    raise InputError(
        f"{path} is for no reader: its fields are {', '.join(sorted(fields)) or 'none'}, expected "
        + "; ".join(f"{', '.join(needed)} ({name})" for name, (needed, _) in _LISTS.items())
    )


def _kind(file: Path) -> str | None:
    """The reader for a file of a folder; None where it is no list, whatever is wrong with it."""
    try:
        return located(file)[0] if file.suffix.lower() in (".csv", ".tsv", *_JSON) else None
    except InputError:
        return None


def _fields(path: Path) -> set[str]:
    """Names of the columns, or of the fields of the first object."""
    if path.suffix.lower() in (".csv", ".tsv"):
        first = next(iter(read_text(path).splitlines()), "")
        row = next(csv.reader([first], delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
        return {field.strip() for field in row}
    if path.name.endswith((".json", ".jsonl", ".ndjson", ".gz")):
        return set(next(json_lines(path), (0, {}))[1])
    return set()


_JSON = (".json", ".jsonl", ".ndjson", ".gz")
_LISTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "common_voice": (common_voice.NEEDED, (".tsv",)),
    "nemo": (nemo.NEEDED, _JSON),
    "lhotse": (("recording", "supervisions"), _JSON),
    "speechbrain": (speechbrain.NEEDED, (".csv",)),
    "manifest": (("path",), manifest.KINDS),
}


def _any(root: Path, pattern: str) -> bool:
    return next(root.glob(pattern), None) is not None


_FOLDERS: dict[str, Callable[[Path], bool]] = {
    "kaldi": lambda root: _any(root, "wav.scp"),
    "common_voice": lambda root: (
        _any(root, "clips") and any(_any(root, f"{x}.tsv") for x in (*common_voice.LISTS, "validated"))
    ),
    "audiofolder": lambda root: bool(audiofolder.lists(root)),
    "arabic": lambda root: _any(root, "train.csv") and _any(root, "background_noise"),
    "speech_commands": lambda root: _any(root, "validation_list.txt") or _any(root, "*/*_nohash_*"),
    "fsdd": lambda root: _any(root, "recordings/[0-9]_*_*.wav") or _any(root, "[0-9]_*_*.wav"),
    "timit": lambda root: any(
        _any(root, above + part + "/[Dd][Rr]*")
        for above in ("", "*/")
        for part in ("[Tt][Rr][Aa][Ii][Nn]", "[Tt][Ee][Ss][Tt]")
    ),
    "librispeech": lambda root: _any(root, "**/*.trans.txt"),
    "manifest": lambda root: any(_any(root, f"manifest{kind}") for kind in manifest.KINDS),
}
