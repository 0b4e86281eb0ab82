"""Words taught by a recording each: what is heard, kept, written and refused."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import teach
from jax import export

from metajax import InputError, models, runs
from metajax.data import corpora
from metajax.models import Model, Trained
from tests.conftest import write_tones

RATE, CLIP, HOP = teach.RATE, teach.CLIP, teach.HOP
UNKNOWN = {"scale": 20.0, "bias": 12.0, "growth": 1.0}


def bands(params, x, key=None):
    """In place of the encoder: magnitudes of 80 Hz each."""
    return jnp.abs(jnp.fft.rfft(x))[..., :9600].reshape(*x.shape[:-1], 96, 100).sum(-1) * params["gain"]


def windows(params, x, key=None):
    starts = HOP * np.arange((x.shape[1] - CLIP) // HOP + 1)
    return bands(params, x[:, starts[:, None] + np.arange(CLIP)])


CARD = {"what": "tones", "date": "today", "commit": "none"}


def tones_model(encoder=None, *, spotting=False):
    model = Model(None, windows if spotting else bands, None)
    return Trained(model, {"gain": jnp.ones(96)}, UNKNOWN, CARD, 200.0 if spotting else 0.0)


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Runs the script on tones; returns what it printed, or its one error."""
    monkeypatch.setattr(teach.models, "words", tones_model)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        assert runs.main(teach.Settings, teach.run, teach.__doc__, [str(a) for a in arguments]) == code
        out, err = capsys.readouterr()
        call.printed, call.told = out, err
        return err.splitlines()[-1] if code else out

    return call


@pytest.fixture
def tones(tmp_path):
    """Four words, 400 Hz apart, three takes of each: `{word}_0_{take}.wav`."""
    return write_tones(tmp_path, 4, 1, 3, spacing=400)


def test_words_are_taught_recognised_kept_and_written(said, tones, tmp_path):
    told = said("low=0_0_0.wav", "high=1_0_0.wav,1_0_1.wav", "--recognise", "0_0_2.wav", "1_0_2.wav", "3_0_0.wav",
                "--save", "kept/mine.safetensors", "--export", "mine.stablehlo")  # fmt: skip
    assert "2 words taught by 3 clips in" in told
    for line in ("0_0_2.wav: low, ", "1_0_2.wav: high, ", "3_0_0.wav: unknown, "):
        assert line in told
    assert (tmp_path / "kept/mine.safetensors").stat().st_size < 4000
    again = said("--taught", "kept/mine.safetensors", "--recognise", "0_0_2.wav", "1_0_2.wav", "3_0_0.wav")
    assert [line for line in again.splitlines() if ".wav: " in line] == [
        line for line in told.splitlines() if ".wav: " in line
    ]
    wave, _ = soundfile.read(tmp_path / "1_0_2.wav", dtype="float32")
    x = teach.clip(wave, "it")[None]
    heard = export.deserialize(bytearray((tmp_path / "mine.stablehlo").read_bytes())).call(x)
    taught = teach.load(tmp_path / "kept/mine.safetensors", "tones, today none")
    np.testing.assert_allclose(heard, teach.hears(teach.ear(None, False), taught[0])(x), atol=1e-6)
    assert json.loads((tmp_path / "mine.stablehlo.json").read_text()) == ["low", "high", "unknown"]
    adapt, predict = (
        export.deserialize(bytearray((tmp_path / f"mine.stablehlo.{end}").read_bytes())).call
        for end in ("adapt", "predict")
    )
    support = np.zeros((8, CLIP), np.float32)
    for i, name in enumerate(("0_0_0", "1_0_0", "1_0_1")):
        support[i] = teach.clip(soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0], name)
    again = predict(*adapt(support, np.array([0, 1, 1, *[-1] * 5], np.int32)), x)
    np.testing.assert_allclose(again[:, [0, 1, 8]], heard, atol=1e-6)
    assert (again[:, 2:8] == 0).all()


def test_a_folder_and_a_manifest_teach_the_same(said, tones, tmp_path):
    rows = tones.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([rows[0], *(row for row in rows[1:] if row[4] == "0")]) + "\n")
    for word in range(4):
        (tmp_path / "words" / f"w{word}").mkdir(parents=True)
        (tmp_path / "words" / f"w{word}" / "a.wav").write_bytes((tmp_path / f"{word}_0_0.wav").read_bytes())
    found = []
    for source in ("few.csv", "words"):
        told = said("--words", source, "--recognise", "0_0_1.wav", "2_0_1.wav")
        assert "4 words taught by 4 clips" in told and "w0, w1, w2, w3" in told
        found.append([line for line in told.splitlines() if ".wav: " in line])
    assert found[0] == found[1] and found[0][1].startswith("2_0_1.wav: w2")


