"""Words by SVOX Pico, by a package that takes its place: it beeps as long as the word has letters."""

import sys
from types import SimpleNamespace

import pytest

from metajax.data.corpora import espeak, pico
from metajax.errors import InputError
from tests.data.spoken import check_spoken

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
    told = [("it:abc", "pico it-IT", "it"), ("it:quiet", "pico it-IT", "it"), ("fr:oui", "pico fr-FR", "fr")]
    check_spoken(recordings, told, ("it:abc", "fr:oui"), "nothing was spoken")
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
