"""Words by SVOX Pico's six voices, each made from a real speaker's recordings: a further synthesiser, where installed.

Speakers: six, by language variant ("pico en-GB"). They say what eSpeak NG says in their languages, each word at a pitch
and a rate of its own.

Licence: Apache-2.0, engine and voices; they come with the optional package `ttspico`.
"""

import random
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from metajax.data.audio import resample
from metajax.data.corpora import espeak
from metajax.data.corpora.festival import Row, said
from metajax.data.corpus import Recordings
from metajax.errors import InputError

VOICES = {"en-GB": "en", "en-US": "en", "de-DE": "de", "es-ES": "es", "fr-FR": "fr", "it-IT": "it"}
LANGUAGES = tuple(sorted(set(VOICES.values())))
PITCHES, RATES = (70, 150), (75, 130)  # percent
_RATE, _CHUNK = 16000, 64  # Hz, words at a time


def read(labels: Sequence[str], *, seed: int = 0) -> Recordings:
    """List words by every voice of their language; they are spoken when they are read.

    The columns are label, speaker and language. Clips are trimmed and scaled as those of `espeak`.

    Args:
        labels: such as "it:zuman", those of `espeak.read`; other languages than `LANGUAGES` are left out.
        seed: of pitches and rates.

    Raises:
        InputError: Pico is not installed, or none of its voices reads any of `labels`.

    Example:
        ``more = read(espeak.read(languages=LANGUAGES, pseudowords=500).names["label"])``
    """
    if find_spec("ttspico") is None:
        raise InputError("SVOX Pico is not installed: install it with `pip install 'metajax[voices]'`.")
    rows = [
        (label, f"pico {voice}", language)
        for voice, language in VOICES.items()
        for label in labels
        if label.partition(":")[0] == language
    ]
    if not rows:
        raise InputError(f"Pico's voices read none of {len(labels)} labels, expected {LANGUAGES}.")
    return said("pico", rows, _CHUNK, partial(_say, {}, seed), 1, (seed, PITCHES, RATES))


def _say(engines: dict[str, Any], seed: int, rows: Sequence[Row]) -> list[np.ndarray | str]:
    import ttspico

    found: list[np.ndarray | str] = []
    for label, speaker, _ in rows:
        voice, draw = speaker.partition(" ")[2], random.Random(f"{seed}:{speaker}:{label}")
        engine = engines.get(voice) or engines.setdefault(voice, ttspico.TtsEngine(voice))
        engine.pitch, engine.rate = draw.randint(*PITCHES), draw.randint(*RATES)
        wave = np.frombuffer(engine.speak(label.partition(":")[2]) or b"", "<i2").astype(np.float32) / 2**15
        found.append(espeak.trim(resample(wave, _RATE, espeak.SAMPLE_RATE)) if len(wave) else "nothing was spoken")
    return found
