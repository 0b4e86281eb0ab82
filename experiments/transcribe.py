"""What is said in these recordings, by a recogniser that may adapt to them first?

    python experiments/transcribe.py                                          # a demo, which speaks for itself
    python experiments/transcribe.py TALK.mp3 --theta RUN/recognisers/seed0/FOMAML --adapt FOLDER
    python experiments/transcribe.py *.wav --theta RUN/recognisers/seed0/SUTA --adapt-unlabelled --format txt json srt

RUN is a folder of `speaker_adaptation.py`, whose recognisers know how they adapt: what of them, by which error, how
far. With `--adapt` they adapt once to recordings with text, in any layout that `corpora.read("auto")` knows; with
`--adapt-unlabelled` to each recording itself, anew for each. Recordings longer than what a recogniser was trained on
are split at silences. Prints text, times and milliseconds, and writes the formats that are asked for. Without
arguments it trains a recogniser of English digits on synthetic voices for a minute, which it keeps, and then hears a
voice that it does not know.
"""

import json
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import soundfile
from tyro.conf import Positional

import metajax as mj
from metajax import checkpoint, recipes, report, runs
from metajax.data import corpora
from metajax.data.cache import default_folder
from metajax.data.corpora.files import read_text
from metajax.data.corpora.fsdd import DIGITS
from metajax.data.corpora.joined import joined
from metajax.data.decode import beam_search, ngram, subtitles
from metajax.data.speech import held_out, load_speech, read_pieces, speakers
from metajax.data.text import NORMALIZERS, Vocabulary
from metajax.models.saved import ERRORS, Ready, Way, judging, load_recogniser, ready, save_recogniser, trained_on
from metajax.parallel import use_all_cores

BLIND = Way("suta", "film", 1e-3, 10, adam=True)  # for a recogniser that was not trained to adapt without text
LABELLED = Way("text", "all", 0.03, 5)  # or with text


@dataclass(frozen=True)
class Settings:
    audio: Positional[tuple[Path, ...]] = ()  # recordings: WAV, FLAC, OGG or MP3 of any rate
    theta: Path | None = None  # folder of a recogniser
    adapt: Path | None = None  # recordings with text to adapt to, a folder or a list
    adapt_unlabelled: bool = False  # adapt to each recording, without text
    error: Literal["text", "suta", "entropy", "pseudo-labels", "learned"] | None = None  # None: the trained one
    rate: float | None = None  # of adaptation, in place of the recogniser's own
    steps: int | None = None  # of adaptation, likewise
    most: float = 30.0  # seconds of speech to adapt to, the first ones; no recording of `adapt` may be longer
    on_error: Literal["raise", "skip"] = "raise"  # what to do with recordings of `adapt` that cannot be used
    beam: int = 0  # width of the beam search; 0 for the best path
    lm: Path | None = None  # text of a language model of words for the beam, a sentence a line
    order: int = 3  # words that it looks at
    weight: float = 0.5  # of its log probabilities
    format: tuple[Literal["txt", "json", "srt"], ...] = ()  # files to write
    out: Path = Path("runs/transcribe")  # folder for them
    overwrite: bool = False  # whether files that are there may be replaced
    seconds: float = 60.0  # of training, for the demo
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs


def way_of(s: Settings, own: Way) -> Way:
    """How to adapt: as the recogniser was trained to, or as the settings say."""
    if s.error is not None and (s.error == "text") == s.adapt_unlabelled:
        raise mj.InputError(f"error is {s.error!r}, expected {'another' if s.adapt_unlabelled else 'text'}.")
    if (own.error == "text") != s.adapt_unlabelled and s.error in (None, own.error):
        way = own
    else:
        way = BLIND._replace(error=s.error or "suta") if s.adapt_unlabelled else LABELLED
        print(f"The recogniser was trained to adapt otherwise ({own.error}): what adapts, rate and steps are guesses.")
    return way._replace(rate=way.rate if s.rate is None else s.rate, steps=s.steps or way.steps)


