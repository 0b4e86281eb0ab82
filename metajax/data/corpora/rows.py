"""Rows of a list of clips as recordings: what all readers of such lists share."""

import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metajax.data.corpora.files import SPLITS, from_files, inside, read_text, tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("dev", "val", "valid", "devel"), "validation")
CATEGORIES = ("label", "speaker", "language", "split")
KNOWN = ("path", *CATEGORIES, "start", "duration", "text")
OnError = Literal["raise", "skip"]
Values = dict[str, str | None]


class Row(NamedTuple):
    """One clip of a list."""

    source: Path  # the file that lists it
    line: int
    values: Values  # `path`, any of `KNOWN`, and further columns

    @property
    def where(self) -> str:
        """What messages begin with."""
        return f"{self.source}, line {self.line}"


def from_rows(name: str, source: Path, rows: Iterable[Row], root: str | Path | None, on_error: OnError) -> Recordings:
    """The clips of a list as recordings; columns are label and speaker, and all else that the rows have.

    Args:
        name: of the corpus.
        source: the file or folder that lists the clips, for messages.
        rows: the clips; `start` and `duration` are in seconds.
        root: the folder that paths are relative to and must lie in, links apart; None for that of the list, which
            absolute paths may then lead out of.
        on_error: what to do with missing files: "raise", or "skip" to leave them to `load(..., on_error="skip")`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    rows, anywhere = list(rows), root is None
    root = (source if source.is_dir() else source.parent) if root is None else Path(root)
    if not rows:
        raise InputError(f"{source} lists no clips.")
    fields = list(dict.fromkeys(field for row in rows for field in row.values))
    paths, starts, durations = [], [], []
    seen: dict[tuple, Row] = {}
    for row in rows:
        values = row.values
        paths.append(inside(root, values.get("path"), row.where, anywhere=anywhere))
        starts.append(_seconds(row, "start") or 0.0)
        durations.append(_seconds(row, "duration"))
        split = values.get("split")
        if split is not None and split not in SPLIT_NAMES:
            raise InputError(f"{row.where}: split is {split!r}, expected one of {', '.join(SPLIT_NAMES)}.")
        values["split"] = split and SPLIT_NAMES[split]
        first = seen.setdefault((paths[-1], starts[-1], durations[-1]), row)
        if first is not row:
            place = f"line {first.line}" if first.source == row.source else first.where
            raise InputError(f"{row.where}: the same clip as in {place}: {values['path']}.")
    missing = [(row, file) for row, file in zip(rows, paths, strict=True) if not file.is_file()]
    if missing and on_error == "raise":
        row, file = missing[0]
        hint = "; paths are written with /, not \\" if "\\" in file.name else ""
        raise InputError(f"{row.where}: no file {file} ({len(missing)} of {len(rows)} clips have none{hint}).")
    present = [field for field in CATEGORIES if field in fields or field in ("label", "speaker")]
    further = [field for field in fields if field not in KNOWN]
    columns, names = tabulate({field: [row.values.get(field) for row in rows] for field in present + further})
    texts = [row.values.get("text") or "" for row in rows] if "text" in fields else None
    return from_files(name, paths, columns, names, starts=starts, durations=durations, texts=texts)


def json_lines(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON lines file, packed by gzip or not, with their line numbers.

    Raises:
        InputError: as `read_text`, a line is no JSON or no object, or it lacks what is `needed`.
    """
    for line, text in enumerate(io.StringIO(_unpacked(path), newline=""), 1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON ({error}).") from error
        if not isinstance(found, dict):
            raise InputError(f"{path}, line {line}: expected an object, found {text.strip()[:40]}.")
        if missing := [field for field in needed if field not in found]:
            raise InputError(f"{path}, line {line}: no {missing[0]!r}, found {', '.join(found) or 'nothing'}.")
        yield line, found


def as_text(value: Any) -> str | None:
    """A value of JSON as a CSV file would hold it; NaN, as pandas writes what is missing, is none."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def renamed(found: dict[str, Any], columns: dict[str, tuple[str, ...]]) -> Values:
    """The columns that a row has under any of the names given for each, None where empty."""
    names = {column: next((name for name in names if name in found), None) for column, names in columns.items()}
    return {column: as_text(found[name]) or None for column, name in names.items() if name is not None}


def tell_unlisted(source: Path, audio: Iterable[Path], rows: Sequence[Row], root: Path) -> None:
    """Warn of audio files that no row lists: they have no text and are left out."""
    listed = {root / (row.values["path"] or "") for row in rows}
    if unlisted := sorted(set(audio) - listed):
        told = f"{source}: {len(unlisted)} audio files have no text and are left out; the first: {unlisted[0]}."
        warnings.warn(told, stacklevel=3)


def _unpacked(path: Path) -> str:
    if path.suffix != ".gz":
        return read_text(path)
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _seconds(row: Row, field: str) -> float | None:
    text = row.values.get(field)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (field == "duration" and value == 0):
        raise InputError(f"{row.where}: {field} is {text!r}, expected seconds as a number.")
    return value
