"""How well does a recogniser hear people that has only ever heard a synthesiser, and can it adapt to them?

    python experiments/synthetic_to_real.py
    python experiments/synthetic_to_real.py --arabic DIR --fsdd DIR --librispeech DIR --out runs/people

eSpeak NG speaks English phrases, and numbers and invented words in some languages; tokens are its phonemes in IPA. A
small Conformer learns them jointly, strongly disturbed: by other vocal tracts, channels, rooms, noise, tempos. From
there it goes on for an equal time, jointly or by FOMAML, whose tasks are voices, each in a vocal tract and a channel of
its own. Tested on people: strings of digits joined from Arabic recordings and from FSDD, and LibriSpeech, whose
language, thus whose phonemes, it is told. It adapts to at most 10 or 30 s of a speaker and recognises other recordings
of theirs; with the text, or without, by SUTA's error or pseudo-labels. Half of the speakers choose part, inner rate and
steps for the other half. Greedy decoding; the error is that of phonemes, against eSpeak's reading of the text; of
digits also that of the nearest string of digits. Without folders it is tested on voices held out.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import checkpoint, recipes, recognition, report, runs
from metajax.core import Episode, Learner, Sampler, Theta, Utterances
from metajax.data.augment import Augmentation, augment, tilted, warp_frequency
from metajax.data.cache import default_folder
from metajax.data.corpora import espeak, espeak_phrases, read
from metajax.data.corpora.joined import NUMERALS, joined
from metajax.data.features import FeatureSettings
from metajax.data.speech import Speech, load_speech, normalized
from metajax.data.text import NORMALIZERS
from metajax.losses import ctc, pseudo, pseudo_labels, suta
from metajax.models import recogniser
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import with_inputs
from metajax.tasks.groups import groups, of_amounts

STEPS = (0, 1, 2, 5, 10)  # after which the error is told
RATES = (0.03, 0.1, 0.3)  # inner rates to choose from
ADAM, FLOOR = 0.03, 0.5  # factor of these rates for SUTA's optimiser; confidence from which on a pseudo-label counts
SECONDS = (10.0, 30.0)  # of a speaker's other recordings, to adapt to
PARTS = {"all": mj.everything, "film": mj.film, "lora": partial(mj.lora, 4), "head": partial(mj.only, "head")}
WAYS = {"text": tuple(PARTS), "SUTA": ("film",), "pseudo-labels": ("all",)}
DISTURBED = Augmentation(warp=0.15, stretch=0.25, shift=0, gain=0, noise=0.8, noise_low=3, room=0.5, band=4)
HELD, LONGEST, QUERIES = 6, 16.0, 10  # every so many-th voice; seconds of an utterance; utterances of a speaker
BATCH, HIGH = 8, 7600.0  # utterances, four times in an outer step; upper edge of the mel bands, Hz
TILT, TRACT = 6.0, 1.2  # dB of a channel, largest ratio of two vocal tracts


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of the Arabic Speech Commands, whose digits are joined
    fsdd: Path | None = None  # folder of FSDD's recordings, likewise
    librispeech: Path | None = None  # utterances in English, in any layout that `read("auto")` knows
    starts: tuple[Literal["joint", "FOMAML"], ...] = ("joint", "FOMAML")  # how training ends
    languages: tuple[str, ...] = ("ar", "de", "en-us", "es", "fa", "fi", "fr", "hi", "it", "nl", "pl", "sv", "sw", "tr")
    utterances: int = 300  # of numbers and invented words in each language
    phrases: int = 6000  # of English
    speakers: int = 12  # of each corpus, at most
    pretrain: float = 1500.0  # seconds of joint training that both start from
    further: float = 240.0  # seconds of each after that
    outer_steps: int | None = None  # a number of outer steps in place of each of these times
    width: float = 0.5  # of the Conformer, of 2 layers
    seed: int = 0  # of all draws
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/synthetic_to_real")  # folder of the results; the same command goes on there


class Cell(NamedTuple):
    corpus: str
    seconds: float
    start: str


# for each of SECONDS a task of each speaker and their seconds; language; phonemes of each digit; utterances left out
Test = tuple[list[tuple[Episode, np.ndarray]], str, list[list[str]], int]


def spoken(s: Settings) -> tuple[Speech, np.ndarray]:
    """Synthetic speech, and of each utterance whether its voice is held out."""
    lines, draw = espeak_phrases.english(), np.random.default_rng(s.seed)
    more = {"en-us": [lines[i] for i in draw.permutation(len(lines))[: s.phrases]]}
    how: dict[str, Any] = {"utterances": s.utterances, "letters": (4, 30), "seed": s.seed}
    recordings = read("espeak_phrases", languages=s.languages, exclude=(), more=more, **how)
    how = {"settings": FeatureSettings(high=HIGH), "cache": s.cache, "on_error": "skip"}
    speech = load_speech(recordings, normalizer="ipa", unit="phoneme", longest=3.0, **how)
    voice, language = (speech.corpus.columns[name] for name in ("speaker", "language"))
    known = np.unique(voice[language == speech.corpus.names["language"].index("en-us")])
    return speech, np.isin(voice, known[::HELD])


def tests(s: Settings, speech: Speech, held: np.ndarray) -> dict[str, Test]:
    """What is tested on: recordings of people, or where there are none the voices held out."""
    found: dict[str, Test] = {}

    def test(name: str, language: str, one: Speech, who: np.ndarray, words: Sequence[str]) -> None:
        corpus, apart = one.corpus, one.corpus.columns.get("half")
        seconds = np.asarray(corpus.lengths) * corpus.settings.hop / corpus.settings.sample_rate
        given = normalized(Utterances(corpus.features, corpus.lengths)), one.transcripts, who, seconds, SECONDS
        tasks = of_amounts(*given, queries=QUERIES, seed=s.seed, apart=apart, name=name)
        found[name] = tasks, language, [NORMALIZERS["ipa"](word).split() for word in words], len(corpus.skipped)

    kept: dict[str, Any] = {"settings": speech.corpus.settings, "cache": s.cache, "on_error": "skip", "longest": LONGEST}
    for name, root, language in (("arabic", s.arabic, "ar"), ("fsdd", s.fsdd, "en-us"), ("read", s.librispeech, "en-us")):
        if root is not None:
            lines, digits = read("auto" if name == "read" else name, root), () if name == "read" else NUMERALS.values()
            lines = joined(lines, NUMERALS, strings=48, words=(3, 5), halves=True) if digits else lines
            lines = lines._replace(texts=espeak.phonemes(lines.texts or (), language))
            one = load_speech(lines, speech.vocabulary, **kept)
            who = one.corpus.columns["speaker"]
            test(name, language, one, np.where(who < s.speakers, who, -1), espeak.phonemes([*digits], language))
    columns, names = speech.corpus.columns, speech.corpus.names["language"]
    for language in () if found else ("ar", "en-us"):
        rows = held & (columns["language"] == names.index(language))
        test(f"voices, {language}", language, speech, np.where(rows, columns["speaker"], -1), ())
    return found


def disturbed(x: Utterances, key: Any, together: bool) -> Utterances:
    """As heard from another vocal tract over another channel, the same ones for all or not, and with much besides."""
    draw_key, key = jax.random.split(key)
    draws = jnp.broadcast_to(jax.random.uniform(draw_key, (1 if together else len(x.frames), 7)), (len(x.frames), 7))
    frames = jax.vmap(lambda one, u: warp_frequency(tilted(one, u[:6], TILT), u[6], TRACT))(x.frames, draws)
    return normalized(augment(DISTURBED)(Utterances(frames, x.lengths), key))


def bench(s: Settings) -> tuple[tuple[str, ...], Callable[[Cell], dict[str, Any]]]:
    """The names of the corpora to test on; how a cell is trained, unless it was, chosen and told."""
    speech, held = spoken(s)
    key, columns, vocabulary, on = jax.random.key(s.seed), speech.corpus.columns, speech.vocabulary, tests(s, speech, held)
    network = recogniser(width=s.width, num_layers=2)(len(vocabulary.tokens))
    languages, utterances = speech.corpus.names["language"], Utterances(speech.corpus.features, speech.corpus.lengths)
    voice = columns["speaker"] * len(languages) + columns["language"]

    def draw(group: np.ndarray, together: bool, shots: int, queries: int) -> Sampler:
        given = utterances, speech.transcripts, np.where(held, -1, group)
        return with_inputs(groups(*given, shots=shots, queries=queries), partial(disturbed, together=together))

    many, tasks = draw(np.zeros_like(voice), False, 1, BATCH - 1), draw(voice, True, BATCH // 2, BATCH)

    @cache
    def trained(title: str) -> Theta:
        first, fomaml = title == "start", title == "FOMAML"
        theta = {"params": recipes.fresh(network.init, many, key)} if first else trained("start")
        method = mj.fomaml(network.apply, ctc, optax.sgd(0.03), 2) if fomaml else mj.joint(network.apply, ctc)
        return recipes.trained_once(
            s.out / "trained" / title, [(1.0, method.objective)], theta, tasks if fomaml else many, key,
            s.outer_steps or 500, title=title, optimizer=recipes.adamw(4e-3 if first else 1e-3), average=0.98,
            seconds=None if s.outer_steps else s.pretrain if first else s.further,
            chunk=1 if jax.default_backend() == "cpu" else None,
        )  # fmt: skip

    def learner(way: str, part: str, inside: jax.Array, rate: jax.Array) -> Learner:
        def apply(params: Any, x: Utterances, key: Any) -> jax.Array:
            return jnp.where(inside, network.apply(params, x, key), -jnp.inf)

        error = {"text": ctc, "SUTA": suta, "pseudo-labels": pseudo}[way]
        inner = optax.adam(ADAM * rate) if way == "SUTA" else optax.sgd(rate)
        found = mj.descent(apply, error, inner, part=PARTS[part](), first_order=True)
        return mj.first_pass(found, partial(pseudo_labels, floor=FLOOR)) if way == "pseudo-labels" else found

    @cache
    def program(corpus: str, way: str, part: str) -> Callable[..., Any]:
        tasks, language, *_ = on[corpus]
        rows = columns["language"] == languages.index(language)
        said = np.isin(np.arange(len(vocabulary.tokens)), np.asarray(speech.transcripts.tokens)[rows])  # and the blank
        return recognition.heard_by_each(partial(learner, way, part, jnp.asarray(said)), key, len(tasks[0][1]), STEPS)

    def cell(where: Cell) -> dict[str, Any]:
        theta, (amounts, _, words, left) = trained(where.start), on[where.corpus]
        episodes, seconds = amounts[SECONDS.index(where.seconds)]
        told: dict[str, Any] = {"seconds": float(seconds.mean()), "left out": left, "ways": {}}
        for way, parts in WAYS.items():
            heard = {}
            for part, rate in ((part, rate) for part in parts for rate in RATES):
                whole = theta | PARTS[part]().init(theta["params"], key)
                found = program(where.corpus, way, part)(whole, rate, episodes)
                heard[part, rate] = jax.tree.map(np.asarray, found)
            told["ways"][way] = recognition.crossed(vocabulary, heard, STEPS, words)
        return told

    return tuple(on), cell


def run(s: Settings) -> None:
    """Every cell that is missing, then the table, transcripts and the picture."""
    runs.check(s, ("plot", "espeak"), speakers=4, utterances=1, outer_steps=1, pretrain=0.1, further=0.1, width=0.1)
    use_all_cores(s.cache / "compiled")
    config, (corpora, cell) = runs.config(s, ("out", "cache", "starts")), bench(s)
    runs.open_folder(s.out, config, resume=(s.out / "config.json").exists())
    wanted = [Cell(corpus, seconds, start) for corpus in corpora for seconds in SECONDS for start in s.starts]
    done = runs.complete(s.out, config, wanted, cell)
    lines: list[list[str]] = []
    panels: dict[str, Any] = {corpus: {} for corpus in corpora}
    for (corpus, seconds, start), result in ((where, done[where]) for where in wanted):
        for way, row in result["ways"].items():
            told = [report.percent(value) for value in (row["word"][0], row["word_at_step"], row["gain"])]
            told += [f"{100 * value:.1f}" for value in (row["less"]["mean"], *row.get("words", ()))]
            best = [(*o[STEPS.index(k)], k) for o, k in zip(row["option"], row["step"], strict=True)]
            lines.append([corpus, start, way, f"{result['seconds']:.1f}", "; ".join("{} {} {}".format(*o) for o in best), *told])
            panels[corpus][f"{way}, {seconds:.0f} s, {start}"] = row["word"]
        told = sum(result["ways"]["text"]["texts"][:2], [])
        print(f"\n{corpus}, {seconds:.0f} s, {start}: said, heard before, and after adapting with text", *told, sep="\n    ")
    title = f"Trained on synthetic voices alone; phoneme error (%), seed {s.seed}, 95 % over speakers"
    results = {"title": title, "config": config, "rows": [where._asdict() | result for where, result in done.items()]}
    checkpoint.write_json(s.out / "results.json", results | report.environment())
    head = ["", "start", "way", "s", "part, rate, steps", "before", "after", "gain", "less", "digits before", "after"]
    table = report.markdown(head, [line + [""] * (len(head) - len(line)) for line in lines], 3)
    left = {where.corpus: result["left out"] for where, result in done.items()}
    print("", title, table, f"Left out: {left} utterances. Results and picture are in {s.out}.", sep="\n\n")
    report.plot_panels(panels, title, s.out / "curve.png", x="step", label="steps", what="phoneme error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
