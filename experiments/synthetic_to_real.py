"""How well does a recogniser hear real people that has only ever heard a synthesiser, and can it adapt to them?

    python experiments/synthetic_to_real.py
    python experiments/synthetic_to_real.py --arabic DIR --fsdd DIR --librispeech DIR --out runs/synthetic_to_real3

eSpeak NG speaks English phrases, and numbers and invented words in some languages; tokens are its phonemes in IPA. A
small Conformer learns them jointly, strongly disturbed: by other vocal tracts, channels, rooms, noise, tempos. From
there it goes on for an equal time, jointly or by FOMAML, whose tasks are voices, each in a vocal tract and a channel of
its own. It is tested on people: strings of digits joined from Arabic recordings and from FSDD, and LibriSpeech, whose
language, thus whose phonemes, it is told. It adapts to at most 10 or 30 s of a speaker and recognises other recordings
of theirs; with the text, or without, by SUTA's error or by pseudo-labels. Half of the speakers choose part, inner rate
and number of steps for the other half. Greedy decoding; the error is that of phonemes, against eSpeak's reading of the
text; of digits it is also that of the nearest string of digits. Without folders it is tested on voices held out.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rapidfuzz.distance.Levenshtein import distance

import metajax as mj
from metajax import checkpoint, recipes, recognition, report, runs
from metajax.core import Learner, Sampler, Theta, Utterances
from metajax.data.augment import Augmentation, augment, tilted, warp_frequency
from metajax.data.cache import default_folder
from metajax.data.corpora import read
from metajax.data.corpora.espeak import phonemes
from metajax.data.corpora.espeak_phrases import english
from metajax.data.corpora.joined import digits, in_phonemes
from metajax.data.features import FeatureSettings
from metajax.data.speech import Speech, load_speech, normalized
from metajax.data.text import nearest_words
from metajax.evaluate import mean_ci95
from metajax.losses import ctc, pseudo, pseudo_labels, suta
from metajax.models import recogniser
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import with_inputs
from metajax.tasks.groups import groups, of_amounts

STEPS = (0, 1, 2, 5, 10, 20)  # after which the error is told
RATES = (0.03, 0.1, 0.3)  # inner rates to choose from
ADAM, FLOOR = 0.03, 0.5  # factor of these rates for SUTA's optimiser; confidence from which on a pseudo-label counts
SECONDS = (10.0, 30.0)  # of a speaker's other recordings, to adapt to
PARTS = {"all": mj.everything, "film": mj.film, "lora": partial(mj.lora, 4), "head": partial(mj.only, "head")}
WAYS = {"text": tuple(PARTS), "SUTA": ("film", "all"), "pseudo-labels": ("film", "all")}
DISTURBED = Augmentation(warp=0.15, stretch=0.25, shift=0, gain=0, noise=0.8, noise_low=3, room=0.5, band=4)
TILT, TRACT = 6.0, 1.2  # dB of a channel; ratio of the lengths of vocal tracts
ENGLISH, ARABIC = "en-us", "ar"


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of the Arabic Speech Commands, whose digits are joined
    fsdd: Path | None = None  # folder of FSDD's recordings, likewise
    librispeech: Path | None = None  # folder or list of utterances in English
    starts: tuple[Literal["joint", "FOMAML"], ...] = ("joint", "FOMAML")  # how training ends
    languages: tuple[str, ...] = ("ar", "de", "en-us", "es", "fa", "fi", "fr", "hi", "it", "nl", "pl", "sv", "sw", "tr")
    utterances: int = 300  # of numbers and invented words in each language
    phrases: int = 6000  # of English
    voices: int = 6  # every so many-th synthetic one is held out
    longest: float = 16.0  # seconds, of utterances to test on; longer ones are left out
    queries: int = 10  # utterances to recognise, at most
    pretrain: float = 1500.0  # seconds of joint training that both start from
    further: float = 240.0  # seconds of each after that
    outer_steps: int | None = None  # a number of outer steps in place of each of these times
    batch: int = 16  # utterances, four times in an outer step
    width: float = 0.5  # of the Conformer
    layers: int = 2  # of the Conformer
    high: float = 7600.0  # upper edge of the mel bands, Hz
    seed: int = 0  # of all draws
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/synthetic_to_real")  # folder of the results; the same command goes on there


class Cell(NamedTuple):
    start: str
    corpus: str
    seconds: float


class Test(NamedTuple):
    speech: Speech
    who: np.ndarray  # speaker of each utterance, -1 for one that is not tested on
    language: str
    words: list[list[str]]  # the phonemes of each digit, where digits are said


def spoken(s: Settings) -> tuple[Speech, np.ndarray]:
    """Synthetic speech, and of each utterance whether its voice is held out."""
    found, draw = english(), np.random.default_rng(s.seed)
    some = {"utterances": s.utterances, "letters": (6, 60), "seed": s.seed}
    some["more"] = {ENGLISH: [found[i] for i in draw.permutation(len(found))[: s.phrases]]}
    how: dict[str, Any] = {"settings": FeatureSettings(high=s.high), "cache": s.cache, "on_error": "skip"}
    recordings = read("espeak_phrases", languages=s.languages, exclude=(), **some)
    speech = load_speech(recordings, normalizer="ipa", unit="phoneme", longest=5.0, **how)
    voice, language = (speech.corpus.columns[name] for name in ("speaker", "language"))
    known = np.unique(voice[language == speech.corpus.names["language"].index(ENGLISH)])
    return speech, np.isin(voice, known[:: s.voices])


def tests(s: Settings, speech: Speech, held: np.ndarray) -> dict[str, Test]:
    """What is tested on: recordings of people, or where there are none the voices held out."""
    how: dict[str, Any] = {"settings": speech.corpus.settings, "cache": s.cache, "on_error": "skip"}
    found = {}
    for name, root, language in (("arabic", s.arabic, ARABIC), ("fsdd", s.fsdd, ENGLISH)):
        if root:
            strings, words = in_phonemes(name, digits(name, root, strings=48, words=(3, 5), halves=True)[0])  # type: ignore[arg-type]
            one = load_speech(strings, speech.vocabulary, **how)
            found[name] = Test(one, one.corpus.columns["speaker"], language, words)
    if s.librispeech:
        lines = read("auto", s.librispeech)
        lines = lines._replace(texts=phonemes(lines.texts or (), ENGLISH))
        one = load_speech(lines, speech.vocabulary, longest=s.longest, **how)
        found["librispeech"] = Test(one, one.corpus.columns["speaker"], ENGLISH, [])
    columns, names = speech.corpus.columns, speech.corpus.names["language"]
    for name, language in {} if found else {"arabic": ARABIC, "english": ENGLISH}.items():
        rows = held & (columns["language"] == names.index(language))
        found[f"{name} voices"] = Test(speech, np.where(rows, columns["speaker"], -1), language, [])
    return found


def disturbed(x: Utterances, key: Any, together: bool) -> Utterances:
    """As heard from another vocal tract over another channel, the same ones for all or not, and with much besides."""
    draw_key, key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, (1 if together else len(x.frames), 7))
    draws = jnp.broadcast_to(draws, (len(x.frames), 7))
    frames = jax.vmap(lambda one, u: warp_frequency(tilted(one, u[:6], TILT), u[6], TRACT))(x.frames, draws)
    return normalized(augment(DISTURBED)(Utterances(frames, x.lengths), key))


def bench(s: Settings, speech: Speech, held: np.ndarray, on: dict[str, Test]) -> Callable[[Cell], dict[str, Any]]:
    """Train, or read what was; how a cell is then chosen and told."""
    key, columns, vocabulary = jax.random.key(s.seed), speech.corpus.columns, speech.vocabulary
    network = recogniser(width=s.width, num_layers=s.layers)(len(vocabulary.tokens))
    x, languages = Utterances(speech.corpus.features, speech.corpus.lengths), speech.corpus.names["language"]
    voice = columns["speaker"] * len(languages) + columns["language"]

    def draw(group: np.ndarray, together: bool, shots: int, queries: int) -> Sampler:
        sample = groups(x, speech.transcripts, np.where(held, -1, group), shots=shots, queries=queries)
        return with_inputs(sample, partial(disturbed, together=together))

    many, tasks = draw(np.zeros_like(voice), False, 1, s.batch - 1), draw(voice, True, s.batch // 4, s.batch // 2)

    @cache
    def trained(title: str) -> Theta:
        """That of the start, or of what goes on from there."""
        if title == "start":
            theta, seconds, rate = {"params": recipes.fresh(network.init, many, key)}, s.pretrain, 4e-3
        else:
            theta, seconds, rate = trained("start"), s.further, 1e-3
        fomaml = title == "FOMAML"
        method = mj.fomaml(network.apply, ctc, optax.sgd(0.03), 2) if fomaml else mj.joint(network.apply, ctc)
        return recipes.trained_once(
            s.out / "trained" / title, [(1.0, method.objective)], theta, tasks if fomaml else many, key,
            s.outer_steps or 500, title=title, optimizer=recipes.adamw(rate), average=0.98,
            chunk=1 if jax.default_backend() == "cpu" else None, seconds=None if s.outer_steps else seconds,
        )  # fmt: skip

    def learner(way: str, part: str, inside: jax.Array, rate: jax.Array) -> Learner:
        def apply(params: Any, x: Utterances, key: Any) -> jax.Array:
            return jnp.where(inside, network.apply(params, x, key), -jnp.inf)

        error = {"text": ctc, "SUTA": suta, "pseudo-labels": pseudo}[way]
        inner = optax.adam(ADAM * rate) if way == "SUTA" else optax.sgd(rate)
        found = mj.descent(apply, error, inner, part=PARTS[part](), first_order=True)
        return mj.first_pass(found, partial(pseudo_labels, floor=FLOOR)) if way == "pseudo-labels" else found

    @cache
    def ready(corpus: str, way: str, part: str) -> Callable[..., Any]:
        """How every speaker's queries are heard after each step; one program for all starts, rates and seconds."""
        rows = columns["language"] == languages.index(on[corpus].language)
        said = np.isin(np.arange(len(vocabulary.tokens)), np.asarray(speech.transcripts.tokens)[rows])  # and the blank

        how, num = partial(learner, way, part, jnp.asarray(said)), len(np.unique(on[corpus].who[on[corpus].who >= 0]))
        return recognition.heard_by_each(how, key, num, STEPS)

    @cache
    def drawn(corpus: str) -> list[Any]:
        test, settings = on[corpus].speech, speech.corpus.settings
        seconds = np.asarray(test.corpus.lengths) * settings.hop / settings.sample_rate
        x = normalized(Utterances(test.corpus.features, test.corpus.lengths))
        how = {"queries": s.queries, "seed": s.seed, "apart": test.corpus.columns.get("half"), "name": corpus}
        return of_amounts(x, test.transcripts, on[corpus].who, seconds, SECONDS, **how)

    def cell(where: Cell) -> dict[str, Any]:
        theta, test, told = trained(where.start), on[where.corpus], {}
        episode, seconds = drawn(where.corpus)[SECONDS.index(where.seconds)]

        @cache
        def heard(way: str, part: str, rate: float) -> Any:
            whole = theta | PARTS[part]().init(theta["params"], key)
            return jax.tree.map(np.asarray, ready(where.corpus, way, part)(whole, rate, episode))

        for way, parts in WAYS.items():
            row: dict[str, Any] = {"digits": [], "texts": []}
            errors = {
                (part, rate): recognition.error_curves(vocabulary, heard(way, part, rate), range(len(STEPS)))
                for part in parts
                for rate in RATES
            }
            found = recognition.crossed(errors, STEPS, "word")
            for half in found:
                best = heard(way, *half["option"][last := STEPS.index(half["step"])])
                for task in half["tasks"]:
                    said, before, after = recognition.decoded(vocabulary, best, task, last)
                    row["texts"].append([said[0], before[0], after[0]])
                    if test.words:
                        near = [[nearest_words(line.split(), test.words) for line in of] for of in (said, before, after)]
                        row["digits"].append([sum(map(distance, near[0], of)) / sum(map(len, near[0])) for of in near[1:]])
            told[way] = row | {"halves": found}
        return {"ways": told, "used": float(seconds.mean()), "left_out": len(test.speech.corpus.skipped)}

    return cell


