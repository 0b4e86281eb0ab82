"""A Hugging Face AudioFolder: audio files beside `metadata.csv` or `metadata.jsonl`, in one folder or one a split.

Licence, speakers, utterances and hours: those of the recordings. Format:
https://huggingface.co/docs/datasets/audio_dataset
"""

from pathlib import Path

from metajax.data.corpora.files import read_table
from metajax.data.corpora.rows import SPLIT_NAMES, OnError, Row, from_rows, json_lines, renamed
from metajax.data.corpus import Recordings
from metajax.errors import InputError

LISTS = ("metadata.csv", "metadata.jsonl")
_TEXTS = ("transcription", "text", "sentence", "transcript", "normalized_text")
_NAMES = {
    "text": _TEXTS,
    "speaker": ("speaker", "speaker_id"),
    "language": ("language", "lang", "locale"),
    "label": ("label",),
}


def lists(root: Path) -> list[Path]:
    """The lists of a folder and, one step down, of its splits."""
    return [file for folder in ("", "*/", "data/*/") for name in LISTS for file in sorted(root.glob(folder + name))]


def read(path: str | Path, *, on_error: OnError = "raise") -> Recordings:
    """Read the files that the folder's lists name; the text is `transcription`, `text` or `sentence`.

    The columns are speaker, language and label where the lists have them, and split where folders are named so
    (`train`, `validation` or `dev`, `test`).

    Args:
        path: the folder.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    root = Path(path)
    rows = []
    for source in lists(root):
        needed = ("file_name",)
        found = json_lines(source, needed) if source.suffix == ".jsonl" else read_table(source, needed)
        split = SPLIT_NAMES.get(source.parent.name) if source.parent != root else None
        for line, row in found:
            values = renamed(row, _NAMES)
            if "text" not in values:
                raise InputError(f"{source}, line {line}: no text, expected one of {', '.join(_TEXTS)}.")
            if not row["file_name"]:
                raise InputError(f"{source}, line {line}: the file_name is empty.")
            file = str(row["file_name"])
            if not Path(file).is_absolute():  # else `from_rows` refuses it, if it leads out
                file = (source.parent / file).relative_to(root).as_posix()
            values |= {"path": file} | ({"split": split} if split else {})
            rows.append(Row(source, line, values))
    return from_rows(root.name, root, rows, root, on_error)
