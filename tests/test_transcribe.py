"""The script that transcribes: what it refuses, and what it hears, prints and writes on a small trained recogniser."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import transcribe
from transcribe import Settings

from metajax import runs
from metajax.core import Transcripts, Utterances
from metajax.data.corpora.joined import joined
from metajax.data.corpus import Recordings
from metajax.data.speech import load_speech, normalized
from metajax.models.saved import ERRORS, Way, adapting, judging, save_recogniser, trained_on

RATE, NETWORK = 16000, {"width": 0.125, "num_layers": 1}
WORDS = {"ab": 500.0, "c": 1200.0, "dé": 2600.0}  # tones, in Hz


def tone(word, draw):
    wave = 0.3 * np.sin(2 * np.pi * WORDS[word] * draw.uniform(0.95, 1.05) * np.arange(4800) / RATE)
    return (wave + 0.003 * draw.normal(size=wave.size)).astype(np.float32)


def said(words, draw, gap=0.15):
    silence = np.zeros(round(gap * RATE), np.float32)
    return np.concatenate([silence, *(part for word in words for part in (tone(word, draw), silence))])


def speech():
    draw, names = np.random.default_rng(0), tuple(WORDS)
    waves = [tone(names[i % 3], draw) for i in range(30)]
    columns = {"label": np.arange(30, dtype=np.int32) % 3, "speaker": np.zeros(30, np.int32)}
    clips = tuple(map(str, range(30)))
    single = Recordings("tones", clips, columns, {"label": names, "speaker": ("s",)}, None, str,
                        lambda clips, rate: [waves[i] for i in clips])  # fmt: skip
    strings = joined(single, dict(zip(names, names, strict=True)), strings=64, words=(1, 3), gaps=(0.1, 0.2))
    return load_speech(strings, cache=None, progress=False)


@pytest.fixture
def theta(tmp_path_factory):
    """Folder of a recogniser that learned tones, and of one that was not trained, which adapts without text."""
    folder, known = tmp_path_factory.mktemp("recognisers"), speech()
    model, x = judging(NETWORK, known.vocabulary), Utterances(known.corpus.features, known.corpus.lengths)
    optimizer = optax.adam(1e-2)
    x = normalized(x)

    @jax.jit
    def step(carry, _):
        params, state = carry
        rows = (jnp.arange(16) + 16 * state[0].count) % 64
        batch, y = jax.tree.map(lambda a: a[rows], (x, Transcripts(*map(jnp.asarray, known.transcripts))))
        loss, grads = jax.value_and_grad(lambda p: ERRORS["text"](model.apply(p, batch), y)[0])(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    params = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda a: a[:1], x))
    (params, _), loss = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    assert loss[-1] < 0.05
    save_recogniser(folder / "text", trained_on(known, NETWORK, {"params": params}, Way(rate=0.01, steps=1)))
    blind = trained_on(known, NETWORK, {"params": params}, Way("learned", "film", 0.1, 2, learned_rates=True))
    save_recogniser(folder / "blind", blind._replace(theta=adapting(blind).init(params, jax.random.key(0))))
    return folder


@pytest.fixture
def main(tmp_path, capsys):
    """Runs the script; its exit code, what it prints and what it says of errors."""

    def call(*argv: object) -> tuple[int, str, str]:
        argv = [*map(str, argv), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        code = runs.main(Settings, transcribe.run, transcribe.__doc__, argv)
        return code, *capsys.readouterr()

    return call


def test_what_cannot_be_is_refused_before_anything_is_computed(main, tmp_path):
    audio = tmp_path / "a.wav"
    for argv, told in (
        ([audio], "theta is missing, expected one of the recognisers that speaker_adaptation.py makes"),
        (["--theta", tmp_path], "audio is empty, expected recordings"),
        ([audio, "--theta", tmp_path, "--adapt", tmp_path, "--adapt-unlabelled"], "expected one of them"),
        ([audio, "--theta", tmp_path], "is no recogniser: there is no"),
        ([audio, "--theta", tmp_path, "--lm", audio], "lm is given with beam = 0"),
        ([audio, "--theta", tmp_path, "--steps", "3"], "steps is given without adapt or adapt_unlabelled"),
        ([audio, "--theta", tmp_path, "--most", "0"], "most is 0.0, expected a finite number, 0.1 or more"),
        (
            [audio, tmp_path / "b" / "a.flac", "--theta", tmp_path, "--format", "srt"],
            "Two recordings have the same name",
        ),
    ):
        code, _, error = main(*argv)
        assert code == 2 and error.startswith("error: ") and told in error and error.count("\n") == 1
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.srt").write_text("mine")
    code, _, error = main(audio, "--theta", tmp_path, "--format", "txt", "srt")
    assert code == 2 and "a.srt exists; choose another folder for out, or set overwrite" in error
    assert (tmp_path / "out" / "a.srt").read_text() == "mine"


@pytest.mark.slow
def test_a_trained_recogniser_transcribes_and_adapts(main, theta, tmp_path):
    """One test, which trains it once."""
    recordings_become_text_with_times_and_subtitles(main, theta, tmp_path)
    recognisers_adapt_with_text_and_without(main, theta, tmp_path)


def recordings_become_text_with_times_and_subtitles(main, theta, tmp_path):
    draw = np.random.default_rng(1)
    words = ["c", "ab", "dé", "ab", "ab", "c", "dé", "c"]
    wave = np.concatenate(
        [said(words[:3], draw), np.zeros(RATE, np.float32), said(words[3:6], draw), said(words[6:], draw)]
    )
    soundfile.write(tmp_path / "long.flac", wave, RATE)
    soundfile.write(tmp_path / "short.wav", said(["dé", "c"], draw), RATE)
    (tmp_path / "bad.wav").write_text("no audio")
    audio = [tmp_path / name for name in ("long.flac", "bad.wav", "short.wav")]
    code, shown, error = main(*audio, "--theta", theta / "text", "--format", "txt", "json", "srt")
    assert code == 2 and "1 of 3 recordings are not transcribed" in error and "bad.wav is not an audio file" in error
    assert "note: " in error and re.search(r"long.flac lasts 5.0 s and is split at silences into . pieces", error)
    assert re.search(r"recognised in \d+ ms, 0\.\d+ of its length; compiled in \d+ ms", shown)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}.{kind}" for name in ("long", "short") for kind in ("txt", "json", "srt")
    )
    assert (out / "long.txt").read_text(encoding="utf-8") == " ".join(words) + "\n"
    found = json.loads((out / "long.json").read_text(encoding="utf-8"))
    assert found["text"] == " ".join(words) and [word["text"] for word in found["words"]] == words
    assert "".join(token["text"] for token in found["tokens"] if token["text"] != "|") == "".join(words)
    loud = np.flatnonzero(np.diff((np.convolve(np.abs(wave), np.ones(480), "same") > 20).astype(int)) == 1) / RATE
    np.testing.assert_allclose([word["start"] for word in found["words"]], loud, atol=0.3)
    assert found["way"] is None and found["milliseconds"]["adapt"] == 0 and "cpu" in found["device"]
    shown_words = re.sub(r"\d+\n\d\d:.*\n", "", (out / "long.srt").read_text(encoding="utf-8")).split()
    assert shown_words == words and (out / "long.srt").read_text().startswith("1\n00:00:00,")
    before = (out / "short.srt").read_bytes()
    assert main(audio[2], "--theta", theta / "text", "--format", "srt")[0] == 2
    code, shown, _ = main(audio[2], "--theta", theta / "text", "--format", "srt", "--overwrite", "--beam", "4")
    assert code == 0 and (out / "short.srt").read_bytes() == before  # beam search hears the same


def recognisers_adapt_with_text_and_without(main, theta, tmp_path):
    draw, lines = np.random.default_rng(2), ["path,text"]
    for i, words in enumerate((["c", "ab"], ["dé", "c"], ["ab", "dé", "c"])):
        soundfile.write(tmp_path / f"{i}.wav", said(words, draw), RATE)
        lines.append(f"{i}.wav,{' '.join(words).replace('é', 'e' + chr(0x301))}")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = tmp_path / "2.wav"
    code, shown, error = main(short, "--theta", theta / "text", "--adapt", tmp_path / "mine.csv", "--most", "2.3")
    assert code == 0 and "ab  " in shown and "texts were not NFC and are now" in error
    assert re.search(r"Adapted to 2 utterances, 2\.\d s, of .*: all, error text, rate 0.01, 1 steps; compiled", shown)
    audio = tmp_path / "1.wav", short, tmp_path / "again.wav"
    audio[2].write_bytes(audio[0].read_bytes())
    code, shown, _ = main(*audio, "--theta", theta / "blind", "--adapt-unlabelled", "--format", "json")
    assert code == 0 and "trained to adapt otherwise" not in shown
    told = re.findall(
        r"Adapted to 1 utterances, ....s, of (.*), in \d+ ms: film, error learned, rate 0.1, 2 steps", shown
    )
    assert told == [*map(str, audio)]
    found, again = (json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8")) for name in ("1", "again"))
    assert found["way"]["error"] == "learned" and found["text"] == "dé c"
    # adapted anew: what came before changes nothing
    assert found["words"] == again["words"] and found["tokens"] == again["tokens"]
    code, shown, _ = main(short, "--theta", theta / "text", "--adapt-unlabelled", "--error", "entropy", "--steps", "1")
    assert code == 0 and "trained to adapt otherwise (text)" in shown and "error entropy" in shown
    assert main(short, "--theta", theta / "text", "--adapt-unlabelled", "--error", "text")[0] == 2
    (tmp_path / "bad.csv").write_text("path,text\n0.wav,c xx\n")
    code, _, error = main(short, "--theta", theta / "text", "--adapt", tmp_path / "bad.csv")
    assert code == 2 and "0.wav: 'x' (U+0078), character 3 of 'c xx', is not in the vocabulary" in error
    long = np.concatenate([said(["c", "ab"], draw), 0.01 * draw.normal(size=30 * RATE)])
    soundfile.write(tmp_path / "long.wav", long, RATE)
    (tmp_path / "two.csv").write_text("path,text\nlong.wav,c ab\n0.wav,c ab\n")
    two = short, "--theta", theta / "text", "--adapt", tmp_path / "two.csv", "--rate", "1e30"
    for most in ((), ("--most", "20")):  # 30 s, unless told otherwise
        code, _, error = main(*two, *most)
        told = rf"long.wav lasts 31.\d\d s, expected at most {20 if most else 30} s: cut it, or leave it out with"
        assert code == 2 and re.search(told + " on_error = skip", error)
    code, _, error = main(*two, "--on-error", "skip")
    assert code == 1 and "1 of 2 clips are left out; the first" in error
    assert "Adaptation diverged at rate 1e+30; a smaller one is the usual cure." in error, error
