"""Spoken numbers in many languages by many synthetic speakers, made on the spot by eSpeak NG: nothing to download.

With the defaults: languages: 106, one dialect of each, no Semitic one. Speakers: 63 (74 voices, of which those that
are versions of one count as one; every clip has a pitch, a rate and a range of intonation of its own). Labels: 2,489.
Clips: 29,868. Hours: 4.1. Every language reads "17" by its own rules, so that numbers need no word lists;
`pseudowords` adds as many invented words as wanted.

Licence: eSpeak NG is GPL-3.0-or-later; it comes with the optional package `espeakng-loader` and runs in processes of
its own. The licence does not cover the audio that it makes. Official page: https://github.com/espeak-ng/espeak-ng
"""

import hashlib
import importlib.util
import json
import logging
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from itertools import chain, combinations, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from metajax.data.audio import resample
from metajax.data.corpora.files import SPLITS, tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

COUNTS = {"languages": 106, "speakers": 63, "labels": 2489, "clips": 29868}
SEMITIC = ("am", "ar", "he", "mt", "ti")  # whose numbers are near those of Arabic, on which experiments test
NUMBERS = (*range(21), 30, 40, 50, 60, 70, 80, 90, 100, 1000)
# Variants that are no persons (robots, whispers, effects, the bare Klatt synthesiser) or that drag.
UNUSED_VOICES = re.compile(
    r"(Alicia|Andy|AnxiousAndy|Demonic|Lee|Marco|Reed|UniRobot|anikaRobot|announcer|caleb|croak|fast|kaukovalta|klatt"
    r"|robosoft|whisper|whisperf)\d*"
)
PITCHES, RATES, RANGES = (30, 70), (150, 210), (30, 70)  # of clips: 0 to 99, words per minute, 0 to 99

SAMPLE_RATE = 22050  # Hz
_PEAK = 10 ** (-3 / 20)  # -3 dBFS
_FRAME, _FLOOR, _MARGIN = 220, 0.01, 2  # trimming: samples, share of the highest peak, frames kept on both sides
_SLACK = 1.07  # on predicted lengths: of 30,000 clips two were 6 % longer
_LABEL_SHARES, _SPEAKER_SHARES = (0.8, 0.1, 0.1), (0.68, 0.16, 0.16)  # of SPLITS
_KIN = 3  # numbers that two languages read alike, from which on they share a split
_TWINS = {"adam": "edward"}  # a voice that measures like one of another name
_CHUNK = 256  # clips spoken by one child process, which takes 45 ms to start
_INSTALL = "pip install 'metajax[espeak]'"
_LONGEST_PATH = 150  # of the engine's data: from 160 characters on it ends the process

logger = logging.getLogger(__name__)

Wave = Float32[np.ndarray, " samples"]
Clip = tuple[str, str, int, int, int, int]  # eSpeak's voice, text, pitch, rate, range, seed of the noise
Spoken = np.ndarray | str  # trimmed, at 22,050 Hz; or how the engine crashed


def read(
    *,
    languages: Sequence[str] | None = None,
    exclude: Sequence[str] = SEMITIC,
    numbers: Sequence[int] = NUMBERS,
    pseudowords: int = 0,
    clips_per_label: int = 12,
    voices: Sequence[str] | None = None,
    seed: int = 0,
    seconds: float = 1.0,
    workers: int | None = None,
) -> Recordings:
    """List the corpus, which takes seconds; its clips are spoken when they are read.

    The columns are label ("fr:17"), speaker ("annie": a voice, at whatever pitch, rate and range of intonation, or
    voices whose names differ by a digit at the end), language and split; the texts are the phonemes in IPA, without
    stress. Words, languages and speakers of one split occur in no other; languages that read three numbers alike share
    a split.
    Labels of the same phonemes are one, kept once. Words that a language leaves to English or cannot say are left out,
    and so are those that crash the engine or last longer than `seconds`; the log tells how many. The clips are
    trimmed to at most 20 ms of silence at both ends and scaled to a peak of -3 dBFS. The samples of a clip depend on
    nothing but the clip and the build of the engine.

    Args:
        languages: codes such as "fr" or "en-us"; None for the main dialect of every language.
        exclude: languages, with all their dialects, to leave out; () for none.
        numbers: to be read aloud in every language.
        pseudowords: invented words for every language that reads Latin letters by rules of its own.
        clips_per_label: clips of each label, by as many speakers as the split has.
        voices: eSpeak variants; None for all but `UNUSED_VOICES`.
        seed: of the clips, the splits and the invented words.
        seconds: the length that every word must keep within.
        workers: child processes at a time; None for one per core.

    Raises:
        InputError: eSpeak NG is not installed or cannot start, it has no such language or voice, a number is out of
            range, no word is left, or a split has words but no speakers.

    Example:
        ``corpus = metajax.data.corpus.load(read(languages=["de", "sw"]), FeatureSettings(), cache=None)``
    """
    at_least(0, pseudowords=pseudowords, numbers=min(numbers, default=0))
    at_least(1, clips_per_label=clips_per_label)
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}, expected more than 0.")
    job = {"numbers": list(numbers), "pseudowords": pseudowords}
    chosen = (languages, exclude, voices, seed, workers)
    return spoken("espeak", job, *chosen, clips_per_label=clips_per_label, seconds=seconds)


