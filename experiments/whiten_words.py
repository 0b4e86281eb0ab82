"""What must be learned on top of Google's speech embedding, from synthetic speech alone, to know words by one clip?

    python experiments/whiten_words.py --out metajax/data/words.safetensors
    python experiments/whiten_words.py --arabic DIR --out metajax/data/words.safetensors   # and tests it

Speaks numbers in 106 languages by eSpeak NG, embeds each clip as the mean over time of the frozen encoder's output (the
extra `encoder`), and learns a whitening within words, and three numbers that turn cosines into probabilities, of no
taught word too, on episodes half of whose queries are of other words. Writes both with a card into one file; the one
that comes with metajax is what `mj.models.words()` reads. The test learns Arabic words, which no part of this has
heard, from unheard people. About 3 minutes on 2 CPU cores.
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
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, embedded, report, runs
from metajax.data import corpora
from metajax.data.corpus import Recordings
from metajax.data.waves import word_waves
from metajax.models import pretrained, whitening
from metajax.tasks.episodes import episodes


@dataclass(frozen=True)
class Settings:
    clips_per_label: int = 6  # synthetic clips of each of the 2,489 words, all by different speakers
    shrink: float = 0.1  # how far the covariance within words is drawn to a multiple of the identity
    ways: int = 5  # words taught in an episode; as many others are asked for
    shots: int = 4  # at most, clips a word, when the three numbers are learned
    outer_steps: int = 400  # for these
    arabic: Path | None = None  # folder of Arabic Speech Commands to test on; None for no test
    episodes: int = 1000  # of the test
    batch: int = 64  # clips embedded at a time
    seed: int = 0  # of the clips and the episodes
    out: Path = Path("runs/whiten_words/words.safetensors")  # the file


def embed(s: Settings, recordings: Recordings, clips: np.ndarray) -> np.ndarray:
    """The mean over time of what the encoder gives, for some clips."""
    encoder, params = pretrained.speech_embedding()
    names, read = tuple(recordings.clip_names[i] for i in clips), recordings.read
    some = recordings._replace(clip_names=names, read=lambda chosen, rate: read([int(clips[i]) for i in chosen], rate))
    apply, waves, found = jax.jit(pretrained.averaged(encoder).apply), word_waves(some), []
    for start in tqdm(range(0, len(waves), s.batch), desc=f"embedding {recordings.name}", mininterval=5):
        some = np.resize(waves[start : start + s.batch], (s.batch, *waves.shape[1:]))  # one shape, one program
        found.append(np.asarray(apply(params, some.astype(np.float32))))
    return np.concatenate(found)[: len(clips)]


def tested(s: Settings, into, unknown: dict[str, float]) -> dict[str, dict]:
    """On all Arabic words by the speakers of the official validation list."""
    recordings = corpora.read("arabic", s.arabic)
    listed = recordings.names["official_split"].index("validation")
    chosen = np.flatnonzero(recordings.columns["official_split"] == listed)
    columns = {name: column[chosen] for name, column in recordings.columns.items()}
    x, found = embed(s, recordings, chosen), {}
    for shots in (1, 5):
        sizes: dict[str, Any] = {"ways": s.ways, "shots": shots}
        closed = [episodes(z, columns["label"], columns["speaker"], **sizes, queries=15) for z in (x, into(x))]
        plain, white = (embedded.accuracy(sample, s.ways, s.episodes, s.seed + 1) for sample in closed)
        opened = embedded.open_episodes(into(x), columns, **sizes, queries=5, across="speaker")
        rejected = embedded.rejection(opened, s.ways, unknown, s.episodes, s.seed + 1)
        found[f"{shots}-shot"] = {"accuracy, encoder alone": plain, "accuracy, whitened": white} | rejected
    rows = [
        [
            name,
            *(report.percent(f[name]) if isinstance(f[name], dict) else f"{100 * f[name]:.1f}" for f in found.values()),
        ]
        for name in found["1-shot"]
    ]
    many = f"Arabic, 40 words, {len(set(columns['speaker']))} speakers, {s.ways}-way, query by other speakers"
    print(f"\n{many}\n\n{report.markdown(['%', *found], rows)}")
    return {"of": many, **found}


def run(s: Settings) -> None:
    from safetensors.numpy import save_file  # of the extra `encoder`

    runs.check(s, ["espeak"], clips_per_label=2, ways=2, shots=1, outer_steps=1, episodes=2, batch=1)
    if s.clips_per_label <= s.shots:
        raise mj.InputError(f"clips_per_label is {s.clips_per_label}, expected more than shots, {s.shots}.")
    checkpoint.make_folder(s.out.parent)
    recordings = corpora.read("espeak", clips_per_label=s.clips_per_label, seed=s.seed)
    x, columns = embed(s, recordings, np.arange(len(recordings.clip_names))), recordings.columns
    white = {name: np.asarray(value) for name, value in whitening(x, columns["label"], shrink=s.shrink).items()}

    def into(x: np.ndarray) -> np.ndarray:
        z = (x - white["mean"]) @ white["kernel"]
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    sizes: dict[str, Any] = {"shots": s.shots, "queries": s.clips_per_label - s.shots, "across": "none", "fewer": True}
    sample = embedded.open_episodes(into(x), columns, ways=s.ways, **sizes)
    unknown = embedded.calibrated(sample, s.ways, s.outer_steps, s.seed)
    print("rejection: " + ", ".join(f"{name} {value:.2f}" for name, value in unknown.items()))
    results = tested(s, into, unknown) if s.arabic else {}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    count = {name: len(values) for name, values in recordings.names.items()}
    card = {
        "what": "whitening within words, and calibrated rejection, of the mean over time of Google's speech_embedding",
        "heard": f"{len(x)} synthetic clips of eSpeak NG: {count['label']} words in {count['language']} "
        f"languages, none Semitic, by {count['speaker']} voices; no recording. The encoder itself, of 328,224 "
        "parameters that are not in this file, has heard 200 million real clips.",
        "command": f"python experiments/whiten_words.py --clips-per-label {s.clips_per_label} --shrink {s.shrink} "
        f"--ways {s.ways} --shots {s.shots} --outer-steps {s.outer_steps} --seed {s.seed}",
        "commit": head.stdout.strip() or "unknown",
        "seed": str(s.seed),
        "date": time.strftime("%Y-%m-%d"),
        "licence": "Apache-2.0, as metajax",
        "results": json.dumps(results),
        "limits": "Words of up to a second. Rejection was calibrated on single words, 5 taught at a time: in running "
        "speech there are many false alarms. Noise, rooms, children and words that sound alike were not tested.",
    }
    tensors = white | {name: np.array(value, np.float32) for name, value in unknown.items()}
    fresh = s.out.with_name(f".{s.out.name}.tmp")
    save_file(tensors, fresh, card)
    fresh.replace(s.out)
    print(f"\n{s.out}: {s.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
