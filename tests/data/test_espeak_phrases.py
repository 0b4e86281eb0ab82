"""Utterances in many languages: that texts are what is spoken, in each language's letters, and splits share nothing."""

import importlib.metadata
import importlib.util
import unicodedata

import numpy as np
import pytest

from metajax.data.corpora import espeak, espeak_phrases, read
from metajax.data.text import NORMALIZERS
from metajax.errors import InputError

MEASURED_WITH = "0.2.4"  # of espeakng-loader
SCRIPTS = {"de": "LATIN", "ru": "CYRILLIC", "el": "GREEK", "hi": "DEVANAGARI", "ko": "HANGUL", "ta": "TAMIL"}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")


@pytest.fixture(scope="module")
def phonemes():
    return read("espeak_phrases")


def languages(recordings):
    return [recordings.names["language"][i] for i in recordings.columns["language"]]


def test_counts_splits_and_sizes(phonemes):
    names = {"languages": "language", "speakers": "speaker"}
    counts = {what: len(phonemes.names[column]) for what, column in names.items()} | {"clips": len(phonemes.texts)}
    exact = importlib.metadata.version("espeakng-loader") == MEASURED_WITH
    assert counts == (espeak_phrases.COUNTS if exact else pytest.approx(espeak_phrases.COUNTS, rel=0.2))
    split = phonemes.columns["split"]
    for column in ("language", "speaker"):
        parts = [{*phonemes.columns[column][split == number]} for number in range(3)]
        assert min(map(len, parts)) >= 8 and not any(parts[a] & parts[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert (phonemes.columns["label"] == -1).all()
    assert all(4 <= len(text) <= 80 for text in phonemes.texts) and len({*phonemes.texts}) == len(phonemes.texts)


@pytest.mark.slow
def test_texts_are_what_is_read_in_the_letters_of_the_language(phonemes):
    some = sorted({*phonemes.names["language"][::4], *SCRIPTS})
    few, characters = (espeak_phrases.read(languages=some, text=text) for text in ("phonemes", "characters"))
    assert few.clip_names == characters.clip_names and few.digest() != characters.digest()
    pairs = {(code, *pair) for code, *pair in zip(languages(few), characters.texts, few.texts, strict=True)}
    single = {pair for pair in pairs if pair[1] in map(str, range(21))}
    words = read("espeak", languages=sorted({code for code, *_ in single}), numbers=range(21), clips_per_label=1)
    texts = [unicodedata.normalize("NFC", text) for text in words.texts]
    known = {words.names["label"][i]: text for i, text in zip(words.columns["label"], texts, strict=True)}
    shared = [(known[f"{code}:{n}"], text) for code, n, text in single if f"{code}:{n}" in known]
    assert len(shared) > 20 and all(a == b for a, b in shared)
    of_language = {code: [text for other, text, _ in pairs if other == code] for code in SCRIPTS}
    for code, script in SCRIPTS.items():
        letters = {c for text in of_language[code] for c in text if not c.isdigit() and c != " "}
        assert len(letters) >= 10 and all(unicodedata.name(c).startswith(script) for c in letters), code
        numbers = [int(word) for text in of_language[code] for word in text.split() if word.isdigit()]
        assert max(numbers) > 10_000 and min(numbers) < 10
    tokens = {token for text in phonemes.texts for token in NORMALIZERS["ipa"](text).split()}
    assert {"a", "ʃ", "aː", "t"} <= tokens and "|" not in tokens and len(tokens) < 400


def test_longer_texts_last_longer(phonemes):
    """So a clip has the text that it says."""
    rows = range(0, len(phonemes.texts), 60)
    seconds = [len(wave) / 16000 for wave in phonemes.read(rows, 16000)]
    assert np.corrcoef(seconds, [len(phonemes.texts[row]) for row in rows])[0, 1] > 0.85


def test_utterances_do_not_depend_on_what_else_is_listed(phonemes):
    few = espeak_phrases.read(languages=["de", "ko"], utterances=5)
    texts = [text for code, text in zip(languages(phonemes), phonemes.texts, strict=True) if code in ("de", "ko")]
    assert len(few.texts) == 10 and {*few.texts} <= {*texts}
    assert {*espeak_phrases.read(languages=["de", "ko"], utterances=5, seed=1).texts} != {*few.texts}
    short = espeak_phrases.read(languages=["de", "ko"], utterances=9, letters=(5, 8))
    assert len(short.texts) == 18 and all(5 <= len(text) <= 8 for text in short.texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"utterances": 0}, "utterances holds 0, expected at least 1"),
        ({"letters": (0, 9)}, "letters holds 0, expected at least 1"),
        ({"letters": (9, 4)}, r"letters is \(9, 4\), expected the fewest first"),
        ({"text": "words"}, "text is 'words', expected 'phonemes' or 'characters'"),
        ({"languages": ["frr"]}, "'frr' is no language of eSpeak NG"),
        ({"languages": ["grc"]}, "no word is left"),  # reads no numbers
        ({"root": "x"}, "espeak_phrases is made on the spot and reads no folder, found root = x"),
    ],
)
def test_bad_input(settings, message, unchecked):
    with pytest.raises(InputError, match=message):
        read("espeak_phrases", **settings)


def test_given_texts_are_spoken_too_and_read_as_phonemes():
    texts = ["margaret said so", "\u0645\u062f\u064a\u0646\u0629", "a"]
    corpus = espeak_phrases.read(languages=["en-us"], utterances=2, letters=(4, 60), more={"en-us": texts}, seed=3)
    read_out = espeak.phonemes([*texts, texts[0]], "en-us")
    assert read_out[0] == read_out[3] == "mɑːɹɡɹətsɛdsoʊ" and read_out[0] in corpus.texts
    assert len(corpus.texts) in (3, 4) and read_out[2] not in corpus.texts
    lines = espeak_phrases.english()
    assert len(lines) > 5000 and lines == sorted(set(lines)) and all(2 <= len(line.split()) <= 7 for line in lines)
    numerals = espeak.phonemes(["3 5 0", "3", "5", "0"], "ar")  # as strings of digits are read
    assert numerals[0] == "".join(numerals[1:])
    with pytest.raises(InputError, match="'xx' is no language"):
        espeak.phonemes(texts, "xx")


def test_arabic_invented_words_are_vowelled():
    corpus = espeak_phrases.read(languages=["ar"], exclude=(), utterances=20, text="characters")
    assert sum(any("\u064e" <= c <= "\u0650" for c in text) for text in corpus.texts) > 5


def test_everyday_phrases_are_read_in_their_language_and_spoken_too():
    phrases = espeak_phrases.everyday()
    assert len(phrases) == 28 and {len({*texts}) for texts in phrases.values()} == {15}
    texts = [text for several in phrases.values() for text in several]
    assert all(text == text.lower() and {*"?!.,;:|"}.isdisjoint(text) for text in texts)
    corpus = espeak_phrases.read(utterances=1, letters=(1, 99), more=phrases, text="characters")
    listed = [*zip(languages(corpus), corpus.texts, strict=True)]
    wanted = {(code, text) for code, several in phrases.items() for text in several}
    assert not wanted - {*listed} and len(texts) == 28 * 15
    few, many = (listed.index(("de", phrases["de"][i])) for i in (11, 6))  # bis morgen; bitte sprechen sie langsam
    waves = [*corpus.read([few, many], 16000)]
    assert 0.3 * 16000 < len(waves[0]) < len(waves[1]) < 4 * 16000