def phonemes(texts: Sequence[str], language: str) -> tuple[str, ...]:
    """How a language reads texts: the engine's own phonemes in IPA, without stress or spaces, as `espeak_phrases` has.

    Args:
        texts: in its letters; "" is given for one that is read in another language.
        language: a code such as "en-us".

    Raises:
        InputError: as `read`.

    Example:
        ``phonemes(["there's iron in all our blood"], "en-us")``
    """
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    job = {"languages": [language], "kin": [], "numbers": [], "seed": 0, "texts": {language: texts}}
    found = json.loads(_run(_find_data(), job)[0])["languages"]
    _check_known("language", [language], found)
    return tuple(unicodedata.normalize("NFC", found[language]["words"].get(text, "")) for text in texts)


def spoken(
    name: str,
    job: dict[str, Any],
    languages: Sequence[str] | None,
    exclude: Sequence[str],
    voices: Sequence[str] | None,
    seed: int,
    workers: int | None,
    *,
    clips_per_label: int = 1,
    seconds: float | None = None,
    written: bool = False,
) -> Recordings:
    """List what a job has the languages say; arguments as in `read`, but:

    Args:
        name: of the corpus; but for "espeak" there are no labels.
        job: what is said: `numbers`, `pseudowords`, `phrases`; see the worker.
        seconds: None for any length.
        written: whether texts are what was written, else phonemes.
    """
    data = _find_data()
    workers = os.cpu_count() or 1 if workers is None else workers
    at_least(1, workers=workers)
    variants = sorted(path.name for path in (data / "voices" / "!v").iterdir())
    _check_known("voice", voices or (), variants)
    voices = sorted({name for name in variants if not UNUSED_VOICES.fullmatch(name)} if voices is None else set(voices))

    listing = json.loads(_run(data, job | {"languages": languages, "kin": NUMBERS, "seed": seed})[0])
    found: dict[str, dict[str, Any]] = listing["languages"]
    _check_known("language", [*(languages or ()), *exclude], found)
    chosen = [code for code in found if code == _base(code)] if languages is None else languages
    chosen = sorted({code for code in chosen if not {code, _base(code)} & set(exclude)})
    if not chosen:
        raise InputError(f"no language is left, expected one that is not in exclude={tuple(exclude)}.")

    pool = ThreadPoolExecutor(workers)
    say = partial(_speak, data, pool)
    words, lost = _distinct({code: found[code]["words"] for code in chosen})
    long: set[tuple[str, str]] = set()
    if seconds is not None:
        lengths = _lengths(say, [(found[code]["voice"], word) for code, word in words], voices)
        long = {word for word, length in zip(words, lengths, strict=True) if length > seconds}
    words = {word: phonemes for word, phonemes in words.items() if word not in long}
    if not words:
        told = "" if seconds is None else f", {len(long)} that crash or last longer than {seconds} s"
        raise InputError(f"no word is left: {lost}{told}.")

    def kindred(a: str, b: str) -> bool:
        pairs = zip(found[a]["kin"].values(), found[b]["kin"].values(), strict=True)
        return _base(a) == _base(b) or sum(one == other != "" for one, other in pairs) >= _KIN

    kin = _groups(chosen, kindred)
    language_split = _split(kin, [code for code, _ in words], _LABEL_SHARES, seed)
    versions = {family(voice): [other for other in voices if family(other) == family(voice)] for voice in voices}
    speaker_split = _split({speaker: speaker for speaker in versions}, list(versions), _SPEAKER_SHARES, seed)
    rows: list[tuple[Any, ...]] = []
    clips: list[Clip] = []
    for (code, word), phonemes in words.items():
        split = language_split[code]
        cast = [speaker for speaker in versions if speaker_split[speaker] == split]
        if not cast:
            raise InputError(f"the {split} split has words, but none of the {len(versions)} speakers.")
        draw = random.Random(f"{seed}:{code}:{word}")
        for speaker in islice(cycle(draw.sample(cast, len(cast))), clips_per_label):
            voice = draw.choice(versions[speaker])
            pitch, rate, span = style = tuple(draw.randint(*ends) for ends in (PITCHES, RATES, RANGES))
            label, text = f"{code}:{word}" if name == "espeak" else None, word if written else phonemes
            clip_name = "{}:{}+{}-p{}-r{}-i{}:{}".format(name, code, voice, *style, word)
            rows.append((label, speaker, code, split, text, clip_name))
            clips.append((f"{found[code]['voice']}+{voice}", word, pitch, rate, span, draw.getrandbits(31)))

    labels, speakers, codes, splits, texts, clip_names = zip(*rows, strict=True)
    columns, names = tabulate({"label": labels, "speaker": speakers, "language": codes, "split": splits})
    counts = ", ".join(f"{len(names[column])} {column}s" for column in ("language", "speaker", "label"))
    logger.info("eSpeak NG: %s, %d clips; left out: %s, %d too long or crashing", counts, len(clips), lost, len(long))
    settings = (listing["version"], _PEAK, _FRAME, _FLOOR, _MARGIN, clips, texts)

    def speak(indices: Sequence[int], sample_rate: int) -> list[np.ndarray | InputError]:
        waves = say([clips[clip] for clip in indices])
        return [finish(sample_rate, wave, clip_names[clip]) for clip, wave in zip(indices, waves, strict=True)]

    digest = hashlib.blake2b(repr(settings).encode()).hexdigest()
    return Recordings(name, clip_names, columns, names, texts, lambda: digest, speak)


