"""How well do embeddings know words: by how many clips, among how many words, in how much noise and in which room?

    python experiments/words_table.py
    python experiments/words_table.py --arabic DIR --fsdd DIR --speech-commands DIR

The embeddings of `mj.models.words`, the real encoder frozen, by its mean over time and aligned in time, and what needs
no learning, cepstra of the loud part, also both ways; each query alone and by other speakers, all on the same episodes.
Aligned: 1 - cosine of two frames, summed along the best path that skips none, the mean over a word's clips. Noise is
babble of synthetic voices, pink or white, over the whole of a clip; a room has decaying noise as its response. Without
arguments: invented words by eSpeak's voices. Needs the extra `encoder`. 4 minutes on one CPU core.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, models, report, runs
from metajax.data import corpora
from metajax.data.acoustics import add_noise, babble, coloured, convolved, looped, room
from metajax.data.corpus import Recordings
from metajax.data.features import endpointed, log_mel
from metajax.data.waves import word_waves
from metajax.models import pretrained
from metajax.models.wordnet import FRONT_END
from metajax.tasks.episodes import episodes

RATE, WIDTH, WAYS = 16000, 96, 5  # Hz; values of the encoder's frame; words taught in noise
REAL = ("arabic", "fsdd", "speech_commands")
ROOMS = {"small room": (0.3, 3.0), "large room": (0.8, -3.0)}  # RT60 in seconds, dB of the direct sound above the rest
KINDS = {"both": "both", "network alone": "network", "encoder, whitened": "whitened", "encoder": "encoder",
         "encoder, aligned": "frames", "cepstra": "cepstra", "cepstra, aligned": "rows"}  # fmt: skip
SILENT = "Nothing that is compared has heard its recordings; which languages the encoder has heard is not known."
UNSEEN = {"arabic": f"The six speakers of the official validation list, all 40 words. {SILENT} No Semitic language was "
          "in the synthetic speech.", "fsdd": f"{SILENT} English digits are ten of the 2,489 words of the whitening, "
          "and in none that the network heard.", "speech_commands": f"{SILENT} Nine English words are digits, as FSDD.",
          "espeak": "Invented words of another seed than in training. The network and the whitening heard these voices "
          "and languages."}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of Arabic Speech Commands
    fsdd: Path | None = None  # of the Free Spoken Digit Dataset
    speech_commands: Path | None = None  # of Speech Commands
    ways: tuple[int, ...] = (2, 5, 10, 20)  # words taught
    shots: tuple[int, ...] = (1, 2, 5, 10)  # clips of each
    noisy_shots: tuple[int, ...] = (1, 5)  # the same in noise and rooms, among five words
    snrs: tuple[float, ...] = (20.0, 10.0, 5.0, 0.0)  # dB of a clip above the noise
    queries: int = 2  # clips asked of each word; of Speech Commands there are ten
    episodes: int = 1000
    clips: int = 1200  # of a corpus at most, drawn at random
    invented: int = 4  # words of each of ten languages, without a corpus
    batch: int = 60  # clips at a time
    seed: int = 0
    out: Path = Path("runs/words_table")


class Draws(NamedTuple):
    support: np.ndarray  # [episodes, ways, shots], clips
    query: np.ndarray  # [episodes, ways, queries]


def spoken(s: Settings, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Waves [clips, samples] and columns of what is tested on."""
    if name == "espeak":
        languages = ["de", "en", "es", "fi", "fr", "id", "it", "pl", "sw", "tr"]
        how: dict[str, Any] = {"numbers": (), "pseudowords": s.invented, "clips_per_label": 30, "seed": s.seed + 100}
        recordings: Recordings = corpora.read(name, languages=languages, **how)
    else:
        recordings = corpora.read(name, getattr(s, name))
    chosen = np.arange(len(recordings.clip_names))
    if name == "arabic":
        listed = recordings.names["official_split"].index("validation")
        chosen = np.flatnonzero(recordings.columns["official_split"] == listed)
    chosen = np.sort(np.random.default_rng(s.seed).permutation(chosen)[: s.clips])
    names, read = tuple(recordings.clip_names[i] for i in chosen), recordings.read
    some = recordings._replace(clip_names=names, read=lambda rows, rate: read([int(chosen[i]) for i in rows], rate))
    return word_waves(some), {column: recordings.columns[column][chosen] for column in ("label", "speaker")}


