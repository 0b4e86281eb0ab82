"""Readers of corpora with text, on small files as the toolkits write them, and which of them it is."""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from metajax.data import corpora
from metajax.data.corpora import recognise
from metajax.data.corpus import load
from metajax.data.features import FeatureSettings
from metajax.errors import InputError
from tests.shared import shared_data


def make(root: Path, *names: str, seconds: float = 0.5, **options) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * np.random.default_rng(seed).normal(size=int(16000 * seconds))
        soundfile.write(path, wave, 16000, **options)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def lines(*objects: dict) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def librispeech(root):
    make(root, *(f"LibriSpeech/{x}.flac" for x in ("dev-clean/84/121/84-121-0000", "test-other/61/7/61-7-0001")))
    write(
        root,
        {
            "LibriSpeech/dev-clean/84/121/84-121.trans.txt": "84-121-0000 GO DO YOU HEAR\n",
            "LibriSpeech/test-other/61/7/61-7.trans.txt": "61-7-0001 IT'S HE\n",
            "LibriSpeech/SPEAKERS.TXT": "; comment\n84   | F | dev-clean | 8.02 | Christie Nowak\n",
        },
    )
    return (
        root / "LibriSpeech",
        ["GO DO YOU HEAR", "IT'S HE"],
        {"speaker": ["84", "61"], "split": ["validation", "test"], "subset": ["dev-clean", "test-other"]},
    )


def common_voice(root):
    make(root, "eo/clips/common_voice_eo_1.mp3", "eo/clips/common_voice_eo_2.mp3", format="MP3")
    header = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale"
    header = header.replace(" ", "\t") + "\tsegment\n"
    row = "{}\tcommon_voice_eo_{}.mp3\tab\t{}\t\t2\t0\t\tmale_masculine\t{}\t\teo\t\n"
    write(
        root,
        {
            "eo/train.tsv": header + row.format("f00", 1, 'Ĉu "vi venos?', "Internacia"),
            "eo/test.tsv": header + row.format("b4a", 2, "Jes.", ""),
        },
    )
    return (
        root / "eo",
        ['Ĉu "vi venos?', "Jes."],
        {
            "speaker": ["f00", "b4a"],
            "accent": ["Internacia", None],
            "language": ["eo", "eo"],
            "split": ["train", "test"],
        },
    )


def timit(root):
    make(root, "TRAIN/DR1/FCJF0/SA1.WAV", "TEST/DR4/MJDM0/SX445.WAV", format="NIST", subtype="PCM_16")
    write(
        root,
        {
            "TRAIN/DR1/FCJF0/SA1.TXT": "0 8000 She had your dark suit.\n",
            "TRAIN/DR1/FCJF0/SA1.WRD": "100 900 she\n900 2000 had\n",
            "TRAIN/DR1/FCJF0/SA1.PHN": "0 100 h#\n100 500 sh\n500 900 iy\n",
            "TEST/DR4/MJDM0/SX445.TXT": "0 8000 How permanent?\n",
            "TEST/DR4/MJDM0/SX445.WRD": "0 900 how\n",
            "TEST/DR4/MJDM0/SX445.PHN": "0 900 hh\n",
            "README.DOC": "no sentence\n",
        },
    )
    # in the order of the folders' names
    return (
        root,
        ["How permanent?", "She had your dark suit."],
        {
            "speaker": ["MJDM0", "FCJF0"],
            "split": ["test", "train"],
            "dialect": ["DR4", "DR1"],
            "sentence": ["SX445", "SA1"],
        },
    )


def nemo(root):
    make(root, "wavs/a.wav", "wavs/b.wav")
    rows = [
        {"audio_filepath": "wavs/a.wav", "duration": 0.5, "text": "ja nein", "lang": "de", "speaker": 7},
        {"audio_filepath": "wavs/b.wav", "duration": 0.25, "offset": 0.2, "text": "", "pnc": "no"},
    ]
    write(root, {"train_manifest.json": lines(*rows)})
    return root / "train_manifest.json", ["ja nein", ""], {"speaker": ["7", None], "language": ["de", None]}


