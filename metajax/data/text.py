"""Text as tokens: named normalisers, a vocabulary whose token 0 is the blank, and error rates."""

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import jiwer
import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein

from metajax.core import Transcripts
from metajax.data.corpora.files import read_text
from metajax.errors import InputError

Unit = Literal["character", "phoneme"]
BLANK, SPACE = "<pad>", "|"  # as Transformers writes them
_BLANKS = (BLANK, "[PAD]", "<blank>", "<blk>")
_SPECIAL = re.compile(r"<[^<>]+>|\[[A-Z]+\]")  # tokens that stand for no text
_STRESS = "ˈˌ'"
_TIES = ("\u0361", "\u035c")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _letters(text: str) -> str:
    text = _nfc(text).lower().replace("\u2019", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return _nfc(re.sub(r"(?<!\w)'|'(?!\w)", " ", kept))


def _ipa(text: str) -> str:
    if SPACE in text.split():  # parted already, as `decode` writes it
        return _nfc(text)
    words = []
    for word in unicodedata.normalize("NFD", text).split():
        parts: list[str] = []
        for c in word:
            kind = unicodedata.category(c)
            if c in _STRESS or kind[0] not in "LMNS":
                continue
            if parts and (kind in ("Mn", "Lm", "Sk") or parts[-1].endswith(_TIES)):
                parts[-1] += c
            else:
                parts.append(c)
        words += [" ".join(parts)] if parts else []
    between = f" {SPACE} " if any(" " in word for word in words) else " "  # one word, parted already
    return unicodedata.normalize("NFC", between.join(words))


# all give NFC and single spaces; in the order in which one is proposed where a vocabulary lacks a character
NORMALIZERS: dict[str, Callable[[str], str]] = {
    "nfc": _nfc,
    "lower": lambda text: _nfc(_nfc(text).lower()),
    "upper": lambda text: _nfc(_nfc(text).upper()),
    # lower case; letters with their marks, digits and apostrophes within words alone
    "letters": _letters,
    "upper_letters": lambda text: _nfc(_letters(text).upper()),
    # and the accents off, which Latin, Greek and Cyrillic share
    "plain_letters": lambda text: _letters(re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))),
    # phonemes apart by spaces, words by |: a letter with its marks, modifiers and ties is one; no stress
    "ipa": _ipa,
}


class Vocabulary(NamedTuple):
    """What the outputs of a recogniser stand for.

    Fields:
      tokens: by number; 0 is the blank, `|` a space.
      normalizer: the one of `NORMALIZERS` that text goes through first.
      unit: "character": a token is one; "phoneme": tokens stand apart by spaces, and `|` parts words.
      ids: the number of each token in the `vocab.json` that it came from, which a pretrained model's outputs follow.
    """

    tokens: tuple[str, ...]
    normalizer: str
    unit: Unit
    ids: tuple[int, ...]


class Encoded(NamedTuple):
    """Texts as tokens.

    Fields:
      transcripts: of those kept.
      kept: which of the texts these are.
      skipped: one sentence for each of the others.
    """

    transcripts: Transcripts
    kept: Int[np.ndarray, " kept"]
    skipped: tuple[str, ...]


class ErrorRates(NamedTuple):
    """Substitutions, deletions and insertions over what was said, of all utterances together."""

    word: float  # per word of the references; of phonemes apart by spaces, per phoneme, `|` counted
    character: float  # per character, spaces counted
    words: int  # of the references
    characters: int
    normalizer: str  # which both sides went through


def vocabulary(texts: Iterable[str], normalizer: str = "nfc", unit: Unit = "character") -> Vocabulary:
    """All that occurs in texts: the blank, the space if there is one, then by code point.

    Args:
      texts: e.g. those of a corpus, of all the languages that one recogniser is to write.
      normalizer: one of `NORMALIZERS`.
      unit: what a token is.

    Raises:
      InputError: there is no such normaliser or unit, or no text.
    """
    _check(normalizer, unit)
    found = {token for text in texts for token in _tokens(NORMALIZERS[normalizer](text), unit)}
    if not found:
        raise InputError("A vocabulary needs text, found none that is not empty.")
    if unit == "character" and SPACE in found:
        raise InputError(f"A text holds {SPACE!r}, which stands for the space; normalizer 'letters' leaves it out.")
    tokens = (BLANK, *sorted({SPACE if token == " " else token for token in found}, key=lambda t: (t != SPACE, t)))
    return Vocabulary(tokens, normalizer, unit, tuple(range(len(tokens))))


