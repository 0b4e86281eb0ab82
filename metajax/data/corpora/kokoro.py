"""Words by the voices of Kokoro, a neural synthesiser of 82 million parameters: dozens of persons, any language.

Speakers: as many as there are voices in the folder, 54 in version 1.0. It is given the phonemes that eSpeak NG reads,
so that every voice says the words of any language, with the accent of its own. A clip has a rate of its own.

Licence: Apache-2.0, model and voices (by hexgrad; learned from audio of free licences and synthetic audio). Official
page: https://huggingface.co/hexgrad/Kokoro-82M. The folder holds a `*.onnx` of the model, which ONNX Runtime runs, and
its voices as `voices/*.bin` (510 x 256 float32 each).
"""

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from metajax.data.audio import resample
from metajax.data.corpora import espeak
from metajax.data.corpora.festival import Row, said
from metajax.data.corpus import Recordings
from metajax.errors import InputError

# of the model's 178 symbols those that eSpeak NG uses, each at the place that is its number
SYMBOLS = (
    "                 \u0303ʣʥʦʨᵝ                   ᵊabcdef hijklmnopqrstuvwxyzɑɐɒæ  βɔɕç ɖðʤə ɚɛɜ  ɟ ɡ      ɥ ɨɪʝ"
    "      ɯɰŋɳɲɴø ɸθœ  ɹ ɾɻ ʁɽʂʃʈʧ ʊʋ ʌɣɤ χʎ   ʒʔ       ˈˌː   ʰ ʲ            ᵻ"
)
AS_ONE = {"tʃ": "ʧ", "dʒ": "ʤ", "ts": "ʦ", "dz": "ʣ", "g": "ɡ", "ɫ": "l"}
VOWELS = "aeiouyɑɐɒæɔəɛɜɨɪɯøœʊʌɤᵻ"
RATES = (0.75, 1.25)  # of speech, times as fast
_RATE, _CHUNK = 24000, 16  # Hz, words at a time
_ROWS, _STYLE = 510, 256  # of a voice: styles, one for each number of symbols


def read(
    words: Recordings,
    folder: Path,
    *,
    most: int = 1400,
    clips_per_label: int = 2,
    seed: int = 0,
    workers: int | None = None,
) -> Recordings:
    """List words by Kokoro's voices, drawn for each word; they are spoken when they are read, about a second each.

    The columns are label, speaker and language. Clips are trimmed and scaled as those of `espeak`. One vowel of each is
    stressed, any of them.

    Args:
        words: of `espeak.read`; those with phonemes that the model does not know are left out.
        folder: of the model and its voices.
        most: words drawn.
        clips_per_label: clips of each word, by as many voices.
        seed: of words, voices, rates and stress.
        workers: words at a time; None for one per core.

    Raises:
        InputError: ONNX Runtime is not installed, the folder holds no model or too few voices, a voice is of another
            size, or the model knows no word.

    Example:
        ``more = read(espeak.read(pseudowords=100), Path("kokoro"))``
    """
    if find_spec("onnxruntime") is None:
        raise InputError("ONNX Runtime is not installed: install it with `pip install 'metajax[voices]'`.")
    models, voices = sorted(folder.glob("*.onnx")), {path.stem: path for path in folder.glob("voices/*.bin")}
    if len(models) != 1 or len(voices) < clips_per_label:
        raise InputError(
            f"{folder} holds {len(models)} models *.onnx and {len(voices)} voices voices/*.bin, expected one model and "
            f"at least {clips_per_label} voices."
        )
    for path in voices.values():
        if path.stat().st_size != 4 * _ROWS * _STYLE:
            raise InputError(f"{path} has {path.stat().st_size} bytes, expected {_ROWS} x {_STYLE} float32.")
    if words.texts is None:
        raise InputError(f"{words.name} has no texts, expected the phonemes of its words.")
    labels = [words.names["label"][i] for i in words.columns["label"]]
    spelt = {label: spelling(text) for label, text in zip(labels, words.texts, strict=True)}
    known = sorted(label for label, text in spelt.items() if text and set(text) <= set(SYMBOLS) - {" "})
    if not known:
        raise InputError(f"Kokoro knows the phonemes of none of {len(spelt)} words.")
    draw = random.Random(seed)
    cast = sorted(
        (voice, label)
        for label in draw.sample(known, min(most, len(known)))
        for voice in draw.sample(sorted(voices), clips_per_label)
    )
    rows = [(label, voice, label.partition(":")[0]) for voice, label in cast]
    session = lru_cache(1)(partial(_session, models[0]))
    say = partial(_say, session, voices, spelt, seed)
    model = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (models[0], *voices.values())]
    return said("kokoro", rows, _CHUNK, say, workers, (seed, model, RATES, [spelt[row[0]] for row in rows]))


def spelling(phonemes: str) -> str:
    """Phonemes of eSpeak NG in symbols of the model."""
    for two, one in AS_ONE.items():
        phonemes = phonemes.replace(two, one)
    return phonemes


def _session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _say(
    session: Any, voices: dict[str, Path], spelt: dict[str, str], seed: int, rows: Sequence[Row]
) -> list[np.ndarray | str]:
    found: list[np.ndarray | str] = []
    for label, voice, _ in rows:
        draw, text = random.Random(f"{seed}:{voice}:{label}"), spelt[label]
        vowels = [i for i, symbol in enumerate(text) if symbol in VOWELS]
        place = draw.choice(vowels or [0])
        numbers = [SYMBOLS.index(symbol) for symbol in text[:place] + "ˈ" + text[place:]]
        style = np.fromfile(voices[voice], np.float32).reshape(_ROWS, _STYLE)[len(numbers) - 1]
        tokens, styles, rate = (given.name for given in session().get_inputs())
        given = {
            tokens: np.array([[0, *numbers, 0]]),
            styles: style[None],
            rate: np.array([draw.uniform(*RATES)], np.float32),
        }
        wave = session().run(None, given)[0].ravel()
        found.append(espeak.trim(resample(wave, _RATE, espeak.SAMPLE_RATE)))
    return found
