"""Text as tokens and back, and error rates."""

import itertools
import json
import random
import unicodedata

import jiwer
import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from metajax import InputError
from metajax.data.text import (
    NORMALIZERS,
    Vocabulary,
    decode,
    decode_all,
    encode,
    error_rates,
    nearest_words,
    read_vocabulary,
    vocabulary,
    write_vocabulary,
)

TEXTS = ["ça va", "naïve été", "a va"]


def test_a_vocabulary_is_the_blank_the_space_and_all_that_occurs():
    found = vocabulary(TEXTS)
    assert found.tokens[:2] == ("<pad>", "|") and found.ids == tuple(range(10))
    assert set(found.tokens[2:]) == set("".join(TEXTS)) - {" "} and list(found.tokens[2:]) == sorted(found.tokens[2:])
    encoded = encode(found, TEXTS)
    assert decode_all(found, encoded.transcripts) == TEXTS
    assert encoded.kept.tolist() == [0, 1, 2] and encoded.skipped == ()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("nfc", " a\u0301 \t b", "á b"),
        ("lower", "A\u0301B", "áb"),
        ("upper", "straße", "STRASSE"),
        ("letters", "Don\u2019t -- 'STOP', 3x!", "don't stop 3x"),
        ("upper_letters", "Don\u2019t, no", "DON'T NO"),
        ("plain_letters", "Él, Müller; हिन्दी", "el muller हिन्दी"),
        ("ipa", "ˈt͡ʃiːz tʰɛ̃", "t͡ʃ iː z | tʰ ɛ̃"),
    ],
)
def test_normalizers(name, text, wanted):
    found = NORMALIZERS[name](text)
    assert found == unicodedata.normalize("NFC", wanted)
    assert NORMALIZERS[name](found) == found


def test_phonemes_are_tokens_apart_by_spaces():
    found = vocabulary(["ˈt͡ʃiːz tʰɛ̃"], "ipa", "phoneme")
    assert len(found.tokens) == 7 and found.tokens[:2] == ("<pad>", "|")
    transcripts = encode(found, ["tʰˈiːz zɛ̃"]).transcripts
    assert transcripts.lengths.tolist() == [6]
    assert decode_all(found, transcripts) == [unicodedata.normalize("NFC", "tʰ iː z | z ɛ̃")]


def test_text_that_is_nfd_is_normalised_and_said():
    found = vocabulary(TEXTS)
    with pytest.warns(UserWarning, match="1 of 3 texts were not NFC and are now; the first: b"):
        odd = encode(found, [TEXTS[0], unicodedata.normalize("NFD", TEXTS[1]), TEXTS[2]], ["a", "b", "c"])
    np.testing.assert_array_equal(odd.transcripts.tokens, encode(found, TEXTS).transcripts.tokens)


# as Transformers writes it for wav2vec2-base-960h, and as its guide to fine-tuning does
FILES = (
    {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "'": 7},
    {"'": 0, "a": 1, "é": 2, "|": 3, "[UNK]": 4, "[PAD]": 5},
)


def test_tokens_that_are_nfd_are_those_of_nfc_texts(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"<pad>": 0, "e": 1, "e\u0301": 2, "\u212b": 3, "\u00c5": 4}), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"vocab\.json: 1 of 5 tokens are not NFC and are read as NFC\.$"):
        found = read_vocabulary(path)
    assert found.tokens == ("<pad>", "e", "\u00e9", "\u212b", "\u00c5") and found.ids == (0, 1, 2, 3, 4)
    assert encode(found, ["e\u00e9\u00c5"]).transcripts.tokens.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("content", FILES)
