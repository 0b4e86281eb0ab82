"""How well do embeddings know words: by how many clips, among how many words, in how much noise and in which room?

    python experiments/words_table.py
    python experiments/words_table.py --arabic DIR --fsdd DIR --speech-commands DIR

The embeddings of `mj.models.words`, its encoder frozen, averaged over time and aligned in time, and cepstra of the loud
part, which need no learning; each query alone and by other speakers, all on the same episodes. Noise is babble of
synthetic voices, pink or white, of a level for a whole clip; a room has decaying noise as its response. Without
arguments: invented words by eSpeak's voices. Needs the extra `encoder`. 4 minutes on a CPU core.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, embedded, models, report, runs
from metajax.data import corpora
from metajax.data.acoustics import add_noise, babble, coloured, convolved, looped, room
from metajax.data.features import endpointed, log_mel
from metajax.data.waves import word_waves
from metajax.models import pretrained
from metajax.models.wordnet import FRONT_END

RATE, WIDTH, WAYS, BATCH = 16000, 288, 5, 60  # Hz; values of the encoder; words taught in noise; clips at a time
ROOMS = {"small room": (0.3, 3.0), "large room": (0.8, -3.0)}  # RT60 in seconds, dB of the direct sound above the rest
LANGUAGES = ["de", "en", "es", "fi", "fr", "id", "it", "pl", "sw", "tr"]  # of invented words
TAUGHT = ("clean", "alike")  # the clips taught: clean, or in noise or a room as those asked
METHODS = ("both", "network alone", "encoder, whitened", "encoder", "encoder, aligned", "cepstra")
UNSEEN = {  # what the encoder heard is not known
    "arabic": "no word, speaker or Semitic language was heard by the network or in the whitening",
    "fsdd": "no speaker and no recording; English digits are ten of the whitening's words, none of the network's",
    "espeak": "the words; the network and the whitening heard these languages and voices"}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of Arabic Speech Commands; its six official validation speakers count
    fsdd: Path | None = None  # of the Free Spoken Digit Dataset
    speech_commands: Path | None = None  # of Speech Commands
    ways: tuple[int, ...] = (2, 5, 10, 20)  # words taught
    shots: tuple[int, ...] = (1, 2, 5, 10)  # clips of each
    noisy_shots: tuple[int, ...] = (1, 5)  # the same in noise and rooms, among five words
    snrs: tuple[float, ...] = (20.0, 10.0, 5.0, 0.0)  # dB of a clip above the noise
    queries: int = 2  # clips asked of each word; of Speech Commands there are ten
    episodes: int = 1000
    clips: int = 1200  # of a corpus at most, drawn at random
    seed: int = 0
    out: Path = Path("runs/words_table")


def spoken(s: Settings, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Waves [clips, samples] and columns of what is tested on."""
    how: dict[str, Any] = {"languages": LANGUAGES, "numbers": (), "pseudowords": 4, "clips_per_label": 30}
    how = {"espeak": how | {"seed": s.seed + 100}, "arabic": {"parts": ("validation",)}}.get(name, {})
    given = corpora.read(name, getattr(s, name, None), **how)
    chosen = np.sort(np.random.default_rng(s.seed).permutation(len(given.clip_names))[: s.clips])
    names, read = tuple(given.clip_names[i] for i in chosen), given.read
    some = given._replace(clip_names=names, read=lambda rows, rate: read([int(chosen[i]) for i in rows], rate))
    return word_waves(some), {column: given.columns[column][chosen] for column in ("label", "speaker")}


