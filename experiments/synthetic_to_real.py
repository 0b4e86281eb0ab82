"""How well does a recogniser hear people that has only ever heard a synthesiser, and can it adapt to them?

    python experiments/synthetic_to_real.py
    python experiments/synthetic_to_real.py --arabic DIR --fsdd DIR --librispeech DIR --out runs/people

eSpeak NG speaks English phrases, and numbers and invented words in some languages; tokens are its phonemes. A small
Conformer learns them jointly, strongly disturbed, and goes on for an equal time jointly or by FOMAML, whose tasks are
voices, each in a vocal tract and a channel of its own. It is tested on strings of digits joined from Arabic recordings
and from FSDD, and on LibriSpeech, and is told their language, thus the phonemes. It adapts to at most 10 or 30 s of a
speaker, with their text or without, and recognises other recordings of theirs. Half of the speakers choose part, inner
rate and steps for the other half. The error is that of phonemes, decoded greedily, against eSpeak's reading of the
text; of digits also that of the nearest string of them. Without folders it is tested on voices held out.
"""

import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import checkpoint, recipes, recognition, report, runs
from metajax.core import Episode, Learner, Sampler, Theta, Utterances
from metajax.data.augment import Augmentation, augment, in_other_throats
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
ADAM, FLOOR = 0.03, 0.5  # factor of these rates for SUTA's Adam; confidence from which on a pseudo-label counts
SECONDS = (10.0, 30.0)  # of a speaker's other recordings, to adapt to
PARTS = {"all": mj.everything, "film": mj.film, "lora": partial(mj.lora, 4), "head": partial(mj.only, "head")}
ERRORS = {"text": ctc, "SUTA": suta, "pseudo-labels": pseudo}
WAYS = {"text": tuple(PARTS), "SUTA": ("film",), "pseudo-labels": ("all",)}
DISTURBED = Augmentation(warp=0.15, stretch=0.25, shift=0, gain=0, noise=0.8, noise_low=3, room=0.5, band=4)
HELD, LONGEST, QUERIES = 6, 16.0, 10  # every so many-th voice; seconds of an utterance; utterances of a speaker
BATCH, FEATURES = 8, FeatureSettings(high=7600.0)  # utterances, four times in an outer step
FRAMES = FEATURES.sample_rate / FEATURES.hop  # a second
OTHER = (1.2, 6.0)  # largest ratio of the lengths of vocal tracts, dB of a channel


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


Cell = namedtuple("Cell", "corpus seconds start")
# for each of SECONDS a task of each speaker and their seconds; language; phonemes of each digit; utterances left out
Test = tuple[list[tuple[Episode, np.ndarray]], str, list[list[str]], int]


def spoken(s: Settings) -> tuple[Speech, np.ndarray]:
    """Synthetic speech, and of each utterance whether its voice is held out."""
    lines, draw = espeak_phrases.english(), np.random.default_rng(s.seed)
    more = {"en-us": [lines[i] for i in draw.permutation(len(lines))[: s.phrases]]}
    how: dict[str, Any] = {"utterances": s.utterances, "letters": (4, 30), "seed": s.seed, "exclude": ()}
    recordings = read("espeak_phrases", languages=s.languages, more=more, **how)
    how = {"normalizer": "ipa", "unit": "phoneme", "longest": 3.0, "settings": FEATURES}
    speech = load_speech(recordings, cache=s.cache, on_error="skip", **how)
    voice, language = (speech.corpus.columns[name] for name in ("speaker", "language"))
    known = np.unique(voice[language == speech.corpus.names["language"].index("en-us")])
    return speech, np.isin(voice, known[::HELD])


def tests(s: Settings, speech: Speech, held: np.ndarray) -> dict[str, Test]:
    """What is tested on: recordings of people, or where there are none the voices held out."""
    found: dict[str, Test] = {}
    kept: dict[str, Any] = {"settings": FEATURES, "cache": s.cache, "on_error": "skip"}

    def test(name: str, language: str, one: Speech, who: np.ndarray, words: Sequence[str]) -> None:
        x, apart = Utterances(one.corpus.features, one.corpus.lengths), one.corpus.columns.get("half")
        given = normalized(x), one.transcripts, who, np.asarray(x.lengths) / FRAMES, SECONDS
        tasks = of_amounts(*given, queries=QUERIES, seed=s.seed, apart=apart, name=name)
        found[name] = tasks, language, [NORMALIZERS["ipa"](word).split() for word in words], len(one.corpus.skipped)

    for name, root in (("arabic", s.arabic), ("fsdd", s.fsdd), ("librispeech", s.librispeech)):
        if root is not None:
            of_words, language = name != "librispeech", "ar" if name == "arabic" else "en-us"
            lines = read(name if of_words else "auto", root)
            lines = joined(lines, NUMERALS, strings=48, words=(3, 5), halves=True) if of_words else lines
            lines = lines._replace(texts=espeak.phonemes(lines.texts or (), language))
            one = load_speech(lines, speech.vocabulary, longest=LONGEST, **kept)
            who, words = one.corpus.columns["speaker"], espeak.phonemes([*NUMERALS.values()] * of_words, language)
            test(name, language, one, np.where(who < s.speakers, who, -1), words)
    if not found:
        columns, place = speech.corpus.columns, speech.corpus.names["language"].index("en-us")
        test("voices", "en-us", speech, np.where(held & (columns["language"] == place), columns["speaker"], -1), ())
    return found


