"""Recordings in audio files: what the readers share."""

import csv
import hashlib
import io
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from metajax.data.audio import read_audio
from metajax.data.corpus import Recordings
from metajax.errors import InputError

SPLITS = ("train", "validation", "test")


def from_files(
    name: str,
    paths: Sequence[Path],
    columns: dict[str, Int[np.ndarray, " clips"]],
    names: dict[str, tuple[str, ...]],
    *,
    starts: Sequence[float] | None = None,
    durations: Sequence[float | None] | None = None,
    texts: Sequence[str] | None = None,
) -> Recordings:
    """Return clips that are audio files or segments of them, with one path per clip; the rest as in `Recordings`.

    Segments have a start (0 where None) and a duration (to the end of the file where None), in seconds. The digest
    covers the contents of the files, the segments and the paths relative to the folder that holds them all, so that a
    moved corpus keeps it.
    """
    starts = [0.0] * len(paths) if starts is None else list(starts)
    durations = [None] * len(paths) if durations is None else list(durations)
    segments = list(zip(paths, starts, durations, strict=True))

    def describe(path: Path, start: float, duration: float | None) -> str:
        end = "the end" if duration is None else f"{start + duration:g} s"
        return str(path) if start == 0 and duration is None else f"{path} ({start:g} s to {end})"

    def read(clips: Sequence[int], sample_rate: int) -> Iterator[np.ndarray | InputError]:
        return (_read(*segments[clip], sample_rate) for clip in clips)  # one at a time, because clips may be long

    def digest() -> str:
        unique = sorted(set(paths))
        root = os.path.commonpath([path.parent for path in unique])
        with ThreadPoolExecutor() as pool:
            contents = dict(zip(unique, pool.map(_contents, unique), strict=True))
        whole = hashlib.blake2b()
        for path, start, duration in segments:
            relative = Path(os.path.relpath(path, root)).as_posix()
            whole.update(repr((relative, float(start), duration, contents[path])).encode())
        return whole.hexdigest()

    clip_names = tuple(describe(*segment) for segment in segments)
    return Recordings(name, clip_names, columns, names, None if texts is None else tuple(texts), digest, read)


def one_form(name: str) -> str:
    """The name without what nobody sees: in Unicode's NFC, single spaces between words, none at the ends."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def index(values: Iterable[str | None], names: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return `values` as indices into their sorted distinct `names`, -1 for None, and the names.

    Values that differ in the spaces or the Unicode form of the same letters are one, told in a warning: else a word
    would be trained on and tested on.
    """
    given = list(values)
    values = [value if value is None else one_form(value) for value in given]
    if alike := len(set(given)) - len(set(values)):
        changed = next(old for old, new in zip(given, values, strict=True) if old != new)
        told = f"{alike} names differ from others in spaces or Unicode form alone and count as these"
        warnings.warn(f"{told}, e.g. {changed!r}.", stacklevel=2)
    known = tuple(sorted({value for value in values if value is not None}) if names is None else names)
    position: dict[str | None, int] = {value: place for place, value in enumerate(known)} | {None: -1}
    return np.array([position[value] for value in values], np.int32), known


def tabulate(
    values: dict[str, Sequence[str | None]], split: str = "split"
) -> tuple[dict[str, Int[np.ndarray, " clips"]], dict[str, tuple[str, ...]]]:
    """Return columns and names by `index`; those of the column `split` are `SPLITS`."""
    indexed = {column: index(entries, SPLITS if column == split else None) for column, entries in values.items()}
    return {column: pair[0] for column, pair in indexed.items()}, {column: pair[1] for column, pair in indexed.items()}


def read_text(path: Path) -> str:
    """Return the contents of a UTF-8 file, with or without a byte order mark, line ends as they are.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_table(path: Path, needed: Sequence[str], **dialect: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file with their line numbers.

    Raises:
        InputError: as `read_text`, a `needed` column is missing, names are not distinct, or a row is not whole.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, **dialect)
    try:
        header = [field.strip() for field in next(reader, [])]
        if missing := [name for name in needed if name not in header]:
            found = ", ".join(header) or "nothing"
            raise InputError(f"{path} has no column {missing[0]!r} in its first line, found {found}")
        if "" in header:
            place = header.index("") + 1
            raise InputError(f"{path}: column {place} has no name; if it is pandas' index, write to_csv(index=False).")
        if len(set(header)) < len(header):
            raise InputError(f"{path}: the columns need distinct names, found {', '.join(header)}.")
        line = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                raise InputError(f"{path}, line {line}: {len(values)} values for {len(header)} columns")
            if values:
                yield line, dict(zip(header, values, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error


def inside(root: Path, name: str | None, where: str, *, anywhere: bool = False) -> Path:
    """Return the file `name` in `root`, the folder that a list is about.

    Links are followed wherever they lead, as somebody laid them out so; `..` and absolute paths, which come with the
    list, must not lead out of `root`, save absolute ones where they may lead `anywhere`.

    Raises:
        InputError: the name is empty, is no path or leads out of `root`; begins with `where`.
    """
    if name is None:
        raise InputError(f"{where}: the path is empty.")
    root = Path(os.path.abspath(root))
    try:
        path = Path(os.path.normpath(root / name))
        path.resolve().is_file()  # raises for names that no file system takes
        lies_in = (
            (anywhere and os.path.isabs(name))
            or path.is_relative_to(root)
            or path.parent.resolve().is_relative_to(root.resolve())
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {name[:80]!r} is no path ({error}).") from error
    if not lies_in:
        told = f"{where}: {name} leads out of {root}, which every path must lie in"
        raise InputError(f"{told}; give root=, or folder= of corpora.read, if it should.")
    return path


def audio_files(folder: Path) -> list[Path]:
    """Return the WAV and FLAC files in `folder`, sorted by name; none where there is no such folder."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in (".wav", ".flac"))


def _read(path: Path, start: float, duration: float | None, sample_rate: int) -> np.ndarray | InputError:
    try:
        return read_audio(path, sample_rate, start=start, duration=duration)
    except InputError as error:
        return error


def _contents(path: Path) -> str:
    """Return a digest of a file's contents, or what prevents it: that clip is then told of when it is read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        return type(error).__name__
