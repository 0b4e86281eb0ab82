"""The manifest reader: three formats, a round trip, and every way in which a manifest can be wrong."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from metajax.data.corpora import arabic, manifest
from metajax.data.corpus import load
from metajax.data.features import FeatureSettings
from metajax.errors import InputError
from metajax.tasks.splits import divide
from tests.shared import shared_data

ROWS = [
    {"path": "a/1.wav", "label": "نعم", "speaker": "Zoë", "split": "train", "text": "yes"},
    {"path": "a/2.wav", "label": "não", "speaker": "Ben", "split": "dev", "text": "no, thanks"},
    {"path": "b.flac", "label": "não", "speaker": "Zoë", "split": "test", "text": ""},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for seed, name in enumerate(["a/1.wav", "a/2.wav", "b.flac", "../outside.wav"]):
        soundfile.write(root / name, 0.1 * np.random.default_rng(seed).normal(size=16000), 16000)
    return root


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def table(rows: list[dict], delimiter: str = ",") -> str:
    def cell(value: str) -> str:
        return f'"{value}"' if "," in value and delimiter == "," else value

    lines = [delimiter.join(rows[0])] + [delimiter.join(map(cell, row.values())) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_formats_agree(folder, suffix, encoding):
    lines = "\n".join(json.dumps(row) for row in ROWS)
    text = {"csv": table(ROWS), "tsv": table(ROWS, "\t"), "jsonl": lines}[suffix]
    recordings = manifest.read(write(folder, f"list.{suffix}", text, encoding))
    assert recordings.name == "list"
    assert recordings.names == {
        "label": ("não", "نعم"),
        "speaker": ("Ben", "Zoë"),
        "split": ("train", "validation", "test"),
    }
    assert {name: column.tolist() for name, column in recordings.columns.items()} == {
        "label": [1, 0, 0],
        "speaker": [1, 0, 1],
        "split": [0, 1, 2],
    }
    assert recordings.texts == ("yes", "no, thanks", "")
    assert len(load(recordings, FeatureSettings(), cache=None, progress=False).features) == 3


def test_path_alone_is_enough(folder):
    recordings = manifest.read(write(folder, "list.csv", "path\r\na/1.wav\r\n\r\nb.flac\r\n"))
    assert recordings.columns["label"].tolist() == recordings.columns["speaker"].tolist() == [-1, -1]
    assert set(recordings.columns) == {"label", "speaker"} and recordings.texts is None
    load(recordings, FeatureSettings(), cache=None, progress=False)


def test_segments(folder):
    lines = '{"path": "b.flac", "start": 0.5, "label": 3}\n\n{"path": "b.flac", "duration": "0.25", "label": null}\n'
    recordings = manifest.read(write(folder, "list.ndjson", lines))
    assert [len(wave) for wave in recordings.read([0, 1], 16000)] == [8000, 4000]
    assert recordings.names["label"] == ("3",) and recordings.columns["label"].tolist() == [0, -1]


def test_tsv_quotes_are_characters(folder):
    recordings = manifest.read(write(folder, "list.tsv", 'path\ttext\na/1.wav\t"Quote\na/2.wav\tend"\n'))
    assert recordings.texts == ('"Quote', 'end"')


def test_further_columns_are_kept_and_named_once(folder):
    path = write(folder, "list.csv", "path,room,mood\na/1.wav,hall,\na/2.wav,attic,good\n")
    with pytest.warns(UserWarning, match="room, mood") as told:
        recordings = manifest.read(path)
    assert len(told) == 1
    assert recordings.names["room"] == ("attic", "hall") and recordings.columns["room"].tolist() == [1, 0]
    assert recordings.columns["mood"].tolist() == [-1, 0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_missing_values_are_unknown_however_they_are_written(folder, suffix):
    """NaN and null as json.dumps writes them, and the names that Python and pandas give to what is missing."""
    absent = [None, float("nan"), "", "  ", "NaN", "nan", "None", "<NA>"]
    rows = [{"path": "b.flac", "start": i / 100, "label": value, "speaker": value} for i, value in enumerate(absent)]
    rows += [{"path": "b.flac", "start": 0.5, "label": "null", "speaker": "none"}]  # a German number, say
    if suffix == "csv":
        rows = [row | {"label": str(row["label"]), "speaker": str(row["speaker"])} for row in rows]
    text = table([{k: str(v) for k, v in row.items()} for row in rows])
    text = text if suffix == "csv" else "\n".join(json.dumps(row) for row in rows)
    recordings = manifest.read(write(folder, f"list.{suffix}", text))
    assert recordings.names["label"] == ("null",) and recordings.names["speaker"] == ("none",)
    for column in ("label", "speaker"):
        assert recordings.columns[column].tolist() == [-1] * len(absent) + [0]


@pytest.mark.parametrize(
    "odd",
    [
        lambda name: unicodedata.normalize("NFD", name),
        lambda name: name + " ",
        lambda name: "\u00a0" + name,
        lambda name: name.replace(" ", "\u00a0"),
    ],
)
def test_names_that_look_alike_are_one(folder, odd):
    words, speakers = ["không", "một hai", "bốn"], ["Zoë B", "Ben"]
    rows = [
        {"path": "b.flac", "start": str(i / 100), "label": words[i % 3], "speaker": speakers[i % 2]} for i in range(12)
    ]
    for row in rows[6:]:
        row |= {"label": odd(row["label"]), "speaker": odd(row["speaker"])}
    with pytest.warns(UserWarning, match=r"\d names differ from others in spaces or Unicode form alone"):
        recordings = manifest.read(write(folder, "list.csv", table(rows)))
    assert set(recordings.names["label"]) == set(words) and set(recordings.names["speaker"]) == set(speakers)
    for column in ("label", "speaker"):
        values = recordings.columns[column].tolist()
        assert values[:6] == values[6:]


def test_a_manifest_without_labels_is_no_corpus_of_words(folder):
    with pytest.warns(UserWarning, match="further columns, kept as categories: word"):
        recordings = manifest.read(write(folder, "list.csv", "path,word\na/1.wav,yes\nb.flac,no\n"))
    with pytest.raises(InputError, match="No clip has a label, .* column 'label'; columns: label, speaker, word"):
        divide(recordings.columns, recordings.names, ways=2, seed=0)


@pytest.mark.parametrize("location", ["inside", "root"])
def test_round_trip_of_real_clips(tmp_path, location):
    direct = arabic.read(shared_data("arabic_speech_commands"))
    chosen = range(0, 4800, 120)
    lines = ["path,label"]
    for clip in chosen:
        source = Path(direct.clip_names[clip])
        if location == "inside":
            shutil.copy(source, tmp_path / source.with_stem(f"{clip}").name)
        path = f"{clip}.flac" if location == "inside" else source
        lines.append(f"{path},{direct.names['label'][direct.columns['label'][clip]]}")
    root = None if location == "inside" else shared_data("arabic_speech_commands")
    recordings = manifest.read(write(tmp_path, "list.csv", "\n".join(lines)), root=root)
    part = direct._replace(
        clip_names=tuple(direct.clip_names[clip] for clip in chosen),
        columns={name: column[chosen] for name, column in direct.columns.items()},
        read=lambda clips, rate: direct.read([chosen[clip] for clip in clips], rate),
    )
    ours, theirs = (load(one, FeatureSettings(), cache=None, progress=False) for one in (recordings, part))
    np.testing.assert_array_equal(ours.features, theirs.features)
    for one, other in zip(ours.columns["label"], theirs.columns["label"], strict=True):
        assert ours.names["label"][one] == theirs.names["label"][other]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "file,label\na/1.wav,yes\n", "no column 'path'.*found file, label"),
        ("x.csv", "", "no column 'path'.*found nothing"),
        ("x.csv", "path,label\n", "x.csv lists no clips"),
        ("x.jsonl", "\n", "x.jsonl lists no clips"),
        ("x.csv", "path,path\na/1.wav,b.flac\n", "distinct names, found path, path"),
        ("x.csv", ",path,label\n0,a/1.wav,yes\n", r"column 1 has no name; if it is pandas' index.*index=False"),
        ("x.csv", "path,label\na\\1.wav,yes\n", r"line 2: no file .*a.1.wav \(1 of 1 .*paths are written with /"),
        ("x.csv", "path,label\na/1.wav,yes\nb.flac\n", "line 3: 1 values for 2 columns"),
        ("x.csv", "path,label\n\na/1.wav,yes,no\n", "line 3: 3 values for 2 columns"),
        ("x.csv", 'path,label\na/1.wav,"yes\n', "line 2: unexpected end of data"),
        ("x.csv", "path,label\n,yes\n", "line 2: the path is empty"),
        ("x.csv", "path\na/1.wav\n../outside.wav\n", "line 3: ../outside.wav leads out of"),
        ("x.csv", "path\na/../../outside.wav\n", "line 2: a/../../outside.wav leads out of"),
        ("x.csv", "path\nlink/../outside.wav\n", "line 2: no file .*root/outside.wav"),
        ("x.csv", "path\n/etc/hosts\n", "line 2: /etc/hosts leads out of"),
        ("x.csv", f"path\n{'x' * 5000}\n", "line 2: .* is no path"),
        ("x.jsonl", '{"path": "a\\u0000b"}', "line 1: .* is no path"),
        ("x.csv", "path\na/1.wav\nb.flac\na/../a/1.wav\n", "line 4: the same clip as in line 2"),
        ("x.csv", "path,start\na/1.wav,0\na/1.wav,\n", "line 3: the same clip as in line 2"),
        ("x.csv", "path\nb.flac\nc.wav\nd.wav\n", r"line 3: no file .*c.wav \(2 of 3 clips have none\)"),
        ("x.csv", "path,start\na/1.wav,soon\n", "line 2: start is 'soon'"),
        ("x.csv", "path,start\na/1.wav,-1\n", "line 2: start is '-1'"),
        ("x.csv", "path,duration\na/1.wav,inf\n", "line 2: duration is 'inf'"),
        ("x.csv", "path,duration\na/1.wav,0\n", "line 2: duration is '0'"),
        ("x.jsonl", '{"path": "b.flac", "start": [1]}', r"line 1: start is '\[1\]'"),
        ("x.csv", "path,split\na/1.wav,eval\n", "line 2: split is 'eval', expected one of train, .*dev"),
        ("x.jsonl", '{"path": "b.flac"}\n{"path": \n', "line 2: not JSON"),
        ("x.jsonl", '["b.flac"]', "line 1: expected an object"),
        ("x.jsonl", '{"path": "b.flac"}\n{"label": "x"}\n', "line 2: no 'path'"),
        ("x.txt", "path\na/1.wav\n", "x.txt is no manifest: expected one of .csv"),
    ],
)
def test_errors_name_file_and_line(folder, name, text, message):
    os.symlink(folder.parent, folder / "link")
    with pytest.raises(InputError, match=message) as error:
        manifest.read(write(folder, name, text))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_links_are_followed(folder, tmp_path):
    """As the Hugging Face cache lays files out: names are links to blobs beside the folder; the list may be one too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("a/1.wav", "b.flac"):
        shutil.copy(folder / name, blobs / f"{len(name):040x}")
        os.symlink(f"../../blobs/{len(name):040x}", snapshot / Path(name).name)
    os.symlink(blobs, snapshot / "clips")
    os.symlink(snapshot, tmp_path / "here")
    lines = ["path,label", "1.wav,yes", "b.flac,no", f"clips/{7:040x},yes"]
    os.symlink(write(blobs, "list", "\n".join(lines)), snapshot / "list.csv")
    for root in (snapshot, tmp_path / "here"):
        recordings = manifest.read(root / "list.csv")
        assert [Path(name).name for name in recordings.clip_names] == ["1.wav", "b.flac", f"{7:040x}"]
        assert len(load(recordings, FeatureSettings(), cache=None, progress=False).features) == 3
    absolute = write(tmp_path, "absolute.csv", f"path\n{snapshot}/1.wav\n")
    assert len(manifest.read(absolute, root=tmp_path / "here").clip_names) == 1
    with pytest.raises(InputError, match="leads out of"):
        manifest.read(absolute, root=folder)


def test_absent_and_undecodable_manifests(folder):
    with pytest.raises(InputError, match="absent.csv cannot be read"):
        manifest.read(folder / "absent.csv")
    with pytest.raises(InputError, match="x.csv is not UTF-8"):
        manifest.read(write(folder, "x.csv", "path\na/1.wav\n", "utf-16"))


def test_missing_files_can_be_skipped(folder):
    path = write(folder, "x.csv", "path,label\nb.flac,x\nc.wav,y\na/1.wav,z\n")
    recordings = manifest.read(path, on_error="skip")
    with pytest.raises(InputError, match="c.wav"):
        load(recordings, FeatureSettings(), cache=None, progress=False)
    with pytest.warns(UserWarning, match="1 of 3 clips are left out"):
        corpus = load(recordings, FeatureSettings(), cache=None, on_error="skip", progress=False)
    assert corpus.columns["label"].tolist() == [0, 2]
    assert len(corpus.skipped) == 1 and "c.wav" in corpus.skipped[0]