def embedder() -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Waves to all that is compared; frames are [clips, time, values]."""
    trained, (encoder, weights) = models.words(encoder=True), pretrained.speech_embedding()

    def program(x: jax.Array) -> dict[str, jax.Array]:
        both, frames = trained.model.apply(trained.params, x), encoder.apply(weights, x)
        flat = jax.vmap(lambda wave: endpointed(log_mel(wave, FRONT_END)))(x)
        found = {"both": both, "whitened": both[:, :WIDTH], "network": both[:, WIDTH:], "encoder": frames.mean(1)}
        return found | {"frames": frames, "cepstra": flat, "rows": flat.reshape(len(x), 20, -1)}

    return jax.jit(program)


def conditions(s: Settings) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """By name, (waves, key) to the waves as heard there, each in a part of the noise or a room of its own."""
    voices = corpora.read("espeak", languages=["hu", "nl", "ro", "vi"], clips_per_label=1, seed=s.seed + 1)
    waves = list(voices.read(range(min(80, len(voices.clip_names))), RATE))
    lengths, size = np.array([len(wave) for wave in waves]), 10 * RATE
    padded = np.stack([np.pad(wave, (0, max(lengths) - len(wave))) for wave in waves])
    noises = {"babble": babble(mj.Utterances(padded, lengths), 8, size, s.seed)}
    noises |= {name: coloured(slope, size, s.seed) for name, slope in (("pink", -1.0), ("white", 0.0))}

    @jax.jit
    def noisy(x: jax.Array, key: jax.Array, noise: jax.Array, snr: float) -> jax.Array:
        starts = jax.random.randint(key, (len(x),), 0, len(noise))
        return jax.vmap(lambda wave, at: add_noise(wave, looped(noise, at, len(wave)), snr, len(wave)))(x, starts)

    @jax.jit
    def reverberant(x: jax.Array, key: jax.Array, rt60: float, direct: float) -> jax.Array:
        normal = jax.random.normal(key, (len(x), RATE))
        return jax.vmap(lambda wave, n: convolved(wave, room(n, rt60, direct, RATE)))(x, normal)

    def within(stage: Callable, *how: Any) -> Callable:
        return lambda x, key: stage(x, key, *how)

    heard: dict[str, Callable] = {"clean": lambda x, key: x}
    heard |= {f"{name}, {snr:g} dB": within(noisy, noises[name], snr) for snr, name in product(s.snrs, noises)}
    return heard | {name: within(reverberant, *how) for name, how in ROOMS.items()}


def embedded(s: Settings, embed: Callable, waves: np.ndarray, heard: Callable) -> dict[str, np.ndarray]:
    found = []
    for start in range(0, len(waves), s.batch):
        part = np.resize(waves[start : start + s.batch], (s.batch, waves.shape[1]))  # one shape, one program
        found.append(jax.device_get(embed(heard(jnp.asarray(part, jnp.float32), jax.random.key(start + s.seed)))))
    return {name: scaled(np.concatenate([one[name] for one in found])[: len(waves)]) for name in found[0]}


def scaled(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def aligned(query: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Minus the cost of the best path between all pairs, [queries, supports]; a diagonal step counts twice."""
    above: list[np.ndarray] = []
    for i in range(query.shape[1]):
        row: list[np.ndarray] = []
        for j in range(support.shape[1]):
            cost = 1 - query[:, i] @ support[:, j].T
            ways = [above[j] + cost] if i else []
            ways += [row[-1] + cost] if j else []
            ways += [above[j - 1] + 2 * cost] if i and j else []
            row.append(np.minimum.reduce(ways) if ways else 2 * cost)
        above = row
    return -above[-1]


