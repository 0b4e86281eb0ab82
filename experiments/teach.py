"""Can it be taught words by one recording of each, and say which it hears, or that it is none of them?

    python experiments/teach.py                                # three synthetic words, heard from other voices
    python experiments/teach.py yes=yes1.wav no=no1.wav,no2.wav stop=stop.wav --recognise a.wav b.wav
    python experiments/teach.py --words FOLDER --save my.safetensors     # then --taught my.safetensors --stream a.wav

`mj.models.words()` (the extra `encoder`) turns a clip, of which the loudest second counts, into 96 numbers; a word is
the mean of its clips. Running audio is looked at every 80 ms. What `--export` writes needs JAX alone:
`p = jax.export.deserialize(bytearray(open("mine.stablehlo", "rb").read())).call(x)`, x a clip as float32 [1, 20000],
the word in the middle of silence; p the probability of each entry of mine.stablehlo.json. 7 seconds on 2 CPU cores.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.export
import jax.numpy as jnp
import numpy as np
import tyro

import metajax as mj
from metajax import checkpoint, models, runs
from metajax.algorithms.open_set import Known
from metajax.data import corpora
from metajax.data.audio import check_wave, read_audio
from metajax.data.checkpoints import read_tensors
from metajax.data.waves import placed
from metajax.losses import classify

RATE, CLIP, HOP = 16000, 20000, 1280  # Hz, samples of a clip with silence around it, and from one window to the next
BLOCK, APART = 125, 8  # windows at a time; windows within which two words are one


@dataclass(frozen=True)
class Settings:
    teach: tyro.conf.Positional[tuple[str, ...]] = ()  # words and their clips, WORD=FILE,FILE
    words: Path | None = None  # more: a folder with a folder for each word, or a manifest with path and label
    taught: Path | None = None  # instead of both, a file that --save wrote
    recognise: tuple[Path, ...] = ()  # clips to say the word of
    stream: Path | None = None  # running audio to find the words in
    sure: float = 0.5  # a word is told from this probability on, else it is unknown
    save: Path | None = None  # file for what was taught, .safetensors
    export: Path | None = None  # file for a program that recognises; its words go to FILE.json


class Taught(NamedTuple):
    words: list[str]
    phi: Known  # what was learned of them


def clip(wave: np.ndarray, name: str) -> np.ndarray:
    """A wave of one length; an `InputError` for one that is silent or under 0.1 s."""
    check_wave(wave, name, RATE // 10)
    if len(wave) > RATE:
        print(f"note: {name} lasts {len(wave) / RATE:.1f} s; its loudest second counts", file=sys.stderr)
    return placed(wave, RATE, (CLIP - RATE) // 2).astype(np.float32)


def given(s: Settings) -> Iterator[tuple[str, str, np.ndarray]]:
    """Word, name and wave of every clip to be taught."""
    files = []
    for item in s.teach:
        word, _, paths = item.partition("=")
        if not word or not paths:
            raise mj.InputError(f"{item!r} names no word with its clips, expected WORD=FILE,FILE.")
        files += [(word, Path(path)) for path in paths.split(",")]
    if s.words and s.words.is_dir():
        for folder in sorted(path for path in s.words.iterdir() if path.is_dir()):
            if not (found := sorted(folder.glob("[!.]*"))):
                raise mj.InputError(f"{folder} holds no clip, expected one or more of the word {folder.name!r}.")
            files += [(folder.name, path) for path in found]
    yield from ((word, str(path), read_audio(path, RATE)) for word, path in files)
    if s.words and not s.words.is_dir():
        recordings = corpora.read("manifest", s.words)
        labels, names = recordings.columns["label"], recordings.clip_names
        for label, name, wave in zip(labels, names, recordings.read(range(len(names)), RATE), strict=True):
            if isinstance(wave, mj.InputError) or label < 0:
                raise wave if label >= 0 else mj.InputError(f"{name} has no label in {s.words}, expected its word.")
            yield recordings.names["label"][label], name, wave


def learner_of(trained: models.Trained, ways: int) -> tuple[mj.Learner, dict]:
    """What learns and hears words, and its theta."""
    learner = mj.open_set(trained.model.apply, classify, ways, **trained.unknown).learner
    return learner, learner.init(trained.params, jax.random.key(0))


def learned(trained: models.Trained, clips: list[tuple[str, str, np.ndarray]]) -> Taught:
    """Words from their clips; tells the time, without compiling."""
    words = list(dict.fromkeys(word for word, _, _ in clips))
    if len(words) < 2:
        raise mj.InputError(f"{len(words)} word(s) to teach, expected two or more, such as yes=yes.wav no=no.wav.")
    learner, theta = learner_of(trained, len(words))
    x, y = np.stack([clip(wave, name) for _, name, wave in clips]), [words.index(word) for word, _, _ in clips]
    support = mj.Batch(jnp.asarray(x), jnp.asarray(y))
    learn = jax.jit(lambda support: learner.step(theta, None, support, jax.random.key(0))).lower(support).compile()
    begin, phi = time.perf_counter(), jax.block_until_ready(learn(support))
    ms = f"{1000 * (time.perf_counter() - begin):.0f} ms"
    print(f"{len(words)} words taught by {len(clips)} clips in {ms}: {', '.join(words)}")
    return Taught(words, phi)


def hearing(trained: models.Trained, taught: Taught) -> jax.stages.Wrapped:
    """Samples to probabilities of the words and, last, of none of them."""
    learner, theta = learner_of(trained, len(taught.words))
    return jax.jit(lambda x: jax.nn.softmax(learner.predict(theta, taught.phi, x, None)))


def recognise(trained: models.Trained, taught: Taught, clips: list[tuple[str, np.ndarray]], sure: float) -> list[str]:
    """The word of each clip, or unknown, each by itself; tells them all."""
    heard, x = hearing(trained, taught), [clip(wave, name)[None] for name, wave in clips]
    jax.block_until_ready(heard(x[0]))  # compiles
    begin = time.perf_counter()
    p = [np.asarray(heard(one))[0] for one in x]
    spent = 1000 * (time.perf_counter() - begin) / len(x)
    told = [taught.words[q[:-1].argmax()] if q[:-1].max() >= sure else "unknown" for q in p]
    for (name, _), word, q in zip(clips, told, p, strict=True):
        print(f"{name}: {word}, {100 * (q[-1] if word == 'unknown' else q[:-1].max()):.0f} %")
    print(f"{len(x)} clips, {spent:.1f} ms each")
    return told


def listen(taught: Taught, wave: np.ndarray, sure: float) -> list[tuple[float, str]]:
    """When which word is said in running audio: a word for every stretch in which it is the likeliest throughout."""
    heard, size, windows = hearing(models.words(spotting=True), taught), (BLOCK - 1) * HOP + CLIP, len(wave) // HOP
    jax.block_until_ready(heard(np.zeros((1, size), np.float32)))  # compiles
    begin, padded = time.process_time(), np.pad(wave, (CLIP // 2, size))  # window i has its middle at i * HOP
    blocks = [heard(padded[None, i * HOP : i * HOP + size])[0] for i in range(0, windows + 1, BLOCK)]
    p, found = np.concatenate(blocks)[: windows + 1, :-1], []
    best = np.where(p.max(1) >= sure, p.argmax(1), -1)
    stretches = np.split(np.arange(len(best)), np.flatnonzero(np.diff(best)) + 1)
    for stretch in sorted((one for one in stretches if best[one[0]] >= 0), key=lambda one: -p[one].max()):
        middle = np.average(stretch, weights=p[stretch].max(1))
        if all(abs(middle - other) > APART for other, _, _ in found):
            found.append((middle, taught.words[best[stretch[0]]], p[stretch].max()))
    spent, seconds = 1000 * (time.process_time() - begin), len(wave) / RATE
    for middle, word, most in sorted(found):
        print(f"{middle * HOP / RATE:8.2f} s: {word}, {100 * most:.0f} %")
    print(f"{len(found)} words in {seconds:.1f} s of audio, {spent / seconds:.1f} ms of one core for a second of it")
    return [(middle * HOP / RATE, word) for middle, word, _ in sorted(found)]


def load(path: Path, version: str) -> Taught:
    tensors, told = read_tensors(path)
    if not told or "words" not in told or set(tensors) != set(Known._fields):
        raise mj.InputError(f"{path} is no taught recogniser, expected a file that --save wrote.")
    if told.get("version") != version:
        raise mj.InputError(f"{path} was taught with another version of the embedding; teach the words again.")
    return Taught(json.loads(told["words"]), Known(**tensors))


def write(s: Settings, trained: models.Trained, taught: Taught, version: str) -> None:
    """The files of --save and --export."""
    from safetensors.numpy import save  # of the extra `encoder`

    files = {}
    if s.save:
        known = {name: np.asarray(value) for name, value in taught.phi._asdict().items()}
        files[s.save] = save(known, {"words": json.dumps(taught.words), "version": version})
    if s.export:
        program = jax.export.export(hearing(trained, taught), platforms=("cpu", "cuda", "tpu"))
        files[s.export] = program(jax.ShapeDtypeStruct((1, CLIP), jnp.float32)).serialize()
        files[s.export.with_name(f"{s.export.name}.json")] = json.dumps([*taught.words, "unknown"]).encode()
    for path, content in files.items():
        checkpoint.make_folder(path.parent)
        (part := path.with_name(f".{path.name}.tmp")).write_bytes(content)
        part.replace(path)
        print(f"{path}: {len(content) / 1024:.1f} KB")


def run(s: Settings) -> None:
    trained = models.words()
    version = f"{trained.card['date']} {trained.card['commit']}"
    if s.taught and (s.teach or s.words):
        raise mj.InputError("taught is given with words to teach, expected one of the two.")
    if s.taught or s.teach or s.words:
        taught = load(s.taught, version) if s.taught else learned(trained, list(given(s)))
        clips = [(str(path), read_audio(path, RATE)) for path in s.recognise]
    elif s.recognise or s.stream or s.save or s.export:
        raise mj.InputError("No word is taught, expected WORD=FILE, words or taught.")
    else:  # three English numbers by a voice each, and five by others
        made = corpora.read("espeak", languages=["en"], numbers=(1, 3, 4, 6, 8), clips_per_label=5)
        said = [made.names["label"][i] for i in made.columns["label"]]
        spoken = list(zip(said, made.clip_names, made.read(range(len(said)), RATE), strict=True))
        taught = learned(trained, [spoken[said.index(word)] for word in sorted(set(said))[:3]])
        clips = [one[1:] for i, one in enumerate(spoken) if said.index(one[0]) != i or one[0] not in taught.words]
    write(s, trained, taught, version)
    if clips:
        recognise(trained, taught, clips, s.sure)
    if s.stream:
        listen(taught, read_audio(s.stream, RATE), s.sure)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
