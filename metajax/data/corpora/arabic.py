"""Arabic Speech Commands: Arabic keywords (digits and commands), with silence before and after the word.

Licence: CC BY 4.0. Speakers: 30. Words: 40, named in English. Clips: 12,000 of 1 s (10 per speaker and word),
16 kHz WAV. Hours: 3.3. Official page: https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset
"""

from collections.abc import Sequence
from pathlib import Path

from metajax.data.corpora.files import audio_files, from_files, inside, read_table, tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"clips": 12_000, "labels": 40, "speakers": 30}
_LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_COLUMNS = ("file", "class", "speaker")


def read(root: str | Path, *, parts: Sequence[str] = tuple(_LISTS)) -> Recordings:
    """Read the data set as it unpacks: the clips that train.csv, val.csv and test.csv list, those of them that exist.

    The columns are label (the word), speaker and official_split (the list); the lists share no speakers. A listed
    clip may also be packed as FLAC: where there is no `.wav`, the `.flac` of the same name is taken, and vice versa.

    Args:
        root: the folder that holds the lists.
        parts: whose lists are read, of train, validation and test.

    Raises:
        InputError: there are no lists, or one does not have the columns file, class and speaker, is cut short, or
            lists a file outside of `root`.
    """
    root = Path(root)
    rows = []
    for split in parts:
        path = root / _LISTS[split]
        for line, row in read_table(path, _COLUMNS) if path.is_file() else ():
            if not all(row[column] for column in _COLUMNS):
                raise InputError(f"{path}, line {line}: a value is missing, expected {_COLUMNS}")
            file = _existing(inside(root, row["file"], f"{path}, line {line}"))
            rows.append((split, file, row["class"], row["speaker"]))
    if not rows:
        raise InputError(f"{root} lists no clips, expected train.csv, val.csv or test.csv with the columns {_COLUMNS}")
    splits, files, words, speakers = zip(*rows, strict=True)
    columns, names = tabulate({"label": words, "speaker": speakers, "official_split": splits}, "official_split")
    return from_files("arabic", files, columns, names)


def noise_files(root: str | Path) -> list[Path]:
    """Return the long recordings of background noise that come with the data set."""
    return audio_files(Path(root) / "background_noise")


def _existing(path: Path) -> Path:
    """Return `path`, or the same clip packed the other way where only that exists."""
    other = path.with_suffix({".wav": ".flac", ".flac": ".wav"}.get(path.suffix, path.suffix))
    return other if not path.exists() and other.exists() else path