def read_vocabulary(path: str | Path, normalizer: str = "nfc", unit: Unit = "character") -> Vocabulary:
    """A vocabulary from Transformers' `vocab.json`, the blank moved to 0; the file's own order is kept in `ids`.

    Args:
      path: of the file, `{"<pad>": 0, "|": 4, "e": 5, ...}`; `[PAD]`, `<blank>` and `<blk>` are blanks too. Tokens that
        are not NFC, as texts will be, are read as NFC, which a warning tells; one whose NFC form is a token stays.
      normalizer: one of `NORMALIZERS`, which the file does not name.
      unit: what a token is.

    Raises:
      InputError: names the file and what is wrong with it.
    """
    _check(normalizer, unit)
    path, text = Path(path), read_text(Path(path))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    if not isinstance(found, dict) or sorted(found.values(), key=str) != sorted(range(len(found)), key=str):
        raise InputError(f"{path} is no vocabulary, expected an object of tokens numbered from 0, each number once.")
    composed: dict[str, int] = {}
    for token, number in found.items():
        form = unicodedata.normalize("NFC", token)
        composed[token if form in found or form in composed else form] = number  # texts find the NFC one of two
    if changed := len(composed.keys() - found):
        warnings.warn(f"{path}: {changed} of {len(found)} tokens are not NFC and are read as NFC.", stacklevel=2)
    found = composed
    if len(blanks := [token for token in _BLANKS if token in found]) != 1:
        raise InputError(f"{path} has {len(blanks)} blanks, expected one of {', '.join(_BLANKS)}.")
    tokens = (blanks[0], *(token for token in sorted(found, key=found.__getitem__) if token != blanks[0]))
    return Vocabulary(tokens, normalizer, unit, tuple(found[token] for token in tokens))


def write_vocabulary(vocabulary: Vocabulary, path: str | Path) -> None:
    """Write Transformers' `vocab.json`, in the order of `ids`."""
    rows = sorted(zip(vocabulary.ids, vocabulary.tokens, strict=True))
    content = json.dumps({token: number for number, token in rows}, ensure_ascii=False, indent=2)
    Path(path).write_text(content + "\n", encoding="utf-8")


def encode(
    vocabulary: Vocabulary,
    texts: Sequence[str],
    names: Sequence[str] | None = None,
    *,
    frames: Int[np.ndarray, " n"] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Encoded:
    """Texts as tokens, normalised first; a warning tells how many were not NFC.

    Args:
      vocabulary: its normaliser is applied.
      texts: one an utterance.
      names: of the utterances, for messages.
      frames: of a recogniser's output for each, which CTC needs one of for each token, and between equal ones.
      on_error: "skip" leaves out texts that cannot be, counted in a warning and listed in `skipped`.

    Returns:
      The tokens of those kept.

    Raises:
      InputError: a text is empty, too long for its frames or has a character outside the vocabulary: which, where, and
        the normaliser that would mend it; or, under "skip", none is left.
    """
    names = [f"text {i}" for i in range(len(texts))] if names is None else names
    number = _numbers(vocabulary)
    rows, kept, skipped = [], [], []
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        try:
            row = _row(vocabulary, number, text, name)
            if frames is not None and (need := len(row) + int((row[1:] == row[:-1]).sum())) > frames[i]:
                raise InputError(f"{name}: the text of {len(row)} tokens needs {need} frames, but has {frames[i]}.")
        except InputError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
            continue
        rows.append(row)
        kept.append(i)
    if skipped:
        told = f"{len(skipped)} of {len(texts)} texts are left out; the first: {skipped[0]}"
        if not rows:
            raise InputError(told)
        warnings.warn(told, stacklevel=2)
    if odd := [name for name, text in zip(names, texts, strict=True) if not unicodedata.is_normalized("NFC", text)]:
        warnings.warn(f"{len(odd)} of {len(texts)} texts were not NFC and are now; the first: {odd[0]}.", stacklevel=2)
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max(initial=0)), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return Encoded(Transcripts(jnp.asarray(tokens), jnp.asarray(lengths)), np.array(kept, np.int32), tuple(skipped))


