"""Words by every synthesiser that is there, as one set of clips: eSpeak NG's voices, and those of real speakers."""

import shutil
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Int

from metajax.data import cache
from metajax.data.corpora import festival, kokoro, pico
from metajax.data.corpus import Recordings, load
from metajax.data.features import FeatureSettings
from metajax.errors import InputError


class Heard(NamedTuple):
    """Log-mels of many clips in half precision, and of each what it says, by whom, and by which synthesiser."""

    x: Float16[np.ndarray, "clips time mel"]
    label: np.ndarray
    speaker: np.ndarray
    engine: np.ndarray


def made_from_speakers(
    plain: Sequence[Recordings], *, installed: bool | None = None, model: Path | None = None, seed: int = 0
) -> list[Recordings]:
    """What synthesisers whose voices are made from real speakers say of the words of eSpeak NG.

    Args:
        plain: of `espeak.read`. Festival says the words of the last, SVOX Pico those of all, Kokoro those of the first.
        installed: whether Festival and Pico speak; None: each where it is installed.
        model: folder of Kokoro's model and voices; None for not.
        seed: of Kokoro's words and voices.
    """
    said = []
    if shutil.which("festival") if installed is None else installed:
        said.append(festival.read(plain[-1].names["label"]))
    if find_spec("ttspico") if installed is None else installed:
        said.append(pico.read(list(dict.fromkeys(label for one in plain for label in one.names["label"]))))
    if model:
        said.append(kokoro.read(plain[0], model, seed=seed))
    return said


def listened(recordings: Sequence[Recordings], settings: FeatureSettings, folder: Path | None) -> Heard:
    """All clips, one corpus after the other; features are cached in `folder`."""
    pieces = []
    for one in recordings:
        corpus = load(one, settings, cache=folder, on_error="skip")
        label, speaker = (np.array(corpus.names[name])[corpus.columns[name]] for name in ("label", "speaker"))
        pieces.append(Heard(np.asarray(corpus.features, np.float16), label, speaker, np.full(len(label), one.name)))
    return joined(pieces)


def joined(pieces: Sequence[Heard]) -> Heard:
    """The clips of one after the other; of none, none."""
    pieces = [one for one in pieces if len(one.x)]
    if not pieces:
        return Heard(np.zeros((0, 0, 0), np.float16), *[np.zeros(0, str)] * 3)
    return Heard(*map(np.concatenate, zip(*pieces, strict=True)))


def once(path: Path | None, key: str, hear: Callable[[], Heard]) -> Heard:
    """What a file keeps; where there is none, what is heard, which it then keeps for a machine that cannot hear it.

    Args:
        path: of the file; None for none.
        key: what was asked for, in words that a message can show.
        hear: what is kept.

    Raises:
        InputError: the file holds something else, or was made for another key; or nothing was heard, and nothing kept.
    """
    if path is None:
        return hear()
    arrays = cache.read(path)
    if arrays is None:
        heard = hear()
        if not len(heard.x):
            raise InputError(f"{path} is not there and nothing speaks that it could keep, expected the file.")
        cache.write(path, heard._asdict() | {"key": np.array(key)})
        return heard
    if {*arrays} != {*Heard._fields, "key"}:
        raise InputError(f"{path} holds {', '.join(arrays)}, expected what synthesisers said, as `once` keeps it.")
    if (old := str(arrays.pop("key"))) != key:
        raise InputError(f"{path} was made with {old}, expected {key}.")
    return Heard(**arrays)


def told(heard: Heard) -> str:
    """Such as "412 by 12 voices of festival, 60 by 6 voices of pico"."""
    engines = dict.fromkeys(heard.engine.tolist())
    voices = {name: len(np.unique(heard.speaker[heard.engine == name])) for name in engines}
    return ", ".join(f"{(heard.engine == name).sum()} by {count} voices of {name}" for name, count in voices.items())


def columns_of(heard: Heard, unheard: Collection[str] = ()) -> dict[str, Int[np.ndarray, " clips"]]:
    """Label, of `unheard` words -1, and speaker by numbers, and `real`: 1 where a voice is made from a real speaker."""
    columns = {name: np.unique(getattr(heard, name), return_inverse=True)[1] for name in ("label", "speaker")}
    columns["label"][np.isin(heard.label, list(unheard))] = -1
    return columns | {"real": (heard.engine != "espeak").astype(int)}
