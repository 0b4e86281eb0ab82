"""The main script: what it refuses, and what one whole small run leaves behind."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from metajax.data.corpora import manifest
from metajax.data.corpus import Corpus
from metajax.tasks.episodes import index_tables
from metajax.tasks.splits import Splits, divide
from tests.shared import shared_data

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import keyword_fewshot

RATE, WORDS, SPEAKERS, TAKES = 16000, 9, 9, 2
SMALL = [
    "--algorithm",
    "maml",
    "--ways",
    "2",
    "--queries",
    "2",
    "--tasks",
    "2",
    "--outer-steps",
    "4",
    "--episodes",
    "10",
    "--num-steps",
    "2",
    "--width",
    "0.5",
]


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A manifest of words that are chords, by speakers that differ in pitch."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    lines = ["path,label,speaker,mood"]
    time = np.arange(RATE // 2) / RATE
    for word in range(WORDS):
        for speaker in range(SPEAKERS):
            for take in range(TAKES):
                pitch = (300 + 200 * word) * (1 + 0.02 * speaker)
                wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * generator.normal(size=time.size)
                name = f"{word}_{speaker}_{take}.wav"
                soundfile.write(folder / name, wave.astype(np.float32), RATE)
                lines.append(f"{name},w{word},s{speaker},calm")
    (folder / "tones.csv").write_text("\n".join(lines) + "\n")
    return folder / "tones.csv"


@pytest.fixture
def refuse(capsys, tmp_path, monkeypatch):
    """Runs the script, which must end with exit code 2 and one line on stderr; returns that line."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})  # as many devices as conftest made

    def call(*arguments: object, out: Path | None = None) -> str:
        argv = [*map(str, arguments), "--out", str(out or tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        assert keyword_fewshot.main(argv) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert not (tmp_path / "out" / "config.json").exists()
        return errors[0]

    return call


@pytest.mark.parametrize(
    ("argument", "known"), [("--corpus", "espeak"), ("--algorithm", "protonet"), ("--model", "conv4")]
)
def test_unknown_names_are_refused_with_those_known(argument, known, capsys):
    with pytest.raises(SystemExit) as ending:
        keyword_fewshot.main([argument, "nonsense"])
    assert ending.value.code == 2
    assert known in capsys.readouterr().err


def test_a_corpus_without_its_folder_is_refused(refuse, tmp_path):
    assert "--root" in refuse("--corpus", "fsdd")
    assert "absent" in refuse("--corpus", "fsdd", "--root", tmp_path / "absent")


def test_too_few_words_speakers_or_clips_are_refused_with_how_many_there_are(refuse, tones):
    assert "9 words" in refuse("--corpus", "manifest", "--root", tones, "--ways", 5)
    assert "clips" in refuse("--corpus", "manifest", "--root", tones, "--ways", 2, "--queries", 30)


def test_bad_audio_is_named_and_can_be_skipped(refuse, tones, tmp_path):
    text = tones.read_text()
    broken = tones.with_name("broken.csv")
    tones.with_name("empty.wav").write_bytes(b"")
    tones.with_name("silent.wav").write_bytes(b"")
    soundfile.write(tones.with_name("silent.wav"), np.zeros(RATE, np.float32), RATE)
    for name in ("empty.wav", "silent.wav"):
        broken.write_text(text + f"{name},w1,s1,calm\n")
        assert name in refuse("--corpus", "manifest", "--root", broken, *SMALL)
    # skipped, the same clip is no error: the next one, too few words, is reached
    assert "words" in refuse("--corpus", "manifest", "--root", broken, "--on-error", "skip", "--ways", 5)


def test_overlap_of_words_or_speakers_between_splits_is_refused(refuse, tones):
    lines = tones.read_text().splitlines()
    split = tones.with_name("split.csv")
    rows = [f"{line},{'test' if ',w8,' in line else 'train'}" for line in lines[1:]]
    split.write_text("\n".join([lines[0] + ",split", *rows]) + "\n")
    message = refuse("--corpus", "manifest", "--root", split, *SMALL)
    assert "train and test share 9 speakers" in message


def test_a_foreign_folder_is_not_written_into(refuse, tones, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    assert "not an empty folder" in refuse("--corpus", "manifest", "--root", tones, out=folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert "holds no run" in refuse("--corpus", "manifest", "--root", tones, "--resume", out=tmp_path / "new")


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(capsys, tones, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    out = tmp_path / "run"
    out.mkdir()
    argv = ["--corpus", "manifest", "--root", str(tones), "--out", str(out), "--cache", str(tmp_path)]
    (out / "config.json").write_text(json.dumps(keyword_fewshot.settings(keyword_fewshot.parse(argv))))
    assert keyword_fewshot.main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert keyword_fewshot.main([*argv, "--resume", "--ways", "3"]) == 2
    assert "ways is 3 now but 5" in capsys.readouterr().err
    (out / "config.json").write_text("{")
    assert keyword_fewshot.main([*argv, "--resume"]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--root", "mine.csv"], "espeak reads no folder"),
        (["--seed", "-1"], "--seed is -1"),
        (["--inner-rate", "nan"], "--inner-rate is nan"),
        (["--outer-steps", "0"], "--outer-steps is 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, told, refuse):
    assert told in refuse(*arguments)


def test_the_defaults_suit_the_embedded_corpus():
    pytest.importorskip("espeakng_loader", reason="the espeak extra is not installed")
    args = keyword_fewshot.parse([])
    recordings = keyword_fewshot.read_recordings(args.corpus, None, args)
    splits = divide(recordings.columns, recordings.names, ways=args.ways, seed=args.seed)
    for mask in splits:
        label = np.where(mask, recordings.columns["label"], -1)
        speaker = recordings.columns["speaker"]
        tables = index_tables(label, speaker, args.ways, args.shots, args.queries, args.across, "espeak")
        assert len(tables.labels) > 100


def test_words_and_speakers_tested_on_are_left_out_of_training(tones):
    with pytest.warns(UserWarning, match="mood"):
        recordings = manifest.read(tones)
    columns, names = recordings.columns, recordings.names
    corpus = Corpus("tones", jnp.zeros((len(columns["label"]), 1, 1)), None, columns, names, None, ())
    everything = np.ones(len(columns["label"]), bool)
    target = columns["label"] == 0, columns["speaker"] == 1
    task = keyword_fewshot.Task(corpus, Splits(everything, everything, everything))
    test = keyword_fewshot.Task(corpus, Splits(everything, everything, target[0] & target[1]))
    left = keyword_fewshot.without_shared(task, test).splits
    np.testing.assert_array_equal(left.train, ~(target[0] | target[1]))


@pytest.mark.slow
def test_a_whole_run_its_files_and_its_resumption(tones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    out = tmp_path / "run"
    argv = ["--corpus", "manifest", "--root", str(tones), *SMALL, "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert keyword_fewshot.main(argv) == 0
    printed = capsys.readouterr()
    for row in ("maml", "fine-tuning", "from scratch", "chance"):
        assert row in printed.out
    assert "mood" in printed.err  # a column of the user's own is named
    results = json.loads((out / "results.json").read_text())
    assert [point["step"] for point in results["accuracy"]] == [0, 1, 2]
    assert results["ways"] == 2 and results["across"] == "speaker" and results["normalization"] == "group"
    assert len(results["unseen_words"]) == 2 and len(results["unseen_speakers"]) == 2
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "theta").is_dir()
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4

    assert keyword_fewshot.main(argv) == 2  # nothing is overwritten
    assert "already holds a run" in capsys.readouterr().err
    assert keyword_fewshot.main([*argv, "--resume", "--seed", "1"]) == 2
    assert "seed is 1 now but 0" in capsys.readouterr().err
    assert keyword_fewshot.main([*argv, "--resume"]) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["accuracy"] == results["accuracy"] and again["baselines"] == results["baselines"]


@pytest.mark.slow
def test_protonet_learns_real_words_of_unseen_speakers(tmp_path, monkeypatch):
    root = shared_data("arabic_speech_commands")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    out = tmp_path / "run"
    argv = ["--corpus", "arabic", "--root", str(root), "--normalization", "transductive", "--queries", "10"]
    argv += ["--outer-steps", "150", "--episodes", "200", "--no-baselines"]
    assert keyword_fewshot.main([*argv, "--out", str(out), "--cache", str(tmp_path)]) == 0
    results = json.loads((out / "results.json").read_text())
    # the no-learning floor is 57 %; 150 steps of training give about 75 %
    assert results["accuracy"][1]["mean"] > 0.65
    assert results["accuracy"][0]["mean"] == pytest.approx(0.2)