def draws(s: Settings, columns: dict[str, np.ndarray], ways: int, shots: int) -> Draws:
    """Episodes as clips; an `InputError` where a corpus has too few words, speakers or clips."""
    sizes: dict[str, Any] = {"ways": ways, "shots": shots, "queries": s.queries, "across": "speaker"}
    label = columns["label"]
    sample = episodes(np.arange(len(label)), label, columns["speaker"], **sizes, name="the corpus")
    keys = jax.random.split(jax.random.key(s.seed + 1), s.episodes)
    support, query = jax.device_get(jax.jit(lambda keys: jax.lax.map(lambda k: tuple(b.x for b in sample(k)), keys))(keys))
    return Draws(support.reshape(-1, ways, shots), query.reshape(-1, ways, s.queries))


def right(query: np.ndarray, support: np.ndarray, drawn: Draws, alignment: np.ndarray | None) -> np.ndarray:
    """Share of each episode's queries that are told right, by class means or by an alignment of all with all."""
    shares = []
    for taught, asked in zip(drawn.support, drawn.query, strict=True):
        if alignment is None:
            scores = query[asked] @ scaled(support[taught].mean(1)).T
        else:
            scores = alignment[asked[..., None, None], taught].mean(-1)
        shares.append((scores.argmax(-1) == np.arange(len(taught))[:, None]).mean())
    return np.array(shares)


def tested(s: Settings, name: str, embed: Callable, places: dict[str, Callable]) -> dict[str, Any]:
    """Of one corpus, what share is right by method, ways, shots, place and support; and which cells it has too little for."""
    waves, columns = spoken(s, name)
    drawn: dict[tuple[int, int], Draws] = {}
    left_out: dict[str, str] = {}
    for shots, ways in product(sorted({*s.shots, *s.noisy_shots}), sorted({*s.ways, WAYS}, reverse=True)):
        if larger := [cell for cell in drawn if cell[1] == shots]:  # of many words at random, the first few are, too
            drawn[ways, shots] = Draws(*(rows[:, :ways] for rows in drawn[larger[0]]))
            continue
        try:
            drawn[ways, shots] = draws(s, columns, ways, shots)
        except mj.InputError as error:
            left_out[f"{ways} words, {shots} clips each"] = str(error)
    shares: dict[tuple[Any, ...], np.ndarray] = {}
    clean = embedded(s, embed, waves, places["clean"])
    for place, heard in tqdm(places.items(), desc=name, mininterval=5):
        asked = clean if place == "clean" else embedded(s, embed, waves, heard)
        for (support, taught), (method, kind) in product({"clean": clean, "the same": asked}.items(), KINDS.items()):
            if place != "clean" and kind == "rows":
                continue  # 400 steps for each pair of clips
            by = aligned(asked[kind], taught[kind]) if asked[kind].ndim == 3 else None
            for (ways, shots), one in drawn.items():
                if place == "clean" or (ways == WAYS and shots in s.noisy_shots):
                    key = method, ways, shots, support, place
                    shares[key] = right(asked[kind], taught[kind], one, by)
    for snr, (method, ways, shots, support, place) in product(s.snrs, [key for key in shares if key[-1] == "clean"]):
        kinds = [(method, ways, shots, support, other) for other in places if other.endswith(f", {snr:g} dB")]
        if kinds[0] in shares:
            shares[method, ways, shots, support, f"{snr:g} dB"] = np.mean([shares[key] for key in kinds], 0)
    cells = []
    for key, share in shares.items():
        mean, ci95 = mj.mean_ci95(share[:, None])
        names = ("method", "ways", "shots", "support", "place")
        cells.append(dict(zip(names, key, strict=True)) | {"mean": float(mean[0]), "ci95": float(ci95[0])})
    return {"clips": len(waves), "unseen": UNSEEN[name], "left_out": left_out, "cells": cells}