def at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} holds {value}, expected at least {least}.")


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            close = get_close_matches(name, known) or sorted(known)[:5]
            raise InputError(f"{name!r} is no {what} of eSpeak NG, expected one such as {', '.join(close)}.")


def _base(language: str) -> str:
    return language.split("-")[0]


def family(voice: str) -> str:
    """Return the name shared by the versions of one voice; m1 to m8 and f1 to f5 are persons of their own."""
    stem = voice.rstrip("0123456789").lower()
    return voice if len(stem) == 1 else _TWINS.get(stem, stem)


def _distinct(readings: dict[str, dict[str, str]]) -> tuple[dict[tuple[str, str], str], str]:
    """Return (language, word) -> phonemes, one for each sound, and what was left out."""
    words: dict[str, tuple[str, str]] = {}
    unread = alike = 0
    for language, word, phonemes in ((code, *pair) for code, reading in readings.items() for pair in reading.items()):
        unread += not phonemes
        alike += phonemes in words
        if phonemes:
            words.setdefault(phonemes, (language, word))
    lost = f"{unread} words not read in their language, {alike} that sound like another"
    return {word: phonemes for phonemes, word in words.items()}, lost


def _lengths(
    say: Callable[[Sequence[Clip]], list[Spoken]], words: Sequence[tuple[str, str]], voices: Sequence[str]
) -> list[float]:
    """Predict how long each (engine's language, word) lasts for the slowest speaker, in seconds; inf if it crashes."""
    rulers = [("gmw/en", "17"), *((f"gmw/en+{voice}", "17") for voice in voices)]
    spoken = say([(voice, text, 50, RATES[0], 50, 0) for voice, text in (*rulers, *words)])
    lengths = [float("inf") if isinstance(wave, str) else len(wave) / SAMPLE_RATE for wave in spoken]
    drag = max(lengths[: len(rulers)]) / lengths[0]
    return [length * drag * _SLACK for length in lengths[len(rulers) :]]