def kaldi(root):
    make(root, "wav/one.wav", "wav/two.flac")
    write(
        root,
        {
            "data/wav.scp": f"one {root}/wav/one.wav\ntwo\t{root}/wav/two.flac\n",
            "data/segments": "a-1 one 0.00 0.25\na-2 one 0.25 -1\nb-1 two 0.1 0.3\n",
            "data/text": "a-1 你好 世界\na-2\nb-1 zwei\n",
            "data/utt2spk": "a-1 a\na-2 a\nb-1 b\n",
        },
    )
    return root / "data", ["你好 世界", "", "zwei"], {"speaker": ["a", "a", "b"]}


def audiofolder(root):
    make(root, "train/x/1.wav", "test/2.flac")
    write(
        root,
        {
            "train/metadata.csv": 'file_name,transcription,speaker_id\nx/1.wav,"one, two",s1\n',
            "test/metadata.jsonl": lines({"file_name": "2.flac", "sentence": "two", "duration": 0.5}),
        },
    )
    return root, ["one, two", "two"], {"split": ["train", "test"], "speaker": ["s1", None]}


def cut(name, start, duration, *said, **recording):
    source = {"type": "file", "channels": [0], "source": f"{name}.wav"}
    whole = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}
    return {
        "id": f"{name}-0",
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [{"id": f"{name}-s", "recording_id": name, "channel": 0, **each} for each in said],
        "recording": whole | {"channel_ids": [0]} | recording,
        "type": "MonoCut",
    }


def lhotse(root):
    """As lhotse 1.33 writes them."""
    make(root, "a.wav", "b.wav")
    one = {"start": 0.0, "duration": 0.5, "text": "yes no", "language": "en", "speaker": "anna"}
    two = [
        {"start": 0.0, "duration": 0.2, "text": "one", "speaker": "ben"},
        {"start": 0.2, "duration": 0.1, "text": "x"},
    ]
    rate = {"transforms": [{"name": "Resample", "kwargs": {}}]}
    content = lines(cut("a", 0, 0.5, one), cut("b", 0.1, 0.3, *two, **rate))
    (root / "cuts.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    return (
        root / "cuts.jsonl.gz",
        ["yes no", "one", "x"],
        {"speaker": ["anna", "ben", None], "language": ["en", None, None]},
    )


