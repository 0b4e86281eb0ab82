"""The script that trains on synthetic voices alone: what it refuses, and what a run of a tiny network leaves behind."""

import importlib.util
import json
from functools import partial

import jax
import numpy as np
import pytest
import soundfile
import synthetic_to_real as script

import metajax as mj
from metajax import runs
from tests import tiny
from tests.conftest import assert_refused

SPEAKERS, RATE = 5, 8000

pytestmark = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")


@pytest.fixture
def digits(tmp_path):
    """Two takes of ten tones by five speakers, named as FSDD's, long enough for the phonemes of a digit."""
    (folder := tmp_path / "digits").mkdir()
    for digit, speaker, take in np.ndindex(10, SPEAKERS, 2):
        tone = np.sin(2 * np.pi * (400 + 250 * digit + 5 * take) * (1 + 0.02 * speaker) * np.arange(4000) / RATE)
        soundfile.write(folder / f"{digit}_s{speaker}_{take}.wav", 0.3 * tone, RATE)
    return folder


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs the script at tiny sizes; its exit code."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})  # as many devices as conftest made
    monkeypatch.setattr(script, "recogniser", tiny.recogniser)
    monkeypatch.setattr(script, "BATCH", 4)
    monkeypatch.setattr(script, "STEPS", (0, 1, 2))
    monkeypatch.setattr(script, "RATES", (0.1, 1.0))
    monkeypatch.setattr(script, "SECONDS", (3.0, 6.0))
    monkeypatch.setattr(script, "PARTS", {"all": mj.everything, "head": partial(mj.only, "head")})
    monkeypatch.setattr(script, "WAYS", {"text": ("head",), "pseudo-labels": ("all",)})

    def call(*argv: object, out: str = "out") -> int:
        places = ["--out", tmp_path / out, "--cache", tmp_path / "cache"]
        sizes = ["--languages", "en-us", "de", "--utterances", "10", "--phrases", "500", "--outer-steps", "2", "2"]
        return runs.main(script.Settings, script.run, script.__doc__, [*map(str, places), *sizes, *map(str, argv)])

    return call


def test_what_cannot_be_run_is_refused(main, tmp_path, capsys):
    assert_refused(
        main,
        capsys,
        (["--speakers", "1"], "speakers is 1, expected a finite number, 4 or more"),
        (["--languages", "de"], "languages lacks 'en-us', in which it is tested"),
        (["--pretrain", "0"], "pretrain is 0.0, expected a finite number, 0.1 or more"),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_run_on_digits_and_on_voices(main, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "RATES", script.RATES[:2])
    assert main("--fsdd", digits) == 0
    shown, out = capsys.readouterr().out, tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert [(row["corpus"], row["seconds"], row["start"]) for row in results["rows"]] == [
        ("fsdd", seconds, start) for start in script.STARTS for seconds in script.SECONDS
    ]
    assert (out / "curve.png").stat().st_size > 10_000
    never = {}
    for cell in (json.loads(path.read_text()) for path in (out / "cells").iterdir()):
        assert set(cell["ways"]) == set(script.WAYS) and cell["left out"] == 0
        for way, row in cell["ways"].items():
            assert [point["step"] for point in row["word"]] == list(script.STEPS) and len(row["words"]) == 2
            assert sorted(row["tasks"]) == list(range(SPEAKERS)) and len(row["texts"]) == SPEAKERS
            assert all(part in script.WAYS[way] for half in row["option"] for part, _ in half)
            never.setdefault(cell["start"], set()).add(row["word"][0]["mean"])
    # before any step neither the way nor the seconds count, and the queries are the same
    assert all(len(values) == 1 for values in never.values())
    assert np.isfinite([leaf for leaf in jax.tree.leaves(results["rows"]) if isinstance(leaf, float)]).all()
    times = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert main("--fsdd", digits) == 0 and times == {path: path.stat().st_mtime_ns for path in times}
    assert all(text in shown for text in json.loads(next(iter(times)).read_text())["ways"]["text"]["texts"][0])
    assert main(out="voices") == 0  # without recordings: voices held out
    row = json.loads((tmp_path / "voices" / "results.json").read_text())["rows"][0]
    assert row["corpus"] == "voices" and len(row["ways"]["text"]["tasks"]) > 4 and "words" not in row["ways"]["text"]
