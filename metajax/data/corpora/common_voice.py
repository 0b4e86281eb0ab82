"""Common Voice: sentences read aloud by volunteers in more than 100 languages.

Licence: CC0. Speakers, sentences, clips and hours: those of the language and the release; MP3, 32 or 48 kHz. Official
page: https://commonvoice.mozilla.org/datasets
"""

import csv
from pathlib import Path

from metajax.data.corpora.files import read_table
from metajax.data.corpora.rows import OnError, Row, from_rows, renamed
from metajax.data.corpus import Recordings
from metajax.errors import InputError

NEEDED = ("client_id", "path", "sentence")
LISTS = ("train", "dev", "test")
_NAMES = {
    "text": ("sentence",),
    "speaker": ("client_id",),
    "language": ("locale",),
    "accent": ("accents", "accent"),
    "gender": ("gender",),
    "age": ("age",),
}


def read(path: str | Path, *, on_error: OnError = "raise") -> Recordings:
    """Read the clips of a language.

    The columns are speaker (`client_id`), language (`locale`), accent, gender and age where the lists have them, and
    split. Clips that no list names, such as those of `invalidated.tsv`, are not of the corpus.

    Args:
        path: the folder of a language, of which train.tsv, dev.tsv and test.tsv are read; or, where there are none,
            validated.tsv; or one list of it, then without splits. The clips lie in `clips` beside it.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    lists = [(part, file) for part in LISTS if (file := path / f"{part}.tsv").is_file()]
    rows = []
    for part, source in lists or [("", root / "validated.tsv" if path.is_dir() else path)]:
        for line, row in read_table(source, NEEDED, delimiter="\t", quoting=csv.QUOTE_NONE):
            values = renamed(row, _NAMES) | {"path": f"clips/{row['path']}"}
            if not row["path"]:
                raise InputError(f"{source}, line {line}: the path is empty.")
            rows.append(Row(source, line, values | ({"split": part} if part else {})))
    return from_rows("common_voice", path, rows, root, on_error)
