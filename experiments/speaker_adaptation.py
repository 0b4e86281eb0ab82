"""Can a recogniser that was meta-trained on speakers adapt to a new one from 10 s, with their text or without?

    python experiments/speaker_adaptation.py                              # 43 synthetic voices
    python experiments/speaker_adaptation.py --corpus auto --root DIR --longest 8   # any corpus with texts and speakers

Strings of digits are joined from single ones; a task is a speaker: four strings (10 s) to adapt to, others to
recognise, which share no recording with them. A small Conformer learns jointly; from there every arm goes on for an
equal time: jointly (where fine-tuning starts, SUTA as published, and pseudo-labels), or by FOMAML, MAML, Reptile or
Meta-SGD. Inner steps take the text's loss or an error without: SUTA's, entropy, pseudo-labels, a learned one; outer
steps always the text's. For every arm and number of steps, validation speakers choose the inner rate and what adapts.
Tokens are digits (of texts: letters). `transcribe.py` reads `recognisers`. 5 minutes an arm and seed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

import metajax as mj
from metajax import recipes, recognition, report, runs
from metajax.core import Episode, Theta
from metajax.data import corpora
from metajax.data.cache import default_folder
from metajax.data.corpora.joined import digits
from metajax.data.speech import Speech, held_out, load_speech, speakers
from metajax.evaluate import over_runs
from metajax.losses import of_logits
from metajax.models.saved import ERRORS, PARTS, Saved, Way, adapting, judging, save_recogniser, trained_on
from metajax.parallel import hoisted, use_all_cores

STEPS = (0, 1, 2, 5, 10)  # after which the error is told
RATES, ADAM = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 0.03  # inner rates to choose from; factor of them for SUTA's Adam
TEXT, HEARD = ERRORS["text"], of_logits(recognition.heard)


class Arm(NamedTuple):  # what theta descends, and how it adapts
    kind: Literal["fresh", "joint", "fomaml", "maml", "reptile", "meta_sgd"]
    error: str  # of the support set, one of `ERRORS`
    parts: tuple[str, ...]  # what adapts; meta-trained once for each
    rate: float = 0.0  # inner rate while training, from which learned rates start
    adam: bool = False  # in place of gradient descent, when tested
    kept: bool = False  # the support set's gradient at theta in the outer one, a common mistake


ARMS = {
    "fine-tuned": Arm("joint", "text", ("all", "film", "lora")),
    "FOMAML": Arm("fomaml", "text", ("all",), 0.03),
    "FOMAML, support gradient kept": Arm("fomaml", "text", ("all",), 0.03, kept=True),
    "MAML": Arm("maml", "text", ("all",), 0.03),
    "Reptile": Arm("reptile", "text", ("all",), 0.03),
    "Meta-SGD": Arm("meta_sgd", "text", ("all", "film"), 0.03),
    "from scratch": Arm("fresh", "text", ("all",)),
    "SUTA": Arm("joint", "suta", ("film", "all"), adam=True),
    "pseudo-labels": Arm("joint", "pseudo-labels", ("film", "all")),
    "SUTA, meta-learned": Arm("meta_sgd", "suta", ("film",), 0.3),
    "entropy, meta-learned": Arm("meta_sgd", "entropy", ("film",), 0.3),
    "learned error": Arm("meta_sgd", "learned", ("film",), 0.3),
}


@dataclass(frozen=True)
class Settings:
    root: Path | None = None  # folder or list of the corpus; none for espeak
    corpus: Literal["espeak", "arabic", "fsdd", "auto"] = "espeak"  # whose digits are joined; auto: one with texts
    longest: float = 20.0  # seconds of an utterance of a corpus with texts
    arms: tuple[str, ...] = tuple(ARMS)  # which to compare, the first joint: before any step it is never adapted
    seeds: tuple[int, ...] = (0,)  # of the division of the speakers, parameters and tasks
    strings: int = 100  # joined for each speaker
    words: tuple[int, int] = (3, 4)  # digits in a string, the fewest and the most
    shots: int = 4  # strings to adapt to, 2.5 s each
    amounts: tuple[int, ...] | None = None  # of strings to adapt to, told too; None: 1, shots, 3 times shots
    queries: int = 6  # strings to recognise
    num_steps: int = 2  # inner steps while training with text
    blind_steps: int = 1  # the same without
    pretrain: float = 120.0  # seconds of joint training that all start from
    further: float = 30.0  # seconds of every arm after that
    outer_steps: tuple[int, int] | None = None  # numbers of outer steps in place of these two times
    outer_rate: float = 4e-3  # peak outer learning rate; half of it after pretraining
    tasks: int = 4  # speakers per outer step
    augment: float = 0.5  # strength of the augmentation; 0 for none
    width: float = 0.5  # of the Conformer
    episodes: int = 48  # tasks to test on, an even number; half as many to choose on
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/speaker_adaptation")  # folder of the results; the same command goes on there


def bench(s: Settings, speech: Speech, seed: int) -> Callable[[str], dict[str, Any]]:
    """Pretrain for a seed, or read what was; how an arm is then trained, chosen on validation and tested."""
    key, who = jax.random.key(seed), len(np.unique(speech.corpus.columns["speaker"]))
    parts = held_out(speech, "speaker", (max(who // 6, 1), max(who // 4, 1)), seed)
    sizes: dict[str, Any] = {"shots": s.shots, "queries": s.queries, "apart": None if s.corpus == "auto" else "half"}
    episodes = speakers(speech, values=parts[0], augmentation=s.augment, **sizes)
    many = speakers(speech, values=parts[0], augmentation=s.augment, shots=1, queries=s.shots + s.queries)
    kept, network = s.out / "recognisers" / f"seed{seed}", {"width": s.width, "num_layers": 2}
    model, num = judging(network, speech.vocabulary), s.episodes // 2  # tasks at a time, so that one program serves

    def drawn(group: int, num_tasks: int, shots: int) -> Episode:
        sample = speakers(speech, values=parts[group], **sizes | {"shots": shots})
        return jax.device_get(hoisted(jax.vmap(sample))(jax.random.split(jax.random.fold_in(key, group), num_tasks)))

    test, on = drawn(2, 2 * num, max(s.shots, *s.amounts)), {"validation": drawn(1, num, s.shots)}
    on |= {amount: recognition.of_few(test, amount, s.shots) for amount in {*s.amounts, s.shots}}

    train, steps = recipes.course(s.out / f"seed{seed}", key, s.tasks), s.outer_steps or (None, None)
    jointly, further = mj.joint(model.apply, TEXT).objective, ((s.further, steps[1]), s.outer_rate / 2)
    fresh = {"params": recipes.fresh(model.init, many, key)}
    start = train("start", jointly, fresh, many, (s.pretrain, steps[0]), s.outer_rate)[0]
    save_recogniser(kept / "start", trained_on(speech, network, start))

    def trained(title: str, arm: Arm, name: str) -> tuple[Theta, Any]:
        if arm.kind in ("fresh", "joint"):
            theta, count = (fresh, 0) if arm.kind == "fresh" else train("joint", jointly, start, many, *further)
            return theta | PARTS[name]().init(theta["params"], key), count
        steps, how = s.num_steps if arm.error == "text" else s.blind_steps, {"support_error": ERRORS[arm.error]}
        method = getattr(mj, arm.kind)(model.apply, TEXT, optax.sgd(arm.rate), steps, part=PARTS[name](), **how)
        keep = lambda theta, task, key: jointly(theta, Episode(*[task.support] * 2), key)  # noqa: E731
        objective = mj.mix(method.objective, keep, 1.0) if arm.kept else method.objective
        return train(f"{title}, {name}", objective, method.learner.init(start["params"], key), episodes, *further)

    def ready(arm: Arm, theta: Theta, part: str, rate: Any, steps: int) -> Saved:
        how = Way(arm.error, part, rate * (ADAM if arm.adam else 1), steps, arm.kind == "meta_sgd", arm.adam)
        return trained_on(speech, network, theta, how)

    def cell(title: str) -> dict[str, Any]:
        arm = ARMS[title]
        thetas = {name: trained(title, arm, name) for name in arm.parts}
        errors = partial(recognition.error_curves, speech.vocabulary, steps=range(len(STEPS)))

        learner = lambda rate, part: adapting(ready(arm, {}, part, rate, 0))  # noqa: E731
        hear = {p: recognition.heard_by_each(partial(learner, part=p), key, num, STEPS, HEARD) for p in arm.parts}

        @cache
        def heard(option: tuple[str, float], where: Any) -> Any:
            return hear[option[0]](thetas[option[0]][0], option[1], on[where])

        scores = {(name, rate): errors(heard((name, rate), "validation")) for name in arm.parts for rate in RATES}
        found = recognition.chosen(scores, lambda option: errors(heard(option, s.shots)), STEPS, "word")
        best = part, rate = found["option"][i := STEPS.index(found["step"])]
        save_recogniser(kept / title, ready(arm, thetas[part][0], part, rate, found["step"]))
        amounts = [errors(heard(best, amount))["word"][:, i].tolist() for amount in s.amounts]
        told = {"amounts": amounts, "texts": recognition.examples(speech.vocabulary, heard(best, s.shots), i)}
        return found | told | {"speakers": parts, "outer_steps": {name: int(n) for name, (_, n) in thetas.items()}}

    return cell


def run(s: Settings) -> None:
    """Every cell that is missing, then the tables and the picture."""
    least: dict[str, Any] = dict.fromkeys(("words", "shots", "amounts", "queries", "num_steps", "blind_steps"), 1)
    least |= dict.fromkeys(("width", "pretrain", "further", "longest"), 0.1)
    runs.check(s, ("plot",), strings=2, seeds=0, episodes=4, augment=0, tasks=1, outer_steps=1, **least)
    runs.known("arms", s.arms, ARMS)
    most = s.shots if s.corpus == "auto" else min(3 * s.shots, s.strings // 2)
    s = replace(s, amounts=s.amounts or tuple(sorted({1, s.shots, most})))
    if ARMS[s.arms[0]].kind != "joint":
        raise mj.InputError(f"arms begins with {s.arms[0]!r}, expected one that learns jointly, such as fine-tuned.")
    use_all_cores(s.cache / "compiled")
    config = runs.config(s, ("out", "cache", "seeds", "arms"))
    if s.corpus == "auto":
        strings, what, said = corpora.read("auto", s.root), "word error", "utterances"
        how: dict[str, Any] = {"normalizer": "letters", "longest": s.longest, "on_error": "skip"}
    else:
        strings, settings = digits(s.corpus, s.root, strings=s.strings, words=s.words, halves=True)
        how, what, said = {"unit": "phoneme", "settings": settings}, "digit error", "strings of digits"
    speech = load_speech(strings, cache=s.cache, **how)
    by_arm = runs.compare(s.out, config, s.seeds, s.arms, partial(bench, s, speech))
    rows = {arm: recognition.summary(cells, by_arm[s.arms[0]], STEPS, "word") for arm, cells in by_arm.items()}
    for arm, row in rows.items():
        row["amounts"] = [over_runs([of]) for of in np.concatenate([cell["amounts"] for cell in by_arm[arm]], 1)]
    split, settings = by_arm[s.arms[0]][0]["speakers"], speech.corpus.settings
    seconds = float(speech.corpus.lengths.mean()) * settings.hop / settings.sample_rate
    title = f"{speech.corpus.name}, {s.shots} {said} to adapt to; {s.episodes // 2 * 2} test "
    title += f"tasks, {[*map(len, split)]} speakers to train, choose and test on, seeds {s.seeds},\n"
    title += f"{what} (%), greedy decoding, normaliser {speech.vocabulary.normalizer}, 95 % intervals over tasks"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "per_string": seconds, "rows": rows})
    never, panels, lines = rows[s.arms[0]]["word"][0], {}, []
    for where, labelled in (("with text", True), ("without text", False)):
        panels[where] = {arm: rows[arm]["word"] for arm in s.arms if (ARMS[arm].error == "text") == labelled}
        panels[where] |= {"never adapted": [never | {"step": step} for step in STEPS]}
    for arm, row in rows.items():
        tuned = [" ".join(map(str, o[STEPS.index(k)])) for o, k in zip(row["option"], row["step"], strict=True)]
        errors = [report.percent(value) for value in (row["word_at_step"], row["less"], *row["amounts"])]
        lines.append([arm, ", ".join(map(str, row["step"])), ", ".join(tuned), *errors])
    head = ["after the steps that validate best", "steps", "part, rate", what, "less error"]
    head += [f"from {amount * seconds:.1f} s" for amount in s.amounts]
    print("", title, *(report.table(p, None, STEPS) for p in panels.values()), report.markdown(head, lines), sep="\n\n")
    for arm in s.arms:
        print(f"\n{arm}: said | heard before | and after", *map(" | ".join, by_arm[arm][0]["texts"]), sep="\n    ")
    print(f"\nResults and picture are in {s.out}.")
    report.plot_panels(panels, title, s.out / "curve.png", x="step", label="steps", what=f"{what} (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
