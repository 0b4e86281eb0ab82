"""Words by Festival's voices, by a program that takes its place: it beeps as long as the word has letters."""

import sys

import pytest

from metajax.data.corpora import espeak, festival
from metajax.errors import InputError
from tests.data.spoken import check_spoken

LABELS = ("it:abc", "it:zz\u010d", "it:quiet", "cs:\u010dau", "fr:oui")
PROGRAM = f"""#!{sys.executable}
import re, sys, wave
if sys.argv[1] == "--pipe":
    print("(lp_diphone czech_ph other)")
else:
    content = open(sys.argv[2], "rb").read()
    script = content.decode("iso-8859-2" if b"czech" in content else "latin-1")
    assert script.startswith("(voice_lp_diphone)") or script.startswith("(voice_czech_ph)")
    for word, path in re.findall(r'Utterance Text "(.+?)".*?wave u "(.+?)"', script):
        if word != "quiet":
            with wave.open(path, "wb") as out:
                out.setparams((1, 2, 16000, 0, "NONE", ""))
                out.writeframes(bytes(3200) + bytes([0, 64, 0, 192]) * (800 * len(word)) + bytes(3200))
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The program on the path."""
    program = tmp_path / "festival"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_every_voice_says_the_words_of_its_language_that_its_letters_can_write(installed):
    recordings = festival.read(LABELS, workers=1)
    told = [("it:abc", "lp_diphone", "it"), ("it:quiet", "lp_diphone", "it"), ("cs:\u010dau", "czech_ph", "cs")]
    check_spoken(recordings, told, ("cs:\u010dau", "it:abc"), "quiet")
    assert recordings.digest() != festival.read(LABELS[:1], workers=1).digest()


def test_what_cannot_be_read_is_told(installed, monkeypatch):
    with pytest.raises(InputError, match="read none of 1 labels"):
        festival.read(["fr:oui"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="Festival is not installed"):
        festival.read(LABELS)


def test_its_languages_are_espeaks():
    assert set(festival.LANGUAGES) == {"ca", "cs", "en", "fi", "it"} and "en" not in espeak.SEMITIC
