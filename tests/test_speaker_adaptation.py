"""The script about new speakers: what it refuses, and what a small run leaves behind."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import speaker_adaptation
from speaker_adaptation import ADAM, ARMS, RATES, STEPS, Settings

from metajax import checkpoint, runs
from metajax.models import recogniser, saved
from tests import tiny
from tests.conftest import assert_refused

RATE, SPEAKERS = 8000, 5


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two takes of ten tones by five speakers, named as FSDD's."""
    folder, draw = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for digit, speaker, take in np.ndindex(10, SPEAKERS, 2):
        tone = np.sin(2 * np.pi * (400 + 250 * digit) * (1 + 0.02 * speaker) * np.arange(1200) / RATE)
        wave = 0.3 * tone + 0.01 * draw.normal(size=tone.size)
        soundfile.write(folder / f"{digit}_s{speaker}_{take}.wav", wave.astype(np.float32), RATE)
    return folder


@pytest.fixture
def main(digits, tmp_path):
    """Runs the script on them, at tiny sizes; its exit code."""

    def call(*argv: object) -> int:
        sizes = "--strings 6 --words 2 3 --shots 1 --queries 2 --amounts 1 2 --outer-steps 2 2 --tasks 1 --episodes 4"
        places = ["--corpus", "fsdd", "--root", digits, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
        argv = [*map(str, places), *sizes.split(), "--width", "0.25", *map(str, argv)]
        return runs.main(Settings, speaker_adaptation.run, speaker_adaptation.__doc__, argv)

    return call


def test_what_cannot_be_compared_is_refused(main, tmp_path, capsys):
    assert_refused(
        main,
        capsys,
        (["--arms", "nonsense"], "arms holds 'nonsense', expected some of fine-tuned, FOMAML"),
        (["--arms", "FOMAML"], "arms begins with 'FOMAML', expected one that learns jointly"),
        (["--queries", "0"], "queries is 0, expected a finite number, 1 or more"),
        (["--root", tmp_path / "absent"], "absent"),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_run_of_an_arm_of_each_kind(main, tmp_path, capsys, monkeypatch):
    fewer = {"fine-tuned": ("all", "film"), "SUTA": ("film",)}  # each is a program or two
    for arm, parts in fewer.items():
        monkeypatch.setitem(ARMS, arm, ARMS[arm]._replace(parts=parts))
    monkeypatch.setattr(speaker_adaptation, "RATES", RATES[:2])
    monkeypatch.setattr(saved, "recogniser", tiny.recogniser)
    arms = ("fine-tuned", "SUTA", "learned error", "from scratch", "FOMAML", "FOMAML, support gradient kept")
    assert main("--arms", *arms) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == list(arms) and all(arm in shown for arm in arms)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000 and "cpu" in results["device"]
    for arm, row in results["rows"].items():
        assert [point["step"] for point in row["character"]] == list(STEPS)
        for options, step in zip(row["option"], row["step"], strict=True):
            assert step in STEPS[1:]
            assert all(part in ARMS[arm].parts and rate in RATES for part, rate in options)
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(cells) == len(arms)
    for cell in cells.values():
        column = STEPS.index(cell["step"])
        assert np.allclose(cell["amounts"][0], np.array(cell["word"])[:, column], atol=1e-5)  # 1 is what --shots gives
        assert np.shape(cell["amounts"]) == (2, 4)
        assert np.shape(cell["texts"]) == (3, 3) and all(2 <= len(said.split()) <= 3 for said, *_ in cell["texts"])
    never = {arm: [task[0] for task in cell["character"]] for cell in cells.values() for arm in [cell["arm"]]}
    assert never["SUTA"] == never["fine-tuned"]  # one start, one set of tasks
    theta = {"params": saved.load_recogniser(tmp_path / "out" / "recognisers" / "seed0" / "FOMAML").theta["params"]}
    trained = [tmp_path / "out" / "seed0" / f"{arm}, all" for arm in ("FOMAML", "FOMAML, support gradient kept")]
    pair = [checkpoint.restore(path, (theta, jnp.int32(0))) for path in trained]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))  # the mistake is made
    assert [cell["outer_steps"] for cell in cells.values() if cell["arm"] == "from scratch"] == [{"all": 0}]
    train, validation, test = next(iter(cells.values()))["speakers"]
    assert sorted(train + validation + test) == [f"s{i}" for i in range(SPEAKERS)] and validation and test
    for arm, row in results["rows"].items():
        kept = saved.load_recogniser(tmp_path / "out" / "recognisers" / "seed0" / arm)
        (step,), (options,) = row["step"], row["option"]
        part, rate = options[STEPS.index(step)]
        assert kept.way[:2] == (ARMS[arm].error, part) and kept.way.steps == step
        assert kept.way.rate == pytest.approx(rate * (ADAM if arm == "SUTA" else 1))
        assert kept.vocabulary.tokens[0] == "<pad>" and kept.features.high == 3800 and 1 < kept.longest < 2
        assert kept.network["width"] == 0.25 and recogniser(**kept.network)(None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert main("--arms", *arms) == 0  # finds every cell
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert all(before[path] == time for path, time in after.items())


@pytest.mark.slow
def test_a_corpus_with_texts_of_the_users_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saved, "recogniser", tiny.recogniser)
    monkeypatch.setitem(ARMS, "fine-tuned", ARMS["fine-tuned"]._replace(parts=("film",)))
    draw, lines = np.random.default_rng(0), ["path,text,speaker"]
    for speaker, take in np.ndindex(SPEAKERS, 6):
        soundfile.write(tmp_path / f"{speaker}_{take}.wav", 0.1 * draw.normal(size=9000 + 500 * take), RATE)
        lines.append(f"{speaker}_{take}.wav,{('One two!', 'Two.', '')[take % 3 if take < 5 else 0]},s{speaker}")
    (tmp_path / "mine.csv").write_text("\n".join(lines), encoding="utf-8")
    sizes = "--corpus auto --shots 1 --queries 2 --outer-steps 2 2 --tasks 1 --episodes 4 --augment 0"
    places = ["--root", tmp_path / "mine.csv", "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    argv = [*sizes.split(), "--arms", "fine-tuned", *map(str, places)]
    assert runs.main(Settings, speaker_adaptation.run, speaker_adaptation.__doc__, argv) == 0
    told = capsys.readouterr()
    assert "word error (%)" in told.out and "5 of 30 texts are left out" in told.err
    kept = saved.load_recogniser(tmp_path / "out" / "recognisers" / "seed0" / "fine-tuned")
    assert kept.vocabulary.tokens == ("<pad>", "|", *"enotw") and kept.vocabulary.normalizer == "letters"
