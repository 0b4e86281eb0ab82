"""Arabic Speech Commands: Arabic keywords (digits and commands), with silence before and after the word.

Licence: CC BY 4.0. Speakers: 30. Words: 40, named in English. Clips: 12,000 of 1 s (10 per speaker and word),
16 kHz WAV. Hours: 3.3. Official page: https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset
"""

import csv
from pathlib import Path

from metajax.data.corpora.files import SPLITS, audio_files, from_files, index
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"clips": 12_000, "labels": 40, "speakers": 30}
_LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_COLUMNS = ("file", "class", "speaker")


def read(root: str | Path) -> Recordings:
    """Read the data set as it unpacks: the clips that train.csv, val.csv and test.csv list, those of them that exist.

    The columns are label (the word), speaker and official_split (the list); the lists share no speakers. A listed
    clip may also be packed as FLAC: where there is no `.wav`, the `.flac` of the same name is taken, and vice versa.

    Args:
        root: the folder that holds the lists.

    Raises:
        InputError: there are no lists, or one does not have the columns file, class and speaker, or is cut short.
    """
    root = Path(root)
    lists = [(split, root / name) for split, name in _LISTS.items() if (root / name).is_file()]
    rows = [(split, *row) for split, path in lists for row in _rows(path)]
    if not rows:
        raise InputError(f"{root} lists no clips, expected train.csv, val.csv or test.csv with the columns {_COLUMNS}")
    splits, files, words, speakers = zip(*rows, strict=True)
    label, label_names = index(words)
    speaker, speaker_names = index(speakers)
    split, _ = index(splits, SPLITS)
    return from_files(
        "arabic",
        [_existing(root / file) for file in files],
        {"label": label, "speaker": speaker, "official_split": split},
        {"label": label_names, "speaker": speaker_names, "official_split": SPLITS},
    )


def noise_files(root: str | Path) -> list[Path]:
    """Return the long recordings of background noise that come with the data set."""
    return audio_files(Path(root) / "background_noise")


def _rows(path: Path) -> list[tuple[str, str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(_COLUMNS) - set(reader.fieldnames or ()):
            raise InputError(f"{path} has no column {min(missing)!r}, expected {_COLUMNS}")
        rows = []
        for row in reader:
            if not all(row[column] for column in _COLUMNS):
                raise InputError(f"{path}, line {reader.line_num}: a value is missing, expected {_COLUMNS}")
            rows.append((row["file"], row["class"], row["speaker"]))
    return rows


def _existing(path: Path) -> Path:
    """Return `path`, or the same clip packed the other way where only that exists."""
    other = path.with_suffix({".wav": ".flac", ".flac": ".wav"}.get(path.suffix, path.suffix))
    return other if not path.exists() and other.exists() else path
