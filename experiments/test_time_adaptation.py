"""Can a recogniser adapt to a noise or a room that training never had, from one utterance and without its text?

    python experiments/test_time_adaptation.py
    python experiments/test_time_adaptation.py --corpus arabic --root DIR --out runs/blind_arabic

Strings of joined digits, or utterances with texts, are heard in scenarios: rooms, noises, telephone lines, clipping. A
task is one utterance in one scenario, which the recogniser adapts to and then recognises; with `--shots` it adapts to
others of the same speaker and scenario, whose text some arms have. A small Conformer learns jointly; from there every
arm goes on, jointly (then up to 10 steps are tested) or with one step learned: of SUTA's error or another, its outer
error the text's. Speakers, noises and rooms to test on were never trained on; yet others chose the rate and steps.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import recipes, recognition, report, runs
from metajax.core import Error, Learner, Sampler, Theta
from metajax.data import corpora
from metajax.data.acoustics import coloured, recorded
from metajax.data.cache import default_folder
from metajax.data.corpora.joined import digits
from metajax.data.speech import Speech, crowd, held_out, load_speech, speakers
from metajax.losses import ctc, entropy, of_logits, pseudo, pseudo_labels, suta, verdict
from metajax.models import judged, recogniser
from metajax.parallel import use_all_cores
from metajax.tasks.scenarios import Scenarios, scenarios

RATES, RATE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), 0.3  # inner rates to choose from; the one while training
ADAM = {"all": 0.003, "film": 0.03}  # factor of these rates for Adam, SUTA's optimiser
PARTS, LONG = {"all": mj.inner.everything, "film": mj.film}, (0, 1, 5, 10)  # steps of what is not meta-learned
TEXT, PSEUDO, SUTA = of_logits(ctc), of_logits(pseudo), of_logits(suta)
# kinds of noise: white, pink, blue; babble of some training speakers; babble of the other ones, or recorded
TRAINED = Scenarios(room=0.3, rt60=(0.1, 0.3), noise=0.6, kinds=(0, 2), snr=(5.0, 30.0), line=0.1, clip=0.1)
CHOSEN = Scenarios(room=0.3, rt60=(0.3, 0.5), noise=0.8, kinds=(3, 3), snr=(0.0, 20.0))
LEVELS = {f"{db} dB": db for db in (0, 5, 10, 20)}
TESTED = {name: Scenarios(noise=1.0, kinds=(4, 4), snr=(db, db)) for name, db in LEVELS.items()}
TESTED |= {"room": Scenarios(room=1.0, rt60=(0.5, 0.9), direct=(-6.0, 0.0)), "clean": Scenarios()}


class Arm(NamedTuple):  # what theta descends, and how it adapts
    kind: Literal["joint", "meta_sgd", "fomaml", "kept"]
    error: Error
    part: str = "film"  # what adapts
    steps: tuple[int, ...] = (0, 1)  # after which the error is told
    adam: bool = False  # in place of gradient descent, when tested


ARMS = {
    "SUTA": Arm("joint", SUTA, "film", LONG, adam=True),
    "SUTA, all parameters": Arm("joint", SUTA, "all", LONG, adam=True),
    "pseudo-labels": Arm("joint", PSEUDO, "film", LONG),
    "SUTA, meta-learned": Arm("meta_sgd", SUTA),
    "SUTA, all parameters, meta-learned": Arm("meta_sgd", SUTA, "all"),
    "entropy, meta-learned": Arm("meta_sgd", of_logits(entropy)),
    "pseudo-labels, meta-learned": Arm("meta_sgd", PSEUDO),
    "learned error": Arm("meta_sgd", verdict),
    "FOMAML on SUTA": Arm("fomaml", SUTA),
    "FOMAML, support gradient kept": Arm("kept", SUTA),  # a common mistake
    "fine-tuned": Arm("joint", TEXT, "film", LONG),
    "Meta-SGD": Arm("meta_sgd", TEXT),
    "fine-tuned, all parameters": Arm("joint", TEXT, "all", LONG),
    "FOMAML, all parameters": Arm("fomaml", TEXT, "all", LONG),
}


@dataclass(frozen=True)
class Settings:
    root: Path | None = None  # folder or list of the corpus; none for espeak
    corpus: Literal["espeak", "arabic", "fsdd", "auto"] = "espeak"  # whose digits are joined; auto: one with texts
    longest: float = 20.0  # seconds of an utterance of a corpus with texts
    arms: tuple[str, ...] = tuple(arm for arm in ARMS if ARMS[arm].error is not TEXT)  # the first a joint one
    seeds: tuple[int, ...] = (0,)  # of the division of the speakers, parameters and tasks
    strings: int = 50  # joined for each speaker
    words: tuple[int, int] = (3, 4)  # digits in a string, the fewest and the most
    shots: int = 0  # utterances to adapt to; 0 for the one that is recognised
    noise: tuple[Path, ...] = ()  # recordings of noise to test in, equal parts of 30 s in all; none for babble
    floor: float = 0.8  # confidence from which on a pseudo-label counts
    pretrain: float = 180.0  # seconds of joint training that all start from
    further: float = 60.0  # seconds of every arm after that
    outer_steps: tuple[int, int] | None = None  # numbers of outer steps in place of these two times
    tasks: int = 16  # per outer step; a quarter of that, of 8 utterances each, where it is joint
    width: float = 0.5  # of the Conformer
    episodes: int = 128  # tasks to choose on, and to test on in every scenario
    cache: Path = field(default_factory=default_folder)  # folder of cached waves and compiled programs
    out: Path = Path("runs/test_time_adaptation")  # folder of the results; the same command goes on there


def bench(s: Settings, speech: Speech, noise: Any, seed: int) -> Callable[[str], dict[str, Any]]:
    """Pretrain for a seed, or read what was; how an arm is then trained, chosen on validation and tested."""
    key, settings, who = jax.random.key(seed), speech.corpus.settings, len(np.unique(speech.corpus.columns["speaker"]))
    parts = held_out(speech, "speaker", (max(who // 6, 1), max(who // 4, 1)), seed)
    noises = [coloured(slope, 30 * settings.sample_rate) for slope in (0.0, -1.0, 1.0)]
    noises += [crowd(speech, part, seconds=30.0, seed=seed) for part in (parts[0][::2], parts[0][1::2])]
    noises[4] = noises[4] if noise is None else noise
    apart = "half" if s.shots and s.corpus != "auto" else None
    bank, usual = jnp.stack(noises), {"shots": s.shots, "queries": 1, "apart": apart}

    def draw(part: int, given: Scenarios, **other: Any) -> Sampler:
        return speakers(speech, values=parts[part], scenario=scenarios(given, bank, settings), **usual | other)

    episodes = draw(0, TRAINED, augmentation=0.5)
    many = draw(0, TRAINED, augmentation=0.5, shots=1, queries=8, apart=None)
    model = judged(recogniser(width=s.width, num_layers=2)(None), len(speech.vocabulary.tokens))

    train, steps = recipes.course(s.out / f"seed{seed}", key, s.tasks), s.outer_steps or (None, None)
    jointly, further = mj.joint(model.apply, TEXT).objective, ((s.further, steps[1]), 2e-3)
    fresh, fewer = {"params": recipes.fresh(model.init, many, key)}, {"num_tasks": max(s.tasks // 4, 1)}
    start = train("start", jointly, fresh, many, (s.pretrain, steps[0]), 4e-3, **fewer)[0]

    def learner_of(arm: Arm, rate: Any) -> Learner:
        inner, second = optax.adam(ADAM[arm.part] * rate) if arm.adam else optax.sgd(rate), arm.kind == "meta_sgd"
        how: dict[str, Any] = {"part": PARTS[arm.part](), "rule": mj.rates() if second else mj.plain()}
        learner = mj.descent(model.apply, arm.error, inner, **how, first_order=not second)
        if arm.error is PSEUDO:
            return mj.first_pass(learner, lambda outputs: pseudo_labels(outputs.logits, s.floor))
        return learner

    def trained(title: str, arm: Arm) -> Theta:
        learner = learner_of(arm, RATE)
        if arm.kind == "joint":
            return learner.init(train("joint", jointly, start, many, *further, **fewer)[0]["params"], key)
        objective, error = mj.query_loss(learner, TEXT, 1), mj.joint(model.apply, arm.error).objective
        if arm.kind == "kept":
            objective = mj.mix(objective, lambda theta, task, key: error(theta, mj.Episode(*[task[0]] * 2), key), 1.0)
        return train(title, objective, learner.init(start["params"], key), episodes, *further)[0]

    def cell(title: str) -> dict[str, Any]:
        theta, how = trained(title, arm := ARMS[title]), (key, s.episodes, max(arm.steps), of_logits(recognition.heard))
        hear = {i: recognition.heard_in(partial(learner_of, arm), partial(draw, i), *how) for i in (1, 2)}
        found = cache(lambda part, rate, given: jax.device_get(hear[part](theta, rate, given)))
        errors = lambda *where: recognition.error_curves(speech.vocabulary, found(*where), arm.steps)  # noqa: E731
        validation, told = {rate: errors(1, rate, CHOSEN) for rate in RATES}, {}
        for name, given in TESTED.items():
            told[name] = recognition.chosen(validation, lambda rate, at=given: errors(2, rate, at), arm.steps, "word")
        step = told["5 dB"]["step"]
        where = 2, told["5 dB"]["option"][arm.steps.index(step)], TESTED["5 dB"]
        texts = recognition.examples(speech.vocabulary, found(*where), step)
        return {"scenarios": told, "speakers": parts, "texts": texts}

    return cell


def run(s: Settings) -> None:
    """Every cell that is missing, then the table and the picture."""
    least = {"strings": 9, "words": 1, "shots": 0, "tasks": 1, "outer_steps": 1, "seeds": 0, "episodes": 2}
    runs.check(s, ("plot",), longest=0.1, width=0.1, pretrain=0.1, further=0.1, **least)
    runs.known("arms", s.arms, [arm for arm in ARMS if s.shots or ARMS[arm].error is not TEXT])
    if ARMS[s.arms[0]].kind != "joint":
        raise mj.InputError(f"arms begins with {s.arms[0]!r}, expected one that learns jointly, such as SUTA.")
    use_all_cores(s.cache / "compiled")
    config = runs.config(s, ("out", "cache", "seeds", "arms")) | {"rates": list(RATES), "adam": ADAM}
    if s.corpus == "auto":
        strings, what = corpora.read("auto", s.root), "word error"
        how: dict[str, Any] = {"normalizer": "letters", "longest": s.longest, "on_error": "skip"}
    else:
        strings, settings = digits(s.corpus, s.root, strings=s.strings, words=s.words, halves=s.shots > 0)
        how, what = {"unit": "phoneme", "settings": settings}, "digit error"
    speech = load_speech(strings, waves=True, cache=s.cache, **how)
    rate, kind = speech.corpus.settings.sample_rate, "recorded noise" if s.noise else "babble"
    noise = recorded(s.noise, 30 * rate, rate) if s.noise else None
    by_arm = runs.compare(s.out, config, s.seeds, s.arms, partial(bench, s, speech, noise))
    found = {arm: [cell["scenarios"] for cell in cells] for arm, cells in by_arm.items()}
    rows, split = recognition.across(found, {arm: ARMS[arm].steps for arm in s.arms}), by_arm[s.arms[0]][0]["speakers"]
    title = f"{speech.corpus.name}, {[*map(len, split)]} speakers to train, choose and test on, {s.episodes} tasks a "
    title += f"scenario,\nseeds {s.seeds}, in {kind}, each adapted to {f'{s.shots} others' if s.shots else 'itself'}, "
    title += f"{what} (%), greedy decoding,\nnormaliser {speech.vocabulary.normalizer}, 95 % intervals over tasks"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows})
    never = {name: row["word"][0] for name, row in rows[s.arms[0]].items()}
    lines = [["never adapted", *map(report.percent, never.values()), *[""] * 5]]
    for arm, row in rows.items():
        steps, options = row["clean"]["step"], row["clean"]["option"]
        tuned = [rates[ARMS[arm].steps.index(step)] for step, rates in zip(steps, options, strict=True)]
        less = np.mean([row[name]["less"]["mean"] for name in ("5 dB", "10 dB")])
        lost = row["clean"]["word_at_step"]["mean"] - never["clean"]["mean"]
        told = less, lost, max(one["empty_at_step"]["mean"] for one in row.values())
        errors = [report.percent(one["word_at_step"]) for one in row.values()]
        lines.append([arm, *errors, str(steps)[1:-1], str(tuned)[1:-1], *(f"{100 * value:.1f}" for value in told)])
    head = ["", *TESTED, "steps", "rate, Adam's factor", "less at 5-10 dB", "lost on clean", "nothing heard at most"]
    print("", title, report.markdown(head, lines), sep="\n\n")
    for arm, texts in ((arm, cell["texts"]) for arm, (cell, *_) in by_arm.items() if "texts" in cell):
        print(f"\n{arm}, 5 dB: said | heard before | and after", *map(" | ".join, texts), sep="\n    ")
    print(f"\nResults and picture are in {s.out}.")
    curves = {arm: [row[name]["word_at_step"] | {"dB": db} for name, db in LEVELS.items()] for arm, row in rows.items()}
    curves["never adapted"] = [never[name] | {"dB": db} for name, db in LEVELS.items()]
    label = f"signal to noise (dB), of {kind} that was never trained on"
    report.plot_panels({"": curves}, title, s.out / "curve.png", x="dB", label=label, what=f"{what} (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
