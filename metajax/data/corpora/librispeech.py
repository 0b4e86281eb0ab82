"""LibriSpeech, and whatever is laid out like it (MLS apart): English read aloud, with text.

Licence: CC BY 4.0. Speakers: 2,484. Utterances: 292,367. Hours: 982; FLAC, 16 kHz. Text in capitals, without
punctuation. Official page: https://www.openslr.org/12
"""

import re
from pathlib import Path

from metajax.data.corpora.files import read_text
from metajax.data.corpora.rows import OnError, Row, from_rows, tell_unlisted
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_PARTS = {"train": "train", "dev": "validation", "test": "test"}
_SUBSET = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")


def read(path: str | Path, *, on_error: OnError = "raise") -> Recordings:
    """Read the utterances that the files `*.trans.txt` in a folder tell the text of.

    The columns are speaker, language, chapter, and subset and split where the folders are named as the data set's
    (`train-clean-100`, `dev-other`); FLAC files without text are counted in a warning.

    Args:
        path: the folder `LibriSpeech`, a subset, or a copy of some of its folders.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    root = Path(path)
    rows = []
    for source in sorted(root.rglob("*.trans.txt")):
        subset = next((part for part in source.absolute().parts if _SUBSET.fullmatch(part)), None)
        for line, entry in enumerate(read_text(source).splitlines(), 1):
            if not entry.strip():
                continue
            name, _, text = entry.partition(" ")
            if name.count("-") != 2:
                raise InputError(f"{source}, line {line}: expected SPEAKER-CHAPTER-NUMBER TEXT, found {entry[:40]!r}.")
            speaker, chapter, _ = name.split("-")
            file = (source.parent / f"{name}.flac").relative_to(root).as_posix()
            values = {"path": file, "text": text, "speaker": speaker, "chapter": chapter, "language": "en"}
            if subset:
                values |= {"subset": subset, "split": _PARTS[subset.split("-")[0]]}
            rows.append(Row(source, line, dict(values)))
    tell_unlisted(root, root.rglob("*.flac"), rows, root)
    return from_rows("librispeech", root, rows, root, on_error)
