"""Spoken digits with what is written of them, synthetic ones to train on and any to test on."""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from metajax.data.images import DIGITS
from metajax.data.text import encode, vocabulary
from metajax.data.words import Words, load_words

WRITTEN = {
    "fsdd": DIGITS,
    "arabic": ("صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة"),
}  # 0 to 9; of synthetic speech its phonemes
_NUMBERS = {name: i for i, name in enumerate(DIGITS)} | {str(i): i for i in range(10)}


class Spoken(NamedTuple):
    """Clips of digits."""

    audio: Float[Array, "clips time mel"]  # log-mel
    text: Int[Array, "clips length"]  # numbers of characters, padded with 0
    digit: Int[np.ndarray, " clips"]  # 0 to 9
    label: Int[np.ndarray, " clips"]  # a digit of a language
    speaker: Int[np.ndarray, " clips"]
    language: Int[np.ndarray, " clips"]  # 0 where a corpus has one


def spoken_digits(
    corpus: str = "espeak", root: str | Path | None = None, *, cache: Path | None = None
) -> tuple[Spoken, Spoken, int]:
    """Digits to train on, of the training languages and speakers of embedded speech, and digits to test on.

    Args:
        corpus: to test on: `espeak`, its test languages and speakers; `fsdd` (no English is then trained on) or
            `arabic`, all of it.
        root: its folder.
        cache: folder of cached features, None for no cache.

    Returns:
        Clips to train on, clips to test on, and how many characters there are, padding among them.

    Raises:
        InputError: as `load_words`.
    """
    synthetic = load_words("espeak", cache=cache)
    train, test, tested = synthetic.splits.train, synthetic.splits.test, synthetic
    if corpus != "espeak":
        tested = load_words(corpus, root, cache=cache)
        test = np.ones(len(tested.corpus.columns["label"]), bool)
        names, column = (part["language"] for part in (synthetic.corpus.names, synthetic.corpus.columns))
        train = train & ~np.isin(column, [i for i, name in enumerate(names) if name.startswith("en")])
    parts = [_digits(synthetic, train), _digits(tested, test)]
    texts = [text for _, some in parts for text in some]
    letters = vocabulary(texts)
    tokens = np.split(np.asarray(encode(letters, texts).transcripts.tokens), [len(parts[0][1])])
    first, second = (part._replace(text=jnp.asarray(rows)) for (part, _), rows in zip(parts, tokens, strict=True))
    return first, second, len(letters.tokens)


def _digits(words: Words, mask: Bool[np.ndarray, " clips"]) -> tuple[Spoken, list[str]]:
    """The clips of digits among those of the mask, and their texts."""
    corpus, columns = words.corpus, words.corpus.columns
    number = np.array([_NUMBERS.get(name.split(":")[-1], -1) for name in corpus.names["label"]])
    digit = np.where(columns["label"] >= 0, number[columns["label"]], -1)
    kept = np.flatnonzero(mask & (digit >= 0))
    texts, written = corpus.texts or (), WRITTEN.get(corpus.name)
    found = [unicodedata.normalize("NFC", written[digit[i]] if written else texts[i]) for i in kept]
    label, speaker, language = (columns.get(c, np.zeros_like(digit))[kept] for c in ("label", "speaker", "language"))
    empty = jnp.zeros((len(kept), 0), int)
    return Spoken(corpus.features[kept], empty, digit[kept], label, speaker, language), found
