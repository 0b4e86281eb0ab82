"""Can it be taught words by one recording of each, and say which it hears, or that it is none of them?

    python experiments/teach.py                                # three synthetic words, heard from other voices
    python experiments/teach.py yes=yes1.wav no=no1.wav,no2.wav stop=stop.wav --recognise a.wav b.wav
    python experiments/teach.py --words DIR --save my.safetensors  # then --taught my.safetensors --stream a.wav, or mic
    python experiments/teach.py --web                          # a page in the browser, for this machine alone

A word is the mean of its clips, of which the loudest second counts. What `--export` writes needs JAX alone: FILE knows
these words, FILE.adapt and FILE.predict learn others, see `metajax.taught.exported`. 7 seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

import metajax as mj
from metajax import checkpoint, models, runs, web
from metajax.data import corpora
from metajax.data.audio import check_wave, read_audio
from metajax.data.cache import default_folder
from metajax.data.checkpoints import read_tensors
from metajax.data.corpora.files import one_form
from metajax.data.microphone import microphone
from metajax.data.waves import placed
from metajax.parallel import use_all_cores
from metajax.taught import Known, Taught, exported, hearing, learned, listen

RATE, CLIP, HOP, BLOCK = 16000, 20000, 1280, 125  # Hz; samples of a clip, to the next window; windows at a time
KEPT = jax.tree.structure([Known(0, 0)] * 2)  # what was taught, of clips and of running audio
Ear = tuple[models.Trained, Callable[[np.ndarray], jax.Array]]  # and what embeds waves [1, samples], compiled once


@dataclass(frozen=True)
class Settings:
    teach: tyro.conf.Positional[tuple[str, ...]] = ()  # words and their clips, WORD=FILE,FILE
    words: Path | None = None  # more: a folder with a folder for each word, or a manifest with path and label
    taught: Path | None = None  # instead of both, a file that --save wrote
    recognise: tuple[Path, ...] = ()  # clips to say the word of
    stream: Path | None = None  # running audio to find the words in, or mic: what the microphone hears
    encoder: bool | None = None  # whether Google's encoder is asked, not metajax's network alone; None: if installed
    web: bool = False  # serve a page on which words are taught and recognised by voice (extra `web`)
    host: str = "127.0.0.1"  # address of the page
    port: int = 8765  # of the page
    sure: float = 0.5  # a word is told from this probability on, else it is unknown
    save: Path | None = None  # file for what was taught, .safetensors
    export: Path | None = None  # file for a program that recognises; beside it its words, and what teaches others


def clip(wave: np.ndarray, name: str) -> np.ndarray:
    """A wave of one length; an `InputError` for one that is silent or under 0.1 s."""
    check_wave(wave, name, RATE // 10)
    return placed(wave, RATE, (CLIP - RATE) // 2, name).astype(np.float32)


def given(s: Settings) -> Iterator[tuple[str, str, np.ndarray]]:  # word, name and wave
    files = []
    for item in s.teach:
        word, _, paths = item.partition("=")
        if not one_form(word) or not all(paths.split(",")):
            raise mj.InputError(f"{item!r} names no word with its clips, expected WORD=FILE,FILE.")
        files += [(word, Path(path)) for path in paths.split(",")]
    if s.words and s.words.is_dir():
        for folder in sorted(path for path in s.words.iterdir() if path.is_dir()):
            if not (found := sorted(folder.glob("[!.]*"))):
                raise mj.InputError(f"{folder} holds no clip, expected one or more of the word {folder.name!r}.")
            files += [(folder.name, path) for path in found]
    yield from ((one_form(word), str(path), read_audio(path, RATE)) for word, path in files)
    if s.words and not s.words.is_dir():
        recordings = corpora.read("manifest", s.words)
        labels, names = recordings.columns["label"], recordings.clip_names
        for label, name, wave in zip(labels, names, recordings.read(range(len(names)), RATE), strict=True):
            if isinstance(wave, mj.InputError) or label < 0:
                raise wave if label >= 0 else mj.InputError(f"{name} has no label in {s.words}, expected its word.")
            yield recordings.names["label"][label], name, wave


def ear(encoder: bool | None, spotting: bool) -> Ear:
    trained = models.words(encoder, spotting=spotting)
    return trained, jax.jit(lambda x: trained.model.apply(trained.params, x))


def learn(ear: Ear, clips: list[tuple[str, str, np.ndarray]]) -> tuple[Taught, list[int]]:
    """Words from their clips, and the clips that are too faint for running audio."""
    z = np.concatenate([ear[1](clip(wave, name)[None]) for _, name, wave in clips]).reshape(len(clips), -1)
    faint = np.flatnonzero(np.linalg.norm(z, axis=1) < ear[0].faint).tolist()
    return learned(z, [word for word, _, _ in clips], ear[0].unknown), faint


def hears(ear: Ear, taught: Taught) -> Callable[[np.ndarray], jax.Array]:  # waves to probabilities
    heard = hearing(taught, ear[0].unknown)
    return lambda x: heard(ear[1](x))


def teach(ears: tuple[Ear, Ear], clips: list[tuple[str, str, np.ndarray]]) -> list[Taught]:
    """Two words or more, for clips and for running audio; tells the time, without compiling."""
    if len(words := {word for word, _, _ in clips}) < 2:
        raise mj.InputError(f"{len(words)} word(s) to teach, expected two or more, as yes=a.wav no=b.wav.")
    (taught, _), (running, faint) = (learn(one, clips) for one in ears)  # compiles
    begin, _ = time.perf_counter(), jax.block_until_ready(learn(ears[0], clips))
    spent = f"{len(clips)} clips in {1000 * (time.perf_counter() - begin):.0f} ms"
    print(f"{len(words)} words taught by {spent}: {', '.join(taught.words)}")
    for word, name, _ in (clips[i] for i in faint):
        print(f"note: {name} of {word!r} holds little speech: expect false alarms, or record again", file=sys.stderr)
    return [taught, running]


def recognise(heard: Callable, words: list[str], clips: list[tuple[str, np.ndarray]], sure: float) -> None:
    """Tells the word of each clip, or unknown, each by itself."""
    x = [clip(wave, name)[None] for name, wave in clips]
    _, begin = jax.block_until_ready(heard(x[0])), time.perf_counter()  # compiled
    p, spent = [np.asarray(heard(one))[0] for one in x], time.perf_counter() - begin
    for (name, _), q in zip(clips, p, strict=True):
        best, top = words[q[:-1].argmax()], q[:-1].max()
        print(f"{name}: " + (f"{best}, {100 * top:.0f} %" if top >= sure else f"unknown, {100 - 100 * top:.0f} %"))
    print(f"{len(x)} clips, {1000 * spent / len(x):.1f} ms each")


def spot(heard: Callable, words: list[str], path: Path, sure: float) -> None:
    """Tells which word is said when in running audio: a file in long blocks, or what the microphone hears in short."""
    wave, size = (None, 2 * HOP) if str(path) == "mic" else (read_audio(path, RATE), BLOCK * HOP)
    jax.block_until_ready(heard(np.zeros((1, CLIP - HOP + size), np.float32)))  # compiles
    begin, since, count = time.process_time(), time.perf_counter(), 0
    sound = microphone(RATE, size) if wave is None else np.pad(wave, (0, size + -len(wave) % size)).reshape(-1, size)
    for count, one in enumerate(listen(heard, sound, samples=CLIP, hop=HOP, sure=sure), 1):  # noqa: B007
        print(f"{one.middle / RATE:8.2f} s: {words[one.word]}, {100 * one.p:.0f} %", flush=True)
    seconds = time.perf_counter() - since if wave is None else len(wave) / RATE
    print(f"{count} words in {seconds:.1f} s of audio, {(time.process_time() - begin) / seconds:.1%} of a core")


def load(path: Path, version: str) -> list[Taught]:
    tensors, told = read_tensors(path)
    words = json.loads(told["words"]) if told and "words" in told else []
    if len(tensors) != KEPT.num_leaves or any(x.shape[:1] != (len(words),) for x in tensors.values()):
        raise mj.InputError(f"{path} is no taught recogniser, expected a file that --save wrote.")
    if (old := told.get("version")) != version:
        raise mj.InputError(f"{path} was taught with {old}, but in use is {version}: see encoder, or teach again.")
    return [Taught(words, phi) for phi in jax.tree.unflatten(KEPT, [tensors[name] for name in sorted(tensors)])]


def write(s: Settings, ear: Ear, taught: list[Taught], version: str) -> None:
    from safetensors.numpy import save  # of the extra `encoder`

    files, words = {}, taught[0].words
    if s.save:
        kept = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves([one.phi for one in taught]))}
        files[s.save] = save(kept, {"words": json.dumps(words), "version": version})
    if s.export:
        made = exported(ear[1], taught[0], ear[0].unknown, CLIP) | {".json": json.dumps([*words, "unknown"]).encode()}
        files |= {s.export.with_name(s.export.name + end): content for end, content in made.items()}
    for path, content in files.items():
        checkpoint.write_bytes(path, content)
        print(f"{path}: {len(content) / 1024:.1f} KB")


def run(s: Settings) -> None:
    runs.check(s, ["web"] if s.web else [])
    if s.web and s != Settings(web=True, host=s.host, port=s.port, encoder=s.encoder):
        raise mj.InputError("web is given with other settings, expected host, port, encoder: the page teaches words.")
    if not 0 <= s.sure <= 1:
        raise mj.InputError(f"sure is {s.sure}, expected a probability.")
    if there := [path for path in (s.save, s.export) if path and (path.exists() or s.save == s.export)]:
        raise mj.InputError(f"{there[0]} would be overwritten, expected a new file for each of save and export.")
    if s.taught and (s.teach or s.words):
        raise mj.InputError("taught is given with words to teach, expected one of the two.")
    use_all_cores(default_folder() / "compiled")
    ears = ear(s.encoder, False), ear(s.encoder, True)
    print(f"in use: {ears[0][0].card['what']}")
    if s.web:
        hear = lambda t, x: max(np.asarray(hears(ears[1], t)(x[None]))[0, :, :-1], key=max)  # noqa: E731
        noise = np.random.default_rng(0).normal(0, 0.1, CLIP + HOP).astype(np.float32)
        hear(learn(ears[1], [("a word", "noise", noise[:RATE])])[0], noise)  # compiles
        return web.serve(web.app(lambda clips: learn(ears[1], clips), hear, CLIP + HOP), s.host, s.port)
    version = "{what}, {date} {commit}".format(**ears[0][0].card)
    if s.taught or s.teach or s.words:
        taught = load(s.taught, version) if s.taught else teach(ears, list(given(s)))
        clips = [(str(path), read_audio(path, RATE)) for path in s.recognise]
    elif s.recognise or s.stream or s.save or s.export:
        raise mj.InputError("No word is taught, expected WORD=FILE, words or taught.")
    else:  # three English numbers by a voice each, and five by others
        made = corpora.read("espeak", languages=["en"], numbers=(1, 3, 4, 6, 8), clips_per_label=5)
        said = [made.names["label"][i] for i in made.columns["label"]]
        spoken = list(zip(said, made.clip_names, made.read(range(len(said)), RATE), strict=True))
        taught = teach(ears, [spoken[said.index(word)] for word in sorted(set(said))[:3]])
        clips = [one[1:] for i, one in enumerate(spoken) if said.index(one[0]) != i or one[0] not in taught[0].words]
    write(s, ears[0], taught, version)
    if clips:
        recognise(hears(ears[0], taught[0]), taught[0].words, clips, s.sure)
    if s.stream:
        spot(hears(ears[1], taught[1]), taught[1].words, s.stream, s.sure)


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
