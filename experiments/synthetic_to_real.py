"""How well does a recogniser hear people that has only ever heard a synthesiser, and can it adapt to them?

    python experiments/synthetic_to_real.py --arabic DIR --fsdd DIR --librispeech DIR

eSpeak NG speaks English phrases, and numbers and invented words in some languages; tokens are its phonemes. A small
Conformer learns them jointly, strongly disturbed, in buckets of lengths, and goes on for an equal time jointly or by
FOMAML, whose tasks are voices, each in a vocal tract and a channel of its own. Tested on strings of digits, joined from
Arabic recordings and FSDD, and on LibriSpeech, told the language and thus the phonemes. It adapts to at most 10 or 30 s
of a speaker, with text or without, and recognises others of theirs; half of the speakers choose part, rate and steps
for the other half. Phoneme error, greedy decoding, against eSpeak's reading of the text; of digits also the error of
the nearest string of digits. Without folders it is tested on voices held out.
"""

import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import recipes, recognition, report, runs
from metajax.core import Learner, Sampler, Theta, Utterances
from metajax.data.augment import Augmentation, augment, in_other_throats, normalized, sometimes
from metajax.data.buckets import bucket_bounds
from metajax.data.cache import default_folder
from metajax.data.corpora import espeak, espeak_phrases, read
from metajax.data.corpora.joined import NUMERALS, joined
from metajax.data.speech import Speech, in_buckets, load_speech, subset
from metajax.data.text import NORMALIZERS
from metajax.losses import ctc, pseudo, pseudo_labels, suta
from metajax.models import recogniser
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import with_inputs
from metajax.tasks.groups import groups, of_amounts

STEPS, RATES = (0, 1, 2, 5, 10, 20, 50), (0.03, 0.1, 0.3)  # after which the error is told; inner ones to choose from
ADAM, FLOOR = 0.03, 0.5  # factor of these rates for SUTA's Adam; confidence from which on a pseudo-label counts
SECONDS, OTHER = (10.0, 30.0), (1.2, 6.0)  # to adapt to; other vocal tracts, at most, as a ratio, and channels, in dB
PARTS = {"all": mj.everything, "film": mj.film, "lora": partial(mj.lora, 4), "head": partial(mj.only, "head")}
ERRORS = {"text": ctc, "SUTA": suta, "pseudo-labels": pseudo}
WAYS = {"text": tuple(PARTS), "SUTA": ("film",), "pseudo-labels": ("all",)}
DISTURBED = Augmentation(warp=0.15, stretch=0.25, shift=0, gain=0, noise=0.8, noise_low=3, room=0.5, band=4)
HELD, LONGEST, QUERIES = 6, 12.0, 8  # every so many-th voice; seconds of an utterance; utterances of a speaker
STARTS, BATCH = ("joint", "FOMAML"), 8  # utterances, four times in an outer step
SHARE, BUCKETS = 0.5, 4  # of joint training: utterances that are disturbed, and lengths that batches are padded to


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of the Arabic Speech Commands, whose digits are joined
    fsdd: Path | None = None  # folder of FSDD's recordings, likewise
    librispeech: Path | None = None  # utterances in English, in any layout that `read("auto")` knows
    languages: tuple[str, ...] = ("ar", "de", "en-us", "es", "fa", "fi", "fr", "hi", "it", "nl", "pl", "sv", "sw", "tr")
    utterances: int = 300  # of numbers and invented words in each language
    phrases: int = 6000  # of English
    speakers: int = 10  # of each corpus, at most
    pretrain: float = 1500.0  # seconds of joint training that both start from
    further: float = 180.0  # seconds of each after that
    outer_steps: tuple[int, int] | None = None  # numbers of outer steps in place of these two times
    width: float = 0.5  # of the Conformer, of 2 layers
    seed: int = 0  # of all draws
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/synthetic_to_real")  # folder of the results; the same command goes on there


Cell = namedtuple("Cell", "corpus seconds start")


