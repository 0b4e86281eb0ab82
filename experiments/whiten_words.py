"""What must be learned on top of Google's speech embedding, from synthetic speech alone, to know words by one clip?

    python experiments/whiten_words.py --out metajax/data/words.safetensors
    python experiments/whiten_words.py --arabic DIR --fsdd DIR --speech-commands DIR      # and tests it

Speaks numbers in 106 languages by eSpeak NG, each clip as from a room, noise and level of its own, and embeds it as the
largest and smallest values that the frozen encoder gives (the extra `encoder`), and, for running audio, as their mean.
Learns a whitening within words of each, and, for that beside the network that comes with metajax, three numbers that
turn cosines into probabilities, of no taught word too, on episodes half of whose queries are of other words. Writes all
with a card into one file, which `mj.models.words()` reads. The tests are of words that no part of this has heard, from
unheard people. About 10 minutes on a CPU core.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metajax as mj
from metajax import checkpoint, embedded, runs
from metajax.data import corpora
from metajax.data.acoustics import disturbed
from metajax.data.corpus import Recordings
from metajax.data.waves import word_waves
from metajax.models import pretrained, whitening
from metajax.models.words import WEIGHT, extremes, words

TESTS = ("arabic", "fsdd", "speech_commands")
FRAME_WEIGHT = 0.5  # of the network's part beside the mean over time
RATE = 16000  # Hz


@dataclass(frozen=True)
class Settings:
    clips_per_label: int = 6  # synthetic clips of each of the 2,489 words, all by different speakers
    shrink: float = 0.5  # how far the covariance within words is drawn to a multiple of the identity, of clips
    frame_shrink: float = 0.3  # and of frames
    ways: int = 5  # words taught in an episode; as many others are asked for
    shots: int = 4  # at most, clips a word, when the three numbers are learned
    outer_steps: int = 400  # for these
    arabic: Path | None = None  # folder of Arabic Speech Commands to test on; None for no test
    fsdd: Path | None = None  # of the Free Spoken Digit Dataset
    speech_commands: Path | None = None  # of Speech Commands
    episodes: int = 1000  # of every test
    batch: int = 64  # clips embedded at a time
    seed: int = 0  # of the clips and the episodes
    out: Path = Path("runs/whiten_words/words.safetensors")  # the file


def embed(s: Settings, recordings: Recordings, disturb: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extremes and mean over time of what the encoder gives, and what the network gives, for all clips."""
    (encoder, weights), network = pretrained.speech_embedding(), words(encoder=False)
    mean = pretrained.averaged(encoder)

    @jax.jit
    def program(x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        x = disturbed(x, key, RATE) if disturb else x
        return extremes(weights, x), mean.apply(weights, x), network.model.apply(network.params, x)

    return embedded.vectors(program, word_waves(recordings), s.batch, seed=0, title=f"embedding {recordings.name}")


def scaled(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def tested(s: Settings, name: str, white: dict[str, np.ndarray], unknown: dict[str, float]) -> dict[str, dict]:
    """On all words of a corpus; of Arabic by the speakers of the official validation list."""
    recordings = corpora.read(name, getattr(s, name), **({"parts": ("validation",)} if name == "arabic" else {}))
    (x, mean, known), columns, found = embed(s, recordings, False), recordings.columns, {}
    by = {"encoder alone": mean, "network alone": known, "whitened": scaled((x - white["mean"]) @ white["kernel"])}
    by["both"] = np.concatenate([by["whitened"], WEIGHT * known], 1)
    for shots in (1, 5):
        sizes: dict[str, Any] = {"ways": s.ways, "shots": shots, "across": "speaker"}
        queries = 2 if name == "speech_commands" else 15  # there, a word has ten clips
        row = {}
        for how, z in by.items():
            sample = embedded.episodes(z, columns["label"], columns["speaker"], queries=queries, **sizes)
            row[how] = embedded.accuracy(sample, s.ways, s.episodes, s.seed + 1)
        if name == "arabic":
            opened = embedded.open_episodes(by["both"], columns, queries=5, **sizes)
            row |= embedded.rejection(opened, s.ways, unknown, s.episodes, s.seed + 1)
        found[f"{name}, {shots}-shot"] = row
    return found


def run(s: Settings) -> None:
    from safetensors.numpy import save  # of the extra `encoder`

    runs.check(s, ["espeak"], clips_per_label=2, ways=2, shots=1, outer_steps=1, episodes=2, batch=1)
    if s.clips_per_label <= s.shots:
        raise mj.InputError(f"clips_per_label is {s.clips_per_label}, expected more than shots, {s.shots}.")
    checkpoint.make_folder(s.out.parent)
    recordings = corpora.read("espeak", clips_per_label=s.clips_per_label, seed=s.seed)
    *parts, known = embed(s, recordings, True)
    columns, tensors = recordings.columns, dict[str, np.ndarray]()
    sizes: dict[str, Any] = {"shots": s.shots, "queries": s.clips_per_label - s.shots, "across": "none", "fewer": True}
    how = {"": (s.shrink, WEIGHT), "frame_": (s.frame_shrink, FRAME_WEIGHT)}
    for x, (prefix, (shrink, weight)) in zip(parts, how.items(), strict=True):
        white = {k: np.asarray(value, np.float16) for k, value in whitening(x, columns["label"], shrink=shrink).items()}
        both = np.concatenate([scaled((x - white["mean"]) @ white["kernel"]), weight * known], 1)
        sample = embedded.open_episodes(both, columns, ways=s.ways, **sizes)
        unknown = embedded.calibrated(sample, s.ways, s.outer_steps, s.seed)
        found = white | {name: np.array(value, np.float32) for name, value in unknown.items()}
        tensors |= {prefix + name: value for name, value in found.items()}
        numbers = ", ".join(f"{name} {value:.2f}" for name, value in unknown.items())
        print(f"rejection{' by frames' if prefix else ''}: {numbers}")
    results: dict[str, dict] = {}
    white, unknown = ({k: tensors[k] for k in some} for some in (("mean", "kernel"), ("scale", "bias", "growth")))
    for name in (name for name in TESTS if getattr(s, name)):
        results |= tested(s, name, white, unknown)
    if results:
        print("", embedded.table(results), sep="\n")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    count = {name: len(values) for name, values in recordings.names.items()}
    card = {
        "what": "Google's speech_embedding, its extremes over time whitened within words, beside a network of metajax",
        "heard": f"{len(known)} synthetic clips of eSpeak NG: {count['label']} words in {count['language']} "
        f"languages, none Semitic, by {count['speaker']} voices, in rooms and noise; no recording. The encoder itself, "
        "of 328,224 parameters that are not in this file, has heard 200 million real clips.",
        "command": f"python experiments/whiten_words.py --clips-per-label {s.clips_per_label} --shrink {s.shrink} "
        f"--frame-shrink {s.frame_shrink} --ways {s.ways} --shots {s.shots} --outer-steps {s.outer_steps} "
        f"--seed {s.seed}",
        "commit": head.stdout.strip() or "unknown",
        "seed": str(s.seed),
        "date": time.strftime("%Y-%m-%d"),
        "licence": "Apache-2.0, as metajax",
        "results": json.dumps(results),
        "limits": "Words of up to a second. Rejection was calibrated on single synthetic words, 5 taught at a "
        "time. Children and words that sound alike were not tested.",
    }
    checkpoint.write_bytes(s.out, save(tensors, card))
    print(f"\n{s.out}: {s.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