def run(s: Settings) -> None:
    """Train, every cell that is missing, then the tables, transcripts and the picture."""
    runs.check(s, ("plot", "espeak"), pretrain=0.1, further=0.1, outer_steps=1, utterances=1, phrases=0, voices=2)
    use_all_cores(s.cache / "compiled")
    config, (speech, held) = runs.config(s, ("out", "cache", "starts")), spoken(s)
    on = tests(s, speech, held)
    runs.open_folder(s.out, config, resume=(s.out / "config.json").exists())
    wanted = [Cell(start, corpus, seconds) for corpus in on for seconds in SECONDS for start in s.starts]
    of = lru_cache(1)(lambda: bench(s, speech, held, on))
    done = runs.complete(s.out, config, wanted, lambda cell: of()(cell))
    lines, panels, rows = [], {}, []
    for cell, result in ((cell, done[cell]) for cell in wanted):
        for way, one in result["ways"].items():
            row = recognition.summary(one["halves"], one["halves"], STEPS, "word")
            gain = np.concatenate([np.array(h["word"])[:, 0] - np.array(h["word"])[:, STEPS.index(h["step"])] for h in one["halves"]])
            rows.append(cell._asdict() | row | {"way": way, "gain": report.curve(*mean_ci95(gain[:, None]))[0]})
            after = row["word_at_step"]["mean"] / row["word"][0]["mean"]
            told = [*map(report.percent, (row["word"][0], row["word_at_step"], rows[-1]["gain"])), f"{100 * (1 - after):.1f}"]
            told += [f"{100 * v:.1f}" for v in np.mean(one["digits"], 0)] if one["digits"] else ["", ""]
            best = (f"{' '.join(map(str, h['option'][STEPS.index(h['step'])]))} {h['step']}" for h in one["halves"])
            lines.append([cell.corpus, cell.start, way, f"{result['used']:.1f}", *told, ", ".join(best)])
            panels.setdefault(cell.corpus, {})[f"{way}, {cell.seconds:.0f} s, {cell.start}"] = row["word"]
    title = f"Phoneme error (%) of people, trained on synthetic voices alone; seed {s.seed}, 95 % over speakers"
    checkpoint.write_json(s.out / "results.json", {"title": title, "config": config, "rows": rows} | report.environment())
    head = ["", "start", "way", "seconds", "before", "after", "gain", "less, %", "digits before", "after", "part, rate, steps"]
    print("", title, report.markdown(head, lines, 3), sep="\n\n")
    for cell in wanted:
        for texts in done[cell]["ways"]["text"]["texts"][:2]:
            print(f"\n{cell.corpus}, {cell.start}, {cell.seconds:.0f} s: said, heard before, and after", *texts, sep="\n    ")
    left = {corpus: len(test.speech.corpus.skipped) for corpus, test in on.items()}
    print(f"\nUtterances left out: {left}. Results and picture are in {s.out}.")
    report.plot_panels(panels, title, s.out / "curve.png", x="step", label="steps", what="phoneme error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
