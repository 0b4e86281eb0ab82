"""Learn jointly, learn to adapt, or both?

    python experiments/joint_vs_maml.py
    python experiments/joint_vs_maml.py --corpus arabic --root DIR

One theta (a speech and an image encoder, a shared trunk, heads for the words of the corpus, for handwritten digits and
for new words of an episode) is trained for an equal time jointly on words and images, by MAML on episodes, on MAML +
w times the joint loss, or jointly and then by MAML. All then learn the same episodes of unheard words by new people,
next to training from scratch. Every arm chooses on validation its inner rates, that of testing and that of training (by
a training for each), and the number of steps. Nothing else should run; the same command goes on where it was stopped.

Expect joint training, fine-tuned from a fresh head, ahead: on Arabic, 45 s of training, 82.4 ± 0.5 % against 35.9 of
MAML and 71.6 of the best mixture, before the rebuild, when MAML's rate was not chosen. About an hour on 2 CPU cores.
"""

import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import methods, report, runs
from metajax.data import images
from metajax.data.augment import normalized
from metajax.data.cache import default_folder
from metajax.data.features import FeatureSettings
from metajax.data.words import Words, load_words, names_of, sampler
from metajax.evaluate import over_runs
from metajax.losses import classify, multitask_losses
from metajax.models import image_encoder, tcresnet8
from metajax.models.multitask import multitask
from metajax.names import match, replaced
from metajax.parallel import hoisted, replicate, run_once, task_mesh, use_all_cores
from metajax.tasks.held_out import closed_test, hold_out

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # inner rates to test at; lower than elsewhere, since heads see |z|^2 = 64
CHOSEN, KNOWN = ("outer_steps", "step", "rate", "train_rate"), ("speech_accuracy", "image_accuracy")


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # what to train and test on
    root: Path | None = None  # its folder, or the manifest file
    max_hz: float = 7600.0  # upper edge of the mel bands; 3800 for 8 kHz audio
    seeds: tuple[int, ...] = (0, 1)  # of splits, parameters and episodes
    weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)  # of the joint loss in the mixtures
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)  # inner rates to train at
    budget: float = 45.0  # seconds of every training
    episodes: int = 1000  # test episodes; a tenth as many to validate on
    ways: int = 5  # words per episode
    shots: int = 1  # support clips per word
    queries: int = 5  # query clips per word
    tasks: int = 4  # episodes per outer step
    num_steps: int = 5  # inner steps while training
    adapt_steps: int = 10  # adaptation steps when tested
    outer_rate: float = 2e-3  # outer learning rate (Adam)
    width: float = 1.0  # of TC-ResNet8
    augment: float = 0.5  # strength of the augmentation of speech; 0 for none
    cache: Path = field(default_factory=default_folder)  # folder of cached features
    out: Path = Path("runs/joint_vs_maml")  # folder of the results; the same command goes on there


class Cell(NamedTuple):
    arm: str
    seed: int


def arms(weights: tuple[float, ...]) -> dict[str, list[tuple[str, float, float, float]]]:
    """What every arm descends for which share of its time; of MAML + w joint the first and the last w."""
    mixes = {f"mix {w:g}": [("mix", 1.0, w, w)] for w in weights} | {"mix 1 to 0": [("mix", 1.0, 1.0, 0.0)]}
    alone = {kind: [(kind, 1.0, 0.0, 0.0)] for kind in ("joint", "maml")}
    after = {"joint, then maml": [("joint", 0.5, 0.0, 0.0), ("maml", 0.5, 0.0, 0.0)]}
    return {"from scratch": [], **alone, **mixes, **after}


