"""What must be learned on top of Google's speech embedding, from synthetic speech alone, to know words by one clip?

    python experiments/whiten_words.py --out metajax/data/words.safetensors
    python experiments/whiten_words.py --arabic DIR --fsdd DIR --speech-commands DIR      # and tests it

Speaks numbers in 106 languages by eSpeak NG, each clip as from a room, noise and level of its own, and embeds it as the
largest and smallest values that the frozen encoder gives (the extra `encoder`), and as their mean over time.
Learns a whitening within words of each, and, for both beside the network that comes with metajax, three numbers that
turn cosines into probabilities, of no taught word too, on episodes half of whose queries are of other words; the same
for running audio, without the extremes. Writes all
with a card into one file, which `mj.models.words()` reads. The tests are of words that no part of this has heard, from
unheard people. About 10 minutes on a CPU core.
"""

import sys
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
from metajax.models.words import MIDDLE, NETWORK, extremes, words

TESTS = ("arabic", "fsdd", "speech_commands")
FRAME_WEIGHT, FEATURES = 0.5, 128  # of the network's part beside the mean over time; its values before the cepstra
RATE = 16000  # Hz


@dataclass(frozen=True)
class Settings:
    clips_per_label: int = 6  # synthetic clips of each of the 2,489 words, all by different speakers
    shrink: float = 0.5  # how far the covariance within words is drawn to a multiple of the identity, of clips
    frame_shrink: float = 0.3  # and of frames
    ways: int = 5  # words taught in an episode, as many others asked for, when the three numbers are learned
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
    (_, weights), network = pretrained.speech_embedding(), words(encoder=False)

    @jax.jit
    def program(x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        x = disturbed(x, key, RATE) if disturb else x
        return *extremes(weights, x), network.model.apply(network.params, x)

    return embedded.vectors(program, word_waves(recordings), s.batch, seed=0, title=f"embedding {recordings.name}")


def scaled(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def joined(x: np.ndarray, mean: np.ndarray, known: np.ndarray, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the encoder gives, whitened, alone and beside the network."""
    first, second = (scaled((a - maps[f"{of}mean"]) @ maps[f"{of}kernel"]) for of, a in (("", x), ("frame_", mean)))
    parts = {"extremes": first, "mean": second}
    parts["encoder"] = np.concatenate([first, MIDDLE**0.5 * second], 1)
    parts["running"] = np.concatenate([second, FRAME_WEIGHT * scaled(known[:, :FEATURES])], 1)
    return parts | {"all": np.concatenate([parts["encoder"], NETWORK**0.5 * known], 1)}


def tested(s: Settings, name: str, maps: dict[str, np.ndarray], unknown: dict[str, float]) -> dict[str, dict]:
    """On all words of a corpus; of Arabic by the speakers of the official validation list."""
    recordings = corpora.read(name, getattr(s, name), **({"parts": ("validation",)} if name == "arabic" else {}))
    parts = embed(s, recordings, False)
    by = {"encoder alone": parts[1], "network alone": parts[2], **joined(*parts, maps)}
    return embedded.tested(name, by, recordings.columns, unknown, s.episodes, s.seed + 1)


def run(s: Settings) -> None:
    runs.check(s, ["espeak", "pretrained"], clips_per_label=2, ways=2, shots=1, outer_steps=1, episodes=2, batch=1)
    from safetensors.numpy import save

    if s.clips_per_label <= s.shots:
        raise mj.InputError(f"clips_per_label is {s.clips_per_label}, expected more than shots, {s.shots}.")
    checkpoint.make_folder(s.out.parent)
    recordings = corpora.read("espeak", clips_per_label=s.clips_per_label, seed=s.seed)
    parts = embed(s, recordings, True)
    columns, maps, tensors = recordings.columns, dict[str, np.ndarray](), dict[str, np.ndarray]()
    for of, x, shrink in (("", parts[0], s.shrink), ("frame_", parts[1], s.frame_shrink)):
        found = whitening(x, columns["label"], shrink=shrink)
        maps |= {of + name: np.asarray(value, np.float16) for name, value in found.items()}
    sizes: dict[str, Any] = {"shots": s.shots, "queries": s.clips_per_label - s.shots, "across": "none", "fewer": True}
    both = joined(*parts, maps)
    for of, z in (("", both["all"]), ("frame_", both["running"])):
        sample = embedded.open_episodes(z, columns, ways=s.ways, **sizes)
        unknown = embedded.calibrated(sample, s.ways, s.outer_steps, s.seed)
        tensors |= {of + name: np.array(value, np.float32) for name, value in unknown.items()}
        numbers = ", ".join(f"{name} {value:.2f}" for name, value in unknown.items())
        print(f"rejection{' in running audio' if of else ''}: {numbers}")
    results: dict[str, dict] = {}
    for name in (name for name in TESTS if getattr(s, name)):
        results |= tested(s, name, maps, {name: float(tensors[name]) for name in ("scale", "bias", "growth")})
    if results:
        print("", embedded.table(results), sep="\n")
    count = {name: len(values) for name, values in recordings.names.items()}
    card = runs.card(
        results,
        what="Google's speech_embedding, its extremes and mean over time whitened within words, beside a network",
        heard=f"{len(parts[0])} synthetic clips of eSpeak NG: {count['label']} words in {count['language']} "
        f"languages, none Semitic, by {count['speaker']} voices, in rooms and noise; no recording. The encoder itself, "
        "of 328,224 parameters that are not in this file, has heard 200 million real clips.",
        command=f"python experiments/whiten_words.py --clips-per-label {s.clips_per_label} --shrink {s.shrink} "
        f"--frame-shrink {s.frame_shrink} --ways {s.ways} --shots {s.shots} --outer-steps {s.outer_steps} "
        f"--seed {s.seed}",
        seed=str(s.seed),
        limits="Words of up to a second. Rejection was calibrated on single synthetic words, 5 taught at a "
        "time. Children and words that sound alike were not tested.",
    )
    checkpoint.write_bytes(s.out, save(maps | tensors, card))
    print(f"\n{s.out}: {s.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
