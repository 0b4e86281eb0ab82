"""Beam search and alignment against all paths, and the language model against its definition."""

import re
from itertools import groupby, product

import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.data.decode import Timed, align, beam_search, best_path, ngram, subtitles, timed_text, words_with_times
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


def test_where_phonemes_stand_apart_and_no_token_parts_words_each_is_one():
    known = Vocabulary(("<pad>", "three", "one"), "nfc", "phoneme", (0, 1, 2))
    found = words_with_times(known, [1, 2, 2], [0, 3, 5], [2, 4, 6], FeatureSettings())
    assert [(w.text, round(w.start, 6), round(w.end, 6)) for w in found] == [
        ("three", 0, 0.08), ("one", 0.12, 0.16), ("one", 0.2, 0.24)]  # fmt: skip
    parted = known._replace(tokens=("<pad>", "|", "w", "n"), ids=(0, 1, 2, 3))
    assert [w.text for w in words_with_times(parted, [2, 3, 1, 3], [0, 1, 2, 3], [1, 2, 3, 4], FeatureSettings())] == [
        "w n", "n"]  # fmt: skip


@pytest.mark.slow
def test_the_text_of_pieces_has_the_tokens_and_times_of_greedy_decoding():
    """Tokens and frames of `spans`, which merges on the device, shifted to where each piece begins."""
    draw = np.random.default_rng(2)
    pieces = [draw.normal(size=(size, 4), scale=4) for size in (9, 30, 17)]
    found = timed_text(VOCABULARY, pieces, (0.0, 2.0, 7.5), FeatureSettings())
    wanted, texts = [], []
    for logits, start in zip(pieces, (0.0, 2.0, 7.5), strict=True):
        (tokens, (length,)), first, last = spans(jnp.asarray(logits)[None])
        tokens, first, last = (np.asarray(a)[0, :length].tolist() for a in (tokens, first, last))
        assert best_path(logits) == tokens
        texts.append(decode(VOCABULARY, tokens))
        rows = zip(tokens, first, last, strict=True)
        wanted += [(VOCABULARY.tokens[k], start + 0.04 * a, start + 0.04 * b) for k, a, b in rows]
    assert found.text == " ".join(texts) and [one.text for one in found.tokens] == [text for text, *_ in wanted]
    np.testing.assert_allclose([one[1:] for one in found.tokens], [one[1:] for one in wanted], atol=1e-6)
    assert [word.text for word in found.words] == " ".join(texts).split()
    starts = {round(one.start, 6) for one in found.tokens}
    assert all(round(word.start, 6) in starts for word in found.words)
    blanks = np.eye(4)[[0] * 5]
    assert timed_text(VOCABULARY, [blanks], (0.0,), FeatureSettings()) == ("", (), ())
    ab = timed_text(VOCABULARY, pieces[:1], (0.0,), FeatureSettings(), search=lambda logits: [2, 3])
    assert ab.text == "ab" and len(ab.tokens) == 2


def parsed(srt):
    """Numbers, seconds and lines of a SubRip file, read by another reader than what wrote it."""
    found = []
    for block in srt.split("\n\n"):
        number, clock, *lines = block.rstrip("\n").split("\n")
        hours = re.fullmatch(
            r"(\d\d):([0-5]\d):([0-5]\d),(\d{3}) --> (\d\d):([0-5]\d):([0-5]\d),(\d{3})", clock
        ).groups()
        h, m, s, ms = (np.array([int(hours[i]), int(hours[i + 4])]) for i in range(4))
        found.append((int(number), *(3600 * h + 60 * m + s + ms / 1000), lines))
    return found


def test_subtitles():
    words = [Timed("one", 0.9996, 1.4), Timed("two", 1.6, 1.9), Timed("three", 2.8, 2.85), Timed("four", 3.2, 3.3),
             Timed("x" * 50, 3600.0, 3607.0), Timed("late", 86399.5, 86399.9)]  # fmt: skip
    found = parsed(subtitles(words))
    assert [number for number, *_ in found] == [1, 2, 3, 4]
    assert [lines for *_, lines in found] == [["one two"], ["three four"], ["x" * 50], ["late"]]
    wanted = [(1.0, 2.0), (2.8, 3.8), (3600, 3607), (86399.5, 86400.5)]
    np.testing.assert_allclose([row[1:3] for row in found], wanted, atol=6e-4)
    many = [Timed(f"word{i}", 0.5 * i, 0.5 * i + 0.4) for i in range(100)]
    blocks = parsed(subtitles(many, width=20, longest=4.0))
    assert " ".join(line for *_, lines in blocks for line in lines).split() == [word.text for word in many]
    for (_, begin, end, lines), after in zip(blocks, [*blocks[1:], (0, np.inf)], strict=True):
        assert len(lines) <= 2 and max(map(len, lines)) <= 20 and end - begin <= 4 and begin < end <= after[1]
    assert all(3 < end - begin <= 4 for _, begin, end, _ in parsed(subtitles(many, width=200, longest=4.0))[:-1])
    assert subtitles([]) == ""


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"\(5, 3\), expected \[time, 4\]"):
        beam_search(np.zeros((5, 3)), VOCABULARY)
    with pytest.raises(InputError, match="logits hold NaN"):
        beam_search(np.full((5, 4), np.nan), VOCABULARY)
    with pytest.raises(InputError, match="width is 0"):
        beam_search(np.zeros((5, 4)), VOCABULARY, width=0)
    with pytest.raises(InputError, match="order is 0"):
        ngram(TEXTS, 0)
    with pytest.raises(InputError, match="needs text"):
        ngram([], 2)