def speechbrain(root):
    make(root, "sub/a.wav", "sub/b.wav")
    with open(root / "train.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["ID", "duration", "wav", "start", "stop", "spk_id", "wrd"])
        out.writerow(["a", "0.5", "$data_root/sub/a.wav", "", "", "12", "GO ON"])
        out.writerow(["b", "0.5", f"{root}/sub/b.wav", "800", "4000", "13", "NO"])
    return root / "train.csv", ["GO ON", "NO"], {"speaker": ["12", "13"]}


KINDS = (librispeech, common_voice, timit, nemo, kaldi, audiofolder, lhotse, speechbrain)
SAMPLES = {"nemo": [8000, 4000], "kaldi": [4000, 4000, 3200], "lhotse": [8000, 3200, 1600], "speechbrain": [8000, 3200]}


def values(recordings, column):
    return [recordings.names[column][i] if i >= 0 else None for i in recordings.columns[column]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_readers(tmp_path, kind):
    path, texts, columns = kind(tmp_path)
    name = kind.__name__
    assert recognise(path) == name
    options = {"folder": tmp_path} if name == "kaldi" else {}
    recordings = corpora.read("auto", path, **options)
    assert list(recordings.texts) == texts
    assert {column: values(recordings, column) for column in columns} == columns
    waves = list(recordings.read(range(len(texts)), 16000))
    assert [len(wave) for wave in waves] == SAMPLES.get(name, [8000, 8000]) or name == "common_voice"
    corpus = load(recordings, FeatureSettings(), cache=None, longest=2.0, progress=False)
    assert corpus.texts == tuple(texts)


@pytest.mark.parametrize("kind", [nemo, kaldi, lhotse, speechbrain], ids=lambda kind: kind.__name__)
def test_absolute_paths_may_lead_out_of_the_folder_of_the_list(tmp_path, kind):
    """As these toolkits write them; not out of a folder that is given."""
    make(tmp_path, "far/x.wav")
    far = tmp_path / "far" / "x.wav"
    name, content = {
        nemo: ("list.json", lines({"audio_filepath": str(far), "text": "go"})),
        kaldi: ("wav.scp", f"a {far}\n"),
        lhotse: ("list.jsonl", lines(cut("a", 0, 0.5, SAID | {"text": "go"})).replace("a.wav", str(far))),
        speechbrain: ("list.csv", f"ID,wav,wrd,start,stop\na,{far},go,0,8000\n"),
    }[kind]
    write(tmp_path / "lists", {name: content, "text": "a go\n"})
    path = tmp_path / "lists" / ("" if kind is kaldi else name)
    recordings = corpora.read("auto", path)
    assert recordings.texts == ("go",) and [len(wave) for wave in recordings.read([0], 16000)] == [8000]
    with pytest.raises(InputError, match=r"x.wav leads out of .*lists, .* give root=, or folder= of corpora.read"):
        corpora.read("auto", path, folder=tmp_path / "lists")


def test_lists_that_end_in_empty_lines_or_are_of_no_split(tmp_path):
    root, texts, _ = librispeech(tmp_path)
    for file in root.rglob("*.trans.txt"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert list(corpora.read("auto", root).texts) == texts
    root, texts, _ = common_voice(tmp_path)
    (root / "train.tsv").rename(root / "validated.tsv")
    (root / "test.tsv").unlink()
    recordings = corpora.read("auto", root)
    assert list(recordings.texts) == texts[:1] and "split" not in recordings.columns


def test_a_folder_with_a_manifest_alone(tmp_path):
    make(tmp_path, "a.wav", "b.wav")
    write(tmp_path, {"manifest.csv": "path,text\na.wav,go\nb.wav,no\n", "manifest.md": "not this"})
    assert recognise(tmp_path) == "manifest"
    assert corpora.read("auto", tmp_path).texts == ("go", "no")


@pytest.mark.parametrize("kind", [nemo, lhotse, speechbrain], ids=lambda kind: kind.__name__)
def test_the_only_list_of_a_folder_is_found_and_of_several_none(tmp_path, kind):
    path, texts, _ = kind(tmp_path)
    other = {"recordings.jsonl": lines({"id": "a", "sources": []}), "config.json": '{\n"a": 1\n}', "x.csv": "a,b\n"}
    write(tmp_path, other | {"notes.txt": "path"})
    (tmp_path / "latin.csv").write_bytes(b"\xe9\n")
    assert recognise(tmp_path) == kind.__name__
    for name in ("auto", kind.__name__):
        assert list(corpora.read(name, tmp_path).texts) == texts
    write(tmp_path, {"dev.csv": "path,text\n"})
    found = ", ".join(sorted([f"{path.name} ({kind.__name__})", "dev.csv (manifest)"]))
    with pytest.raises(InputError, match=f"holds 2 lists, expected the path of one of them: {re.escape(found)}.$"):
        corpora.read("auto", tmp_path)


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not common_voice], ids=lambda kind: kind.__name__)
def test_missing_files_are_told_or_left_to_load(tmp_path, kind):
    path, texts, _ = kind(tmp_path)
    options = {"folder": tmp_path} if kind is kaldi else {}
    min(file for file in tmp_path.rglob("*") if file.suffix.lower() in (".wav", ".flac")).unlink()
    with pytest.raises(InputError, match=r"line \d+: no file .*clips have none"):
        corpora.read(kind.__name__, path, **options)
    recordings = corpora.read(kind.__name__, path, on_error="skip", **options)
    with pytest.warns(UserWarning, match="clips are left out; the first"):
        corpus = load(recordings, FeatureSettings(), cache=None, longest=2.0, on_error="skip", progress=False)
    assert len(corpus.skipped) + len(corpus.texts) == len(texts) and corpus.skipped


def test_timit_tells_words_and_phones_and_reads_small_letters(tmp_path):
    timit(tmp_path)
    assert corpora.read("timit", tmp_path, tier="word").texts == ("how", "she had")
    assert corpora.read("timit", tmp_path, tier="phone").texts == ("hh", "h# sh iy")
    for file in sorted(tmp_path.rglob("*"), reverse=True):
        file.rename(file.with_name(file.name.lower()))
    assert recognise(tmp_path) == "timit"
    recordings = corpora.read("timit", tmp_path)
    assert values(recordings, "speaker") == ["MJDM0", "FCJF0"] and len(list(recordings.read([0, 1], 8000))[1]) == 4000


def test_a_sphere_header_as_it_is_on_the_discs(tmp_path):
    timit(tmp_path)
    header = "\n".join([
        "NIST_1A", "   1024", "database_id -s5 TIMIT", "database_version -s3 1.0", "utterance_id -s8 cjf0_sa1",
        "channel_count -i 1", "sample_count -i 4000", "sample_rate -i 16000", "sample_min -i -2191",
        "sample_max -i 2790", "sample_n_bytes -i 2", "sample_byte_format -s2 01", "end_head", "",
    ])  # fmt: skip
    samples = (1000 * np.random.default_rng(0).normal(size=4000)).astype("<i2")
    (tmp_path / "TRAIN/DR1/FCJF0/SA1.WAV").write_bytes(header.ljust(1024).encode() + samples.tobytes())
    (wave,) = corpora.read("timit", tmp_path).read([1], 16000)
    np.testing.assert_allclose(wave, samples / 2**15, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("both", [True, False])
def test_timit_with_riff_files_added_in_a_folder_below(tmp_path, both):
    root, texts, _ = timit(tmp_path / "data")
    for file in list(root.rglob("*.WAV")):
        shutil.copy(file, f"{file}.wav") if both else file.rename(f"{file}.wav")
    assert recognise(tmp_path) == "timit" and list(corpora.read("auto", tmp_path).texts) == texts


def test_audio_without_text_is_counted(tmp_path):
    root, _, _ = librispeech(tmp_path)
    make(root, "dev-clean/84/121/84-121-0001.flac", "dev-clean/84/121/84-121-0002.flac")
    with pytest.warns(UserWarning, match="2 audio files have no text and are left out; the first: .*84-121-0001.flac"):
        assert len(corpora.read("librispeech", root).texts) == 2


def test_commands_are_refused_and_never_run(tmp_path):
    path, _, _ = kaldi(tmp_path)
    sentence = "wav.scp, line 1: one is the output of a command, which is not run: .*touch"
    for entry in ("touch {0}/ran |", "| touch {0}/ran", "touch {0}/ran | cat"):
        write(tmp_path, {"data/wav.scp": "one " + entry.format(tmp_path) + "\n"})
        with pytest.raises(InputError, match=sentence):
            corpora.read("kaldi", path, folder=tmp_path)
    path, _, _ = lhotse(tmp_path)
    command = {"type": "command", "channels": [0], "source": f"touch {tmp_path}/ran"}
    told = cut("a", 0, 0.5, {"start": 0, "duration": 0.5, "text": "x"}, sources=[command])
    write(tmp_path, {"cuts.jsonl": lines(told)})
    with pytest.raises(InputError, match="cuts.jsonl, line 1: the sources of a-0 are command, expected one file"):
        corpora.read("lhotse", tmp_path / "cuts.jsonl")
    assert not (tmp_path / "ran").exists()


SAID = {"start": 0, "duration": 0.5, "text": "x"}
BAD = {
    "kaldi": [
        ("data/text", "a-1 x\nb-1 y\n", "segments, line 2: a-2 has no line in .*text"),
        ("data/text", "a-1 x\na-2 y\nb-1 z\nc-1 w\n", "text, line 4: c-1 has no line in .*segments"),
        ("data/text", "a-1 x\na-1 y\n", "text, line 2: a-1 again, first in line 1"),
        ("data/utt2spk", "a-1 a\n", "line 2: a-2 has no speaker"),
        ("data/segments", "a-1 one 0.3 0.2\n", "line 1: the end, 0.2 s, is not after the start, 0.3 s"),
        ("data/segments", "a-1 three 0.3 0.2\n", "line 1: expected UTTERANCE RECORDING START END"),
        ("data/segments", "a-1 one now then\n", "line 1: now then are no seconds"),
        ("data/wav.scp", "one\n", "wav.scp, line 1: one stands alone"),
        ("data/wav.scp", "one x.ark:12\n", "wav.scp, line 1: one lies in an archive"),
        ("data/wav.scp", "one /etc/hosts\ntwo /etc/hosts\n", "line 1: /etc/hosts leads out of"),
    ],
    "nemo": [
        ("train_manifest.json", '{"audio_filepath": "wavs/a.wav"}\n', "line 1: no 'text', found audio_filepath"),
        ("train_manifest.json", '{"audio_filepath": "wavs/a.wav", "text": "x", "offset": "soon"}', "start is 'soon'"),
        ("train_manifest.json", '{"audio_filepath": null, "text": "x"}', "line 1: the path is empty"),
        ("train_manifest.json", '{"audio_filepath": "../a", "text": "x"}', "leads out of .*give root="),
    ],
    "lhotse": [
        ("cuts.jsonl", lines(cut("a", 0, 0.5)), "line 1: a-0 has no supervision"),
        ("cuts.jsonl", lines(cut("a", 0, 0.5, SAID) | {"type": "MixedCut"}), "a-0 is a MixedCut, expected"),
        ("cuts.jsonl", lines(cut("a", 0, 0.5, SAID) | {"recording": None}), "a MonoCut without a recording"),
        ("cuts.jsonl", lines(cut("a", 0, 0.5, SAID, transforms=[{"name": "Speed"}])), "a-0 goes through Speed"),
        ("cuts.jsonl", lines(cut("a", 0, 0.5, SAID, sources=[{"type": "file", "channels": [0, 1]}])), "2 channels"),
        ("cuts.jsonl", lines(cut("a", 0, 0.5, SAID, sources=None)), "no cut as lhotse writes it"),
    ],
    "speechbrain": [
        ("train.csv", "ID,duration,wav\na,1,sub/a.wav\n", "line 2: no text, expected one of wrd"),
        ("train.csv", "ID,wav,wrd,start,stop\na,sub/a.wav,x,one,two\n", "start one and stop two are no samples"),
        (
            "train.csv",
            "ID,wav,wrd,start,stop\na,sub/a.wav,x,9,9\n",
            "start 9 and stop 9 .*the stop is not after the start",
        ),
        ("train.csv", "ID,wav,wrd\na,,x\n", "line 2: the path is empty"),
    ],
    "audiofolder": [
        ("train/metadata.csv", "file_name,words\nx/1.wav,one\n", "metadata.csv, line 2: no text, expected one of"),
        ("train/metadata.csv", "name,text\nx/1.wav,one\n", "no column 'file_name'"),
        ("train/metadata.csv", "file_name,text\n../../x.wav,one\n", "line 2: train/../../x.wav leads out of"),
        ("train/metadata.csv", "file_name,text\n/etc/hosts,one\n", "line 2: /etc/hosts leads out of"),
        ("train/metadata.csv", "file_name,text\n,one\n", "line 2: the file_name is empty"),
    ],
    "librispeech": [
        ("LibriSpeech/dev-clean/84/121/84-121.trans.txt", "GO DO\n", "line 1: expected SPEAKER-CHAPTER-NUMBER TEXT"),
    ],
    "common_voice": [
        ("eo/train.tsv", "client_id\tpath\n", "no column 'sentence' in its first line"),
        ("eo/train.tsv", "client_id\tpath\tsentence\na\t\tb\n", "train.tsv, line 2: the path is empty"),
    ],
    "timit": [
        ("TRAIN/DR1/FCJF0/SA1.TXT", "She had\n", "SA1.TXT, line 1: expected FIRST LAST TEXT"),
    ],
}


@pytest.mark.parametrize(("kind", "file", "content", "sentence"), [(k, *each) for k in BAD for each in BAD[k]])
@pytest.mark.filterwarnings("ignore:.*have no text and are left out")
def test_bad_input_gets_one_sentence(tmp_path, kind, file, content, sentence):
    path, _, _ = globals()[kind](tmp_path)
    write(tmp_path, {file: content})
    if kind == "lhotse":
        path = tmp_path / file
    with pytest.raises(InputError, match=sentence) as error:
        corpora.read(kind, path, **({"folder": tmp_path} if kind == "kaldi" else {}))
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_utf8(tmp_path):
    path, _, _ = speechbrain(tmp_path)
    path.write_bytes("ID,wav,wrd\na,sub/a.wav,né\n".encode("latin-1"))
    with pytest.raises(InputError, match="train.csv is not UTF-8 text: .* at byte"):
        corpora.read("speechbrain", path)
    (tmp_path / "folder").mkdir()
    shutil.copy(path, tmp_path / "folder/mine.csv")  # the only list there
    with pytest.raises(InputError, match="mine.csv is not UTF-8 text: .* at byte"):
        recognise(tmp_path / "folder")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress('{"text": "né"}'.encode("latin-1")))
    with pytest.raises(InputError, match="y.jsonl.gz is not UTF-8 text: .* at byte"):
        recognise(tmp_path / "y.jsonl.gz")
    (tmp_path / "x.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(InputError, match="x.jsonl.gz cannot be read"):
        recognise(tmp_path / "x.jsonl.gz")


def test_a_speaker_that_pandas_lacked_is_unknown(tmp_path):
    path, _, _ = nemo(tmp_path)
    write(tmp_path, {path.name: '{"audio_filepath": "wavs/a.wav", "text": "x", "speaker": NaN}'})
    assert corpora.read("nemo", path, folder=tmp_path).columns["speaker"].tolist() == [-1]


def test_what_is_for_no_reader(tmp_path):
    with pytest.raises(InputError, match="timit takes no folder"):
        corpora.read("timit", tmp_path, folder=tmp_path)
    write(tmp_path, {"x.csv": "file,words\na,b\n", "y.txt": "path\n", "list.csv": "path,text\na,b\n"})
    with pytest.raises(InputError, match=r"x.csv is for no reader: its fields are file, words, expected .*nemo"):
        recognise(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is for no reader, expected a list in it or a folder such as kaldi"):
        recognise(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        recognise(tmp_path / "absent")
    assert recognise(tmp_path / "list.csv") == "manifest"


@pytest.mark.parametrize("name", ["arabic", "fsdd", "speech_commands"])
def test_real_folders_are_recognised(name):
    folders = {"arabic": "arabic_speech_commands", "fsdd": "fsdd", "speech_commands": "speech_commands_toy"}
    assert recognise(shared_data(folders[name])) == name


def test_real_read_english_is_recognised_and_read():
    recordings = corpora.read("auto", shared_data("librispeech_small"))
    assert len(recordings.texts) == len(recordings.clip_names) == 100 and len(recordings.names["speaker"]) == 10
    assert sum(len(text.split()) for text in recordings.texts) == 1892
    waves = list(recordings.read([0, 50, 99], 16000))
    assert all(2 < len(wave) / 16000 < 24 and np.abs(wave).max() > 0.01 for wave in waves)
