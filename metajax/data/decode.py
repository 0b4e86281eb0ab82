"""Decoding on the host: prefix beam search with a language model, alignment of a transcript, and times of words."""

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from metajax.data.features import FeatureSettings
from metajax.data.text import SPACE, Vocabulary, decode
from metajax.errors import InputError

_START, _END = "<s>", "</s>"


class LanguageModel(NamedTuple):
    """How likely text is, in nats.

    Fields:
      log_p: (what came before in the sentence, the next unit or `</s>`) -> its log probability.
      unit: "word" or "character", what the texts are cut into.
    """

    log_p: Callable[[tuple[str, ...], str], float]
    unit: Literal["word", "character"]


class Hypothesis(NamedTuple):
    """One result of beam search."""

    text: str
    tokens: tuple[int, ...]
    score: float  # what was maximised, in nats
    log_likelihood: float  # of the tokens under CTC, in nats; of the paths that the beam kept


class Timed(NamedTuple):
    """A token or a word, and when it was said, in seconds."""

    text: str
    start: float
    end: float


def ngram(texts: Iterable[str], order: int, unit: Literal["word", "character"] = "word") -> LanguageModel:
    """An n-gram model with Witten and Bell's interpolation, the ends of sentences included.

    p(w | h) = (count(h w) + types(h) p(w | h')) / (count(h) + types(h)), h' being h without its first unit, and at
    last 1 / (units + 2) for each unit seen, the end and, all together, what was never seen.

    Args:
      texts: to count, normalised as the recogniser's.
      order: units, the one predicted counted.
      unit: "word", parted by spaces, or "character".

    Raises:
      InputError: `order` is below 1, the unit is unknown, or there is no text.

    Reference: Witten, Bell, "The Zero-Frequency Problem", IEEE Transactions on Information Theory 1991.
    """
    if order < 1 or unit not in ("word", "character"):
        raise InputError(f"order is {order} and unit {unit!r}, expected 1 or more and 'word' or 'character'.")
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for text in texts:
        units = [_START] * (order - 1) + (text.split() if unit == "word" else list(text)) + [_END]
        for i in range(order - 1, len(units)):
            for before in range(order):
                counts[tuple(units[i - before : i])][units[i]] += 1
    if not counts:
        raise InputError("A language model needs text, found none.")
    base = 1 / (len(counts[()]) + 1)
    sums = {history: (sum(after.values()), len(after)) for history, after in counts.items()}

    def probability(history: tuple[str, ...], unit: str) -> float:
        lower = probability(history[1:], unit) if history else base
        if history not in sums:
            return lower
        total, types = sums[history]
        return (counts[history][unit] + types * lower) / (total + types)

    def log_p(history: tuple[str, ...], unit: str) -> float:
        known = ((_START,) * (order - 1) + history)[len(history) :] if order > 1 else ()
        return math.log(probability(known, unit))

    return LanguageModel(log_p, unit)


def beam_search(
    logits: Float[np.ndarray, "time vocabulary"],
    vocabulary: Vocabulary,
    *,
    width: int = 16,
    model: LanguageModel | None = None,
    weight: float = 0.5,
    bonus: float = 0.0,
    least: float = -12.0,
) -> list[Hypothesis]:
    """The transcripts of largest log p(tokens) + weight log p(text) + bonus * units, by prefix beam search.

    The probability of a prefix is the sum over its paths. A word enters the language model once a space follows it.
    Of a vocabulary of phonemes each is a unit, and so is the `|` between words.

    Args:
      logits: scores of one utterance, as `ctc` takes them; certain blanks past its end change nothing.
      vocabulary: what the outputs stand for.
      width: prefixes kept after every frame.
      model: of the text; None for none.
      weight: of the language model.
      bonus: nats for each unit of it, which its weight would else make rare.
      least: tokens of lower log probability at a frame are not tried there; -inf tries all.

    Returns:
      At most `width` hypotheses, the best first.

    Raises:
      InputError: `width` is below 1, or the logits are not those of the vocabulary, or none.

    Reference: Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent
    DNNs", 2014.
    """
    if width < 1:
        raise InputError(f"width is {width}, expected 1 or more.")
    if logits.ndim != 2 or logits.shape[1] != len(vocabulary.tokens):
        raise InputError(f"logits have shape {logits.shape}, expected [time, {len(vocabulary.tokens)}].")
    if np.isnan(logs := _log_softmax(logits)).any():
        raise InputError("logits hold NaN, or a frame without any that is finite, expected scores.")
    advance, finish = _prior(vocabulary, model, weight, bonus)
    beam: dict[tuple[int, ...], _Prefix] = {(): _Prefix(0.0, -math.inf, _Said((), "", 0.0))}
    for row in logs:
        blank, tried = float(row[0]), [(int(k), float(row[k])) for k in np.flatnonzero(row > least) if k]
        after: dict[tuple[int, ...], _Prefix] = {}

        def add(tokens: tuple[int, ...], quiet: float, loud: float, said: _Said, after: dict = after) -> None:
            if old := after.get(tokens):
                quiet, loud = _add(old.quiet, quiet), _add(old.loud, loud)
            after[tokens] = _Prefix(quiet, loud, said)

        for tokens, (quiet, loud, said) in beam.items():
            either = _add(quiet, loud)
            add(tokens, either + blank, loud + float(row[tokens[-1]]) if tokens else -math.inf, said)
            for token, log in tried:
                before = quiet if tokens and tokens[-1] == token else either
                longer = (*tokens, token)
                known = after.get(longer) or beam.get(longer)
                add(longer, -math.inf, before + log, known.said if known else advance(said, token))
        ranked = sorted(after.items(), key=lambda item: -_add(item[1].quiet, item[1].loud) - item[1].said.score)
        beam = dict(ranked[:width])
    found = [(tokens, _add(quiet, loud), finish(said)) for tokens, (quiet, loud, said) in beam.items()]
    made = [Hypothesis(decode(vocabulary, t), t, log + prior, log) for t, log, prior in found if log > -math.inf]
    return sorted(made, key=lambda hypothesis: -hypothesis.score)