def _groups(items: Sequence[str], same: Callable[[str, str], bool]) -> dict[str, str]:
    """Return the group of each item, named after one member: what is the same is in one, and so on transitively."""
    group = {item: item for item in items}
    for a, b in combinations(items, 2):
        if group[a] != group[b] and same(a, b):
            old = group[b]
            group |= {item: group[a] for item in items if group[item] == old}
    return group


def _split(group: dict[str, str], members: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Return the split of each member: whole groups, larger ones first, each to where most is still missing.

    So large groups are trained on, and what is tested on is of many groups; groups of one size are in random order.
    """
    sizes = Counter(group[member] for member in members)
    order, missing = sorted(sizes), [share * len(members) for share in shares]
    random.Random(f"{seed}:split").shuffle(order)
    order.sort(key=lambda name: -sizes[name])
    place = {}
    for name in order:
        place[name] = missing.index(max(missing))
        missing[place[name]] -= sizes[name]
    return {member: SPLITS[place[group[member]]] for member in members}


def trim(wave: Wave) -> Float32[np.ndarray, " kept"]:
    """Cut the silence at both ends: frames of 10 ms below -40 dB of the peak, but for 20 ms."""
    peaks = np.abs(wave[: len(wave) // _FRAME * _FRAME]).reshape(-1, _FRAME).max(axis=1)
    loud = np.flatnonzero(peaks > _FLOOR * peaks.max(initial=0))
    return wave[max(loud[0] - _MARGIN, 0) * _FRAME : (loud[-1] + 1 + _MARGIN) * _FRAME] if len(loud) else wave[:0]


def finish(sample_rate: int, spoken: Spoken, name: str) -> np.ndarray | InputError:
    if isinstance(spoken, str) or len(spoken) == 0:
        return InputError(f"{name} cannot be spoken: {spoken if isinstance(spoken, str) else 'it is silent'}.")
    wave = resample(spoken, SAMPLE_RATE, sample_rate)
    return wave * np.float32(_PEAK / np.abs(wave).max())


def _find_data() -> Path:
    """Locate the engine's data without importing its package: only the child may."""
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"eSpeak NG is not installed: install it with `{_INSTALL}`.")
    data = Path(next(iter(spec.submodule_search_locations))) / "espeak-ng-data"
    if not (data / "voices" / "!v").is_dir():
        raise InputError(f"eSpeak NG has no voices in {data}: install it again with `{_INSTALL}`.")
    return data


def _speak(data: Path, pool: ThreadPoolExecutor, clips: Sequence[Clip]) -> list[Spoken]:
    chunks = [clips[start : start + _CHUNK] for start in range(0, len(clips), _CHUNK)]
    return list(chain(*pool.map(partial(_speak_chunk, data), chunks)))


def _speak_chunk(data: Path, clips: Sequence[Clip]) -> list[Spoken]:
    spoken: list[Spoken] = []
    while len(spoken) < len(clips):
        answer, crash = _run(data, {"clips": clips[len(spoken) :]})
        place = 0
        while place < len(answer):
            (length,) = struct.unpack_from("<i", answer, place)
            spoken.append(trim(np.frombuffer(answer, "<i2", length, place + 4).astype(np.float32) / 2**15))
            place += 4 + 2 * length
        if crash:  # by the next clip; those after it get a new child
            spoken.append(crash)
    return spoken


def _run(data: Path, job: dict[str, Any]) -> tuple[bytes, str]:
    """Return what one child process answers to a job, and its last words where a signal ended it."""
    with _short(data) as path:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("espeak_worker.py"))]
        job = job | {"site": str(data.parents[1]), "data": path}
        child = subprocess.run(command, check=False, input=json.dumps(job).encode(), capture_output=True)
    if child.returncode == 0:
        return child.stdout, ""
    told = [line for line in child.stderr.decode(errors="replace").splitlines() if not line.startswith(("Trace", " "))]
    words = " / ".join(told[-5:])
    message = f"the eSpeak NG process ended with exit status {child.returncode}, its last words: {words}"
    if "clips" in job and not 0 < child.returncode < 2**31:
        return child.stdout, message
    raise InputError(message)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a path that the engine can hold."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        link = Path(folder) / "data"
        link.symlink_to(path, target_is_directory=True)
        yield str(link)
