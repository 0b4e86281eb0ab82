"""How long does a recogniser take to hear, and to adapt?

    taskset -c 0 python experiments/speed/recognition.py         # one core: the real-time factor
    python experiments/speed/recognition.py                      # all cores: adaptation, an hour of features

A Conformer of `speaker_adaptation.py`'s sizes with random weights, which decodes to 14 tokens a second. Everything
is compiled before it is timed; the median of three. A minute on 2 CPU cores.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from workloads import timed

import metajax as mj
from metajax import report, runs
from metajax.data.features import FeatureSettings
from metajax.data.speech import Pieces, read_pieces
from metajax.data.text import Vocabulary
from metajax.models.saved import Saved, Way, judging, ready
from metajax.parallel import use_all_cores

WAYS = (Way(), Way("suta", "film", 1e-3, 10, adam=True), Way("learned", "film", 0.3, 1, learned_rates=True))


@dataclass(frozen=True)
class Settings:
    width: float = 0.5  # of the Conformer
    layers: int = 2
    tokens: int = 32  # of the vocabulary, blank included
    longest: float = 2.5  # seconds of a piece; 10 s to adapt to
    minutes: int = 60  # of features


def seconds(run: Callable[[], Any]) -> float:
    """The median of three, after one that compiles."""
    return sorted(timed(run, 4)[1:])[1]


def run(s: Settings) -> None:
    use_all_cores()
    known = Vocabulary(("<pad>", *(chr(97 + i) for i in range(s.tokens - 1))), "nfc", "character", (*range(s.tokens),))
    network, draw = {"width": s.width, "num_layers": s.layers}, np.random.default_rng(0)
    params = jax.jit(judging(network, known).init)(jax.random.key(0), jnp.zeros((1, 8, 40)))
    saved = Saved({"params": params}, known, FeatureSettings(), s.longest, network)
    hear, count, frames = ready(saved).hear, round(s.minutes * 60 / s.longest), round(s.longest * 100) - 2
    with tempfile.TemporaryDirectory() as folder:
        path, at = Path(folder) / "minute.wav", np.arange(60 * 16000) / 16000
        soundfile.write(path, 0.1 * draw.normal(size=at.size) * np.sin(np.pi * at) ** 2, 16000)
        minute = seconds(lambda: hear(read_pieces(path, s.longest)))
    took = {"a minute of audio, read, split and recognised": (minute, 60)}
    x = mj.Utterances(draw.normal(size=(count, frames, 40)).astype(np.float32), np.full(count, frames))
    pieces = Pieces(x, tuple(s.longest * i for i in range(count)), s.minutes * 60.0)
    took[f"{s.minutes} minutes of features, to text with times"] = seconds(lambda: hear(pieces)), s.minutes * 60
    shots = round(10 / s.longest)
    some, said = jax.tree.map(lambda a: jnp.asarray(a[:shots]), x), 1 + jnp.arange(10) % (s.tokens - 1)
    y = mj.Transcripts(jnp.tile(said, (shots, 1)), jnp.full(shots, 10))
    for way in WAYS:
        adapt, texts = ready(saved._replace(way=way)).adapt, y if way.error == "text" else ()
        told = f"adapted to {shots * s.longest:.1f} s: {way.part}, error {way.error}, {way.steps} steps"
        took[told] = seconds(lambda: adapt(some, texts)), shots * s.longest  # noqa: B023
    rows = [(told, f"{one:.3f}", f"{one / length:.4f}") for told, (one, length) in took.items()]
    print(report.environment(), report.markdown(("what", "seconds", "of its length"), rows), sep="\n\n")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