def embedder(s: Settings) -> Callable[[np.ndarray, Callable], dict[str, np.ndarray]]:
    """Waves, and how they are heard, to what each method compares, of length 1."""
    trained, (encoder, _) = models.words(encoder=True), pretrained.speech_embedding()

    @jax.jit
    def program(x: jax.Array) -> list[jax.Array]:
        both, frames = trained.model.apply(trained.params, x), encoder.apply(trained.params["encoder"], x)
        cepstra = jax.vmap(lambda wave: endpointed(log_mel(wave, FRONT_END)))(x[:, 2000:-2000])  # no silence around
        found = [both, both[:, WIDTH:], both[:, :WIDTH], frames.mean(1), frames, cepstra]
        return [z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-9) for z in found]

    def embed(waves: np.ndarray, heard: Callable) -> dict[str, np.ndarray]:
        found = embedded.vectors(lambda x, key: program(heard(x, key)), waves, BATCH, seed=s.seed)
        return dict(zip(METHODS, found, strict=True))

    return embed


def conditions(s: Settings) -> dict[str, list[Callable[[jax.Array, jax.Array], jax.Array]]]:
    """By name, (waves, key) to waves as heard there, each in a part of its own; one for each kind of noise."""
    voices = corpora.read("espeak", languages=["hu", "nl", "ro", "vi"], clips_per_label=1, seed=s.seed + 1)
    waves = voices.read(range(min(80, len(voices.clip_names))), RATE)
    lengths, n = np.array([len(wave) for wave in waves]), 10 * RATE
    padded = np.stack([np.pad(wave, (0, max(lengths) - len(wave))) for wave in waves])
    noises = [babble(mj.Utterances(padded, lengths), 8, n, s.seed), *(coloured(f, n, s.seed) for f in (-1.0, 0.0))]

    @jax.jit
    def noisy(x: jax.Array, key: jax.Array, noise: jax.Array, snr: float) -> jax.Array:
        parts = jax.vmap(lambda at: looped(noise, at, x.shape[1]))(jax.random.randint(key, (len(x),), 0, len(noise)))
        return jax.vmap(lambda wave, part: add_noise(wave, part, snr, len(wave)))(x, parts)

    @jax.jit
    def reverberant(x: jax.Array, key: jax.Array, rt60: float, direct: float) -> jax.Array:
        normal = jax.random.normal(key, (len(x), RATE))
        return jax.vmap(lambda wave, n: convolved(wave, room(n, rt60, direct, RATE)))(x, normal)

    heard: dict[str, list[Callable]] = {"clean": [lambda x, key: x]}
    heard |= {f"{snr:g} dB": [partial(noisy, noise=noise, snr=snr) for noise in noises] for snr in s.snrs}
    return heard | {name: [partial(reverberant, rt60=rt60, direct=db)] for name, (rt60, db) in ROOMS.items()}


def tested(s: Settings, name: str, embed: Callable, places: dict[str, list[Callable]]) -> dict[str, Any]:
    """Of a corpus, the share that is right, over kinds of noise; the clips taught are clean or of a place alike."""
    waves, columns = spoken(s, name)
    drawn: dict[tuple[int, int], embedded.Draws] = {}
    cells, too_few = [], {}
    for shots, ways in product(sorted({*s.shots, *s.noisy_shots}), sorted({*s.ways, WAYS}, reverse=True)):
        try:  # of words in random order the first few are random, too
            sizes, larger = {"ways": ways, "shots": shots, "queries": s.queries}, [n for n in drawn if n[1] == shots]
            new = drawn[larger[0]] if larger else embedded.draws(columns, s.episodes, s.seed + 1, **sizes)
            drawn[ways, shots] = embedded.Draws(*(rows[:, :ways] for rows in new))
        except mj.InputError as error:
            too_few[f"{ways} words, {shots} clips each"] = str(error)
    if not drawn:
        raise mj.InputError(next(iter(too_few.values())))
    clean = embed(waves, places["clean"][0])
    for place, kinds in tqdm(places.items(), desc=name, mininterval=5):
        asked = [clean if place == "clean" else embed(waves, heard) for heard in kinds]
        for taught, method in product(TAUGHT, METHODS):
            pairs = [(z[method], (clean if taught == "clean" else z)[method]) for z in asked]
            some = [n for n in drawn if place == taught == "clean" or (n[0] == WAYS and n[1] in s.noisy_shots)]
            right = np.mean([embedded.shares(*pair, [drawn[n] for n in some]) for pair in pairs], 0)
            for (ways, shots), mean, ci95 in zip(some, *mj.mean_ci95(right.T), strict=True):
                where = {"method": method, "ways": ways, "shots": shots, "place": place, "taught": taught}
                cells.append({**where, "mean": float(mean), "ci95": float(ci95)})
    return {"clips": len(waves), "unseen": UNSEEN.get(name, UNSEEN["fsdd"]), "too few": too_few, "cells": cells}