def test_where_a_long_clip_is_cut_and_what_is_like_two_words(said, tones, tmp_path):
    wave = np.concatenate([np.zeros(2 * RATE), soundfile.read(tmp_path / "0_0_0.wav")[0], np.zeros(RATE)])
    soundfile.write(tmp_path / "long.wav", wave, RATE)
    told = said("low=long.wav", "high=1_0_0.wav", "--recognise", "0_0_1.wav")
    first, last = re.search(r"long.wav lasts 3.5 s, of which .* counts, ([\d.]+) to ([\d.]+) s", said.told).groups()
    assert 1.4 < float(first) <= 2 and float(last) == pytest.approx(float(first) + 1) and "0_0_1.wav: low" in told
    told = said("one=0_0_0.wav", "two=0_0_0.wav", "--recognise", "0_0_0.wav", "--sure", "0.6")
    assert "0_0_0.wav: unknown, 50 %" in told


def running(folder):
    """Four words in 16 s of `running.wav`, and when."""
    tone = [soundfile.read(folder / f"{word}_0_0.wav", dtype="float32")[0] for word in range(4)]
    wave = 0.001 * np.random.default_rng(0).normal(size=16 * RATE).astype(np.float32)
    places = ((0, 0.3), (1, 3.0), (2, 6.0), (0, 10.1), (1, 15.7))  # the last is of the second block
    for word, middle in places:
        start = round(middle * RATE) - 4000
        wave[start : start + 8000] += tone[word]
    soundfile.write(folder / "running.wav", wave, RATE)
    return wave, [(middle, ("low", "high")[word]) for word, middle in places if word < 2]


def test_words_are_found_in_running_audio(said, tones, tmp_path):
    _, expected = running(tmp_path)
    told = said("low=0_0_0.wav", "high=1_0_0.wav", "--stream", "running.wav")
    found = re.findall(r"^ +([\d.]+) s: (\w+), \d+ %$", told, re.MULTILINE)
    assert [word for _, word in found] == [word for _, word in expected]
    np.testing.assert_allclose([float(at) for at, _ in found], [at for at, _ in expected], atol=0.35)
    assert "4 words in 16.0 s of audio" in told


