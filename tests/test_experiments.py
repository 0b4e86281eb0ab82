"""The main script: what it refuses, and what one whole small run leaves behind."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from metajax import models, recipes, runs
from metajax.data import corpora
from metajax.tasks.episodes import index_tables
from metajax.tasks.splits import divide
from tests import tiny
from tests.conftest import equations, write_tones
from tests.shared import shared_data

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import keyword_fewshot
from keyword_fewshot import Settings

RATE, WORDS, SPEAKERS, TAKES = 16000, 9, 9, 2
KEY = jax.random.key(0)
SMALL = [
    "--methods",
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


def main(argv):
    """The script's exit code."""
    return runs.main(Settings, keyword_fewshot.run, keyword_fewshot.__doc__, argv)


@pytest.mark.parametrize("name", ("conv4", "tcresnet8"))
def test_precision_reaches_the_network(name):
    net, x = models.network(name, precision="bfloat16")(5), jnp.zeros((2, 98, 40))
    found = [eqn for eqn in equations(net.apply, jax.eval_shape(net.init, KEY, x), x) if "formulation" in eqn.params]
    assert found
    assert {str(operand.aval.dtype) for eqn in found for operand in eqn.invars} == {"bfloat16"}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), WORDS, SPEAKERS, TAKES, further=(",mood", ",calm"))