def test_vocab_json_round_trip(tmp_path, content):
    (tmp_path / "vocab.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_vocabulary(tmp_path / "vocab.json")
    assert found.tokens[0] in ("<pad>", "[PAD]")
    assert [content[token] for token in found.tokens] == list(found.ids)
    write_vocabulary(found, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == content
    assert read_vocabulary(tmp_path / "again.json") == found
    text = "T'E ET" if "T" in content else "é'a aé"
    tokens = encode(found, [text]).transcripts.tokens[0]
    assert decode(found, tokens) == text
    special = [i for i, token in enumerate(found.tokens) if token[0] in "<["]
    assert decode(found, [*special, *tokens, *special]) == text


@pytest.mark.slow
@pytest.mark.peers
def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle")
    found = vocabulary(TEXTS)
    write_vocabulary(
        found._replace(tokens=(*found.tokens, "<unk>"), ids=(*found.ids, len(found.ids))), tmp_path / "v.json"
    )
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "v.json"), bos_token=None, eos_token=None)
    for text in TEXTS:
        ours = encode(found, [text]).transcripts.tokens[0].tolist()
        assert tokenizer(text)["input_ids"] == ours
        assert tokenizer.decode(ours, group_tokens=False) == decode(found, ours) == text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"<pad>": 0, "a": 2}', "numbered from 0"),
        ('{"<pad>": 0, "a": 0}', "numbered from 0"),
        ('["a"]', "no vocabulary"),
        ('{"a": 0}', "has 0 blanks"),
        ('{"<pad>": 0, "[PAD]": 1}', "has 2 blanks"),
        ('{"a": ', "is not JSON"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, content, sentence):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError, match=f"vocab.json .*{sentence}"):
        read_vocabulary(tmp_path / "vocab.json")
    with pytest.raises(InputError, match="^[^ ]*absent.json cannot be read: "):
        read_vocabulary(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("va Ça", r"clip: 'Ç' \(U\+00C7\), character 4 of 'va Ça', is not in the vocabulary; normalizer 'lower' would"),
        ("va, ça", r"',' \(U\+002C\), character 3 of .* normalizer 'letters' would mend it"),
        ("vâ", r"'â' .* normalizer 'plain_letters' would mend it"),
        ("va xa", r"'x' .* no normaliser would mend it"),
        ("va|ça", r"'\|' .*, character 3"),
        ("", "clip: the text is empty: ''"),
        (" \n", "clip: the text is empty"),
        ("ééé", "clip: the text of 3 tokens needs 5 frames, but has 4"),
    ],
)
def test_texts_that_cannot_be(text, sentence):
    found = vocabulary(TEXTS)
    with pytest.raises(InputError, match=sentence):
        encode(found, [text], ["clip"], frames=np.array([4 if "é" in text else 99]))
    with pytest.warns(UserWarning, match="1 of 2 texts are left out; the first: clip"):
        encoded = encode(found, ["va", text], ["good", "clip"], frames=np.array([4, 4]), on_error="skip")
    assert encoded.kept.tolist() == [0] and len(encoded.skipped) == 1 and encoded.transcripts.tokens.shape == (1, 2)
    with pytest.raises(InputError, match="1 of 1 texts are left out"):
        encode(found, [text], frames=np.array([4]), on_error="skip")


def test_what_is_unknown_is_refused():
    with pytest.raises(InputError, match="normalizer is 'loud', expected one of nfc, lower"):
        vocabulary(TEXTS, "loud")
    with pytest.raises(InputError, match="needs text"):
        vocabulary(["", " "])
    with pytest.raises(InputError, match="stands for the space"):
        vocabulary(["a|b"])
    with pytest.raises(InputError, match=r"Token 7 .* 0..1"):
        decode(Vocabulary(("<pad>", "a"), "nfc", "character", (0, 1)), [1, 7])


def test_error_rates_are_those_of_jiwer():
    draw = np.random.default_rng(0)
    pairs = [["".join(draw.choice(list("ab c"), draw.integers(0, 12))) for _ in range(2)] for _ in range(1000)]
    said, heard = ([" ".join(text.split()) for text in texts] for texts in zip(*pairs, strict=True))
    said = [text or "a" for text in said]
    for chosen in (slice(None), *(slice(i, i + 1) for i in range(1000))):
        found = error_rates(said[chosen], heard[chosen], "nfc")
        assert found.word == jiwer.wer(said[chosen], heard[chosen])
        assert found.character == jiwer.cer(said[chosen], heard[chosen])
    assert found.words == len(said[-1].split()) and found.characters == len(said[-1]) and found.normalizer == "nfc"


def test_error_rates_by_hand_and_by_normaliser():
    found = error_rates(["Ab c", "d"], ["ab", "d e"], "lower")
    assert found == (2 / 3, 4 / 5, 3, 5, "lower")
    assert error_rates(["Ab c", "d"], ["ab", "d e"], "nfc").word == 1.0
    with pytest.raises(InputError, match="2 references and 1 hypotheses"):
        error_rates(["a", "b"], ["a"], "nfc")
    with pytest.raises(InputError, match="a reference that is not empty"):
        error_rates(["!"], ["a"], "letters")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_what_is_normalised_stays_as_it_is(normalizer):
    """Else error rates, which normalise what was decoded, would count tokens that nobody said."""
    for text in ("tʃiːz ɡʊd", "aɪnt͡s", "ɔ", "a i", "Ein  Wort, zwei!", "naïve CAFÉ’s", "e\u0301a"):
        once = NORMALIZERS[normalizer](text)
        assert NORMALIZERS[normalizer](once) == once
    assert error_rates(["a ɪ n"], ["a t s"], "ipa").word == pytest.approx(2 / 3)


def test_the_nearest_string_of_words_is_that_of_fewest_edits():
    words, draw = ["ab", "cab", "d"], random.Random(0)
    strings = [s for n in range(7) for s in itertools.product(range(3), repeat=n)]
    for _ in range(30):
        heard = "".join(draw.choice("abcd") for _ in range(draw.randint(0, 6)))
        least = min(Levenshtein.distance(heard, "".join(words[i] for i in s)) for s in strings)
        found = nearest_words(heard, words)
        assert Levenshtein.distance(heard, "".join(words[i] for i in found)) == least
    assert nearest_words("cabxab", words) == [1, 0]