def at(found: dict[str, Any], **where: Any) -> dict[str, Any] | None:
    return next((cell for cell in found["cells"] if all(cell[name] == value for name, value in where.items())), None)


def tables(s: Settings, name: str, found: dict[str, Any], shown: list[str]) -> str:
    rows = []
    for ways, method in product(s.ways, KINDS):
        row = [at(found, ways=ways, shots=shots, method=method, place="clean") for shots in s.shots]
        rows.append([f"{ways} words, {method}", *(report.percent(cell) or "-" for cell in row)])
    words = report.markdown([name, *(f"{shots}-shot" for shots in s.shots)], rows)
    methods, rows = [method for method, kind in KINDS.items() if kind != "rows"], []
    for shots, support, place in product(s.noisy_shots, ("clean", "the same"), shown):
        where = {"ways": WAYS, "shots": shots, "support": support, "place": place}
        row = [at(found, **where, method=method) for method in methods]
        rows.append([f"{shots}-shot, {place}; taught in {support}", *(report.percent(cell) or "-" for cell in row)])
    noise = report.markdown([f"{name}, {WAYS} words", *methods], rows)
    out = [f"- {name}, {cell}: {reason}" for cell, reason in found["left_out"].items()]
    return "\n\n".join([words, noise, *(["\n".join(out)] if out else [])])


def draw(s: Settings, results: dict[str, Any], shown: list[str], path: Path) -> None:
    """A row of panels for each corpus."""
    first, size = s.noisy_shots[0], (22, 4.5 * len(results))
    title = f"Words taught by clips, asked by other speakers; {s.episodes} episodes, bars: 95 % intervals"
    with report.picture(path, title, 4, nrows=len(results), figsize=size) as every:
        for (name, found), row in zip(results.items(), np.array(every).reshape(-1, 4), strict=True):
            noise = {"ways": WAYS, "shots": first}
            panels = (
                (f"{WAYS} words", "clips of each word", "shots", s.shots, {"ways": WAYS, "place": "clean"}),
                (f"{first} clip(s) of each", "words", "ways", s.ways, {"shots": first, "place": "clean"}),
                ("asked in noise, taught clean", "", "place", shown, noise | {"support": "clean"}),
                ("asked and taught in noise", "", "place", shown, noise | {"support": "the same"}),
            )
            for axes, (title, label, field, values, where) in zip(row, panels, strict=True):
                for method in KINDS:
                    cells = [at(found, method=method, **where, **{field: value}) for value in values]
                    here = [i for i, cell in enumerate(cells) if cell]
                    mean, ci95 = (np.array([100 * cell[key] for cell in cells if cell]) for key in ("mean", "ci95"))
                    if len(here) > 1 or field != "place":
                        axes.errorbar(here, mean, ci95, label=method, marker=".", capsize=2, linewidth=1)
                axes.set(title=f"{name}: {title}", xlabel=label, ylabel="right (%)", ylim=(None, 101))
                axes.set_xticks(range(len(values)), [str(value) for value in values])
                axes.grid(alpha=0.3)
            row[0].legend(fontsize=8)


def run(s: Settings) -> None:
    runs.check(s, ["espeak", "plot"], ways=2, shots=1, noisy_shots=1, snrs=-100, queries=1, episodes=2, clips=2, batch=1)
    runs.open_folder(s.out, runs.config(s))
    embed, places = embedder(), conditions(s)
    shown = ["clean", *(f"{snr:g} dB" for snr in s.snrs), *ROOMS]
    names = [name for name in REAL if getattr(s, name)] or ["espeak"]
    results = {name: tested(s, name, embed, places) for name in names}
    table = "\n\n".join(tables(s, name, found, shown) for name, found in results.items())
    print(f"\n{table}")
    checkpoint.write_text(s.out / "table.md", table)
    checkpoint.write_json(s.out / "results.json", {"config": runs.config(s), "found": results, **report.environment()})
    draw(s, results, shown, s.out / "words.png")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
