"""Anybody's recordings, listed in a manifest: one clip per row of a CSV, TSV or JSON lines file.

Licence, speakers, words, clips and hours: those of the recordings.

A row has a `path` and any of `label, speaker, language, split, start, duration, text`:

    path,label,speaker,split
    clips/0001.wav,yes,anna,train
    clips/0002.wav,no,ben,test

`start` and `duration` are in seconds and cut a clip out of a longer file. The file is UTF-8, with or without a byte
order mark. CSV fields may be quoted; TSV knows no quotes. A value is unknown where it is absent or empty, null or NaN
in JSON, or one of `NaN`, `nan`, `None`, `<NA>` and `NaT`, which Python and pandas write for missing ones.
"""

import csv
import io
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from metajax.data.corpora.files import SPLITS, from_files, inside, read_table, read_text, tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("dev", "val", "valid"), "validation")
_CATEGORIES = ("label", "speaker", "language", "split")
_KNOWN = ("path", *_CATEGORIES, "start", "duration", "text")
_DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
_JSON_LINES = (".jsonl", ".ndjson")
_MISSING = ("", "NaN", "nan", "None", "<NA>", "NaT")

Row = dict[str, str | None]


def read(
    path: str | Path, *, root: str | Path | None = None, on_error: Literal["raise", "skip"] = "raise"
) -> Recordings:
    """Read the clips that a manifest lists.

    The columns are label and speaker, language and split where the manifest has them, and every further column of the
    manifest, its values as categories; a warning names the latter.

    Args:
        path: of the manifest; `.csv`, `.tsv`, `.jsonl` or `.ndjson`.
        root: the folder that paths are relative to and must lie in, links apart; that of the manifest where None.
        on_error: what to do with missing files: "raise", or "skip" to leave them to `load(..., on_error="skip")`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} lists no clips.")
    fields = list(dict.fromkeys(field for _, row in rows for field in row))
    paths, starts, durations = [], [], []
    seen: dict[tuple, int] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        paths.append(inside(root, row.get("path"), where))
        starts.append(_seconds(row, "start", where) or 0.0)
        durations.append(_seconds(row, "duration", where))
        split = row.get("split")
        if split is not None and split not in _SPLIT_NAMES:
            raise InputError(f"{where}: split is {split!r}, expected one of {', '.join(_SPLIT_NAMES)}.")
        row["split"] = split and _SPLIT_NAMES[split]
        first = seen.setdefault((paths[-1], starts[-1], durations[-1]), line)
        if first != line:
            raise InputError(f"{where}: the same clip as in line {first}: {row['path']}.")
    missing = [(line, file) for (line, _), file in zip(rows, paths, strict=True) if not file.is_file()]
    if missing and on_error == "raise":
        line, file = missing[0]
        hint = "; paths are written with /, not \\" if "\\" in file.name else ""
        raise InputError(f"{path}, line {line}: no file {file} ({len(missing)} of {len(rows)} clips have none{hint}).")

    further = [field for field in fields if field not in _KNOWN]
    if further:
        warnings.warn(f"{path}: further columns, kept as categories: {', '.join(further)}.", stacklevel=2)
    present = [field for field in _CATEGORIES if field in fields or field in ("label", "speaker")]
    columns, names = tabulate({field: [row.get(field) for _, row in rows] for field in present + further})
    texts = [row.get("text") or "" for _, row in rows] if "text" in fields else None
    return from_files(path.stem, paths, columns, names, starts=starts, durations=durations, texts=texts)


def _rows(path: Path) -> list[tuple[int, Row]]:
    """Return the rows of the manifest with their line numbers, None for values that are empty or absent."""
    suffix = path.suffix.lower()
    if suffix not in _DIALECTS and suffix not in _JSON_LINES:
        raise InputError(f"{path} is no manifest: expected one of {', '.join((*_DIALECTS, *_JSON_LINES))}.")
    rows = _json_rows(path) if suffix in _JSON_LINES else read_table(path, ("path",), **_DIALECTS[suffix])
    return [
        (line, {field: None if value is None or value.strip() in _MISSING else value for field, value in row.items()})
        for line, row in rows
    ]


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(io.StringIO(read_text(path), newline=""), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {line}: expected an object, found {text.strip()[:40]}.")
        if "path" not in row:
            raise InputError(f"{path}, line {line}: no 'path', found {', '.join(row) or 'nothing'}.")
        yield line, {field: _as_text(value) for field, value in row.items()}


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _seconds(row: Row, field: str, where: str) -> float | None:
    text = row.get(field)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (field == "duration" and value == 0):
        raise InputError(f"{where}: {field} is {text!r}, expected seconds as a number.")
    return value