def decode(vocabulary: Vocabulary, tokens: Iterable[Any]) -> str:
    """Tokens of one utterance as text, without blanks and tokens that stand for none; spaces single.

    Raises:
      InputError: a number is beyond the vocabulary.
    """
    numbers = [int(token) for token in tokens]
    if outside := [n for n in numbers if not 0 <= n < len(vocabulary.tokens)]:
        raise InputError(f"Token {outside[0]} is not of the vocabulary, which has 0..{len(vocabulary.tokens) - 1}.")
    said = [vocabulary.tokens[n] for n in numbers if n and not _SPECIAL.fullmatch(vocabulary.tokens[n])]
    if vocabulary.unit == "phoneme":
        return " ".join(said)
    return " ".join("".join(" " if token == SPACE else token for token in said).split())


def decode_all(vocabulary: Vocabulary, transcripts: Transcripts) -> list[str]:
    """The texts of a batch."""
    tokens, lengths = (np.asarray(a) for a in transcripts)
    return [decode(vocabulary, row[:length]) for row, length in zip(tokens, lengths, strict=True)]


def error_rates(references: Sequence[str], hypotheses: Sequence[str], normalizer: str) -> ErrorRates:
    """Word and character error rates by `jiwer`, the edits of all utterances over the units of all references.

    Args:
      references: what was said.
      hypotheses: what was recognised.
      normalizer: one of `NORMALIZERS`, for both; of phonemes that `decode` wrote, a word alone is not known as parted:
        give references through "ipa", and "nfc" here.

    Raises:
      InputError: there is no such normaliser, the numbers differ, or all references are empty.
    """
    _check(normalizer, "character")
    if len(references) != len(hypotheses):
        raise InputError(f"There are {len(references)} references and {len(hypotheses)} hypotheses, expected as many.")
    said, heard = ([NORMALIZERS[normalizer](text) for text in texts] for texts in (references, hypotheses))
    if not any(said):
        raise InputError("An error rate needs a reference that is not empty, found none.")
    words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    sizes = [found.hits + found.substitutions + found.deletions for found in (words, characters)]
    return ErrorRates(words.wer, characters.cer, sizes[0], sizes[1], normalizer)


def nearest_words(heard: Sequence[str], words: Sequence[Sequence[str]]) -> list[int]:
    """The string of known words that fewest edits turn into what was heard, word by word: of each its number.

    Args:
      heard: units, such as phonemes.
      words: units of each known word.
    """
    longest = max(map(len, words)) + 3  # units that a word may have become
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end in range(1, len(heard) + 1):
        best.append((best[-1][0] + 1, best[-1][1]))  # a unit that belongs to none
        for start in range(max(end - longest, 0), end):
            for number, word in enumerate(words):
                edits = best[start][0] + Levenshtein.distance(heard[start:end], word)
                if edits < best[end][0]:
                    best[end] = edits, [*best[start][1], number]
    return best[-1][1]


def _check(normalizer: str, unit: str) -> None:
    if normalizer not in NORMALIZERS:
        raise InputError(f"normalizer is {normalizer!r}, expected one of {', '.join(NORMALIZERS)}.")
    if unit not in ("character", "phoneme"):
        raise InputError(f"unit is {unit!r}, expected 'character' or 'phoneme'.")


def _tokens(text: str, unit: Unit) -> list[str]:
    return text.split() if unit == "phoneme" else list(text)


def _numbers(vocabulary: Vocabulary) -> dict[str, int]:
    """The number of each token as it stands in a text."""
    numbers = {token: i for i, token in enumerate(vocabulary.tokens) if i and not _SPECIAL.fullmatch(token)}
    if vocabulary.unit == "character" and SPACE in numbers:
        numbers[" "] = numbers.pop(SPACE)
    return numbers


def _row(vocabulary: Vocabulary, numbers: dict[str, int], text: str, name: str) -> Int[np.ndarray, " tokens"]:
    unit, normal = vocabulary.unit, NORMALIZERS[vocabulary.normalizer](text)
    tokens = _tokens(normal, unit)
    if not tokens:
        raise InputError(f"{name}: the text is empty{' once normalised' if text.strip() else ''}: {text[:40]!r}.")
    if unknown := [i for i, token in enumerate(tokens) if token not in numbers]:
        token = tokens[unknown[0]]
        able = (n for n, f in NORMALIZERS.items() if (made := _tokens(f(text), unit)) and {*made} <= {*numbers})
        code = f" (U+{ord(token):04X})" if len(token) == 1 else ""
        mended = next((f"normalizer {n!r} would mend it" for n in able), "no normaliser would mend it")
        told = f"{name}: {token!r}{code}, {unit} {unknown[0] + 1} of {normal[:60]!r}"
        raise InputError(f"{told}, is not in the vocabulary; {mended}.")
    return np.array([numbers[token] for token in tokens], np.int32)
