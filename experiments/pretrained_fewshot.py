"""What does a pretrained encoder know of words that it was never asked about, without any training here?

    python experiments/pretrained_fewshot.py --corpus arabic --root DIR
    python experiments/pretrained_fewshot.py --corpus arabic --root DIR --encoder FOLDER --layer 6

Embeds every clip once, as the mean over time of what the frozen encoder gives, then learns words from a few clips of
each by class means (cosine, Euclidean) and by ridge regression, support and query by different speakers. The encoder
is Google's speech embedding (the extra `encoder`), or any that Transformers has saved in a folder. The anchor that
meta-learning has to beat. Two minutes on 2 CPU cores.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mj
from metajax import checkpoint, methods, report, runs
from metajax.data import corpora
from metajax.data.corpus import Recordings
from metajax.losses import classify
from metajax.models import pretrained
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import SHARING, Across, episodes
from metajax.tasks.splits import divide

RATE = 16000  # Hz, what encoders take


@dataclass(frozen=True)
class Settings:
    corpus: Literal["fsdd", "arabic", "speech_commands", "manifest"] = "arabic"  # corpus to test on
    root: Path | None = None  # its folder, or the manifest file (CSV, TSV or JSON lines)
    encoder: str = "speech_embedding"  # that, or a folder that Transformers has saved
    layer: int | None = None  # of the encoder, negative from the last; None for its output
    words: Literal["test", "all"] = "test"  # those of the test split, or all words by all speakers
    seconds: float = 1.0  # of every clip, the loudest part of a longer one
    silence: float = 0.125  # seconds before and after
    ways: int = 5  # words per episode
    shots: tuple[int, ...] = (1, 5)  # support clips per word
    queries: int = 15  # query clips per word
    across: Across = "speaker"  # speaker: the query by other speakers; none: speakers ignored; same: one says all
    episodes: int = 1000  # test episodes
    batch: int = 32  # clips embedded at a time
    seed: int = 0  # of the splits and the episodes
    out: Path = Path("runs/pretrained_fewshot")  # folder for the results


def placed(wave: np.ndarray, s: Settings) -> np.ndarray:
    """The part of a wave with the most energy, or all of it, in the middle of silence."""
    size, around = round(s.seconds * RATE), round(s.silence * RATE)
    total = np.cumsum(np.concatenate([[0.0], np.square(wave, dtype=np.float64)]))
    start = int(np.argmax(total[size:] - total[:-size])) if len(wave) > size else 0
    wave = wave[start : start + size]
    before = (size - len(wave)) // 2
    return np.pad(wave, (around + before, around + size - len(wave) - before))


def embed(s: Settings, recordings: Recordings, clips: np.ndarray) -> np.ndarray:
    """One vector a clip."""
    if s.encoder == "speech_embedding":
        encoder, params = pretrained.speech_embedding()
    else:
        encoder, params, _ = pretrained.load(s.encoder)
    apply = jax.jit(pretrained.averaged(encoder, s.layer).apply)
    found = []
    for start in range(0, len(clips), s.batch):
        chosen = np.resize(clips[start : start + s.batch], s.batch)  # the last ones again, so that one program serves
        waves = []
        for wave in recordings.read([int(i) for i in chosen], RATE):
            if isinstance(wave, mj.InputError):
                raise wave
            waves.append(placed(wave, s))
        found.append(apply(params, np.stack(waves)))
    return np.concatenate(found)[: len(clips)]


def contestants(ways: int) -> dict[str, mj.Learner]:
    """Learners on embeddings."""

    def same(params: dict, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return x

    def unit(params: dict, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return {
        "class means, cosine": mj.protonet(unit, classify, ways, metric="cosine").learner,
        "class means, Euclidean": mj.protonet(same, classify, ways).learner,
        "ridge": mj.ridge(unit, classify, ways, strength=0.1).learner,
    }


def run(s: Settings) -> None:
    runs.check(s, seconds=0.1, silence=0, ways=2, shots=1, queries=1, episodes=2, batch=1)
    runs.check_folder(s.out, runs.config(s), resume=False)
    use_all_cores()
    recordings = corpora.read(s.corpus, s.root)
    columns = recordings.columns
    label, speaker = columns["label"], columns["speaker"]
    told = label >= 0
    if s.words == "test":
        told = divide(columns, recordings.names, ways=s.ways, seed=s.seed).test
    clips = np.flatnonzero(told)
    begin = time.perf_counter()
    features = embed(s, recordings, clips)
    seconds = time.perf_counter() - begin
    runs.open_folder(s.out, runs.config(s))
    rows, scores = [], {}
    for name, learner in contestants(s.ways).items():
        theta = learner.init({"none": jnp.zeros(1)}, jax.random.key(0))
        cells = []
        for shots in s.shots:
            sizes = {"ways": s.ways, "shots": shots, "queries": s.queries}
            sample = episodes(features, label[clips], speaker[clips], **sizes, across=s.across, name=s.corpus)
            score = methods.scorer(methods.curves(lambda _, a=learner: a, 1), sample, s.episodes, s.seed + 1)
            mean, ci95 = (float(a[-1]) for a in mj.mean_ci95(score(theta)))
            scores.setdefault(name, {})[shots] = {"mean": mean, "ci95": ci95}
            cells.append(report.percent(scores[name][shots]))
        rows.append([name, *cells])
    many = f"{len(set(label[clips]))} words by {len(set(speaker[clips]))} speakers"
    print(f"{s.corpus}, {many}, {s.ways}-way, {SHARING[s.across]}; {len(clips)} clips embedded in {seconds:.0f} s\n")
    print(report.markdown(["accuracy (%)", *(f"{shots}-shot" for shots in s.shots)], rows))
    results = {"of": many, "embedding_seconds": seconds, "accuracy": scores, **report.environment()}
    checkpoint.write_json(s.out / "results.json", results)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
