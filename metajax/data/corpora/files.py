"""Recordings in audio files: what the readers share."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    """Return clips that are audio files or segments of them.

    Args:
        name: of the corpus.
        paths: one file per clip; a file may hold several clips.
        columns, names: as in `Recordings`.
        starts: of each clip in its file, in seconds; all 0 where None.
        durations: of each clip, in seconds; to the end of the file where None.
        texts: transcripts.

    Returns:
        The recordings; their digest covers the contents of the files, the segments and the paths relative to the
        folder that holds them all, so that a moved corpus keeps its digest.
    """
    starts = [0.0] * len(paths) if starts is None else list(starts)
    durations = [None] * len(paths) if durations is None else list(durations)
    segments = list(zip(paths, starts, durations, strict=True))

    def describe(path: Path, start: float, duration: float | None) -> str:
        end = "the end" if duration is None else f"{start + duration:g} s"
        return str(path) if start == 0 and duration is None else f"{path} ({start:g} s to {end})"

    def read(clips: Sequence[int], sample_rate: int) -> list[np.ndarray | InputError]:
        return [_read(*segments[clip], sample_rate) for clip in clips]

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

    return Recordings(
        name=name,
        clip_names=tuple(describe(*segment) for segment in segments),
        columns=columns,
        names=names,
        texts=None if texts is None else tuple(texts),
        digest=digest,
        read=read,
    )


def index(values: Iterable[str | None], names: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return `values` as indices into their sorted distinct `names`, -1 for None, and the names."""
    values = list(values)
    known = tuple(sorted({value for value in values if value is not None}) if names is None else names)
    position: dict[str | None, int] = {value: place for place, value in enumerate(known)} | {None: -1}
    return np.array([position[value] for value in values], np.int32), known


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