def bench(s: Settings) -> tuple[tuple[str, ...], Callable[[Cell], dict[str, Any]]]:
    """The names of the corpora to test on; how a cell is trained, unless it was, chosen and told."""
    speech, held = spoken(s)
    key, on, known, columns = jax.random.key(s.seed), tests(s, speech, held), speech.vocabulary, speech.corpus.columns
    network, languages = recogniser(width=s.width, num_layers=2)(len(known.tokens)), speech.corpus.names["language"]
    voice = columns["speaker"] * len(languages) + columns["language"]

    def draw(group: np.ndarray, together: bool, shots: int, queries: int) -> Sampler:
        def disturbed(x: Utterances, key: Any) -> Utterances:
            x = in_other_throats(x, jax.random.fold_in(key, 1), *OTHER, together)
            return normalized(augment(DISTURBED)(x, key))

        given = Utterances(speech.corpus.features, speech.corpus.lengths), speech.transcripts, np.where(held, -1, group)
        return with_inputs(groups(*given, shots=shots, queries=queries), disturbed)

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

        inner = optax.adam(ADAM * rate) if way == "SUTA" else optax.sgd(rate)
        found = mj.descent(apply, ERRORS[way], inner, part=PARTS[part](), first_order=True)
        return mj.first_pass(found, partial(pseudo_labels, floor=FLOOR)) if way == "pseudo-labels" else found

    @cache
    def program(corpus: str, way: str, part: str) -> Callable[..., Any]:
        tasks, language, *_ = on[corpus]
        tokens = np.asarray(speech.transcripts.tokens)[columns["language"] == languages.index(language)]
        said = np.isin(np.arange(len(known.tokens)), tokens)  # the blank fills up, so is among them
        return recognition.heard_by_each(partial(learner, way, part, jnp.asarray(said)), key, len(tasks[0][1]), STEPS)

    def cell(where: Cell) -> dict[str, Any]:
        theta, (amounts, _, words, left) = trained(where.start), on[where.corpus]
        episodes, seconds = amounts[SECONDS.index(where.seconds)]
        told: dict[str, Any] = {"seconds": float(seconds.mean()), "left out": left, "ways": {}}
        for way, parts in WAYS.items():
            heard = {}
            for part, rate in ((part, rate) for part in parts for rate in RATES):
                whole = theta | PARTS[part]().init(theta["params"], key)
                heard[part, rate] = program(where.corpus, way, part)(whole, rate, episodes)
            told["ways"][way] = recognition.crossed(known, heard, STEPS, words)
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
    lines, panels = list[list[str]](), {corpus: dict[str, Any]() for corpus in corpora}
    for (corpus, seconds, start), result in ((where, done[where]) for where in wanted):
        for way, row in result["ways"].items():
            told = [report.percent(value) for value in (row["word"][0], row["word_at_step"], row["gain"])]
            told += [f"{100 * value:.1f}" for value in (row["less"]["mean"], *row.get("words", ()))]
            chosen = zip(row["option"], row["step"], strict=True)
            best = "; ".join("{} {} {}".format(*options[STEPS.index(step)], step) for options, step in chosen)
            lines.append([corpus, start, way, f"{result['seconds']:.1f}", best, *told, *[""] * (6 - len(told))])
            panels[corpus][f"{way}, {seconds:.0f} s, {start}"] = row["word"]
        first, second, *_ = result["ways"]["text"]["texts"]
        print(f"\n{corpus}, {seconds:.0f} s, {start}: said, heard before, after text", *first, *second, sep="\n    ")
    title = f"Trained on synthetic voices alone; phoneme error (%), seed {s.seed}, 95 % over speakers"
    results = {"title": title, "config": config, "rows": [where._asdict() | result for where, result in done.items()]}
    checkpoint.write_json(s.out / "results.json", results | report.environment())
    head = ["", "start", "way", "s", "part, rate, steps", "before", "after", "gain", "less", "digits before", "after"]
    left = f"Utterances left out: {({where.corpus: one['left out'] for where, one in done.items()})}."
    print("", title, report.markdown(head, lines, 3), left, f"Results and picture are in {s.out}.", sep="\n\n")
    report.plot_panels(panels, title, s.out / "curve.png", x="step", label="steps", what="phoneme error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
