"""Spoken utterances with their texts in many languages, made on the spot by eSpeak NG: nothing to download.

An utterance is one to three numbers, from 0 to a million, read by the language's own rules, and invented words in its
own letters; `everyday` and `english` are texts to add. With the defaults: languages: 106, one dialect of each, no
Semitic one; 100 of them read invented words. Speakers: 63. Utterances: 5,294. Licence and engine: see `espeak`.
"""

import re
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from metajax.data.corpora import espeak
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"languages": 106, "speakers": 63, "clips": 5294}
_NONE: Mapping[str, Sequence[str]] = {}


def english() -> list[str]:
    """Some 20,000 phrases of two to seven words, for `more`: what comments and docstrings of Python's library say."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = " ".join(re.sub(r"\s+#? *", " ", file.read_text(encoding="utf-8", errors="ignore")) for file in files)
    return sorted(set(re.findall(r"\b(?:[a-z']+,? ){1,6}[a-z']+(?=[.,;:])", text)))


def everyday() -> dict[str, list[str]]:
    """Fifteen phrases of everyday life, much the same in each of 28 languages, by language as `more` takes them.

    In small letters, without full stops; a language of several dialects has the code of the main one.
    """
    lines = Path(__file__).parents[1].joinpath("phrases.txt").read_text(encoding="utf-8").splitlines()
    return {language: phrases.split(" | ") for language, phrases in (line.split(": ") for line in lines)}


def read(
    *,
    languages: Sequence[str] | None = None,
    exclude: Sequence[str] = espeak.SEMITIC,
    utterances: int = 50,
    letters: tuple[int, int] = (4, 80),
    more: Mapping[str, Sequence[str]] = _NONE,
    text: Literal["phonemes", "characters"] = "phonemes",
    voices: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Recordings:
    """List the corpus, which takes seconds; its clips are spoken when they are read.

    The columns are speaker, language and split, as in `espeak`: languages and speakers of one split occur in no other;
    languages that read three numbers alike share a split. Each utterance has a speaker, pitch and rate of its own;
    labels are all -1. What a language leaves to English is drawn again; languages that read no numbers are left out.

    Args:
        languages: codes such as "fr" or "en-us"; None for the main dialect of every language.
        exclude: languages, with all their dialects, to leave out; () for none.
        utterances: of each language; fewer where it has no more to say.
        letters: of IPA in an utterance, the fewest and the most; about 14 are spoken in a second.
        more: texts by language, which are spoken too where `letters` allows it and they are read in the language; those
            of languages that are not among `languages` are left out.
        text: "phonemes", the engine's own in IPA, without stress or spaces, which the normaliser "ipa" parts; or
            "characters", what was given to read, in which numbers are digits.
        voices: as in `espeak.read`.
        seed: of the utterances, voices and splits.
        workers: child processes at a time; None for one per core.

    Raises:
        InputError: as `espeak.read`, or `letters` or `text` is none of these.

    Example:
        ``speech = load_speech(read(languages=["de", "sw"]), normalizer="ipa", unit="phoneme")``
    """
    espeak.at_least(1, utterances=utterances, letters=letters[0])
    if letters[0] > letters[1]:
        raise InputError(f"letters is {letters}, expected the fewest first.")
    if text not in ("phonemes", "characters"):
        raise InputError(f"text is {text!r}, expected 'phonemes' or 'characters'.")
    job = {"numbers": [], "phrases": utterances, "sizes": letters, "texts": dict(more)}
    chosen = (languages, exclude, voices, seed, workers)
    found = espeak.spoken("espeak_phrases", job, *chosen, written=text == "characters")
    return found._replace(texts=tuple(normalize("NFC", one) for one in found.texts or ()))
