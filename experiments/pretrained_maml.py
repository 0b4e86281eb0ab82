"""What should a task change of a pretrained encoder to learn words: a head, scales, low-rank matrices, or its layers?

    python experiments/pretrained_maml.py
    python experiments/pretrained_maml.py --corpus arabic --root DIR --seeds 0 1 2

Google's speech embedding (the extra `encoder`), averaged over time and whitened within the words that it learns from.
From there MAML with its head at the class means (Proto-MAML) is trained for each thing to adapt beside the head:
nothing, shifts of features (FiLM), their weights (LHUC), low-rank changes or all of the kernels of the upper
convolutions; beside them ProtoNet on these convolutions, which adapts nothing. What lies below is computed once. Words
and speakers of the test are in no training, support and query by different speakers; validation words choose the inner
rate, where there are any. It learns from the corpus's training words and from synthetic speech. 20 minutes on one core.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import embedded, methods, recipes, report, runs
from metajax.core import Sampler, Theta
from metajax.data import corpora
from metajax.data.waves import word_waves
from metajax.evaluate import over_seeds
from metajax.losses import classify
from metajax.models import Model, pretrained, whitened, whitening
from metajax.models.pretrained.speech_embedding import CONVOLUTIONS, convolved, log_mel
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import episodes, mixture
from metajax.tasks.splits import divide

RATES = (0.01, 0.03, 0.1)  # inner rates to choose from
PARTS = {
    "head": mj.nothing, "FiLM": partial(mj.film, "encoder.*"), "LHUC": partial(mj.lhuc, "encoder.*"),
    "LoRA": partial(mj.lora, 4, "encoder.*.kernel"), "upper convolutions": partial(mj.only, "encoder.*"),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    corpus: Literal["espeak", "fsdd", "arabic", "speech_commands", "manifest"] = "espeak"  # corpus to test on
    root: Path | None = None  # its folder, or the manifest file (CSV, TSV or JSON lines)
    parts: tuple[str, ...] = tuple(PARTS)  # what a task changes
    first: int = 14  # of the 20 convolutions, the first that may change
    own: bool = True  # whether to learn from the training words and speakers of the corpus
    synthetic: int = 6  # synthetic clips of each number to learn from, in 100 other languages; 0 for none
    outer_steps: int = 300  # of each
    num_steps: int = 3  # inner steps
    rate: float = 0.03  # inner rate while training
    ways: int = 5  # words per episode
    shots: tuple[int, ...] = (1, 5)  # support clips per word; the first while training
    queries: int = 5  # query clips per word
    episodes: int = 1000  # test episodes
    seeds: tuple[int, ...] = (0,)  # of the division of words and speakers, and of all else
    out: Path = Path("runs/pretrained_maml")  # folder for the results


class Clips(NamedTuple):
    hidden: np.ndarray  # [n, time, mel, channels] below the first convolution that may change, half precision
    columns: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]


def division(s: Settings, params: Any, sets: list[Clips], seed: int) -> dict[str, Any]:
    """Accuracy of every part after every step, at every number of shots, for one division of words and speakers."""
    test, key, found = sets[0], jax.random.key(seed), dict[str, Any]()
    split = divide(test.columns, test.names, ways=s.ways, seed=seed)
    sources = [(clips, np.flatnonzero(clips.columns["label"] >= 0)) for clips in sets[1:]]
    sources += [(test, np.flatnonzero(split.train))] if s.own else []

    def sampler(clips: Clips, rows: np.ndarray, shots: int, queries: int) -> Sampler:
        columns = [clips.columns[name][rows] for name in ("label", "speaker")]
        return episodes(clips.hidden[rows], *columns, ways=s.ways, shots=shots, queries=queries, across="speaker")

    def encode(params: Any, x: jax.Array, key: Any = None) -> jax.Array:
        return convolved(params, x.astype(jnp.float32), range(s.first, CONVOLUTIONS))[:, :, 0].mean(1)

    model = whitened(Model(lambda key, x: {}, encode, lambda params, x: {}))
    upper = {name: params[name] for name in (f"conv{i}" for i in range(s.first, CONVOLUTIONS))}
    program = jax.jit(partial(encode, upper))
    label = np.concatenate([clips.columns["label"][r] + 10**6 * i for i, (clips, r) in enumerate(sources)])
    vectors = np.concatenate([embedded.vectors(program, clips.hidden[rows]) for clips, rows in sources])
    start = {"encoder": upper, "whitening": whitening(vectors, label)}
    train = [sampler(clips, rows, s.shots[0], 2) for clips, rows in sources]
    sample = train[0] if len(train) == 1 else mixture(train[0], train[1], 0.5)

    def score(name: str, curves: methods.Curves, theta: Theta) -> None:
        found[name] = {}
        for shots in s.shots:
            asked, chosen = sampler(test, np.flatnonzero(split.test), shots, s.queries), None
            if split.validation.any():
                chosen = sampler(test, np.flatnonzero(split.validation), shots, s.queries)
            how: dict[str, Any] = {"episodes": s.episodes, "seed": seed, "rates": RATES}
            tested = methods.tested(curves, theta, chosen, asked, **how)
            found[name][shots] = {"rate": tested.rate, "curve": report.curve(*mj.mean_ci95(tested.accuracy))}

    def trained(name: str, method: mj.Algorithm) -> Theta:
        path, theta = s.out / f"seed{seed}" / name, method.learner.init(start, key)
        return recipes.trained_once(
            path, [(1.0, method.objective)], theta, sample, key, s.outer_steps, title=name, average=0.98,
            optimizer=recipes.adamw(3e-4),
        )[0]  # fmt: skip

    means = partial(mj.protonet, error=classify, num_classes=s.ways, metric="cosine")
    frozen = means(lambda params, x, key: encode(params, x))
    score("frozen, class means", methods.curves(lambda _: frozen.learner, 1), {"params": upper})
    whole = means(model.apply, temperature=0.1)
    score("whitened, class means", methods.curves(lambda _: whole.learner, 1), {"params": start})
    score("ProtoNet, nothing adapts", methods.curves(lambda _: whole.learner, 1), trained("ProtoNet", whole))
    larger = lambda params, x, key: 4 * model.apply(params, x, key)  # noqa: E731
    for name in s.parts:
        maml = partial(mj.proto_maml, larger, classify, num_steps=s.num_steps, num_classes=s.ways, part=PARTS[name]())
        curves = methods.curves(lambda rate, maml=maml: maml(inner=optax.sgd(rate)).learner, s.num_steps)
        score(f"MAML over {name}", curves, trained(name, maml(inner=optax.sgd(s.rate))))
    return found


def run(s: Settings) -> None:
    """Hold what no task changes, then every division, then the table."""
    least: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 1, "episodes": 2, "synthetic": 0, "outer_steps": 1}
    runs.check(s, num_steps=1, rate=0, seeds=0, first=1, **least)
    runs.known("parts", s.parts, PARTS)
    if not s.own and (not s.synthetic or s.corpus == "espeak"):
        raise mj.InputError("Neither words of the corpus nor synthetic ones are learned from.")
    if s.first >= CONVOLUTIONS:
        raise mj.InputError(f"first is {s.first}, expected a convolution within 1..{CONVOLUTIONS - 1}.")
    config = runs.config(s, ("out",))
    runs.check_folder(s.out, config, resume=(resume := (s.out / "config.json").exists()))
    use_all_cores()
    recordings, (_, params) = corpora.with_synthetic(s.corpus, s.root, s.synthetic), pretrained.speech_embedding()
    runs.open_folder(s.out, config, resume=resume)
    below = jax.jit(lambda wave: convolved(params, log_mel(wave)[..., None], range(s.first)).astype(jnp.float16))
    sets = [Clips(embedded.vectors(below, word_waves(one)), one.columns, one.names) for one in recordings]
    done = [division(s, params, sets, seed) for seed in s.seeds]
    lines, rows = [], dict[str, Any]()
    for name in done[0]:
        each = {shots: [one[name][shots]["curve"] for one in done] for shots in s.shots}
        rows[name] = {shots: curves[0] for shots, curves in each.items()}  # of one division, over its episodes
        if len(done) > 1:
            of = {shots: zip(*curves, strict=True) for shots, curves in each.items()}
            rows[name] = {shots: [over_seeds([c["mean"] for c in point]) for point in of[shots]] for shots in of}
        rates = {shots: [one[name][shots]["rate"] for one in done] for shots in s.shots}
        told = [report.percent(row[k]) for row in rows[name].values() for k in (0, -1)]
        lines.append([name, *told, ", ".join(map(str, rates[s.shots[0]]))])
        rows[name]["rates"] = rates
    used = ["synthetic speech"] * (len(sets) > 1) + ["its own training words"] * s.own
    title = f"{s.corpus}: {s.ways}-way, unseen words, query by other speakers, every query alone, {s.episodes} episodes"
    over = "them" if len(done) > 1 else "episodes"
    title += f",\nseeds {s.seeds}, 95 % over {over}; learned from {' and '.join(used)}"
    head = ["%", *(f"{k}-shot, {when}" for k in s.shots for when in ("before", f"after {s.num_steps} steps")), "rate"]
    print(f"\n{title}\n\n{report.markdown(head, lines)}")
    runs.save_results(s.out, {"title": title, "config": config, "scores": rows})


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
