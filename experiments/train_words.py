"""How well does a network that has heard synthetic speech alone know real words by one clip of each?

    python experiments/train_words.py
    python experiments/train_words.py --arabic DIR --fsdd DIR --speech-commands DIR       # and tests it

Trains a `word_net` on what eSpeak NG says in 106 languages, numbers and invented words, and on what Festival and Pico,
where they are installed, and Kokoro (`--kokoro`), whose voices are made from people's, say of them. An outer step asks
which two clips of many words belong together, all stretched, shifted, warped, heard in a room, by another microphone
and in noise. Then learns three numbers that turn cosines into probabilities, of no taught word too. All is written into
one file, for `mj.models.words(encoder=False)`. Tests are of real words by unheard speakers. Goes on where it stopped.
After 20 minutes of speaking, estimated (and 50 by Kokoro), 100 on a CPU core; 40 s on a GPU made the file of metajax.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import checkpoint, embedded, recipes, runs
from metajax.core import Apply, Episode, KeyArray, Objective, Params, Sampler, Theta
from metajax.data import augment as change
from metajax.data import corpora
from metajax.data.cache import default_folder
from metajax.data.checkpoints import read_tensors
from metajax.data.corpora import espeak, festival
from metajax.data.corpus import Corpus, load
from metajax.data.speech_embedding import by_layer
from metajax.data.synthesisers import columns_of, joined, listened, made_from_speakers, once, told
from metajax.errors import InputError
from metajax.losses import classify
from metajax.models import Model
from metajax.models.wordnet import FRONT_END, at_tempos, with_cepstra, word_net
from metajax.parallel import hoisted, use_all_cores
from metajax.tasks.episodes import with_inputs
from metajax.tasks.pairs import word_pairs

ENGLISH = {f"en:{number}" for number in range(10)}  # which FSDD and Speech Commands say
PARTS = change.Augmentation(warp=0.15, stretch=0.3, shift=15, gain=0, noise=0.7, noise_low=0, noise_high=35,
                            time_mask=10, frequency_mask=6, room=0.4)  # fmt: skip
TILT = 3.0  # dB of another microphone
PATHS = ("out", "cache", "kept", "kokoro", "instead", "network", "arabic", "fsdd", "speech_commands")


@dataclass(frozen=True)
class Settings:
    pseudowords: int = 250  # invented words of each language that eSpeak NG reads them in
    clips_per_label: int = 6  # clips of each word, by different voices
    more: int = 1200  # invented words of each language that Festival reads, by eSpeak's voices and all of Festival's
    others: bool | None = None  # whether Festival and SVOX Pico are heard, too; None: each where it is installed
    kokoro: Path | None = None  # folder of Kokoro's model and voices, to be heard, too; None for not
    kept: Path | None = None  # file of what those three have said: written, or read, so that they need not be there
    instead: Path | None = None  # folder of Arabic Speech Commands: its other speakers in place of all that; --ways 20
    mixed: float = 0.3  # of the steps, in which every word is by a real speaker's voice and by eSpeak's
    alike: float = 0.3  # of the steps, in which both are by real speakers' voices
    ways: int = 128  # words of an outer step
    width: int = 96  # channels of the network
    seconds: float = 6000.0  # of training
    outer_steps: int | None = None  # a number of outer steps in place of them
    outer_rate: float = 2e-3
    network: Path | None = None  # a file that this made: calibrated and tested again, in place of training
    taught: int = 5  # words of an episode when the three numbers are learned; as many others are asked for
    arabic: Path | None = None  # folder of Arabic Speech Commands to test on; None for no test
    fsdd: Path | None = None  # of the Free Spoken Digit Dataset
    speech_commands: Path | None = None  # of Speech Commands
    episodes: int = 1000  # of every test
    seed: int = 0
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs
    out: Path = Path("runs/train_words/word_net.safetensors")  # the file; its folder keeps the training, too


def synthetic(s: Settings) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """Log-mels of all clips in half precision, their columns, and what they are."""
    if s.instead:
        heard = listened([corpora.read("arabic", s.instead, parts=("train", "test"))], FRONT_END, s.cache)
        return heard.x, columns_of(heard), f"{len(np.unique(heard.label))} words, clips: {told(heard)}"
    plain = [espeak.read(pseudowords=s.pseudowords, clips_per_label=s.clips_per_label, seed=s.seed)]
    if s.more:
        plain.append(espeak.read(languages=festival.LANGUAGES, pseudowords=s.more, clips_per_label=3, seed=s.seed + 1))
    real = partial(made_from_speakers, plain, installed=s.others, model=s.kokoro, seed=s.seed)
    key = f"--pseudowords {s.pseudowords} --clips-per-label {s.clips_per_label} --more {s.more} --seed {s.seed}"
    by_real = once(s.kept, key, lambda: listened(real(), FRONT_END, s.cache))
    if s.kokoro and "kokoro" not in by_real.engine:
        raise InputError(f"kokoro is {s.kokoro}, but {s.kept} was made without it, expected another file.")
    heard = joined([listened(plain, FRONT_END, s.cache), by_real])
    columns = columns_of(heard, ENGLISH)
    counts = f"{len(np.unique(columns['label']))} synthetic words, clips: {told(heard)}"
    return heard.x, columns, f"{counts}; in 106 languages, none Semitic, without English digits; no recording of speech"


def distort(x: jax.Array, key: KeyArray) -> jax.Array:
    """Every clip otherwise, then normalised by itself."""
    draws = jax.random.uniform(jax.random.fold_in(key, 1), (len(x), 6))
    x = jax.vmap(lambda one, u: change.tilted(one, u, TILT))(x.astype(jnp.float32), draws)
    return jax.vmap(change.among_speech)(change.augment(PARTS)(x, key))


def matched(apply: Apply) -> Objective:
    """-log softmax_j(a cos(f(x_i), f(x'_j))) at j = i, and the other way round; a is learned, as `scale`."""

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[jax.Array, dict[str, jax.Array]]:
        both = apply(theta["params"], jnp.concatenate([episode.support.x, episode.query.x]), key)
        first, second = jnp.split(both, 2)
        logits, y = jnp.exp(theta["scale"]) * first @ second.T, jnp.arange(len(first))
        (one, metrics), (other, _) = classify(logits, y), classify(logits.T, y)
        return (one + other) / 2, metrics

    return objective


def tests(s: Settings, embed: Callable[[jax.Array], np.ndarray], unknown: dict[str, float]) -> dict[str, Any]:
    """On each corpus, for 1 and 5 clips of each word: accuracy, and rejection where words are enough."""
    found: dict[str, Any] = {}
    for name in (name for name in ("arabic", "fsdd", "speech_commands") if getattr(s, name)):
        how: dict[str, Any] = {"parts": ("validation",)} if name == "arabic" else {}  # the official list's speakers
        corpus: Corpus = load(corpora.read(name, getattr(s, name), **how), FRONT_END, cache=s.cache)
        by = {"accuracy": embed(np.asarray(corpus.features))}
        found |= embedded.tested(name, by, corpus.columns, unknown, s.episodes, s.seed + 1)
    return found


def trained(s: Settings, model: Model, sample: Sampler) -> Params:
    """Parameters in half precision."""
    key = jax.random.key(s.seed)
    theta = {"params": recipes.fresh(model.init, sample, key), "scale": jnp.log(10.0)}
    theta, _ = recipes.trained_once(
        s.out.with_suffix(".theta"), [(1.0, matched(model.apply))], theta, sample, key, s.outer_steps or 1000,
        optimizer=recipes.adamw(s.outer_rate, 1e-2), num_tasks=1, average=0.995, title="words",
        seconds=None if s.outer_steps else s.seconds,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), theta["params"])


def run(s: Settings) -> None:
    least: dict[str, float] = {"pseudowords": 0, "more": 0, "outer_rate": 0, "mixed": 0, "alike": 0, "width": 8}
    least |= dict.fromkeys(("clips_per_label", "taught", "ways", "episodes"), 2)
    runs.check(s, ["pretrained", *([] if s.instead else ["espeak"])], outer_steps=1, seconds=0.1, **least)
    from safetensors.numpy import save

    use_all_cores(s.cache / "compiled")
    if s.mixed + s.alike > 1:
        raise InputError(f"mixed is {s.mixed} and alike {s.alike}, expected shares with a sum of at most 1.")
    x, columns, heard = synthetic(s)
    settings = runs.config(s, (*PATHS, "episodes"))
    model, old = word_net(width=s.width), dict[str, str]()
    if s.network:
        tensors, old = read_tensors(s.network)
        if "unknown/scale" not in tensors:
            raise InputError(f"{s.network} holds no word_net, expected a file that this script made.")
        params = {name: leaves for name, leaves in by_layer(tensors).items() if name != "unknown"}
        model = word_net(params["map"]["kernel"].shape[1], width=params["conv0"]["kernel"].shape[2])
    else:
        known = (s.out.parent / "config.json").exists()
        runs.open_folder(s.out.parent, settings | {"heard": heard}, resume=known)
        pairs = word_pairs(jnp.asarray(x), **columns, ways=s.ways, mixed=s.mixed, alike=s.alike)
        params = trained(s, model, with_inputs(pairs, distort))
    heard_so = with_cepstra(at_tempos(model))
    program = hoisted(lambda x: heard_so.apply(jax.tree.map(jnp.float32, params), x.astype(jnp.float32)))
    embed = partial(embedded.vectors, program, batch=256)
    few = np.isin(columns["label"], np.unique(columns["label"])[1 :: 2 if s.instead else 8])  # enough to calibrate on
    some = {name: column[few] for name, column in columns.items()}
    opened = embedded.open_episodes(embed(x[few]), some, ways=s.taught, shots=2, queries=1, across="none", fewer=True)
    unknown = embedded.calibrated(opened, s.taught, 400, s.seed)
    print("rejection: " + ", ".join(f"{name} {value:.2f}" for name, value in unknown.items()))
    results = tests(s, embed, unknown)
    if results:
        print("", embedded.table(results), sep="\n")
    card = runs.card(
        results, what="a word_net, an embedding of words, and calibrated rejection", heard=heard,
        command=f"python experiments/train_words.py --ways {s.ways} --seconds {s.seconds:g} --seed {s.seed}",
        settings=json.dumps(settings),
        limits="Words of up to a second, heard below 3.8 kHz. Rejection was calibrated on what was heard, "
        f"{s.taught} taught at a time; what it does in running speech is spotting.py's to tell.",
    )  # fmt: skip
    card["calibrated"] = f"on {heard}, --pseudowords {s.pseudowords} --more {s.more}"
    card |= {"trained": f"commit {(old or card)['commit']}"} | {
        name: old[name] for name in ("heard", "settings", "command") if old
    }
    flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    flat |= {f"unknown/{name}": np.array(value, np.float32) for name, value in unknown.items()}
    checkpoint.write_bytes(s.out, save(flat, card))
    print(f"\n{s.out}: {s.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
