"""The script that trains the network of words, on few words and for a few steps."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import train_words
from train_words import Settings

from metajax import InputError
from metajax.data import synthesisers


@pytest.mark.slow
def test_a_tiny_training_leaves_a_file_that_tells_what_it_is_and_another_goes_on_from_it(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors", reason="safetensors writes the file")
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors writes the file")
    few = ("de", "en", "fi", "fr", "hi", "ru", "sw", "tr")
    monkeypatch.setattr(
        train_words.espeak, "read", partial(train_words.espeak.read, languages=few, numbers=range(2, 10))
    )
    calibrated = train_words.embedded.calibrated
    monkeypatch.setattr(train_words.embedded, "calibrated", lambda *of: calibrated(*of[:2], 20, of[3]))
    s = Settings(pseudowords=0, more=0, clips_per_label=3, others=False, ways=8, width=8, outer_steps=2, taught=2,
                 cache=tmp_path, out=tmp_path / "run" / "net.safetensors")  # fmt: skip
    train_words.run(s)
    with safetensors.safe_open(s.out, "numpy") as file:
        card, names = file.metadata(), set(file.keys())
        kernel, scale = file.get_tensor("conv0/kernel"), file.get_tensor("unknown/scale")
    assert {"map/kernel", "attention/kernel", "short/kernel", "norm4b/scale", "unknown/bias"} < names
    assert kernel.shape == (5, 40, 8) and kernel.dtype == np.float16 and np.isfinite(scale)
    assert "voices of espeak" in card["heard"] and json.loads(card["settings"])["outer_steps"] == 2
    trained = numpy.load_file(s.out)
    train_words.run(s)  # what was trained is read, and the numbers come out the same
    again = numpy.load_file(s.out)
    assert trained.keys() == again.keys()
    for name, tensor in trained.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    with pytest.raises(InputError, match=r"ways is 4 now but 8 in"):
        train_words.run(replace(s, ways=4))
    train_words.run(replace(s, network=s.out, clips_per_label=4, out=tmp_path / "other.safetensors"))
    other = numpy.load_file(tmp_path / "other.safetensors")
    changed = {name for name, tensor in trained.items() if (other[name] != tensor).any()}
    assert (
        other.keys() == trained.keys() and changed and changed <= {f"unknown/{n}" for n in ("scale", "bias", "growth")}
    )
    with safetensors.safe_open(tmp_path / "other.safetensors", "numpy") as file:
        told = file.metadata()
    assert told["heard"] == card["heard"] and told["calibrated"] != card["calibrated"]
    assert told["trained"] == card["trained"] == f"commit {card['commit']}"
    numpy.save_file({"kernel": np.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=r"odd.safetensors holds no word_net"):
        train_words.run(replace(s, network=tmp_path / "odd.safetensors"))


def test_recordings_can_be_heard_in_place_of_synthetic_speech(tmp_path, monkeypatch):
    heard = synthesisers.Heard(
        np.zeros((4, 9, 40), np.float16), *np.array([["a", "a", "b", "b"], list("wxyz"), ["r"] * 4])
    )
    monkeypatch.setattr(train_words.corpora, "read", lambda name, folder, parts: (name, folder, parts))
    asked = []
    monkeypatch.setattr(train_words, "listened", lambda *of: asked.append(of) or heard)
    x, columns, what = train_words.synthetic(Settings(instead=tmp_path))
    assert asked[0][0] == [("arabic", tmp_path, ("train", "test"))] and len(x) == 4
    assert columns["label"].tolist() == [0, 0, 1, 1] and what == "2 words, clips: 4 by 4 voices of r"


def test_a_file_without_kokoro_does_not_take_its_place(monkeypatch):
    heard = synthesisers.Heard(np.zeros((1, 9, 40), np.float16), *np.array([["a"], ["w"], ["pico"]]))
    monkeypatch.setattr(train_words.espeak, "read", lambda **how: None)
    monkeypatch.setattr(train_words, "once", lambda *of: heard)
    with pytest.raises(InputError, match=r"kokoro is voices, but kept was made without it"):
        train_words.synthetic(Settings(more=0, kokoro=Path("voices"), kept=Path("kept")))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="clips_per_label is 1"):
        train_words.run(Settings(clips_per_label=1))
    with pytest.raises(InputError, match=r"mixed is 0.7 and alike 0.4, expected shares .* at most 1"):
        train_words.run(Settings(mixed=0.7, alike=0.4))
