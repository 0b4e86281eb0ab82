"""Beam search and alignment against all paths, and the language model against its definition."""

from itertools import groupby, product

import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.data.decode import align, beam_search, ngram, words_with_times
from metajax.data.features import FeatureSettings
from metajax.data.text import Vocabulary, decode
from metajax.losses.ctc import spans

VOCABULARY = Vocabulary(("<pad>", "|", "a", "b"), "nfc", "character", (0, 1, 2, 3))
TEXTS = ["a b", "ab a", "ba b b", "a"]


def merged(path):
    return tuple(token for token, _ in groupby(path) if token)


def by_enumeration(logits):
    """The probability of every transcript: that of all its paths."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = {}
    for path in product(range(p.shape[1]), repeat=len(p)):
        found[merged(path)] = found.get(merged(path), 0) + np.prod([p[t, k] for t, k in enumerate(path)])
    return found


@pytest.mark.parametrize("unit", [None, "word", "character"])
def test_beam_search_is_the_best_of_all_transcripts(unit):
    model = unit and ngram(TEXTS, 2, unit)
    for seed in range(6):
        logits = np.random.default_rng(seed).normal(size=(5, 4), scale=2)
        scores = {}
        for tokens, p in by_enumeration(logits).items():
            text = decode(VOCABULARY, tokens)
            units = () if not model else tuple(text.split() if unit == "word" else text)
            nats = [model.log_p(units[:i], (*units, "</s>")[i]) for i in range(len(units) + 1)] if model else [0]
            scores[tokens] = np.log(p) + 0.7 * sum(nats) + 0.3 * len(units)
        found = beam_search(logits, VOCABULARY, width=400, model=model, weight=0.7, bonus=0.3, least=-np.inf)
        wanted = sorted(scores.items(), key=lambda item: -item[1])
        assert len(found) == len(scores)
        for hypothesis, (tokens, score) in zip(found[:5], wanted, strict=False):
            assert hypothesis.tokens == tokens and hypothesis.text == decode(VOCABULARY, tokens)
            np.testing.assert_allclose(hypothesis.score, score, atol=1e-9)
        narrow = beam_search(logits, VOCABULARY, width=8, model=model, weight=0.7, bonus=0.3)
        assert len(narrow) == 8 and narrow[0].score <= found[0].score + 1e-9
        # the sum over its paths, which is not the best path
        assert unit or narrow[0].tokens == found[0].tokens


def test_a_language_model_changes_what_is_recognised():
    logits = np.zeros((7, 4))
    logits[[0, 2, 3, 4, 6], [2, 0, 1, 0, 3]] = 9.0  # a ? | ? b
    logits[1, :] = [9, -9, -9, -9]
    logits[5, :] = [9, -9, -9, -9]
    logits[6, 2] = 8.9
    model = ngram(["a a"] * 9 + ["b"], 2)
    assert beam_search(logits, VOCABULARY)[0].text == "a b"
    assert beam_search(logits, VOCABULARY, model=model, weight=1.0)[0].text == "a a"


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_language_model_is_a_distribution(order, unit):
    model = ngram(TEXTS, order, unit)
    units = {u for text in TEXTS for u in (text.split() if unit == "word" else text)}
    for history in ((), ("a",), ("a", "b"), ("b", "a", "b"), ("never",)):
        total = sum(np.exp(model.log_p(history, u)) for u in (*units, "</s>", "unseen"))
        np.testing.assert_allclose(total, 1, rtol=1e-12)
    if (order, unit) == (2, "word"):
        # a starts 2 of 4 sentences, as 2 other words do; it is 3 of 12 units of 5 kinds, ends counted
        lower = (3 + 5 / 6) / (12 + 5)
        np.testing.assert_allclose(np.exp(model.log_p((), "a")), (2 + 3 * lower) / (4 + 3), rtol=1e-12)


def test_beam_search_beats_the_best_path():
    """Blank leads at every frame, but the paths of `a` together are likelier."""
    logits = np.log([[0.6, 1e-9, 0.4, 1e-9]] * 2)
    assert decode(VOCABULARY, merged(logits.argmax(-1))) == ""
    found = beam_search(logits, VOCABULARY)
    assert found[0].text == "a"
    np.testing.assert_allclose(np.exp(found[0].log_likelihood), 0.64, rtol=1e-6)


def test_certain_blanks_past_the_end_change_nothing():
    logits = np.random.default_rng(1).normal(size=(6, 4))
    padded = np.concatenate([logits, np.where(np.arange(4) == 0, 0, -np.inf) * np.ones((3, 1))])
    assert [h.tokens for h in beam_search(padded, VOCABULARY)] == [h.tokens for h in beam_search(logits, VOCABULARY)]


def test_alignment_is_the_best_of_all_paths():
    for seed in range(20):
        draw = np.random.default_rng(seed)
        logits, tokens = draw.normal(size=(6, 4)), draw.integers(1, 4, draw.integers(0, 4)).tolist()
        first, last = align(logits, tokens)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        paths = [path for path in product(range(4), repeat=6) if merged(path) == tuple(tokens)]
        best = max(paths, key=lambda path: sum(logs[t, k] for t, k in enumerate(path)))
        wanted, at = [], 0
        for token, run in groupby(best):
            size = len(list(run))
            wanted += [(at, at + size)] if token else []
            at += size
        assert list(zip(first.tolist(), last.tolist(), strict=True)) == wanted
    with pytest.raises(InputError, match="2 tokens have no alignment with 2 frames"):
        align(np.zeros((2, 4)), [2, 2])


def test_words_have_times():
    best = [0, 2, 2, 0, 3, 1, 1, 0, 2, 3]  # ab a..b
    (tokens, lengths), first, last = spans(jnp.eye(4)[jnp.array([best])])
    rows = [np.asarray(a)[0, : lengths[0]].tolist() for a in (tokens, first, last)]
    found = words_with_times(VOCABULARY, *rows, FeatureSettings(), stride=4)
    assert [(w.text, round(w.start, 6), round(w.end, 6)) for w in found] == [("ab", 0.04, 0.2), ("ab", 0.32, 0.4)]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"\(5, 3\), expected \[time, 4\]"):
        beam_search(np.zeros((5, 3)), VOCABULARY)
    with pytest.raises(InputError, match="width is 0"):
        beam_search(np.zeros((5, 4)), VOCABULARY, width=0)
    with pytest.raises(InputError, match="order is 0"):
        ngram(TEXTS, 0)
    with pytest.raises(InputError, match="needs text"):
        ngram([], 2)
