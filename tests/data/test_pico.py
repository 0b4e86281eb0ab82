"""Words by SVOX Pico, by a package that takes its place: it beeps as long as the word has letters."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from metajax.data.corpora import espeak, pico
from metajax.errors import InputError

LABELS = ("it:abc", "fr:oui", "it:quiet", "cs:\u010dau")
styles = []


class Engine:
    def __init__(self, voice):
        self.voice = voice

    def speak(self, word):
        styles.append((self.voice, word, self.pitch, self.rate))
        return None if word == "quiet" else bytes(3200) + bytes([0, 64, 0, 192]) * (800 * len(word)) + bytes(3200)


@pytest.fixture
def installed(monkeypatch):
    module = SimpleNamespace(TtsEngine=Engine, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ttspico", module)


def test_every_voice_says_the_words_of_its_language_at_pitches_and_rates_of_their_own(installed):
    recordings = pico.read(LABELS)
    names, columns = recordings.names, recordings.columns
    rows = list(zip(*([names[c][i] for i in columns[c]] for c in ("label", "speaker", "language")), strict=True))
    told = [("it:abc", "pico it-IT", "it"), ("it:quiet", "pico it-IT", "it"), ("fr:oui", "pico fr-FR", "fr")]
    assert sorted(rows) == sorted(told)
    by_label = {row[0]: i for i, row in enumerate(rows)}
    word, quiet, french = recordings.read([by_label[label] for label in ("it:abc", "it:quiet", "fr:oui")], 16000)
    assert isinstance(quiet, InputError) and "nothing was spoken" in str(quiet)
    for wave in (word, french):  # three letters, 0.1 s each, with 20 ms of silence at most on both sides
        assert 4800 <= len(wave) <= 4800 + 3 * 320 and np.abs(wave).max() == pytest.approx(10 ** (-3 / 20), abs=1e-3)
    assert {style[:2] for style in styles} == {("it-IT", "abc"), ("it-IT", "quiet"), ("fr-FR", "oui")}
    assert len({style[2:] for style in styles}) == 3
    for _, _, pitch, rate in styles:
        assert pico.PITCHES[0] <= pitch <= pico.PITCHES[1] and pico.RATES[0] <= rate <= pico.RATES[1]
    assert recordings.digest() != pico.read(LABELS, seed=1).digest()


def test_what_cannot_be_read_is_told(installed, monkeypatch):
    with pytest.raises(InputError, match="read none of 1 labels"):
        pico.read(["cs:ano"])
    monkeypatch.setitem(sys.modules, "ttspico", None)
    with pytest.raises(InputError, match="SVOX Pico is not installed"):
        pico.read(LABELS)


def test_none_of_its_languages_is_tested_on():
    assert not set(pico.LANGUAGES) & set(espeak.SEMITIC)
