"""The script about scenarios: what it refuses, what is held out, and what a run of a tiny network leaves behind."""

import json

import jax
import numpy as np
import pytest
import soundfile
import test_time_adaptation as script

from metajax import runs
from tests import tiny
from tests.conftest import assert_refused
from tests.test_speaker_adaptation import SPEAKERS, digits  # noqa: F401

SIZES = "--strings 10 --words 2 3 --outer-steps 2 2 --tasks 2 --episodes 4"


@pytest.fixture
def main(digits, tmp_path, monkeypatch):  # noqa: F811
    """Runs the script on tones, at tiny sizes; its exit code."""
    monkeypatch.setattr(script, "recogniser", tiny.recogniser)

    def call(*argv: object) -> int:
        places = ["--corpus", "fsdd", "--root", digits, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
        argv = [*map(str, places), *SIZES.split(), *map(str, argv)]
        return runs.main(script.Settings, script.run, script.__doc__, argv)

    return call


def test_what_is_tested_was_never_trained_on_nor_chosen_on():
    trained, chosen, tested = script.TRAINED, script.CHOSEN, script.TESTED
    for name, given in tested.items():
        if given.noise:
            kinds = [set(range(int(one.kinds[0]), int(one.kinds[1]) + 1)) for one in (trained, chosen, given)]
            assert not kinds[2] & (kinds[0] | kinds[1]) and not kinds[0] & kinds[1]
            assert given.snr == (script.LEVELS[name],) * 2
        if given.room:
            assert trained.rt60[1] <= chosen.rt60[0] and chosen.rt60[1] <= given.rt60[0]
    assert not any(leaf for leaf in (tested["clean"].noise, tested["clean"].room, tested["clean"].clip))


def test_what_cannot_be_compared_is_refused(main, tmp_path, capsys):
    assert_refused(
        main,
        capsys,
        (["--arms", "SUTA", "Meta-SGD"], "arms holds 'Meta-SGD', expected some of SUTA"),
        (["--arms", "learned error"], "arms begins with 'learned error', expected one that learns jointly"),
        (["--shots", "-1"], "shots is -1, expected a finite number, 0 or more"),
        (["--noise", tmp_path / "none.wav"], "none.wav"),
    )
    assert not (tmp_path / "out").exists()


def own_texts(folder):
    """Arguments for a corpus with texts of the user's own."""
    draw, lines = np.random.default_rng(0), ["path,text,speaker"]
    for speaker, take in np.ndindex(SPEAKERS, 9):
        soundfile.write(folder / f"{speaker}_{take}.wav", 0.1 * draw.normal(size=9000 + 500 * take), 16000)
        lines.append(f"{speaker}_{take}.wav,{'One two!' if take else 'Two.'},s{speaker}")
    (folder / "mine.csv").write_text("\n".join(lines), encoding="utf-8")
    soundfile.write(folder / "fan.wav", 0.1 * draw.normal(size=40000), 16000)
    return "--corpus", "auto", "--root", folder / "mine.csv", "--shots", 2, "--noise", folder / "fan.wav"


@pytest.mark.slow
@pytest.mark.parametrize("arms", [("pseudo-labels", "FOMAML, support gradient kept"), ("SUTA", "Meta-SGD")])
def test_a_small_run(main, tmp_path, capsys, monkeypatch, arms):
    """Of digits, each string adapted to itself, and of a user's own texts, adapted to others."""
    monkeypatch.setattr(script, "RATES", (0.03, 0.3))
    monkeypatch.setattr(script, "LEVELS", {name: script.LEVELS[name] for name in ("5 dB", "10 dB")})
    fewer = {name: script.TESTED[name] for name in (*script.LEVELS, "clean")}  # each is a program
    monkeypatch.setattr(script, "TESTED", fewer)
    more, banks, scenarios = own_texts(tmp_path) if "SUTA" in arms else (), [], script.scenarios
    monkeypatch.setattr(script, "scenarios", lambda given, bank, how: banks.append(bank) or scenarios(given, bank, how))
    assert main("--arms", *arms, *more) == 0
    shown = capsys.readouterr().out
    repeats = [[np.array_equal(noise[:40000], noise[40000:80000]) for noise in bank] for bank in banks]
    assert all(of == [False] * 4 + [bool(more)] for of in repeats)  # the recording is what is tested in, or babble
    own = ("mine, [", "in recorded noise", "word error (%)", "normaliser letters")
    assert all((told in shown) == bool(more) for told in own)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == list(arms) and all(arm in shown for arm in arms)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000
    for arm, row in results["rows"].items():
        assert list(row) == list(script.TESTED)
        for one in row.values():
            assert [point["step"] for point in one["word"]] == list(script.ARMS[arm].steps)
            assert one["option"] == row["clean"]["option"] and one["step"] == row["clean"]["step"]  # chosen once
            assert all(rate in script.RATES for rate in one["option"][0]) and 0 <= one["empty_at_step"]["mean"] <= 1
    cells = {path: json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()}
    first = next(path for path, cell in cells.items() if cell["arm"] == arms[0])
    train, validation, test = cells[first]["speakers"]
    assert sorted(train + validation + test) == [f"s{i}" for i in range(SPEAKERS)] and validation and test
    times = {path: path.stat().st_mtime_ns for path in cells if path != first}
    if more:
        first.unlink()
    assert main("--arms", *arms, *more) == 0  # finds the other cells, and the recogniser of the first
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert json.loads(first.read_text())["scenarios"] == cells[first]["scenarios"]
    assert np.isfinite([leaf for leaf in jax.tree.leaves(results["rows"]) if isinstance(leaf, float)]).all()