def run_cell(s: Settings, cell: Cell, words: Words) -> dict[str, Any]:
    """Train one arm at every inner rate that it trains at, keep what validates best, and test it."""
    sizes: dict[str, Any] = {"ways": s.ways, "shots": s.shots, "queries": s.queries}
    train, held, label = closed_test(words.corpus.columns, words.splits.train, **sizes, seed=cell.seed)
    words, drawn = words._replace(splits=words.splits._replace(train=train)), images.digits()
    split = hold_out(drawn.label, drawn.drawer, seed=cell.seed, name="digits")
    pixels, digit, seen = map(jnp.asarray, (drawn.pixels, drawn.label, np.flatnonzero(split.train)))
    heads = {"new": s.ways, "speech": len({*words.corpus.columns["label"][train]}), "image": len(drawn.names)}
    encoders = {"speech": tcresnet8(None, normalization="group", width=s.width), "image": image_encoder()}
    model = multitask(encoders, heads, modality={"new": "speech"})
    losses = multitask_losses(model.apply, heads, normalize=True)
    own = mj.only("encoders.speech", "shared", "heads.new")  # all that an episode's words go through
    wide = sizes | {"ways": min(32, heads["speech"]), "queries": 1}  # for joint training
    episodes, many = (sampler(words, "train", **size, augmentation=s.augment) for size in (sizes, wide))
    optimizer, mesh = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(s.outer_rate)), task_mesh(s.tasks)

    def learner(rate: Any) -> mj.Learner:
        return mj.descent(lambda p, x, _: model.apply(p, {"new": x})["new"], classify, optax.sgd(rate), part=own)

    def joint(theta: Any, episode: mj.Episode, key: jax.Array) -> tuple[jax.Array, Any]:
        clips = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), episode.support, episode.query)
        chosen = seen[jax.random.randint(key, (32,), 0, len(seen))]
        batch = {"speech": mj.Batch(clips.x, clips.y.corpus), "image": mj.Batch(pixels[chosen], digit[chosen])}
        values, _, metrics = losses(theta["params"], batch)
        return values.sum(), {"loss": metrics["loss"]}

    def trained(theta: Any, rate: float, seed: int, kind: str, share: float, *ramp: float) -> mj.Fit:
        w, inner = jnp.array(ramp), jnp.full(1, rate)  # arrays, so that all of a kind are one program
        sample = many if kind == "joint" else episodes
        chunk = None if kind == "joint" or jax.default_backend() != "cpu" else 1  # weights of one's own: one at a time

        def step(state: mj.MetaState, key: jax.Array) -> Any:
            maml = mj.query_loss(learner(inner[0]), classify, s.num_steps)
            mixed = mj.mix(maml, joint, w[0] + (w[1] - w[0]) * state.count / state.total)
            objective = {"joint": joint, "maml": maml, "mix": mixed}[kind]
            return mj.meta_step(objective, optimizer, sample, s.tasks, chunk=chunk, mesh=mesh)(state, key)

        state = replicate(mj.init_state(theta, optimizer, 1000, average=0.99), mesh)
        how = {"num_tasks": s.tasks, "block": 10, "seconds": share * s.budget, "title": kind}
        return mj.fit(step, state, jax.random.key(seed), **how)

    x = jnp.zeros_like(jax.eval_shape(episodes, jax.random.key(0)).support.x)
    params = run_once(model.init, jax.random.key(cell.seed), {"new": x, "speech": x, "image": pixels[:2]})
    zeros = {n: jnp.zeros_like(a) for n, a in match({"params": params}, ["params.heads.new"]).items()}
    parts = {"validation": max(s.episodes // 10, 2), "test": s.episodes}
    run = methods.curves(learner, s.adapt_steps)
    tests = [methods.scorer(run, sampler(words, p, **sizes), n, cell.seed + n) for p, n in parts.items()]
    phases = arms(s.weights)[cell.arm]
    adapts, tried = any(kind != "joint" for kind, *_ in phases), []
    for train_rate in s.rates if adapts else s.rates[:1]:
        theta, count = {"params": params}, 0
        for i, phase in enumerate(phases):  # what was learned before is a start like any other, but for the head
            fitted = trained(replaced(theta, zeros) if i else theta, train_rate, cell.seed + i, *phase)
            theta, count = fitted.theta, count + int(fitted.state.count)
        theta = replaced(theta, zeros) if phases and not adapts else theta
        for rate in RATES:
            curve = np.nan_to_num(tests[0](theta, rate).mean(0))
            choice = {"validation": float(curve.max()), "step": int(curve.argmax()), "rate": rate}
            tried.append((choice | {"train_rate": train_rate if adapts else None, "outer_steps": count}, theta))
    choice, theta = max(tried, key=lambda one: one[0]["validation"])
    accuracy = tests[1](theta, choice["rate"])
    clips = normalized(words.corpus.features[held])
    others = {"speech": mj.Batch(clips, jnp.asarray(label)), "image": mj.Batch(pixels[split.test], digit[split.test])}
    known = hoisted(lambda theta: losses(theta["params"], others)[2])(jax.tree.map(np.asarray, theta))
    return choice | {
        "curve": report.curve(*mj.mean_ci95(accuracy)),
        "episodes": [round(float(value), 4) for value in accuracy[:, choice["step"]]],
        "heads": {name: float(known[name]) for name in KNOWN},
        "unseen": {what: len(names_of(words, "test", what)) for what in ("label", "speaker")},
    }


def summary(s: Settings, done: dict[Cell, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By arm, seeds pooled: accuracy, and the gain over the better of joint and MAML alone, episode by episode."""
    episodes = {a: np.concatenate([done[Cell(a, n)]["episodes"] for n in s.seeds]) for a in arms(s.weights)}
    rows: dict[str, dict[str, Any]] = {}
    for arm in arms(s.weights):
        own = [done[Cell(arm, seed)] for seed in s.seeds]
        mean, ci95 = ([[point[what] for point in one["curve"]] for one in own] for what in ("mean", "ci95"))
        curve = report.curve(np.mean(mean, 0), np.linalg.norm(ci95, axis=0) / len(own))
        row = rows[arm] = {"curve": curve, "new words": over_runs([episodes[arm]])}
        row |= {name: [one[name] for one in own] for name in CHOSEN}
        row |= {name: {"mean": float(np.mean([one["heads"][name] for one in own]))} for name in KNOWN}
        if arm not in ("from scratch", "joint", "maml"):
            better = max(("joint", "maml"), key=lambda other: episodes[other].mean())
            row["gain over the better"] = over_runs([episodes[arm] - episodes[better]])
    return rows


def run(s: Settings) -> None:
    """Every cell that is missing, then the tables and the pictures."""
    least = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, "num_steps": 1, "adapt_steps": 1, "episodes": 2}
    least |= {"seeds": 0, "weights": 0, "rates": 0, "budget": 0.1, "outer_rate": 0, "augment": 0}
    runs.check(s, ("plot", "images"), width=0.1, max_hz=0, **least)
    use_all_cores(s.cache / "compiled")
    config = runs.config(s, ("out", "cache", "seeds", "weights"))
    how: dict[str, Any] = {"ways": s.ways, "settings": FeatureSettings(high=s.max_hz), "cache": s.cache}
    words = lru_cache(1)(lambda seed: load_words(s.corpus, s.root, seed=seed, **how))
    words(s.seeds[0])  # what it refuses it refuses before there is a folder
    wanted = [Cell(arm, seed) for seed in s.seeds for arm in arms(s.weights)]
    done = runs.complete(s.out, config, wanted, lambda cell: run_cell(s, cell, words(cell.seed)))
    rows, unseen = summary(s, done), done[wanted[0]]["unseen"]
    who = f"{unseen['label']} unseen words by {unseen['speaker']} unseen speakers, others in support than in query"
    title = f"{s.corpus}, {s.ways}-way {s.shots}-shot, {s.budget:g} s of training, group normalisation,\n{who}"
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows})
    names, lines = ("new words", *KNOWN, "gain over the better"), []
    for arm, row in rows.items():
        chosen = [", ".join(map(str, row[name])) for name in CHOSEN]
        lines.append([arm, *chosen, *(report.percent(row.get(name), "+" * ("gain" in name)) for name in names)])
    curves = {arm: row["curve"] for arm, row in rows.items()}
    tables = report.table(curves, 1 / s.ways, (0, 1, 2, 3, 5, 10)), report.markdown(["arm", *CHOSEN, *names], lines)
    print("", title, *tables, f"Results and picture are in {s.out}.", sep="\n\n")
    report.plot_curves(curves, 1 / s.ways, title, s.out / "curve.png")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
