"""Free Spoken Digit Dataset: English digits, trimmed at both ends.

Licence: CC BY-SA 4.0. Speakers: 6. Words: 10 (zero to nine). Clips: 3,000 (50 per speaker and digit), 8 kHz WAV.
Hours: 0.36. Official page: https://github.com/Jakobovski/free-spoken-digit-dataset
"""

import re
from pathlib import Path

import numpy as np

from metajax.data.corpora.files import SPLITS, audio_files, from_files, index
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"clips": 3000, "labels": 10, "speakers": 6}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEST_TAKES = 5  # the first takes of every speaker and digit are the official test part


def read(root: str | Path) -> Recordings:
    """Read the data set as it unpacks.

    The columns are label (the digit), speaker, take and official_split. The official split shares all speakers
    between training and test: what is measured on it says nothing about new speakers.

    Args:
        root: the folder that holds `recordings`, or that folder itself.

    Raises:
        InputError: there are no recordings, or one of them is not named `{digit}_{speaker}_{take}.wav`.
    """
    root = Path(root)
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    paths = audio_files(folder)
    if not paths:
        raise InputError(f"{folder} holds no recordings, expected files named {{digit}}_{{speaker}}_{{take}}.wav")
    parts = [re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem) for path in paths]
    if None in parts:
        raise InputError(f"{paths[parts.index(None)]} is not named {{digit}}_{{speaker}}_{{take}}.wav")
    digits, speakers, takes = zip(*(part.groups() for part in parts if part), strict=True)
    label, take = np.array(digits, np.int32), np.array(takes, np.int32)
    speaker, speaker_names = index(speakers)
    official = np.where(take < _TEST_TAKES, SPLITS.index("test"), SPLITS.index("train")).astype(np.int32)
    columns = {"label": label, "speaker": speaker, "take": take, "official_split": official}
    names = {"label": DIGITS, "speaker": speaker_names, "official_split": SPLITS}
    names["take"] = tuple(str(number) for number in range(take.max() + 1))
    return from_files("fsdd", paths, columns, names, texts=[DIGITS[int(digit)] for digit in digits])