@pytest.fixture
def refuse(capsys, tmp_path):
    """Runs the script, which must end with exit code 2 and one error on stderr, its last line; returns that line.

    All of stderr is then in `refuse.told`.
    """

    def call(*arguments: object, out: Path | None = None) -> str:
        argv = [*map(str, arguments), "--out", str(out or tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        assert main(argv) == 2
        call.told = capsys.readouterr().err
        errors = [line for line in call.told.splitlines() if line.startswith("error: ")]
        assert errors == call.told.splitlines()[-1:] and "Traceback" not in call.told
        assert not (tmp_path / "out" / "config.json").exists()
        return errors[0]

    return call


@pytest.fixture
def manifest_of(tones):
    """Writes a manifest beside the tones: their rows, all or those chosen, and more; returns its `--root` arguments."""

    def write(*more: str, header: str | None = None, keep=lambda row: True, encoding: str = "utf-8") -> tuple:
        first, *rows = tones.read_text().splitlines()
        path = tones.with_name("other.csv")
        text = "\n".join([header or first, *more, *filter(keep, rows)]) + "\n"
        path.write_text(text, encoding=encoding)
        return "--corpus", "manifest", "--root", path

    return write


@pytest.mark.parametrize(("argument", "known"), [("--corpus", "espeak"), ("--across", "speaker"), ("--model", "conv4")])
def test_unknown_names_are_refused_with_those_known(argument, known, capsys):
    with pytest.raises(SystemExit) as ending:
        main([argument, "nonsense"])
    assert ending.value.code == 2
    assert known in capsys.readouterr().err


def test_an_unknown_method_is_refused_with_those_known(refuse):
    assert "methods holds 'nonsense', expected some of maml, fomaml" in refuse("--methods", "maml", "nonsense")


def test_a_corpus_without_its_folder_is_refused(refuse, tmp_path):
    assert "needs a root" in refuse("--corpus", "fsdd")
    assert "absent" in refuse("--corpus", "fsdd", "--root", tmp_path / "absent")


def test_too_few_words_speakers_or_clips_are_refused_with_how_many_there_are(refuse, tones, manifest_of):
    assert "9 words" in refuse("--corpus", "manifest", "--root", tones, "--ways", 5)
    for size in ("--queries", "--test-queries", "--shots"):
        assert re.search(r"\d+ .*clips", refuse("--corpus", "manifest", "--root", tones, "--ways", 2, size, 30))
    few = manifest_of(keep=lambda row: row.split(",")[2] in ("s0", "s1", "s2"))
    assert "3 speakers, expected at least 4" in refuse(*few, *SMALL)


BAD = {
    "missing": lambda path, wave: None,
    "empty": lambda path, wave: path.write_bytes(b""),
    "cut": lambda path, wave: (soundfile.write(path, wave, RATE), path.write_bytes(path.read_bytes()[:9000])),
    "text": lambda path, wave: path.write_text("no sound at all"),
    "silent": lambda path, wave: soundfile.write(path, 0 * wave, RATE),
    "nan": lambda path, wave: soundfile.write(path, np.where(wave > 0.2, np.nan, wave), RATE, subtype="FLOAT"),
    "short": lambda path, wave: soundfile.write(path, wave[:100], RATE),
}


@pytest.fixture
def bad_files(tones):
    """Rows of a manifest for clips that cannot be used, by what is wrong with them."""
    for name, make in BAD.items():
        make(tones.with_name(f"{name}.wav"), 0.3 * np.sin(np.arange(RATE, dtype=np.float32)))
    return {name: f"{name}.wav,w1,s1,calm" for name in BAD}


@pytest.mark.parametrize("name", BAD)
def test_bad_audio_is_named(refuse, manifest_of, bad_files, name):
    few = manifest_of(bad_files[name], keep=lambda row: row.startswith("0_"))
    assert f"{name}.wav" in refuse(*few, *SMALL)


def test_bad_audio_is_skipped_and_counted(refuse, manifest_of, bad_files):
    # no error any more: the next one, too few words, is reached
    error = refuse(*manifest_of(*bad_files.values()), "--on-error", "skip", "--ways", 5)
    assert "9 words" in error
    assert f"{len(BAD)} of {WORDS * SPEAKERS * TAKES + len(BAD)} clips are left out" in refuse.told


def test_bad_manifests_are_refused(refuse, manifest_of):
    header, row = "path,label,speaker,mood", "0_0_0.wav,w0,s0,calm"
    assert "no column 'path'" in refuse(*manifest_of(header=header.replace("path", "file")))
    assert "leads out of" in refuse(*manifest_of("../0_0_0.wav,w0,s0,calm"))
    assert "the same clip as in line 2" in refuse(*manifest_of(row))
    assert "is not UTF-8" in refuse(*manifest_of("0.wav,wörd,s0,calm", encoding="latin-1"))
    assert "9 words" in refuse(*manifest_of())
    assert refuse.told.count("mood") == 1  # a column of the user's own


def test_lists_and_clips_of_the_known_corpora_that_cannot_be_read_are_named(refuse, tmp_path):
    (tmp_path / "train.csv").write_text("file,class,speaker\nein.wav,größe,1\n", encoding="latin-1")
    assert "train.csv is not UTF-8" in refuse("--corpus", "arabic", "--root", tmp_path)
    (tmp_path / "train.csv").write_text('file,class,speaker\nein.wav,"one,1\n')
    assert "train.csv, line 2" in refuse("--corpus", "arabic", "--root", tmp_path)
    (tmp_path / "train.csv").write_text("file,class,speaker\nein.wav,one,1\n")
    assert "ein.wav does not exist" in refuse("--corpus", "arabic", "--root", tmp_path)
    for name in ("testing_list.txt", "validation_list.txt"):
        (tmp_path / name).write_bytes(b"\xe9/a_nohash_0.wav")
    assert "is not UTF-8" in refuse("--corpus", "speech_commands", "--root", tmp_path)
    (tmp_path / "0_ann_0.wav").write_bytes(b"")
    assert "0_ann_0.wav is empty" in refuse("--corpus", "fsdd", "--root", tmp_path)


def test_nothing_is_left_to_train_on_where_all_is_tested_on(refuse, tones):
    first, *rows = tones.read_text().splitlines()
    other = tones.with_name("tested.csv")
    other.write_text("\n".join([f"{first},split", *(f"{row},test" for row in rows)]))
    evaluated = ("--eval-corpus", "manifest", "--eval-root", other)
    error = refuse("--corpus", "manifest", "--root", tones, *evaluated, *SMALL)
    assert "No clip is left to train on" in error
    assert "9 words are tested on and left out of training (w0, w1, w2)" in refuse.told
    other.write_text("\n".join([f"{first},split", *(f"{row},{'test' if ',w8,' in row else 'train'}" for row in rows)]))
    error = refuse("--corpus", "manifest", "--root", tones, *evaluated, *SMALL)
    assert "train and test share 9 speakers" in error


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


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(capsys, tones, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    argv = ["--corpus", "manifest", "--root", str(tones), "--out", str(out), "--cache", str(tmp_path)]
    (out / "config.json").write_text(json.dumps(runs.config(Settings(corpus="manifest", root=tones))))
    assert main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*argv, "--resume", "--ways", "3"]) == 2
    assert "ways is 3 now but 5" in capsys.readouterr().err
    (out / "config.json").write_text("{")
    assert main([*argv, "--resume"]) == 2
    assert "config.json is missing or damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(refuse, tones, tmp_path, monkeypatch):
    absent = ("--corpus", "fsdd", "--root", tmp_path / "absent")
    assert "tones.csv is no folder" in refuse(*absent, out=tones / "run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"{tmp_path} is read-only" in refuse(*absent, out=tmp_path / "new" / "run")


def test_a_run_is_not_resumed_on_other_data(capsys, manifest_of, tmp_path, monkeypatch):
    """And `mamlpp` trains in its phases, before which this run ends."""
    argv = [*map(str, manifest_of()), *SMALL, "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    argv += ["--methods", "mamlpp"]
    monkeypatch.setattr(models, "network", tiny.network)
    monkeypatch.setattr(recipes, "in_phases", lambda phases: {}[tuple(share for share, _ in phases)])
    with pytest.raises(KeyError, match=r"\(0.25, 0.25, 0.5\)"):  # its folder is made by then
        main(argv)
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert "162 clips, 9 labels, 9 speakers" in data
    manifest_of("0_0_0.wav,w1,s0,calm", keep=lambda row: not row.startswith("0_0_0"))  # one clip, another word
    assert main([*argv, "--resume"]) == 2
    assert f"but {data!r} in" in capsys.readouterr().err.replace("eval_data", "data")


def test_a_damaged_feature_cache_is_told_and_built_anew(refuse, tones, tmp_path):
    tried = ("--corpus", "manifest", "--root", tones, "--ways", 5)
    refuse(*tried)
    assert "computed again" not in refuse.told
    (path,) = (tmp_path / "cache").glob("*.features")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refuse(*tried)
    assert path.name in refuse.told and "computed again" in refuse.told
    assert path.read_bytes() == whole


def test_espeak_that_is_not_there_or_cannot_be_loaded_is_told(refuse, tmp_path, monkeypatch):
    package = tmp_path / "espeakng_loader"
    package.mkdir()
    (package / "__init__.py").write_text(f"def get_library_path():\n    return {str(package / 'lib.so')!r}\n")
    with monkeypatch.context() as patch:
        patch.setattr("sys.path", [str(tmp_path), *sys.path])
        patch.setitem(sys.modules, "espeakng_loader", None)
        del sys.modules["espeakng_loader"]  # the real one, which another test may have imported, is back at the end
        assert "pip install 'metajax[espeak]'" in refuse()  # no voices
        (package / "espeak-ng-data" / "voices" / "!v").mkdir(parents=True)
        (package / "lib.so").write_text("no library")
        assert "eSpeak NG cannot be loaded" in refuse()
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "espeakng_loader" else find(name))
    assert "pip install 'metajax[espeak]'" in refuse()


def test_recorded_noise_that_is_not_there_is_refused(refuse, tones):
    assert "no recordings of noise" in refuse("--corpus", "manifest", "--root", tones, "--noise", "recorded")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--root", "mine.csv"], "reads no folder"),
        (["--seed", "-1"], "seed is -1"),
        (["--outer-rate", "nan"], "outer_rate is nan"),
        (["--outer-steps", "0"], "outer_steps is 0"),
        (["--theta", "nowhere"], "nowhere/config.json is missing"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, told, refuse):
    assert told in refuse(*arguments)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="the espeak extra is not installed")
def test_the_defaults_suit_the_embedded_corpus():
    s = Settings()
    recordings = corpora.read(s.corpus, clips_per_label=12)
    splits = divide(recordings.columns, recordings.names, ways=s.ways, seed=s.seed)
    for mask in splits:
        label = np.where(mask, recordings.columns["label"], -1)
        speaker = recordings.columns["speaker"]
        tables = index_tables(label, speaker, s.ways, s.shots, s.queries, s.across, "espeak")
        assert len(tables.labels) > 100


@pytest.mark.slow
def test_a_whole_run_its_files_and_its_resumption(tones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "network", tiny.network)
    phased, shares = recipes.in_phases, []
    monkeypatch.setattr(recipes, "in_phases", lambda of: shares.append([share for share, _ in of]) or phased(of))
    out = tmp_path / "run"
    argv = ["--corpus", "manifest", "--root", str(tones), *SMALL, "--cache", str(tmp_path / "cache"), "--out", str(out)]
    argv += ["--methods", "maml", "joint", "--augment", "0"]
    assert main(argv) == 0 and shares == [[1.0], [1.0]]
    printed = capsys.readouterr()
    for row in ("maml", "joint, fine-tuned", "from scratch", "chance"):
        assert row in printed.out
    assert "mood" in printed.err  # a column of the user's own is named
    results = json.loads((out / "results.json").read_text())
    assert [point["step"] for point in results["accuracy"]] == list(range(keyword_fewshot.STEPS + 1))
    config = results["config"]
    assert config["ways"] == 2 and config["across"] == "speaker" and config["normalization"] == "group"
    assert len(results["unseen_labels"]) == 2 and len(results["unseen_speakers"]) == 2
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "maml" / "theta").is_dir()
    assert json.loads((out / "maml" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4

    assert main(argv) == 2  # nothing is overwritten
    assert "already holds a run" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "1"]) == 2
    assert "seed is 1 now but 0" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["curves"] == results["curves"]
    # a theta of that run, tested again without training, and refused for another network
    there = ["--theta", str(out), "--out", str(tmp_path / "there"), "--methods", "joint"]
    steps = argv.index("--outer-steps")
    assert main([*argv[:steps], *argv[steps + 2 :], *there]) == 0
    tested = json.loads((tmp_path / "there" / "results.json").read_text())
    assert len(tested["curves"]) == 2 and tested["curves"].items() <= results["curves"].items()
    assert "outer_steps" not in tested["methods"]["joint, fine-tuned"]
    assert main([*argv, *there, "--out", str(tmp_path / "other"), "--width", "1"]) == 2
    assert "width is 1.0 now but 0.5 in" in capsys.readouterr().err
    for change, told in (
        (("--max-hz", "3700"), "max_hz is 3700.0 now but"),
        (("--methods", "protonet"), "expected some of maml, joint"),
    ):
        assert main([*argv, *there, "--out", str(tmp_path / "other"), *change]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "other").exists()  # nothing was written


@pytest.mark.slow
def test_protonet_learns_real_words_of_unseen_speakers(tmp_path):
    root, out = shared_data("arabic_speech_commands"), tmp_path / "run"
    argv = ["--corpus", "arabic", "--root", str(root), "--normalization", "transductive", "--methods", "protonet"]
    argv += ["--outer-steps", "60", "--episodes", "100", "--out", str(out), "--cache", str(tmp_path)]
    optimised = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a user has it
    subprocess.run([sys.executable, keyword_fewshot.__file__, *argv], env=optimised, check=True)
    results = json.loads((out / "results.json").read_text())
    assert results["accuracy"][1]["mean"] > 0.72  # without learning: 66 to 68 %
    assert results["accuracy"][0]["mean"] == pytest.approx(0.2)


def test_what_a_second_corpus_cannot_serve_is_refused(refuse, tones):
    corpus = ("--corpus", "manifest", "--root", tones, *SMALL)
    assert "also_root is" in refuse(*corpus, "--also-root", tones)
