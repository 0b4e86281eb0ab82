"""Google Speech Commands, versions 0.01 and 0.02: English words, recorded by volunteers on their own devices.

Licence: CC BY 4.0. Version 0.02: 2,618 speakers, 35 words, 105,829 clips; version 0.01: 30 words, 64,727 clips; 16 kHz
WAV of at most 1 s. Hours: at most 29 and 18. Reference and official page: https://arxiv.org/abs/1804.03209
Download: http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz (or v0.01)
"""

import re
from pathlib import Path

from metajax.data.corpora.files import audio_files, from_files, read_text, tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"v0.01": {"clips": 64_727, "labels": 30}, "v0.02": {"clips": 105_829, "labels": 35, "speakers": 2618}}
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def read(root: str | Path) -> Recordings:
    """Read either version as it unpacks, or a copy sorted into the folders train, val and test.

    The columns are label (the word), speaker (the hash in the file's name) and official_split. The lists are made by
    a hash of the speaker, so that no speaker is in two parts; for folders nothing vouches for that.

    Args:
        root: the folder that holds the word folders, validation_list.txt and testing_list.txt (clips in neither list
            are for training); or train, val and test with files named `{word}_{speaker}_nohash_{i}.wav`.

    Raises:
        InputError: the folder is neither, holds no clips, or holds a file with another kind of name.
    """
    root = Path(root)
    if all((root / name).is_file() for name in _LISTS.values()):
        clips = _unpacked(root)
    elif any((root / name).is_dir() for name in _FOLDERS.values()):
        clips = _sorted(root)
    else:
        raise InputError(f"{root} is not Speech Commands, expected {' and '.join(_LISTS.values())} beside word folders")
    if not clips:
        raise InputError(f"{root} holds no clips, expected files named {{speaker}}_nohash_{{i}}.wav in word folders")
    paths, words, speakers, splits = zip(*clips, strict=True)
    columns, names = tabulate({"label": words, "speaker": speakers, "official_split": splits}, "official_split")
    return from_files("speech_commands", paths, columns, names, texts=words)


def noise_files(root: str | Path) -> list[Path]:
    """Return the long recordings of background noise that come with the data set."""
    return audio_files(Path(root) / "_background_noise_")


def _unpacked(root: Path) -> list[tuple[Path, str, str, str]]:
    """Return (path, word, speaker, split) of the clips in word folders."""
    split_of = {clip.strip(): split for split, name in _LISTS.items() for clip in read_text(root / name).splitlines()}
    clips = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "_."):
        for path in audio_files(folder):
            (speaker,) = _parts(r"([^_]+)_nohash_\d+", path)
            clips.append((path, folder.name, speaker, split_of.get(f"{folder.name}/{path.stem}.wav", "train")))
    return clips


def _sorted(root: Path) -> list[tuple[Path, str, str, str]]:
    """Return (path, word, speaker, split) of the clips in the folders train, val and test."""
    clips = []
    for split, name in _FOLDERS.items():
        for path in audio_files(root / name):
            word, speaker = _parts(r"([^_]+)_([^_]+)_nohash_\d+", path)
            clips.append((path, word, speaker, split))
    return clips


def _parts(pattern: str, path: Path) -> tuple[str, ...]:
    if match := re.fullmatch(pattern, path.stem):
        return match.groups()
    raise InputError(f"{path} is not named as a clip of Speech Commands, expected {{speaker}}_nohash_{{i}}.wav")