def align(
    logits: Float[np.ndarray, "time vocabulary"], tokens: Sequence[int]
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """The first frame of each token, and the one after its last, on the most likely path that gives `tokens`.

    Raises:
      InputError: there is no such path.
    """
    logs = _log_softmax(logits)
    places = np.zeros(2 * len(tokens) + 1, int)
    places[1::2] = tokens
    jump = np.zeros(len(places), bool)
    jump[2:] = (places[2:] != 0) & (places[2:] != places[:-2])
    best, back = np.full(len(places), -np.inf), np.zeros((len(logs), len(places)), int)
    best[0] = 0.0
    for t, row in enumerate(logs):
        one = np.concatenate([[-np.inf], best[:-1]]) if len(places) > 1 else np.full(1, -np.inf)
        two = np.where(jump, np.concatenate([[-np.inf] * 2, best[:-2]])[: len(places)], -np.inf)
        ways = np.stack([best, one, two])
        back[t] = ways.argmax(0)
        best = ways.max(0) + row[places]
    place = len(places) - 1 - int(len(places) > 1 and best[-2] > best[-1])
    if not best[place] > -np.inf:
        raise InputError(f"{len(tokens)} tokens have no alignment with {len(logs)} frames.")
    path = np.zeros(len(logs), int)
    for t in range(len(logs) - 1, -1, -1):
        path[t] = place
        place -= back[t, place]
    spans = [np.flatnonzero(path == 2 * i + 1) for i in range(len(tokens))]
    return np.array([s[0] for s in spans], np.int32), np.array([s[-1] + 1 for s in spans], np.int32)


def words_with_times(
    vocabulary: Vocabulary,
    tokens: Sequence[int],
    first: Sequence[int],
    last: Sequence[int],
    settings: FeatureSettings,
    stride: int = 4,
) -> list[Timed]:
    """The words of an utterance and when they were said, from the frames of their tokens.

    Where tokens stand apart by spaces, and none is `|`, each is a word.

    Args:
      vocabulary: what the tokens stand for.
      tokens: of one utterance.
      first: frame of each, of the recogniser's output.
      last: the frame after its last.
      settings: of the features.
      stride: feature frames to one of the output.
    """
    seconds = stride * settings.hop / settings.sample_rate
    single = vocabulary.unit == "phoneme" and SPACE not in vocabulary.tokens
    words: list[tuple[list[int], float, float]] = []
    fresh = True
    for token, start, end in zip(tokens, first, last, strict=True):
        if vocabulary.tokens[token] == SPACE:
            fresh = True
            continue
        if fresh or single:
            words.append(([], start * seconds, 0.0))
        words[-1] = ([*words[-1][0], token], words[-1][1], end * seconds)
        fresh = False
    return [Timed(decode(vocabulary, word), start, end) for word, start, end in words]


class Heard(NamedTuple):
    """What is said in a recording, and when."""

    text: str
    words: tuple[Timed, ...]
    tokens: tuple[Timed, ...]  # `|` for a space


def timed_text(
    vocabulary: Vocabulary,
    logits: Sequence[np.ndarray],
    starts: Sequence[float],
    settings: FeatureSettings,
    stride: int = 4,
    search: Callable[[Float[np.ndarray, "time vocabulary"]], Sequence[int]] | None = None,
) -> Heard:
    """What is said in the pieces of one recording, by the best path or a search, with times.

    Args:
      vocabulary: what the outputs stand for.
      logits: of each piece `[time, vocabulary]`, those of its own frames.
      starts: of the pieces, in seconds.
      settings: of the features.
      stride: feature frames to one of the output.
      search: the tokens of one piece; None for the likeliest of every frame, repetitions merged, blanks left out.

    Example:
      ``timed_text(known, logits, starts, settings, search=lambda one: beam_search(one, known)[0].tokens)``
    """
    texts, words, tokens = [], [], []
    seconds = stride * settings.hop / settings.sample_rate
    for piece, start in zip(logits, starts, strict=True):
        found = (best_path if search is None else search)(piece)
        first, last = align(piece, found)
        texts.append(decode(vocabulary, found))
        timed = words_with_times(vocabulary, found, first.tolist(), last.tolist(), settings, stride)
        words += [Timed(word, start + a, start + b) for word, a, b in timed]
        rows = zip(found, first.tolist(), last.tolist(), strict=True)
        tokens += [Timed(vocabulary.tokens[k], start + a * seconds, start + b * seconds) for k, a, b in rows]
    return Heard(" ".join(text for text in texts if text), tuple(words), tuple(tokens))


def best_path(logits: Float[np.ndarray, "time vocabulary"]) -> list[int]:
    """The likeliest token of every frame, repetitions merged, blanks left out: `losses.ctc.greedy` on the host."""
    best = logits.argmax(-1)
    return [int(k) for k in best[(best != 0) & (np.diff(best, prepend=0) != 0)]]


def subtitles(words: Sequence[Timed], *, width: int = 42, pause: float = 0.8, longest: float = 6.0) -> str:
    """Words as a SubRip file (SRT): at most two lines at a time, shown for a second at least where there is room.

    Args:
      words: in order, such as those of `timed_text`.
      width: characters of a line; a longer word is not broken.
      pause: seconds without a word that end a subtitle.
      longest: seconds that one is shown, unless a single word lasts longer.
    """
    groups: list[list[Timed]] = []
    for word in words:
        old = groups[-1] if groups else None
        fits = old and len(_lines([*old, word], width)) <= 2 and word.end - old[0].start <= longest
        if old and fits and word.start - old[-1].end < pause:
            old.append(word)
        else:
            groups.append([word])
    blocks = []
    for i, group in enumerate(groups):
        begin, end = group[0].start, max(group[-1].end, group[0].start + 1)
        if i + 1 < len(groups):
            end = max(min(end, groups[i + 1][0].start), group[-1].end)
        lines = "\n".join(_lines(group, width))
        blocks.append(f"{i + 1}\n{_clock(begin)} --> {_clock(end)}\n{lines}\n")
    return "\n".join(blocks)


def _lines(words: Sequence[Timed], width: int) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _clock(seconds: float) -> str:
    rest, ms = divmod(round(1000 * seconds), 1000)
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02},{ms:03}"


