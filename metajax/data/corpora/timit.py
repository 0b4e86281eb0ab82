"""TIMIT: English sentences with words and phones, each aligned by hand.

Licence: LDC93S1, to be bought. Speakers: 630. Sentences: 6,300, of which 2 are said by all. Hours: 5.4; SPHERE files
named `.WAV`, 16 kHz. Official page: https://catalog.ldc.upenn.edu/LDC93S1
"""

from pathlib import Path
from typing import Literal

from metajax.data.corpora.files import read_text
from metajax.data.corpora.rows import OnError, Row, from_rows, tell_unlisted
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_TIERS = {"sentence": ".txt", "word": ".wrd", "phone": ".phn"}


def read(
    path: str | Path, *, tier: Literal["sentence", "word", "phone"] = "sentence", on_error: OnError = "raise"
) -> Recordings:
    """Read all sentences, in capitals or small letters, as SPHERE or as WAV files.

    The columns are speaker, dialect ("DR1"), sentence ("SA1", "SI943", "SX43"; those of SA are said by all speakers,
    and usually left out), language and split. `official` and `core` test sets are the user's to choose, by speaker.

    Args:
        path: the folder that holds `TRAIN` and `TEST`.
        tier: what the text is: the sentence as it was to be read, its words as they were, or its phones.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    root = Path(path)
    if tier not in _TIERS:
        raise InputError(f"tier is {tier!r}, expected one of {', '.join(_TIERS)}.")
    files = [file for file in root.rglob("*") if len(file.relative_to(root).parts) >= 4]
    # some copies add `SA1.WAV.wav`, the same as RIFF
    found = (file for file in sorted(files, reverse=True) if file.suffix.lower() == ".wav")
    audio = {file.with_name(file.name.split(".")[0]): file for file in found}
    rows = []
    for source in sorted(file for file in files if file.suffix.lower() == _TIERS[tier]):
        part, dialect, speaker, name = (one.upper() for one in source.relative_to(root).with_suffix("").parts[-4:])
        lines = [line.split() for line in read_text(source).splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            if len(line) < 3 or not (line[0].isdigit() and line[1].isdigit()):
                raise InputError(f"{source}, line {number}: expected FIRST LAST TEXT, found {' '.join(line)[:40]!r}.")
        if part not in ("TRAIN", "TEST"):
            raise InputError(f"{source} lies in {part}, expected TRAIN/DIALECT/SPEAKER or TEST/DIALECT/SPEAKER.")
        values = {
            "path": audio.get(source.with_suffix(""), source.with_suffix(".WAV")).relative_to(root).as_posix(),
            "text": " ".join(word for line in lines for word in line[2:]),
            "speaker": speaker,
            "dialect": dialect,
            "sentence": name,
            "split": part.lower(),
            "language": "en",
        }
        rows.append(Row(source, 1, dict(values)))
    tell_unlisted(root, audio.values(), rows, root)
    return from_rows("timit", root, rows, root, on_error)
