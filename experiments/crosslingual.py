"""Does a recogniser that was meta-trained on languages learn a new one from ten utterances?

    python experiments/crosslingual.py --seeds 0 1 2

eSpeak NG speaks numbers and invented words in 106 languages; tokens are its phonemes in IPA. A task is a language: ten
utterances of a second to adapt to, others to recognise. A small Conformer learns jointly on 85 languages; from there
every arm goes on for an equal time: jointly (the start of fine-tuning), by FOMAML, MAML, Reptile or Meta-SGD (MAML
with learned rates), on all parameters, low-rank matrices, or with a head that each language learns from zero. For every
arm and number of steps, languages to validate on choose inner rate and part. The error is that of phonemes, decoded
greedily, of languages and voices never heard. The same command goes on where it stopped. 30 minutes a seed on one core.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import recipes, recognition, report, runs
from metajax.core import Episode, Theta, Utterances
from metajax.data.augment import normalized
from metajax.data.cache import default_folder
from metajax.data.corpora import read
from metajax.data.speech import languages, load_speech
from metajax.losses import ctc
from metajax.models import recogniser
from metajax.parallel import use_all_cores
from metajax.tasks.groups import of_each

STEPS = (0, 1, 2, 5, 20)  # after which the error is told
FEWER = (1, 3)  # utterances to adapt to, in place of all


def new_head() -> mj.Part:
    """All parameters, but each language has a head of its own, which begins with zeros."""
    zeros = partial(jax.tree.map, jnp.zeros_like)
    return mj.everything()._replace(split=lambda theta: theta["params"] | {"head": zeros(theta["params"]["head"])})


PARTS = {"all": mj.everything, "lora": partial(mj.lora, 4), "new head": new_head}
# inner rates to choose from
RATES = {"all": (0.03, 0.1, 0.3), "lora": (0.1, 0.3, 1.0), "new head": (0.1, 0.3, 1.0, 3.0)}


class Arm(NamedTuple):
    """What theta descends, and what adapts."""

    kind: Literal["fresh", "joint", "fomaml", "maml", "reptile", "meta_sgd"]
    parts: tuple[str, ...]
    rate: float = 0.0  # inner rate while training, from which learned rates start
    num_steps: int = 2  # inner steps while training


ARMS = {
    "fine-tuned": Arm("joint", ("all", "lora")),
    "FOMAML": Arm("fomaml", ("all",), 0.1),
    "MAML": Arm("maml", ("all",), 0.1),
    "Reptile": Arm("reptile", ("all",), 0.1),
    "Meta-SGD": Arm("meta_sgd", ("all",), 0.1),
    "Meta-SGD, LoRA": Arm("meta_sgd", ("lora",), 0.3),
    "Meta-SGD, new head": Arm("meta_sgd", ("new head",), 0.3),
    "fine-tuned, new head": Arm("joint", ("new head",)),
    "FOMAML, new head": Arm("fomaml", ("new head",), 0.3, 5),
    "from scratch": Arm("fresh", ("all",)),
}


@dataclass(frozen=True)
class Settings:
    arms: tuple[str, ...] = tuple(ARMS)  # which to compare; less error is told against the first before any step
    seeds: tuple[int, ...] = (0,)  # of the utterances, the division of the languages, parameters and tasks
    utterances: int = 60  # of each language
    held_out: int = 10  # languages to validate on and to test on
    shots: int = 10  # utterances to adapt to
    queries: int = 6  # utterances to recognise while training
    tested: int = 12  # utterances to recognise when tested
    pretrain: float = 240.0  # seconds of joint training that all start from
    further: float = 60.0  # seconds of every arm after that
    outer_steps: tuple[int, int] | None = None  # numbers of outer steps in place of these two times
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/crosslingual")  # folder of the results; the same command goes on there


def bench(s: Settings, seed: int) -> Callable[[str], dict[str, Any]]:
    """Pretrain for a seed, or read what was; how an arm is then trained, chosen on validation and tested."""
    key = jax.random.key(seed)
    recordings = read("espeak_phrases", utterances=s.utterances, letters=(8, 20), seed=seed)
    speech = load_speech(recordings, normalizer="ipa", unit="phoneme", longest=2.5, cache=s.cache, on_error="skip")
    corpus, language = speech.corpus, speech.corpus.columns["language"]
    able = np.flatnonzero(np.bincount(language) >= s.shots + max(s.queries, s.tested))
    if len(few := np.setdiff1d(language, able)):
        told = ", ".join(corpus.names["language"][i] for i in few)
        warnings.warn(f"Left out, for too few utterances: {told}.", stacklevel=1)
    groups = [np.intersect1d(language[corpus.columns["split"] == split], able) for split in range(3)]
    groups[1:] = [group[: s.held_out] for group in groups[1:]]
    if min(sizes := [*map(len, groups[1:])]) < s.held_out:
        raise mj.InputError(f"held_out is {s.held_out}, but {sizes} languages have utterances enough.")
    parts = [tuple(corpus.names["language"][i] for i in group) for group in groups]
    sample = partial(languages, speech, values=parts[0], augmentation=0.25)
    many, episodes = sample(shots=1, queries=s.shots + s.queries - 1), sample(shots=s.shots, queries=s.queries)
    model = recogniser(width=0.5, num_layers=2)(len(speech.vocabulary.tokens))
    x = normalized(Utterances(corpus.features, corpus.lengths))
    each = partial(of_each, x, speech.transcripts, language, shots=s.shots, queries=s.tested, seed=seed)
    on: dict[Any, Episode] = {"validation": each(groups[1]), "test": (test := each(groups[2]))}
    on |= {few: recognition.of_few(test, few, s.shots) for few in FEWER}

    train, steps = recipes.course(s.out / f"seed{seed}", key), s.outer_steps or (None, None)
    jointly, further = mj.joint(model.apply, ctc).objective, ((s.further, steps[1]), 2e-3)
    fresh = {"params": recipes.fresh(model.init, many, key)}
    start = train("start", jointly, fresh, many, (s.pretrain, steps[0]), 4e-3)[0]

    def trained(title: str, arm: Arm, name: str) -> tuple[Theta, Any]:
        part = PARTS[name]()
        if arm.kind in ("fresh", "joint"):
            theta, count = (fresh, 0) if arm.kind == "fresh" else train("joint", jointly, start, many, *further)
            return theta | part.init(theta["params"], key), count
        method = getattr(mj, arm.kind)(model.apply, ctc, optax.sgd(arm.rate), arm.num_steps, part=part)
        begun = method.learner.init(start["params"], key)
        return train(f"{title}, {name}", method.objective, begun, episodes, *further)

    @lru_cache
    def tester(name: str, rule: Callable[[], mj.Rule]) -> Callable[..., Any]:
        how: dict[str, Any] = {"part": PARTS[name](), "rule": rule(), "first_order": True}
        learner = lambda rate: mj.descent(model.apply, ctc, optax.sgd(rate), **how)  # noqa: E731
        return recognition.heard_by_each(learner, key, s.held_out, STEPS)

    def cell(title: str) -> dict[str, Any]:
        arm = ARMS[title]
        thetas = {name: trained(title, arm, name) for name in arm.parts}
        errors = partial(recognition.error_curves, speech.vocabulary, steps=range(len(STEPS)))

        @lru_cache
        def heard(option: tuple[str, float], where: Any) -> Any:
            test = tester(option[0], mj.rates if arm.kind == "meta_sgd" else mj.plain)
            return test(thetas[option[0]][0], option[1], on[where])

        scores = {(name, rate): errors(heard((name, rate), "validation")) for name in arm.parts for rate in RATES[name]}
        found = recognition.chosen(scores, lambda option: errors(heard(option, "test")), STEPS, "word")
        best = found["option"][i := STEPS.index(found["step"])]
        fewer = [float(errors(heard(best, few))["word"][:, i].mean()) for few in FEWER]
        lines = [recognition.decoded(speech.vocabulary, heard(best, "test"), task, i) for task in range(s.held_out)]
        told = {"texts": [[of[k][0] for of in lines] for k in range(3)], "fewer": fewer, "languages": parts}
        return found | told | {"outer_steps": [int(count) for _, count in thetas.values()]}

    return cell


def run(s: Settings) -> None:
    """Every cell that is missing, then the tables, transcripts and the picture."""
    one = dict.fromkeys(("shots", "queries", "tested", "outer_steps"), 1)
    runs.check(s, ("plot", "espeak"), seeds=0, held_out=2, pretrain=0.1, further=0.1, **one)
    runs.known("arms", s.arms, ARMS)
    use_all_cores(s.cache / "compiled")
    config = runs.config(s, ("out", "cache", "seeds", "arms"))
    by_arm = runs.compare(s.out, config, s.seeds, s.arms, partial(bench, s))
    rows = {arm: recognition.summary(cells, by_arm[s.arms[0]], STEPS, "word") for arm, cells in by_arm.items()}
    split = [*map(len, by_arm[s.arms[0]][0]["languages"])]
    title = f"{s.shots} utterances to adapt to; {split} languages to train, choose "
    title += f"and test on, seeds {s.seeds}, 95 % over both\nphoneme error (%), greedy decoding, normaliser ipa"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows})
    curves, lines = {arm: row["word"] for arm, row in rows.items()}, []
    for arm, row in rows.items():
        tuned = [" ".join(map(str, o[STEPS.index(k)])) for o, k in zip(row["option"], row["step"], strict=True)]
        told = [report.percent(row[name]) for name in ("word_at_step", "character_at_step", "less")]
        told += [f"{100 * of:.1f}" for of in np.mean([cell["fewer"] for cell in by_arm[arm]], 0)]
        lines.append([arm, ", ".join(map(str, row["step"])), ", ".join(tuned), *told])
    head = ["after the steps that validate best", "steps", "part, rate", "phoneme error", "of characters", "less error"]
    head += [f"of {few}" for few in FEWER]
    print("", title, report.table(curves, None, STEPS), report.markdown(head, lines), sep="\n\n")
    best = min(s.arms, key=lambda arm: rows[arm]["word_at_step"]["mean"])
    for texts in zip(by_arm[best][0]["languages"][2], *by_arm[best][0]["texts"], strict=True):
        print("\n    ".join(texts))
    print(f"\nThat was said in each language, heard before {best}, and after. Results and picture are in {s.out}.")
    report.plot_panels({"": curves}, title, s.out / "curve.png", x="step", label="steps", what="phoneme error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
