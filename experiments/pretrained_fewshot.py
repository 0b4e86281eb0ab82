"""What does a pretrained encoder know of words, and what more once it has learned on other words to learn words?

    python experiments/pretrained_fewshot.py
    python experiments/pretrained_fewshot.py --corpus arabic --root DIR --tune 200

Frozen, the encoder embeds every clip once, as the mean over time. Words are then learned from a few clips of each,
support and query by different speakers: by cosines to class means and by ridge regression. Then the same on
embeddings that are whitened within words, and on maps of them that are meta-trained by ProtoNet, ridge, ProtoMAML and
in-context learning from the whitened start, all on other words and speakers, of synthetic speech and of the corpus.
`--tune` goes on with ProtoNet on all of the encoder, on those of the corpus alone. The encoder is Google's speech
embedding (the extra `encoder`), or any that Transformers has saved in a folder. 10 minutes on 2 CPU cores, Arabic.
"""

import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import checkpoint, embedded, methods, recipes, report, runs
from metajax.algorithms.heads import unit
from metajax.core import Sampler
from metajax.data import acoustics, corpora
from metajax.data.waves import word_waves
from metajax.evaluate import over_runs
from metajax.losses import classify
from metajax.models import Model, pretrained, whitened, whitening
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import SHARING, Across, episodes, mixture, with_inputs
from metajax.tasks.splits import divide

RATE, BATCH, STEPS, INNER = 16000, 32, 5, 0.03  # Hz; clips embedded at a time; steps and inner rate of ProtoMAML


@dataclass(frozen=True)
class Settings:
    corpus: Literal["espeak", "fsdd", "arabic", "speech_commands", "manifest"] = "espeak"  # corpus to test on
    root: Path | None = None  # its folder, or the manifest file (CSV, TSV or JSON lines)
    encoder: str = "speech_embedding"  # that, or a folder that Transformers has saved
    layer: int | None = None  # of the encoder, negative from the last; None for its output
    words: Literal["test", "all"] = "test"  # those of the test split, or all words by all speakers, none to learn from
    own: bool = True  # whether to learn from the training words and speakers of the corpus
    synthetic: int = 6  # synthetic clips of each number to learn from, in 100 other languages; 0 for none
    outer_steps: int = 600  # of the maps of embeddings, for each method
    tune: int = 0  # outer steps of ProtoNet on all of the encoder, a second each
    ways: int = 5  # words per episode
    train_ways: int = 12  # words per training episode
    shots: tuple[int, ...] = (1, 5)  # support clips per word
    queries: int = 15  # query clips per word
    across: Across = "speaker"  # speaker: the query by other speakers; none: speakers ignored; same: one says all
    episodes: int = 1000  # test episodes
    seeds: tuple[int, ...] = (0,)  # of the division of words and speakers, and of all else
    out: Path = Path("runs/pretrained_fewshot")  # folder for the results


class Clips(NamedTuple):
    waves: np.ndarray  # [n, samples], half precision
    vectors: np.ndarray  # [n, features] of the frozen encoder
    columns: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]


def embed(apply: Any, params: Any, waves: np.ndarray) -> np.ndarray:
    """What the model makes of each clip."""
    return embedded.vectors(partial(jax.jit(apply), params), waves, BATCH)