def at(found: dict[str, Any], **where: Any) -> dict[str, Any] | None:
    return next((cell for cell in found["cells"] if where.items() <= cell.items()), None)


def tables(s: Settings, name: str, found: dict[str, Any], places: list[str]) -> str:
    def row(label: str, cells: Iterable[dict[str, Any]]) -> list[str]:
        return [label, *(report.percent(at(found, **cell)) or "-" for cell in cells)]

    rows = []
    for ways, method in product(s.ways, METHODS):
        where: dict[str, Any] = {"ways": ways, "method": method, "place": "clean"}
        rows.append(row(f"{ways} words, {method}", (where | {"shots": n} for n in s.shots)))
    text, rows = report.markdown([name, *(f"{n}-shot" for n in s.shots)], rows), []
    for n, how, place in product(s.noisy_shots, TAUGHT, places):
        where = {"ways": WAYS, "shots": n, "taught": how, "place": place}
        rows.append(row(f"{n}-shot, {place}, taught {how}", (where | {"method": method} for method in METHODS)))
    out = "\n".join(f"- {name}, {cell}: {reason}" for cell, reason in found["too few"].items())
    return "\n\n".join([text, report.markdown([f"{name}, {WAYS} words", *METHODS], rows), out])


def draw(s: Settings, results: dict[str, Any], places: list[str], path: Path) -> None:
    n, title = s.noisy_shots[0], f"Words by other speakers; {s.episodes} episodes, bars: 95 % intervals"
    places = [*places[: -len(ROOMS)], *(one for name in ROOMS for one in ("", name))]  # no line from noise to a room
    five: dict[str, Any] = {"ways": WAYS, "shots": n}
    panels: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
        (f"{WAYS} words, by clips of each", "shots", s.shots, {"ways": WAYS, "place": "clean"}),
        (f"{n}-shot, by words", "ways", s.ways, {"shots": n, "place": "clean"}),
        *((f"{WAYS} words, {n}-shot, taught {how}", "place", places, five | {"taught": how}) for how in TAUGHT),
    )
    with report.picture(path, title, 4, nrows=len(results), figsize=(18, 4.2 * len(results))) as every:
        for axes, (name, (told, field, values, where)) in zip(every, product(results, panels), strict=True):
            for method in METHODS:
                cells = [at(results[name], method=method, **where, **{field: value}) for value in values]
                mean, ci95 = ([100 * cell[key] if cell else np.nan for cell in cells] for key in ("mean", "ci95"))
                axes.errorbar(range(len(values)), mean, ci95, label=method, marker=".", capsize=2, linewidth=1)
            axes.set(title=f"{name}: {told}", ylabel="right (%)")
            axes.set_xticks(range(len(values)), values, rotation=30 * (field == "place"))
            axes.grid(alpha=0.3)
        every[0].legend(fontsize=8)


def run(s: Settings) -> None:
    runs.check(s, ["espeak", "plot"], ways=2, shots=1, noisy_shots=1, snrs=-99, queries=1, episodes=2, clips=2)
    runs.open_folder(s.out, runs.config(s))
    embed, places = embedder(s), conditions(s)
    names = [name for name in ("arabic", "fsdd", "speech_commands") if getattr(s, name)] or ["espeak"]
    results = {name: tested(s, name, embed, places) for name in names}
    table = "\n\n".join(tables(s, name, found, list(places)) for name, found in results.items())
    print(f"\n{table}")
    checkpoint.write_text(s.out / "table.md", table)
    runs.save_results(s.out, {"config": runs.config(s), "found": results})
    draw(s, results, list(places), s.out / "words.png")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