def demo(s: Settings) -> tuple[Path, tuple[Path, ...]]:
    """A recogniser of English digits, trained unless it is there, and a recording by a voice that it has not heard."""
    folder, spoken, rate = s.out / "digits", s.out / "spoken.wav", 16000
    if (folder / "recogniser.json").exists() and spoken.exists():
        print(f"The demo's recogniser is in {folder}; remove it and it is trained anew.")
        return folder, (spoken,)
    print(f"No recogniser is given: one for English digits is trained for {s.seconds:g} s on synthetic voices.")
    runs.check(s, ("espeak",))
    words = corpora.read("espeak", languages=["en"], numbers=range(10), clips_per_label=86)
    waves = list(words.read(range(len(words.clip_names)), rate))
    words = words._replace(read=lambda clips, rate: [waves[clip] for clip in clips])
    strings = joined(words, {f"en:{i}": digit for i, digit in enumerate(DIGITS)}, strings=30, words=(2, 5))
    speech, key = load_speech(strings, unit="phoneme", cache=None), jax.random.key(0)
    network = {"width": 0.5, "num_layers": 2}
    known, _, unheard = held_out(speech, "speaker", (0, 4))
    model, sample = judging(network, speech.vocabulary), speakers(speech, values=known, shots=1, queries=9)
    fitted = recipes.meta_train(
        [(1.0, mj.joint(model.apply, ERRORS["text"]).objective)], {"params": recipes.fresh(model.init, sample, key)},
        sample, key, 500, optimizer=recipes.adamw(4e-3), chunk=1 if jax.default_backend() == "cpu" else None,
        seconds=s.seconds, average=0.98, title="digits",
    )  # fmt: skip
    who = np.flatnonzero(speech.corpus.columns["speaker"] == speech.corpus.names["speaker"].index(unheard[0]))[:4]
    parts = [np.pad(wave, (0, rate // 2)) for wave in strings.read(who.tolist(), rate)]
    checkpoint.make_folder(s.out)
    soundfile.write(s.out / "spoken.part.wav", np.concatenate(parts), rate)
    (s.out / "spoken.part.wav").replace(spoken)
    checkpoint.write_text(s.out / "said.txt", " ".join(speech.corpus.texts[i] for i in who) + "\n")
    save_recogniser(folder, trained_on(speech, network, fitted.theta))
    return folder, (spoken,)


def search(s: Settings, known: Vocabulary) -> Callable[[np.ndarray], Any] | None:
    """Tokens of a piece by beam search; None where there is none."""
    if not s.beam:
        return None
    lines = [] if s.lm is None else [line for line in read_text(s.lm).splitlines() if line.strip()]
    model = None if s.lm is None else ngram(map(NORMALIZERS[known.normalizer], lines), s.order)
    beam = partial(beam_search, vocabulary=known, width=s.beam, model=model, weight=s.weight)
    return lambda logits: beam(logits)[0].tokens


def measured(t: Ready, run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, its milliseconds, and those of compiling, which are not among them."""
    begin, before = time.perf_counter(), sum(t.compiling)
    found, compiling = run(), sum(t.compiling) - before
    return found, 1e3 * (time.perf_counter() - begin - compiling), 1e3 * compiling


def run(s: Settings) -> None:
    """Every recording in turn; one that cannot be read is told, and the others go on."""
    runs.check(s, most=0.1, seconds=0.1, beam=0, order=1, weight=0, rate=0, steps=1)
    if s.theta is None and (s.audio or s.adapt):
        raise mj.InputError("theta is missing, expected one of the recognisers that speaker_adaptation.py makes.")
    if s.theta is not None and not s.audio:
        raise mj.InputError("audio is empty, expected recordings.")
    if s.adapt and s.adapt_unlabelled:
        raise mj.InputError("adapt and adapt_unlabelled are both set, expected one of them.")
    adapts = s.adapt is not None or s.adapt_unlabelled
    if not adapts and (given := [name for name in ("error", "rate", "steps") if getattr(s, name) is not None]):
        raise mj.InputError(f"{given[0]} is given without adapt or adapt_unlabelled, one of which it needs.")
    if s.lm is not None and not s.beam:
        raise mj.InputError("lm is given with beam = 0, expected a beam of 1 or more, which a language model needs.")
    use_all_cores(s.cache / "compiled")
    theta, audio = (s.theta, s.audio) if s.theta else demo(s)
    files = {path: {kind: s.out / f"{path.stem}.{kind}" for kind in s.format} for path in audio}
    if s.format and len({path.stem for path in audio}) < len(audio):
        raise mj.InputError("Two recordings have the same name, expected distinct names for the files to write.")
    if old := [path for of in files.values() for path in of.values() if path.exists() and not s.overwrite]:
        raise mj.InputError(f"{old[0]} exists; choose another folder for out, or set overwrite.")
    saved = load_recogniser(theta)
    saved = saved._replace(way=way_of(s, saved.way)) if adapts else saved
    t, hop = ready(saved, search(s, saved.vocabulary)), saved.features.hop / saved.features.sample_rate

    def adapt(x: mj.Utterances, y: Any, to: Path) -> tuple[Any, float]:
        count = max(int((np.cumsum(x.lengths) * hop <= s.most).sum()), 1)
        x, y = jax.tree.map(lambda a: a[:count], (x, y))
        phi, ms, compiling = measured(t, lambda: t.adapt(x, y))
        how = "{1}, error {0}, rate {2:g}, {3} steps".format(*saved.way)
        told = f"{count} utterances, {float(x.lengths.sum()) * hop:.1f} s, of {to}"
        print(f"Adapted to {told}, in {ms:.0f} ms: {how}; compiled in {compiling:.0f} ms.")
        return phi, ms

    phi, ms, failed = None, 0.0, []
    if s.adapt:
        how: dict[str, Any] = {"settings": saved.features, "cache": s.cache, "on_error": s.on_error}
        recordings = corpora.read("auto", s.adapt, on_error=s.on_error)
        speech = load_speech(recordings, saved.vocabulary, longest=max(20.0, s.most, saved.longest), **how)
        phi, ms = adapt(mj.Utterances(speech.corpus.features, speech.corpus.lengths), speech.transcripts, s.adapt)
    for path in audio:
        begin = time.perf_counter()
        try:
            pieces = read_pieces(path, saved.longest, saved.features)
        except mj.InputError as error:
            failed.append(str(error))
            continue
        reading = 1e3 * (time.perf_counter() - begin)
        if s.adapt_unlabelled:
            phi, ms = adapt(pieces.x, (), path)
        heard, took, compiling = measured(t, lambda: t.hear(pieces, phi))  # noqa: B023
        print(
            f"{path}, {pieces.seconds:.1f} s, read in {reading:.0f} ms, recognised in {took:.0f} ms, "
            f"{took / 1e3 / pieces.seconds:.4f} of its length; compiled in {compiling:.0f} ms:"
        )
        print(textwrap.fill("  ".join(f"{word.start:.2f} {word.text}" for word in heard.words), 100), end="\n\n")
        milliseconds = {"read": reading, "adapt": ms, "recognise": took}
        told = {"audio": str(path), "seconds": pieces.seconds, "text": heard.text, "recogniser": str(theta)}
        told |= {"way": saved.way._asdict() if adapts else None, "milliseconds": milliseconds}
        for name, timed in (("words", heard.words), ("tokens", heard.tokens)):
            told[name] = [{"text": one.text, "start": round(one.start, 3), "end": round(one.end, 3)} for one in timed]
        content = {"txt": heard.text + "\n", "srt": subtitles(heard.words)}
        content["json"] = json.dumps(told | report.environment(), ensure_ascii=False, indent=1) + "\n"
        for kind, file in files[path].items():
            checkpoint.write_text(file, content[kind])
    if failed:
        raise mj.InputError(f"{len(failed)} of {len(audio)} recordings are not transcribed: {' '.join(failed)}")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
