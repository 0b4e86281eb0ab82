"""Strings of words joined from recordings of single ones, by speaker: sentences of a corpus that has none.

Licence, speakers and words: those of the recordings that are joined.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from metajax.data.corpora import read
from metajax.data.corpora.fsdd import DIGITS
from metajax.data.corpus import Recordings
from metajax.data.features import FeatureSettings
from metajax.errors import InputError

SAYS = dict(zip(DIGITS, DIGITS, strict=True))
_ARABIC = ("صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة")
SAYS_ARABIC = dict(zip(DIGITS, _ARABIC, strict=True))
NUMERALS = {digit: str(i) for i, digit in enumerate(DIGITS)}  # which every language reads by rules of its own
# spoken digits: what is written for each label; the upper edge of the mel bands in Hz; options of the reader
_ENGLISH = {f"en:{number}": word for number, word in enumerate(DIGITS)}
_SPOKEN: dict[str, tuple[dict[str, str], float, dict[str, Any]]] = {
    "espeak": (_ENGLISH, 7600.0, {"languages": ["en"], "numbers": range(10), "clips_per_label": 129}),
    "arabic": (SAYS_ARABIC, 7600.0, {}),
    "fsdd": (SAYS, 3800.0, {}),
}
_FRAME, _MARGIN = 0.01, 2  # trimming: seconds, and frames kept on both sides


class _Word(NamedTuple):
    clip: int
    gap: float  # seconds to the word before; negative where they overlap
    level: float  # dB of its peak


def joined(
    recordings: Recordings,
    says: Mapping[str, str],
    *,
    strings: int = 50,
    words: tuple[int, int] = (3, 8),
    gaps: tuple[float, float] = (-0.03, 0.25),
    levels: tuple[float, float] = (-9.0, -3.0),
    fade: float = 0.03,
    trim: float = -30.0,
    halves: bool = False,
    seed: int = 0,
) -> Recordings:
    """Strings of words of one speaker each, drawn evenly among words, then among the speaker's clips.

    Words lose the silence at their ends, get a level, fade in and out, and follow one another after a gap; where that
    is negative they cross over. The samples of a string depend on nothing but the recordings and the arguments.

    Args:
        recordings: of single words, with speakers.
        says: what is written for each label that may occur, e.g. `SAYS`, `SAYS_ARABIC` or `NUMERALS`.
        strings: for each speaker.
        words: the fewest and the most in a string.
        gaps: the shortest and the longest, in seconds; also before the first word and after the last, there 0 or more.
        levels: of a word's peak, the lowest and the highest, in dB of full scale.
        fade: of a word's ends, linear, in seconds.
        trim: in dB of a word's loudest 10 ms; quieter ends are silence.
        halves: divide each speaker's clips of every word in two at random; a string is of one half's clips, by turns,
            which the column `half` tells: support and query of different halves share no recording.
        seed: of the draw.

    Returns:
        Recordings with texts; of the columns what all clips of a string share, else -1; labels are all -1.

    Raises:
        InputError: a range is reversed, no speaker says a word of `says`, or there is one clip of a word to halve.

    Example:
        ``strings = joined(read("fsdd", root), SAYS)``
    """
    for name, (low, high), least in (("words", words, 1), ("gaps", gaps, -math.inf), ("levels", levels, -math.inf)):
        if not least <= low <= high:
            more = ", 1 or more" if least == 1 else ""
            raise InputError(f"{name} is {(low, high)}, expected the lowest first{more}.")
    label, speaker = recordings.columns["label"], recordings.columns["speaker"]
    known: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for clip, (one, who) in enumerate(zip(label, speaker, strict=True)):
        if who >= 0 and one >= 0 and recordings.names["label"][one] in says:
            known[int(who)][recordings.names["label"][one]].append(clip)
    if not known:
        raise InputError(f"{recordings.name}: no speaker says any of {', '.join(says)}.")
    plan: list[list[_Word]] = []
    for who, clips in sorted(known.items()):
        name = recordings.names["speaker"][who]
        draw, pools = random.Random(f"{seed}:{name}"), [clips]
        if halves:
            if single := [word for word, of_word in sorted(clips.items()) if len(of_word) < 2]:
                raise InputError(f"{recordings.name}: halves need two clips, but {name} says {single[0]!r} once.")
            mixed = {word: draw.sample(of_word, len(of_word)) for word, of_word in sorted(clips.items())}
            pools = [{word: of_word[half::2] for word, of_word in mixed.items()} for half in (0, 1)]
        for string in range(strings):
            pool = pools[string % len(pools)]
            chosen = [draw.choice(pool[draw.choice(sorted(pool))]) for _ in range(draw.randint(*words))]
            plan.append([_Word(clip, draw.uniform(*gaps), draw.uniform(*levels)) for clip in chosen])
    ends = random.Random(f"{seed}:ends")
    tails = [max(ends.uniform(*gaps), 0.0) for _ in plan]

    def read(indices: Sequence[int], sample_rate: int) -> Iterator[np.ndarray | InputError]:
        # all clips by one call: eSpeak starts a process for each
        clips = sorted({word.clip for string in indices for word in plan[string]})
        found = dict(zip(clips, recordings.read(clips, sample_rate), strict=True))
        for string in indices:
            read = [found[word.clip] for word in plan[string]]
            waves = [wave for wave in read if not isinstance(wave, InputError)]
            bad = [wave for wave in read if isinstance(wave, InputError)]
            yield bad[0] if bad else _join(plan[string], waves, tails[string], sample_rate, fade, trim)

    def digest() -> str:
        return hashlib.blake2b(repr((recordings.digest(), plan, tails, fade, trim, texts)).encode()).hexdigest()

    members = [np.array([word.clip for word in string]) for string in plan]
    texts = tuple(" ".join(says[recordings.names["label"][label[clip]]] for clip in clips) for clips in members)

    def shared(column: np.ndarray) -> np.ndarray:
        return np.array([column[c[0]] if (column[c] == column[c[0]]).all() else -1 for c in members], np.int32)

    columns = {name: shared(column) for name, column in recordings.columns.items()}
    columns["label"] = np.full(len(plan), -1, np.int32)
    names_of = dict(recordings.names)
    if halves:
        columns["half"] = np.arange(len(plan), dtype=np.int32) % strings % 2
        names_of["half"] = ("first", "second")
    people = [recordings.names["speaker"][who] for who in columns["speaker"]]
    names = tuple(f"{recordings.name}:{name}:{i % strings}" for i, name in enumerate(people))
    return Recordings(f"{recordings.name}_joined", names, columns, names_of, texts, digest, read)


def digits(
    name: Literal["espeak", "arabic", "fsdd"], root: Path | None = None, **how: Any
) -> tuple[Recordings, FeatureSettings]:
    """Strings of digits joined from a corpus of single ones, and settings of the features for its bandwidth.

    Args:
        name: of the corpus; eSpeak's 43 voices that say English need no folder.
        root: its folder.
        how: passed to `joined`, such as `strings` and `words`.

    Raises:
        InputError: there is no such corpus, as `read`, or as `joined`.
    """
    if name not in _SPOKEN:
        raise InputError(f"The corpus is {name!r}, expected one of {', '.join(_SPOKEN)}.")
    says, high, options = _SPOKEN[name]
    return joined(read(name, root, **options), says, **how), FeatureSettings(high=high)


def _join(
    words: Sequence[_Word], waves: Sequence[np.ndarray], tail: float, rate: int, fade: float, trim: float
) -> Float32[np.ndarray, " samples"]:
    parts: list[tuple[int, np.ndarray]] = []
    at = end = 0
    for word, wave in zip(words, waves, strict=True):
        wave = _trimmed(np.asarray(wave, np.float32), rate, trim)
        ramp = np.minimum(1, (np.arange(len(wave)) + 0.5) / max(fade * rate, 1))
        wave = wave * ramp * ramp[::-1] * (10 ** (word.level / 20) / max(np.abs(wave).max(initial=0), 1e-9))
        # no further back than the word before began
        at = max(end + round(word.gap * rate), at if parts else 0)
        parts.append((at, wave))
        end = max(end, at + len(wave))
    joined = np.zeros(end + round(tail * rate), np.float32)
    for at, wave in parts:
        joined[at : at + len(wave)] += wave
    return joined


def _trimmed(wave: np.ndarray, rate: int, trim: float) -> np.ndarray:
    """The wave without the frames at its ends that are quieter than `trim` dB of the loudest, but for a margin."""
    size = round(_FRAME * rate)
    if len(wave) < size:
        return wave
    power = np.square(wave[: len(wave) // size * size].reshape(-1, size)).sum(1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (trim / 10))
    return wave[max(loud[0] - _MARGIN, 0) * size : (loud[-1] + 1 + _MARGIN) * size]