def spoken(s: Settings) -> tuple[Speech, Speech]:
    """Synthetic speech to train on, and that of voices held out."""
    lines, draw = espeak_phrases.english(), np.random.default_rng(s.seed)
    more = {"en-us": [lines[i] for i in draw.permutation(len(lines))[: s.phrases]]}
    how: dict[str, Any] = {"utterances": s.utterances, "letters": (4, 28), "seed": s.seed, "exclude": ()}
    recordings = read("espeak_phrases", languages=s.languages, more=more, **how)
    speech = load_speech(recordings, normalizer="ipa", unit="phoneme", longest=2.5, cache=s.cache, on_error="skip")
    held = speech.corpus.columns["speaker"] % HELD == 0
    return subset(speech, ~held), subset(speech, held)


def tests(s: Settings, speech: Speech) -> dict[str, Any]:
    """Of people, or of the voices held out: tasks by SECONDS, language, phonemes of each digit, number left out."""
    found: dict[str, Any] = {}

    def test(name: str, language: str, one: Speech, who: np.ndarray, words: Sequence[str]) -> None:
        x, apart = Utterances(one.corpus.features, one.corpus.lengths), one.corpus.columns.get("half")
        given, hop = (normalized(x), one.transcripts, who), one.corpus.settings.hop / one.corpus.settings.sample_rate
        how: dict[str, Any] = {"queries": QUERIES, "seed": s.seed, "apart": apart, "name": name}
        tasks = of_amounts(*given, hop * np.asarray(x.lengths), SECONDS, **how)
        found[name] = tasks, language, [NORMALIZERS["ipa"](word).split() for word in words], len(one.corpus.skipped)

    people = {"arabic": s.arabic, "fsdd": s.fsdd, "librispeech": s.librispeech}
    for name, root in ((name, root) for name, root in people.items() if root):
        of_words, language = name != "librispeech", "ar" if name == "arabic" else "en-us"
        lines = read(name if of_words else "auto", root)
        lines = joined(lines, NUMERALS, words=(3, 5), halves=True) if of_words else lines
        lines = lines._replace(texts=espeak.phonemes(lines.texts or (), language))
        one = load_speech(lines, speech.vocabulary, longest=LONGEST, cache=s.cache, on_error="skip")
        who, words = one.corpus.columns["speaker"], espeak.phonemes([*NUMERALS.values()] * of_words, language)
        test(name, language, one, np.where(who < s.speakers, who, -1), words)
    if not found:
        columns, place = speech.corpus.columns, speech.corpus.names["language"].index("en-us")
        test("voices", "en-us", speech, np.where(columns["language"] == place, columns["speaker"], -1), ())
    return found