def test_words_are_found_as_the_microphone_hears_them(said, tones, tmp_path, monkeypatch):
    wave, expected = running(tmp_path)

    def microphone(rate, block):
        yield from wave[: len(wave) // block * block].reshape(-1, block)
        raise InputError("The microphone has given nothing.")

    monkeypatch.setattr(teach, "microphone", microphone)
    assert "has given nothing" in said("low=0_0_0.wav", "high=1_0_0.wav", "--stream", "mic", code=2)
    found = [line.split(": ")[1].split(",")[0] for line in said.printed.splitlines() if " s: " in line]
    assert found == [word for _, word in expected[:-1]]  # the last is not over


def test_a_clip_that_holds_little_speech_is_told(said, tones, tmp_path):
    noise = 0.001 * np.random.default_rng(0).normal(size=RATE)
    soundfile.write(tmp_path / "faint.wav", noise, RATE)
    said("low=0_0_0.wav", "high=faint.wav,1_0_0.wav")
    assert said.told.splitlines() == [
        "note: faint.wav of 'high' holds little speech: expect false alarms, or record again"
    ]


def test_what_cannot_be_taught_is_refused_in_a_sentence(said, tones, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.ones(900), RATE)
    (tmp_path / "words/empty").mkdir(parents=True)
    (tmp_path / "bare.csv").write_text("path,label\n0_0_0.wav,a\n0_0_1.wav,\n")
    for arguments, told in (
        (["low"], "'low' names no word with its clips"),
        (["low="], "'low=' names no word with its clips"),
        (["low=0_0_0.wav,"], "'low=0_0_0.wav,' names no word with its clips"),
        ([" =0_0_0.wav"], "' =0_0_0.wav' names no word with its clips"),
        (["low=0_0_0.wav", "high=1_0_0.wav", "--save", "bare.csv"], "bare.csv would be overwritten"),
        (["low=0_0_0.wav", "high=1_0_0.wav", "--save", "new", "--export", "new"], "new would be overwritten"),
        (["low=0_0_0.wav", "high=1_0_0.wav", "--save", "bare.csv/new"], "the folder cannot be made (File exists)"),
        (["low=0_0_0.wav", "unknown=1_0_0.wav"], "A word to teach is called unknown"),
        (["low =0_0_0.wav", "low=1_0_0.wav"], "1 word(s) to teach, expected two or more"),
        (["n\u00e9=0_0_0.wav", "ne\u0301=1_0_0.wav"], "1 word(s) to teach, expected two or more"),
        (["--sure", "nan"], "sure is nan, expected a probability"),
        (["--words", "away"], "away does not exist: expected one of .csv"),
        (["low=0_0_0.wav"], "1 word(s) to teach, expected two or more"),
        (["low=0_0_0.wav", "high=away.wav"], "away.wav does not exist"),
        (["low=0_0_0.wav", "high=silent.wav"], "silent.wav is silent"),
        (["low=0_0_0.wav", "high=short.wav"], "short.wav has 900 samples, expected at least 1600"),
        (["--words", "words"], "words/empty holds no clip"),
        (["--words", "bare.csv"], "0_0_1.wav has no label in bare.csv"),
        (["--taught", "0_0_0.wav", "low=0_0_0.wav"], "expected one of the two"),
        (["--taught", "away.safetensors"], "there is no such file"),
        (["low=0_0_0.wav", "--web"], "web is given with other settings"),
        (["--web", "--host", "nowhere.invalid"], "port 8765 of nowhere.invalid cannot be opened"),
    ):
        assert told in said(*arguments, code=2)


def test_a_foreign_file_or_one_of_another_version_is_refused(said, tones, tmp_path, monkeypatch):
    said("low=0_0_0.wav", "high=1_0_0.wav", "--save", "mine.safetensors")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    assert "is no taught recogniser" in said("--taught", "other.safetensors", code=2)
    assert "0_0_0.wav holds no tensors" in said("--taught", "0_0_0.wav", code=2)
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine.bin")
    assert "0_0_1.wav: low" in said("--taught", "mine.bin", "--recognise", "0_0_1.wav")
    (tmp_path / "mine.bin").rename(tmp_path / "mine.safetensors")
    assert "No word is taught" in said("--recognise", "0_0_0.wav", code=2)
    monkeypatch.setattr(
        teach.models, "words", lambda *how, **more: tones_model(*how, **more)._replace(card=CARD | {"date": "later"})
    )
    assert ", but in use is " in said("--taught", "mine.safetensors", code=2)


@pytest.mark.slow
def test_it_knows_real_words_of_synthetic_voices(tmp_path, capsys):
    for name in ("pyopen_wakeword", "tflite", "espeakng_loader"):
        pytest.importorskip(name, reason=f"{name} is of an extra")
    made = corpora.read("espeak", languages=["sw"], numbers=(2, 4, 5, 7, 9), clips_per_label=5)
    said = [made.names["label"][i].removeprefix("sw:") for i in made.columns["label"]]
    waves = list(made.read(range(len(said)), RATE))
    names = [f"{word}_{i}.wav" for i, word in enumerate(said)]
    for name, wave in zip(names, waves, strict=True):
        soundfile.write(tmp_path / name, wave, RATE)
    known = ["4", "7", "9"]
    first = {word: said.index(word) for word in known}
    asked = [i for i in range(len(said)) if i not in first.values()]
    stream = np.concatenate([np.pad(waves[i], (RATE // 2, RATE // 2)) for i in asked])
    soundfile.write(tmp_path / "long.wav", stream, RATE)
    words = [f"{word}={tmp_path / names[i]}" for word, i in first.items()]
    files = ["--save", tmp_path / "mine.safetensors", "--export", tmp_path / "mine.hlo"]
    stream_and_clips = ["--stream", tmp_path / "long.wav", "--recognise", *(tmp_path / names[i] for i in asked)]
    arguments = [*words, *files, *stream_and_clips]
    assert runs.main(teach.Settings, teach.run, teach.__doc__, [str(a) for a in arguments]) == 0
    out = capsys.readouterr().out
    told = [line.split(": ")[1].split(",")[0] for line in out.splitlines() if ".wav: " in line]
    right = [a == (said[i] if said[i] in known else "unknown") for a, i in zip(told, asked, strict=True)]
    assert np.mean(right) >= 0.8, out
    spotted = [line for line in out.splitlines() if " s: " in line]
    assert 6 <= len(spotted) <= 18, out  # 12 are said
    # in a process that has JAX alone
    code = (
        "import json, sys, numpy, jax; from jax import export\n"
        "p = export.deserialize(bytearray(open('mine.hlo', 'rb').read())).call(numpy.load('x.npy'))\n"
        "print(json.dumps([numpy.asarray(p).tolist(), 'metajax' in sys.modules]))"
    )
    x = teach.clip(waves[asked[0]], "it")[None]
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    p, imported = json.loads(done.stdout)
    trained = models.words()
    version = "{what}, {date} {commit}".format(**trained.card)
    taught = teach.load(tmp_path / "mine.safetensors", version)
    here = teach.hears(teach.ear(None, False), taught[0])(x)
    assert not imported
    np.testing.assert_allclose(p, here, atol=1e-4)
    assert jax.tree.leaves(here)[0].shape == (1, 4)