def _log_softmax(logits: Float[np.ndarray, "time vocabulary"]) -> Float[np.ndarray, "time vocabulary"]:
    x = np.asarray(logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class _Said(NamedTuple):
    """What the language model knows of a prefix."""

    units: tuple[str, ...]
    begun: str  # of a word that no space has ended, or a space that nothing has followed
    score: float


class _Prefix(NamedTuple):
    """Log probabilities of a prefix of the beam."""

    quiet: float  # of the paths that end in a blank
    loud: float  # of those that end in its last token
    said: _Said


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def _prior(
    vocabulary: Vocabulary, model: LanguageModel | None, weight: float, bonus: float
) -> tuple[Callable[[_Said, int], _Said], Callable[[_Said], float]]:
    """How a token changes what the language model adds to a prefix, and what it adds to a whole transcript."""
    if model is None:
        return lambda said, token: said, lambda said: 0.0
    texts = [decode(vocabulary, [i]) for i in range(len(vocabulary.tokens))]
    by_word = model.unit == "word" and vocabulary.unit == "character"

    def grown(said: _Said, unit: str) -> _Said:
        score = said.score + weight * model.log_p(said.units, unit) + bonus
        return _Said((*said.units, unit), "", score)

    def advance(said: _Said, token: int) -> _Said:
        if vocabulary.unit == "character" and vocabulary.tokens[token] == SPACE:
            if by_word:
                return grown(said, said.begun) if said.begun else said
            return said._replace(begun=" " if said.units else "")
        if by_word or not texts[token]:
            return said._replace(begun=said.begun + texts[token])
        return grown(grown(said, " ") if said.begun else said, texts[token])

    def finish(said: _Said) -> float:
        said = grown(said, said.begun) if said.begun and by_word else said
        return said.score + weight * model.log_p(said.units, _END)

    return advance, finish