def bench(s: Settings) -> tuple[tuple[str, ...], Callable[[Cell], dict[str, Any]]]:
    """The names of the corpora to test on; how a cell is trained, unless it was, chosen and told."""
    key, (speech, held) = jax.random.key(s.seed), spoken(s)
    on, known, columns = tests(s, held), speech.vocabulary, speech.corpus.columns
    network, languages = recogniser(width=s.width, num_layers=2)(len(known.tokens)), speech.corpus.names["language"]

    def draw(speech: Speech, group: np.ndarray, together: bool, shots: int, queries: int) -> Sampler:
        def disturbed(x: Utterances, key: Any) -> Utterances:
            keys = jax.random.split(key)
            return augment(DISTURBED)(in_other_throats(x, keys[0], *OTHER, together), keys[1])

        change = sometimes(disturbed, 1.0 if together else SHARE)
        given = Utterances(speech.corpus.features, speech.corpus.lengths), speech.transcripts, group
        return with_inputs(groups(*given, shots=shots, queries=queries), lambda x, key: normalized(change(x, key)))

    voices = draw(speech, columns["speaker"] * len(languages) + columns["language"], True, BATCH // 2, BATCH)
    buckets = in_buckets(speech, bucket_bounds(np.asarray(speech.corpus.lengths), BUCKETS, least=BATCH))
    many = [(float(n := len(b.corpus.lengths)), draw(b, np.zeros(n, int), False, 1, BATCH - 1)) for b in buckets]

    @cache
    def trained(title: str) -> tuple[Theta, jax.Array]:
        first, fomaml = title == "start", title == "FOMAML"
        theta = {"params": recipes.fresh(network.init, voices, key)} if first else trained("start")[0]
        method = mj.fomaml(network.apply, ctc, optax.sgd(0.03), 2) if fomaml else mj.joint(network.apply, ctc)
        train, steps = recipes.course(s.out / "trained", key), s.outer_steps or (None, None)
        length = ((s.pretrain, steps[0]), 4e-3) if first else ((s.further, steps[1]), 1e-3)
        return train(title, method.objective, theta, voices if fomaml else many, *length)

    @cache
    def program(corpus: str, way: str, part: str) -> Callable[..., Any]:
        tasks, language, *_ = on[corpus]
        tokens = np.asarray(speech.transcripts.tokens)[columns["language"] == languages.index(language)]
        said = jnp.asarray(np.isin(np.arange(len(known.tokens)), tokens))  # the blank fills up, so is among them

        def apply(params: Any, x: Utterances, key: Any) -> jax.Array:
            return jnp.where(said, network.apply(params, x, key), -jnp.inf)

        def learner(rate: jax.Array) -> Learner:
            inner = optax.adam(ADAM * rate) if way == "SUTA" else optax.sgd(rate)
            found = mj.descent(apply, ERRORS[way], inner, part=PARTS[part](), first_order=True)
            return mj.first_pass(found, partial(pseudo_labels, floor=FLOOR)) if way == "pseudo-labels" else found

        return recognition.heard_by_each(learner, key, len(tasks[0][1]), STEPS)

    def cell(where: Cell) -> dict[str, Any]:
        (theta, count), (amounts, _, words, left) = trained(where.start), on[where.corpus]
        episodes, seconds = amounts[SECONDS.index(where.seconds)]
        told: dict[str, Any] = {"used": float(seconds.mean()), "left out": left, "steps": int(count), "ways": {}}
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
    if lacking := {"en-us", *["ar"] * bool(s.arabic)} - {*s.languages}:
        raise mj.InputError(f"languages lacks {min(lacking)!r}, in which it is tested.")
    use_all_cores(s.cache / "compiled")
    config, (corpora, cell) = runs.config(s, ("out", "cache")) | {"steps": [*STEPS], "buckets": BUCKETS}, bench(s)
    wanted = [Cell(corpus, seconds, start) for start in STARTS for corpus in corpora for seconds in SECONDS]
    done = runs.complete(s.out, config, wanted, cell)
    lines, panels = list[list[str]](), {corpus: dict[str, Any]() for corpus in corpora}
    for (corpus, seconds, start), result in ((where, done[where]) for where in wanted):
        for way, row in result["ways"].items():
            told = [report.percent(value) for value in (row["word"][0], row["word_at_step"], row["gain"])]
            told += [f"{100 * value:.1f}" for value in (row["less"]["mean"], *row.get("words", ()))] + [""] * 2
            chosen = zip(row["option"], row["step"], strict=True)
            best = "; ".join("{} {} {}".format(*options[STEPS.index(step)], step) for options, step in chosen)
            lines.append([corpus, start, way, f"{result['used']:.1f}", str(result["left out"]), best, *told[:6]])
            panels[corpus][f"{way}, {seconds:.0f} s, {start}"] = row["word"]
        first, second, *_ = result["ways"]["text"]["texts"]
        print(f"\n{corpus}, {seconds:.0f} s, {start}: said, heard before, after text", *first, *second, sep="\n    ")
    title = f"Trained on synthetic voices alone; phoneme error (%), normaliser ipa, seed {s.seed}, 95 % over speakers"
    runs.save_results(s.out, {"title": title, "config": config, "rows": [w._asdict() | done[w] for w in wanted]})
    head = ["", "start", "way", "s", "left out", "chosen", "before", "after", "gain", "less", "digits", "after"]
    print("", title, report.markdown(head, lines, 3), f"Results and picture are in {s.out}.", sep="\n\n")
    report.plot_panels(panels, title, s.out / "curve.png", x="step", label="steps", what="phoneme error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
