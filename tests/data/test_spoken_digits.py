"""Spoken digits with what is written of them."""

import numpy as np
import pytest

from metajax.data import spoken_digits as module
from metajax.data.corpus import Corpus
from metajax.data.features import FeatureSettings
from metajax.data.spoken_digits import spoken_digits
from metajax.data.words import Words
from metajax.tasks.splits import Splits


def corpus(name, labels, languages, texts):
    """Five clips of every label, by five speakers; the last class is that of no clip."""
    label = np.repeat(np.arange(len(labels)), 5)
    columns = {"label": label, "speaker": np.tile(np.arange(5), len(labels))}
    names = {"label": (*labels, "none"), "speaker": tuple("abcde")}
    if languages:
        columns["language"] = np.repeat([sorted(set(languages)).index(one) for one in languages], 5)
        names["language"] = tuple(sorted(set(languages)))
    x = np.arange(len(label), dtype=np.float32)[:, None, None] + np.zeros((1, 4, 3), np.float32)
    written = texts and tuple(np.repeat(texts, 5).tolist())
    half = np.arange(len(label)) % 5 < 3
    return Words(Corpus(name, x, np.full(len(label), 4), columns, names, written, FeatureSettings(), ()),
                 Splits(half, ~half & False, ~half), None, "")  # fmt: skip


@pytest.fixture
def both(monkeypatch):
    synthetic = corpus(
        "espeak", ("de:3", "de:17", "en:3", "en:0"), ("de", "de", "en", "en"), ("dʁaɪ", "x", "θɹiː", "ziəɹ")
    )
    real = corpus("arabic", ("three", "open"), (), None)
    monkeypatch.setattr(module, "load_words", lambda name, *rest, **how: synthetic if name == "espeak" else real)


def test_digits_of_synthetic_speech_by_their_numbers_and_phonemes(both):
    train, test, symbols = spoken_digits()
    assert train.digit.tolist() == [3] * 6 + [0] * 3 and test.digit.tolist() == [3] * 4 + [0] * 2
    assert train.language.tolist() == [0] * 3 + [1] * 6 and set(train.speaker.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(train.audio[:, 0, 0], [0, 1, 2, 10, 11, 12, 15, 16, 17])  # 17 is no digit
    rows = np.asarray(train.text)
    assert (rows[0] == rows[2]).all() and (rows[0] > 0).sum() == len("dʁaɪ") and rows.max() < symbols
    np.testing.assert_array_equal(test.text[0], rows[0])


def test_another_corpus_is_written_in_its_own_way_and_english_is_not_trained_on(both):
    train, test, _ = spoken_digits("arabic", "folder")
    assert train.digit.tolist() == [3] * 3 and test.digit.tolist() == [3] * 5 and test.language.tolist() == [0] * 5
    assert (np.asarray(test.text[0]) > 0).sum() == len("ثلاثة")
    assert not set(np.asarray(test.text[0]).tolist()) & set(np.asarray(train.text[0]).tolist()) - {0}
