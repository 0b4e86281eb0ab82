"""Words by the voices of Festival, joined from recorded pieces of real speakers: a second synthesiser, where installed.

Speakers: up to 12, whichever of `VOICES` are installed (on Debian `festival` and packages named `festvox-*`). They say
what eSpeak NG says in their languages, so that a word has both kinds of voices.

Licence: Festival's is of the X11 kind, those of the voices differ; the program runs in processes of its own.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import soundfile

from metajax.data.audio import resample
from metajax.data.corpora import espeak
from metajax.data.corpora.files import tabulate
from metajax.data.corpus import Recordings
from metajax.errors import InputError

_CHUNK = 250  # words spoken by one process, which takes half a second to start
_KEPT = 8  # of such chunks are held in memory at a time
_LONGEST = 20.0  # seconds a word may take to be spoken

Row: TypeAlias = tuple[str, str, str]  # label, speaker, language of a clip

logger = logging.getLogger(__name__)


class Voice(NamedTuple):
    """A voice: the language that it reads, and the encoding of its input."""

    language: str
    encoding: str


VOICES = {
    "kal_diphone": Voice("en", "latin-1"),
    "ked_diphone": Voice("en", "latin-1"),
    "cmu_us_slt_arctic_hts": Voice("en", "latin-1"),
    "lp_diphone": Voice("it", "latin-1"),
    "pc_diphone": Voice("it", "latin-1"),
    "hy_fi_mv_diphone": Voice("fi", "latin-1"),
    "suo_fi_lj_diphone": Voice("fi", "latin-1"),
    "czech_ph": Voice("cs", "iso-8859-2"),
    "czech_dita": Voice("cs", "iso-8859-2"),
    "czech_krb": Voice("cs", "iso-8859-2"),
    "czech_machac": Voice("cs", "iso-8859-2"),
    "upc_ca_ona_hts": Voice("ca", "latin-1"),
}
LANGUAGES = tuple(sorted({voice.language for voice in VOICES.values()}))


def read(labels: Sequence[str], *, workers: int | None = None) -> Recordings:
    """List words by every installed voice of their language; they are spoken when they are read.

    The columns are label, speaker and language. Words that a voice's encoding lacks are left out of its; the log tells
    how many. Clips are trimmed and scaled as those of `espeak`.

    Args:
        labels: such as "it:zuman", those of `espeak.read`; other languages than `LANGUAGES` are left out.
        workers: processes at a time; None for one per core.

    Raises:
        InputError: Festival is not installed, none of its voices is, or none reads any of `labels`.

    Example:
        ``more = read(espeak.read(languages=LANGUAGES, pseudowords=500).names["label"])``
    """
    program = shutil.which("festival")
    if program is None:
        raise InputError("Festival is not installed: the program 'festival' is not found.")
    told = subprocess.run([program, "--pipe"], input=b"(print (voice.list))", capture_output=True, check=False).stdout
    voices = [name for name in VOICES if name in told.decode("latin-1").replace("(", " ").replace(")", " ").split()]
    rows: list[Row] = []
    lost = 0
    for name in voices:
        for label in labels:
            language, _, word = label.partition(":")
            if language == VOICES[name].language:
                clean = word.encode(VOICES[name].encoding, "ignore").decode(VOICES[name].encoding) == word
                lost += not clean
                rows += [(label, name, language)] * (clean and not set(word) & set('"\\'))
    if not rows:
        raise InputError(f"Festival's voices {voices} read none of {len(labels)} labels, expected {LANGUAGES}.")
    logger.info(
        "Festival: %d voices, %d clips; left out: %d words with letters they lack", len(voices), len(rows), lost
    )
    return said("festival", rows, _CHUNK, partial(_say, program), workers)


def said(
    name: str,
    rows: Sequence[Row],
    chunk: int,
    say: Callable[[Sequence[Row]], list[np.ndarray | str]],
    workers: int | None = None,
    key: Sequence[Any] = (),
) -> Recordings:
    """List clips that another synthesiser than eSpeak NG says.

    Args:
        name: of the corpus.
        rows: (label, speaker, language) of each clip, those of a speaker one after another.
        chunk: clips, all of one speaker, that are spoken by one call.
        say: rows -> trimmed waves at eSpeak's sample rate, or why there is none.
        workers: calls at a time; None for one per core.
        key: what else the samples depend on.
    """
    table: dict[str, Sequence[str | None]] = {
        column: [row[i] for row in rows] for i, column in enumerate(("label", "speaker", "language"))
    }
    columns, names = tabulate(table)
    clip_names = tuple(f"{name}:{row[1]}:{row[0]}" for row in rows)
    pool = ThreadPoolExecutor(os.cpu_count() or 1 if workers is None else workers)
    starts = [0] + [i for i in range(1, len(rows)) if rows[i][1] != rows[i - 1][1]] + [len(rows)]
    chunks = [range(k, min(k + chunk, end)) for start, end in pairwise(starts) for k in range(start, end, chunk)]
    home = {i: k for k, chunk in enumerate(chunks) for i in chunk}

    @lru_cache(_KEPT)  # clips are read a few at a time, most often one after the other
    def spoken(k: int) -> Future[list[np.ndarray | str]]:
        return pool.submit(say, [rows[i] for i in chunks[k]])

    def speak(indices: Sequence[int], sample_rate: int) -> list[np.ndarray | InputError]:
        waves = {k: spoken(k) for k in dict.fromkeys(home[i] for i in indices)}
        place = [(i, home[i]) for i in indices]
        return [espeak.finish(sample_rate, waves[k].result()[i - chunks[k][0]], clip_names[i]) for i, k in place]

    digest = hashlib.sha256(repr([*rows, *key]).encode()).hexdigest()
    return Recordings(name, clip_names, columns, names, None, lambda: digest, speak)


def _say(program: str, rows: Sequence[Row]) -> list[np.ndarray | str]:
    """Trimmed waves at eSpeak's sample rate, or why there is none."""
    voice, labels = rows[0][1], [row[0] for row in rows]
    with tempfile.TemporaryDirectory(prefix="festival-") as folder:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(labels))]
        lines = [f"(voice_{voice})"]
        for path, label in zip(paths, labels, strict=True):
            word = label.partition(":")[2]
            said = f'(unwind-protect (utt.synth (Utterance Text "{word}")) nil)'  # what fails leaves no file
            lines.append(f'(let ((u {said})) (if u (utt.save.wave u "{path}" (quote riff))))')
        script = Path(folder) / "say.scm"
        script.write_bytes("\n".join(lines).encode(VOICES[voice].encoding))
        limit = _LONGEST * (1 + len(labels))
        done = subprocess.run([program, "-b", str(script)], capture_output=True, check=False, timeout=limit)
        found: list[np.ndarray | str] = []
        for path in paths:
            if not path.exists():
                found.append(f"Festival failed, exit status {done.returncode}")
                continue
            wave, rate = soundfile.read(path, dtype="float32")
            found.append(espeak.trim(resample(wave, rate, espeak.SAMPLE_RATE)))
    return found