def same(params: dict, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return x


def learned(embed: Any, ways: int, features: int) -> dict[str, mj.Algorithm]:
    """Methods that learn to learn on embeddings of length 1."""

    def larger(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return 4 * embed(params, x, key)

    return {
        "ProtoNet": mj.protonet(embed, classify, ways, metric="cosine", temperature=0.1),
        "ridge": mj.ridge(embed, classify, ways, strength=0.1),
        "ProtoMAML": mj.proto_maml(larger, classify, optax.sgd(INNER), STEPS, ways),
        "in-context": mj.in_context(embed, classify, ways, features=features),
    }


def division(s: Settings, encoder: Model, params: Any, sets: list[Clips], seed: int) -> dict[str, Any]:
    """Accuracy of every learner at every number of shots, for one division of the first corpus's words and speakers."""
    test, key, found = sets[0], jax.random.key(seed), dict[str, Any]()
    split = divide(test.columns, test.names, ways=s.ways, seed=seed)
    rows = np.flatnonzero(split.test if s.words == "test" else test.columns["label"] >= 0)
    sources = [(clips, np.flatnonzero(clips.columns["label"] >= 0)) for clips in sets[1:]]
    if s.own and s.words == "test":
        sources.append((test, np.flatnonzero(split.train)))

    def sampler(clips: Clips, x: Any, rows: np.ndarray, ways: int, shots: int, queries: int) -> Sampler:
        columns = [clips.columns[name][rows] for name in ("label", "speaker")]
        return episodes(x, *columns, ways=ways, shots=shots, queries=queries, across=s.across, name=s.corpus)

    def score(name: str, learner: mj.Learner, theta: Any, x: np.ndarray, steps: int = 1) -> None:
        curves, found[name] = methods.curves(lambda rate: learner, steps), {}
        for shots in s.shots:
            sample = sampler(test, x, rows, s.ways, shots, s.queries)
            found[name][shots] = methods.scorer(curves, sample, s.episodes, seed + 1)(theta)[:, -1]

    def train(title: str, objective: Any, theta: Any, sample: Sampler, steps: int, rate: float) -> Any:
        how: dict[str, Any] = {"optimizer": recipes.adamw(rate), "average": 0.98, "title": title}
        return recipes.meta_train([(1.0, objective)], theta, sample, key, steps, **how).theta

    means = partial(mj.protonet, error=classify, num_classes=s.ways, metric="cosine")
    none = {"params": {"none": jnp.zeros(1)}}
    score("frozen: class means", means(same).learner, none, test.vectors[rows])
    ridge = mj.ridge(lambda params, x, key: unit(x), classify, s.ways, strength=0.1).learner
    score("frozen: ridge", ridge, ridge.init(none["params"], key), test.vectors[rows])
    if not sources:
        return found
    label = np.concatenate([clips.columns["label"][r] + 10**6 * i for i, (clips, r) in enumerate(sources)])
    white = whitening(np.concatenate([clips.vectors[rows] for clips, rows in sources]), label)
    flat = whitened(Model(lambda key, x: {}, same, lambda params, x: {}))
    start = {"encoder": {}, "whitening": white}
    score("whitened: class means", means(flat.apply).learner, {"params": start}, test.vectors[rows])
    parts = [sampler(clips, clips.vectors[rows], rows, s.train_ways, 1, 1) for clips, rows in sources]
    sample = parts[0] if len(parts) == 1 else mixture(parts[0], parts[1], 0.5)
    many = learned(flat.apply, s.train_ways, test.vectors.shape[1])
    for name, tested in learned(flat.apply, s.ways, test.vectors.shape[1]).items():
        theta = many[name].learner.init(start, key)
        if s.outer_steps:
            theta = train(name, many[name].objective, theta, sample, s.outer_steps, 1e-3)
        score(f"map learned: {name}", tested.learner, theta, test.vectors[rows], STEPS if name == "ProtoMAML" else 1)
    if s.tune:
        whole, start = whitened(encoder), {"encoder": params, "whitening": white}
        objective = mj.protonet(whole.apply, classify, s.train_ways, metric="cosine", temperature=0.1).objective
        clips, which = sources[-1]
        change = lambda x, key: acoustics.disturbed(x.astype(jnp.float32), key, RATE)  # noqa: E731
        sample = with_inputs(sampler(clips, clips.waves[which], which, s.train_ways, 1, 2), change)
        theta = train("all of it", objective, {"params": start}, sample, s.tune, 3e-4)
        checkpoint.save(s.out / f"theta{seed}", theta)
        score("all learned: ProtoNet", means(same).learner, none, embed(whole.apply, theta["params"], test.waves[rows]))
    return found


def run(s: Settings) -> None:
    """Embed all clips, then every division, then the table."""
    least = {"ways": 2, "train_ways": 2, "shots": 1, "queries": 1, "episodes": 2, "synthetic": 0, "tune": 0}
    runs.check(s, outer_steps=0, seeds=0, **least)
    if s.tune and not (s.own and s.words == "test"):
        raise mj.InputError("tune is given, but not own and the test split's words: nothing is left to learn from.")
    runs.check_folder(s.out, runs.config(s), resume=False)
    use_all_cores()
    recordings, known = corpora.with_synthetic(s.corpus, s.root, s.synthetic), s.encoder == "speech_embedding"
    encoder, params, *_ = pretrained.speech_embedding() if known else pretrained.load(s.encoder)
    model, sets = pretrained.averaged(encoder, s.layer), []
    runs.open_folder(s.out, runs.config(s))
    for one in recordings:
        waves = word_waves(one)
        sets.append(Clips(waves, embed(model.apply, params, waves), one.columns, one.names))
    found = [division(s, model, params, sets, seed) for seed in s.seeds]
    scores: dict[str, dict[int, Any]] = {name: {} for name in found[0]}
    for name, shots in product(scores, s.shots):
        tables = [one[name][shots] for one in found]
        scores[name][shots] = over_runs(tables) | {"each": [float(table.mean()) for table in tables]}
    rows = [[name, *(report.percent(cell) for cell in of.values())] for name, of in scores.items()]
    used = [*(["synthetic"] if len(sets) > 1 else []), *(["its training words"] if s.own and s.words == "test" else [])]
    title = f"{s.corpus}, {s.words} words, {s.ways}-way, {SHARING[s.across]}, every query alone, {s.episodes} "
    title += f"episodes, seeds {s.seeds}; learned from: {' and '.join(used) or 'nothing'}"
    print(f"\n{title}\n\n{report.markdown(['accuracy (%)', *(f'{shots}-shot' for shots in s.shots)], rows)}")
    runs.save_results(s.out, {"title": title, "accuracy": scores})


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
