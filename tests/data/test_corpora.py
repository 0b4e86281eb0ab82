"""Reader modules: the real data where it is present, and small folders of the same layout."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from metajax.data.corpora import arabic, fsdd, speech_commands
from metajax.data.corpora.files import SPLITS
from metajax.data.corpus import Recordings, load, summary
from metajax.data.features import FeatureSettings
from metajax.errors import InputError
from tests.shared import shared_data

TRAIN, VALIDATION, TEST = range(3)


def _format(path: Path) -> str:
    return path.suffix[1:].upper() or "WAV"


def make(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * np.random.default_rng(seed).normal(size=4000), 16000, format=_format(path))


def counts(recordings: Recordings) -> dict[str, int]:
    return {key: value for key, value in summary(recordings).items() if key != "name"}


def rows(recordings: Recordings, *columns: str) -> list[tuple[str, ...]]:
    """What the columns say of each clip, in words."""
    words = [[recordings.names[name][place] for place in recordings.columns[name]] for name in columns]
    return list(zip(*words, strict=True))


def speakers_of(recordings: Recordings, split: int) -> set[int]:
    return set(recordings.columns["speaker"][recordings.columns["official_split"] == split].tolist())


def test_fsdd_is_whole():
    recordings = fsdd.read(shared_data("fsdd"))
    assert counts(recordings) == fsdd.COUNTS
    pairs, times = np.unique(rows(recordings, "label", "speaker"), axis=0, return_counts=True)
    assert len(pairs) == 60 and np.all(times == 50)
    split = recordings.columns["official_split"]
    assert np.sum(split == TEST) == 300 and np.sum(split == TRAIN) == 2700
    assert speakers_of(recordings, TEST) == speakers_of(recordings, TRAIN)


def test_fsdd_names_become_columns(tmp_path):
    make(tmp_path, "recordings/7_jackson_32.wav", "recordings/0_theo_4.wav")
    recordings = fsdd.read(tmp_path)
    columns = ("label", "speaker", "take", "official_split")
    assert rows(recordings, *columns) == [("zero", "theo", "4", "test"), ("seven", "jackson", "32", "train")]
    assert recordings.columns["label"].tolist() == [0, 7]
    assert recordings.texts == ("zero", "seven")
    assert fsdd.read(tmp_path / "recordings").digest() == recordings.digest()
    make(tmp_path, "recordings/seven.wav")
    with pytest.raises(InputError, match="seven.wav is not named"):
        fsdd.read(tmp_path)


def test_arabic_copy_is_as_described():
    root = shared_data("arabic_speech_commands")
    recordings = arabic.read(root)
    assert counts(recordings) == {"clips": 4800, "labels": 40, "speakers": 24}
    pairs, times = np.unique(rows(recordings, "label", "speaker"), axis=0, return_counts=True)
    assert len(pairs) == 960 and np.all(times == 5)
    train, validation = speakers_of(recordings, TRAIN), speakers_of(recordings, VALIDATION)
    assert (len(train), len(validation)) == (18, 6) and not train & validation
    for name, (word, speaker) in zip(recordings.clip_names, rows(recordings, "label", "speaker"), strict=True):
        assert Path(name).parent.name == word and Path(name).name.startswith(speaker)
    assert [path.name for path in arabic.noise_files(root)] == ["boiler.flac", "washing_machine.flac"]


def test_arabic_reads_wav_and_flac(tmp_path):
    make(tmp_path, "dataset/stop/00000001_NO_01.wav", "dataset/go/00000002_NO_01.flac")
    (tmp_path / "train.csv").write_text("file,class,speaker\ndataset/stop/00000001_NO_01.wav,stop,00000001\n")
    (tmp_path / "val.csv").write_text("file,class,speaker\ndataset/go/00000002_NO_01.wav,go,00000002\n")
    recordings = arabic.read(tmp_path)
    columns = ("label", "speaker", "official_split")
    assert rows(recordings, *columns) == [("stop", "00000001", "train"), ("go", "00000002", "validation")]
    assert rows(arabic.read(tmp_path, parts=("validation",)), "label", "official_split") == [("go", "validation")]
    assert len(load(recordings, FeatureSettings(), cache=None, progress=False).features) == 2
    (tmp_path / "test.csv").write_text("file,class\nx,y\n")
    with pytest.raises(InputError, match="test.csv has no column 'speaker'"):
        arabic.read(tmp_path)
    (tmp_path / "test.csv").write_text("file,class,speaker\nx,y\n")
    with pytest.raises(InputError, match="test.csv, line 2"):
        arabic.read(tmp_path)
    (tmp_path / "test.csv").write_text("file,class,speaker\n../x.wav,y,1\n")
    with pytest.raises(InputError, match=r"test.csv, line 2: \.\./x.wav leads out of"):
        arabic.read(tmp_path)


def test_clips_behind_links_are_found(tmp_path):
    make(tmp_path / "store", "one", "two")
    (tmp_path / "recordings").mkdir()
    for name, source in (("7_jackson_32.wav", "one"), ("0_theo_4.wav", "two")):
        (tmp_path / "recordings" / name).symlink_to(tmp_path / "store" / source)
    recordings = fsdd.read(tmp_path)
    assert rows(recordings, "label", "speaker") == [("zero", "theo"), ("seven", "jackson")]
    assert len(load(recordings, FeatureSettings(), cache=None, progress=False).features) == 2


def test_one_clip_is_read_at_a_time(tmp_path, monkeypatch):
    """Long clips of which a second is kept must not be held together."""
    make(tmp_path, "recordings/7_jackson_32.wav", "recordings/0_theo_4.wav")
    asked = []

    def read(path, *_, **__):
        asked.append(path)
        return np.zeros(1, np.float32)

    monkeypatch.setattr("metajax.data.corpora.files.read_audio", read)
    waves = iter(fsdd.read(tmp_path).read([0, 1], 16000))
    next(waves)
    assert len(asked) == 1


def test_arabic_tells_of_a_listed_clip_that_is_absent(tmp_path):
    (tmp_path / "train.csv").write_text("file,class,speaker\ndataset/stop/00000001_NO_01.wav,stop,00000001\n")
    with pytest.raises(InputError, match="00000001_NO_01.wav"):
        load(arabic.read(tmp_path), FeatureSettings(), cache=None, progress=False)


def test_speech_commands_copy_is_as_described():
    recordings = speech_commands.read(shared_data("speech_commands_toy"))
    assert counts(recordings) == {"clips": 350, "labels": 35, "speakers": 313}
    assert np.all(np.bincount(recordings.columns["label"]) == 10)
    assert recordings.names["official_split"] == SPLITS
    train, validation, test = (speakers_of(recordings, split) for split in range(3))
    assert (len(train), len(validation), len(test)) == (225, 68, 34)
    assert len(train & validation) == 8  # the folders of this copy do not separate the speakers


def test_speech_commands_as_it_unpacks(tmp_path):
    make(tmp_path, "yes/0a_nohash_0.wav", "yes/0b_nohash_1.wav", "no/0c_nohash_0.wav", "_background_noise_/tap.wav")
    (tmp_path / "validation_list.txt").write_text("yes/0b_nohash_1.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/0c_nohash_0.wav\nno/0d_nohash_0.wav\n")
    recordings = speech_commands.read(tmp_path)
    assert rows(recordings, "label", "speaker", "official_split") == [
        ("no", "0c", "test"),
        ("yes", "0a", "train"),
        ("yes", "0b", "validation"),
    ]
    assert [path.name for path in speech_commands.noise_files(tmp_path)] == ["tap.wav"]
    make(tmp_path, "no/loud.wav")
    with pytest.raises(InputError, match="loud.wav"):
        speech_commands.read(tmp_path)


@pytest.mark.parametrize("reader", [fsdd, arabic, speech_commands])
def test_wrong_folders_are_refused(tmp_path, reader):
    with pytest.raises(InputError, match="expected"):
        reader.read(tmp_path)
    with pytest.raises(InputError, match="absent"):
        reader.read(tmp_path / "absent")


@pytest.mark.parametrize("name", ["fsdd", "arabic_speech_commands", "speech_commands_toy"])
def test_real_clips_load(name):
    """Every 50th clip of each: finite features that differ between clips."""
    reader = {"fsdd": fsdd, "arabic_speech_commands": arabic, "speech_commands_toy": speech_commands}[name]
    whole = reader.read(shared_data(name))
    keep = range(0, len(whole.clip_names), 50)
    part = whole._replace(
        clip_names=tuple(whole.clip_names[clip] for clip in keep),
        columns={column: values[::50] for column, values in whole.columns.items()},
        texts=whole.texts and whole.texts[::50],
        read=lambda clips, rate: whole.read([keep[clip] for clip in clips], rate),
    )
    corpus = load(part, FeatureSettings(seconds=3.0), cache=None, progress=False)
    features = np.asarray(corpus.features)
    assert np.all(np.isfinite(features)) and len(np.unique(features.sum((1, 2)))) == len(keep)
