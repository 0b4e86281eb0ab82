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
import warnings
from pathlib import Path
from typing import Any

from metajax.data.corpora.files import read_table
from metajax.data.corpora.rows import KNOWN, OnError, Row, as_text, from_rows, json_lines
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_DIALECTS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
_JSON_LINES = (".jsonl", ".ndjson")
KINDS = (*_DIALECTS, *_JSON_LINES)
_MISSING = ("", "NaN", "nan", "None", "<NA>", "NaT")


def read(path: str | Path, *, root: str | Path | None = None, on_error: OnError = "raise") -> Recordings:
    """Read the clips that a manifest lists.

    The columns are label and speaker, language and split where the manifest has them, and every further column of the
    manifest, its values as categories; a warning names the latter.

    Args:
        path: of the manifest, `.csv`, `.tsv`, `.jsonl` or `.ndjson`; or of a folder that holds one named `manifest`.
        root: the folder that paths are relative to and must lie in, links apart; that of the manifest where None.
        on_error: what to do with missing files: "raise", or "skip" to leave them to `load(..., on_error="skip")`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        path = min((file for file in path.glob("manifest.*") if file.suffix.lower() in KINDS), default=path)
    rows = _rows(path)
    recordings = from_rows(path.stem, path, rows, path.parent if root is None else Path(root), on_error)
    if further := [f for f in dict.fromkeys(field for row in rows for field in row.values) if f not in KNOWN]:
        warnings.warn(f"{path}: further columns, kept as categories: {', '.join(further)}.", stacklevel=2)
    return recordings


def _rows(path: Path) -> list[Row]:
    """Return the rows of the manifest, None for values that are empty or absent."""
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        told = "is no manifest" if path.exists() else "does not exist"
        raise InputError(f"{path} {told}: expected one of {', '.join(KINDS)}.")
    found = json_lines(path, ("path",)) if suffix in _JSON_LINES else read_table(path, ("path",), **_DIALECTS[suffix])

    def known(value: Any) -> str | None:
        text = as_text(value)
        return None if text is None or text.strip() in _MISSING else text

    return [Row(path, line, {field: known(value) for field, value in row.items()}) for line, row in found]
