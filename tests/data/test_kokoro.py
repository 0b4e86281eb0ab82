"""Words by Kokoro, by a runtime that takes its place: it beeps as long as the word has symbols."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from metajax.data.corpora import espeak, kokoro
from metajax.data.corpora.files import tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

TEXTS = {"it:uno": "uno", "sw:tatu": "tatu", "fr:un": "œ\u0303", "xx:odd": "\u0294\u0298"}  # the last has a click
heard = []


class Session:
    def __init__(self, model, options, providers):
        assert options.intra_op_num_threads == 1 and providers == ["CPUExecutionProvider"]

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in ("tokens", "style", "speed")]

    def run(self, wanted, given):
        heard.append(given)
        silence, wave = np.zeros(9600, np.float32), np.float32(0.5) * np.sin(np.arange(2400 * given["tokens"].shape[1]))
        return [np.concatenate([silence, wave.astype(np.float32), silence])[None]]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    module = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    (tmp_path / "voices").mkdir()
    (tmp_path / "kokoro.onnx").write_bytes(b"weights")
    for i, voice in enumerate(("af_one", "am_two", "jf_three")):
        np.full((510, 256), i, np.float32).tofile(tmp_path / "voices" / f"{voice}.bin")
    return tmp_path


def words(texts=TEXTS):
    columns, names = tabulate({"label": list(texts), "speaker": ["m1"] * len(texts)})
    return Recordings("espeak", tuple(texts), columns, names, tuple(texts.values()), lambda: "", lambda *of: [])


def test_each_word_is_said_by_several_voices_with_one_vowel_stressed(folder):
    heard.clear()
    recordings = kokoro.read(words(), folder)
    label, speaker = ([recordings.names[c][i] for i in recordings.columns[c]] for c in ("label", "speaker"))
    assert sorted(label) == ["fr:un", "fr:un", "it:uno", "it:uno", "sw:tatu", "sw:tatu"]  # the click is unknown
    assert len(set(zip(label, speaker, strict=True))) == 6
    waves = recordings.read(range(6), 16000)
    numbers = {
        tuple(kokoro.SYMBOLS.index(symbol) for symbol in text): name for name, text in TEXTS.items() if name[0] != "x"
    }
    voices = ("af_one", "am_two", "jf_three")
    told = set()
    for given in heard:
        tokens = given["tokens"][0].tolist()
        assert tokens[0] == tokens[-1] == 0 and kokoro.RATES[0] <= given["speed"][0] <= kokoro.RATES[1]
        place = tokens.index(kokoro.SYMBOLS.index("ˈ"))
        assert kokoro.SYMBOLS[tokens[place + 1]] in kokoro.VOWELS
        told.add((numbers[tuple(tokens[1:place] + tokens[place + 1 : -1])], voices[int(given["style"][0, 0])]))
    assert told == set(zip(label, speaker, strict=True))
    for name, wave in zip(label, waves, strict=True):  # the silence around it is gone, and it is as loud as others
        beep = 1600 * (len(TEXTS[name]) + 3)
        assert beep <= len(wave) <= beep + 5 * 320 and np.abs(wave).max() == pytest.approx(10 ** (-3 / 20), abs=1e-3)
    assert len({float(given["speed"][0]) for given in heard}) == 6
    assert recordings.digest() == kokoro.read(words(), folder).digest() != kokoro.read(words(), folder, seed=1).digest()


def test_what_cannot_be_read_is_told(folder, monkeypatch):
    with pytest.raises(InputError, match="knows the phonemes of none of 1 words"):
        kokoro.read(words({"xx:odd": "\u0298"}), folder)
    with pytest.raises(InputError, match=r"holds 1 models \*.onnx and 3 voices .* at least 4 voices"):
        kokoro.read(words(), folder, clips_per_label=4)
    with pytest.raises(InputError, match="holds 0 models"):
        kokoro.read(words(), folder / "voices")
    with pytest.raises(InputError, match="espeak has no texts"):
        kokoro.read(words()._replace(texts=None), folder)
    np.zeros(10, np.float32).tofile(folder / "voices" / "am_two.bin")
    with pytest.raises(InputError, match=r"am_two.bin has 40 bytes, expected 510 x 256 float32"):
        kokoro.read(words(), folder)
    with pytest.raises(InputError, match="holds 0 models"):
        kokoro.read(words(), folder / "nothing")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="ONNX Runtime is not installed"):
        kokoro.read(words(), folder)


def test_phonemes_that_are_one_symbol_are_joined():
    assert kokoro.spelling("tʃadʒoɡ") == "ʧaʤoɡ" and kokoro.spelling("ɫago") == "laɡo"
    assert len(kokoro.SYMBOLS) == 178 and set(espeak.phonemes(["sieben"], "de")[0]) <= set(kokoro.SYMBOLS)
