"""The benchmarks: what they compare, and what they refuse."""

import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from metajax import InputError, runs
from metajax.models import saved
from tests import tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "speed"))
import adaptation
import hypergradient_cost
import peers
import pretrained
import recognition
import stream
import training_speed

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is the other side")


def test_losses_that_differ_leave_no_ratio():
    peers.agree("sinusoid", 1.0, {"torch": 1.0005})
    with pytest.raises(InputError, match=r"sinusoid.*metajax, 1\.000000, and torch_func, 1\.100000, differ"):
        peers.agree("sinusoid", 1.0, {"torch": 1.0, "torch_func": 1.1})


def test_ratios_are_of_the_faster_peer_over_rounds():
    times = {"metajax": [1.0, 2.0, 1.0], "torch": [9.0, 9.0, 9.0], "torch_func": [3.0, 4.0, 5.0]}
    found = peers.compared(times)
    assert found["peer"] == "torch_func" and found["ms"]["metajax"] == 1000
    assert found["ratio"] == np.median([3.0, 2.0, 5.0])
    calls = []
    given = peers.rounds(
        {"a": lambda n: calls.append(("a", n)) or 0.5 * n, "b": lambda n: calls.append("b") or n}, 2, 2
    )
    assert given == {"a": [0.5, 0.5], "b": [1.0, 1.0]}
    assert calls[-4:] == [("a", 4), "b", ("a", 4), "b"]  # in turn


def test_cost_by_size(monkeypatch, tmp_path, capsys):
    asked = []

    @contextmanager
    def child(side, w, device):
        asked.append((side, w))
        yield lambda name, repeats: {"outer_ms": 7.0, "memory_mib": 3.0, "compile_seconds": 1.0}

    monkeypatch.setattr(peers, "child", child)
    argv = ["--scaling", "--workloads", "crnn", "sinusoid", "--quick", "--out", str(tmp_path / "out")]
    assert runs.main(peers.Settings, peers.run, peers.__doc__, argv) == 0
    rows = json.loads((tmp_path / "out" / "scaling.json").read_text())["rows"]
    axes = {name: {row["axis"] for row in rows if row["workload"] == name} for name in ("crnn", "sinusoid")}
    assert axes == {"crnn": set(peers.AXES), "sinusoid": {"shots", "tasks", "steps"}}  # no words, no frames
    assert {side for side, _ in asked} == {"metajax"} and {w.steps for _, w in asked} == {1, 2, 5}
    assert "| crnn | steps | 2 | 7.00 | 3.0 |" in capsys.readouterr().out


def test_steps_to_a_share_of_the_final_accuracy():
    assert adaptation.reached([0.2, 0.5, 0.8, 0.85, 0.9], 0.2) == 3
    assert adaptation.reached([0.2, 0.9, 0.5, 0.9], 0.2) == 3  # it fell back
    assert adaptation.reached([0.9, 0.9], 0.2) == 0
    assert adaptation.reached([0.2, 0.21], 0.2) is None


def test_adaptation_reads_both_scripts_results(capsys, tmp_path):
    def curve(*means):
        return [{"step": i, "mean": mean, "ci95": 0.01} for i, mean in enumerate(means)]

    run = {
        "curves": {"maml": curve(0.2, 0.7, 0.8, 0.8), "from scratch": curve(0.2, 0.2, 0.6)}, "chance": 0.2,
        "methods": {"maml": {"adapt_ms": 9.0}, "from scratch": {"adapt_ms": 1.0}}, "config": {"num_steps": 5},
    }  # fmt: skip
    row = {"method": "ridge", "normalization": "group", "shots": 1, "accuracy": curve(0.2, 0.9)}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "table.json").write_text(json.dumps({"rows": [row], "config": {"ways": 5}}))
    main = lambda *names: runs.main(  # noqa: E731
        adaptation.Settings, adaptation.run, None, ["--results", *(str(tmp_path / name) for name in names)]
    )
    assert main("run.json", "table.json") == 0
    lines = [line.split("|", 2)[2].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    wanted = ["from scratch | 60.0 | 2 | 1.0 |", "maml | 80.0 | 2 | 6.0 |", "ridge, group, 1-shot | 90.0 | 1 |  |"]
    assert lines == wanted
    (tmp_path / "bad.json").write_text(json.dumps({"curves": {"maml": curve(0.2)}}))
    assert main("bad.json") == 2 and "bad.json holds no results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "argv", "told"),
    [
        (peers, ["--workloads", "resnet"], "workloads holds 'resnet', expected some of sinusoid"),
        (training_speed, ["--methods", "sgd"], "methods holds 'sgd'"),
        (hypergradient_cost, ["--num-steps", "0"], "num_steps holds 0"),
    ],
)
def test_bad_input_is_one_sentence(script, argv, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.main(script.Settings, script.run, script.__doc__, argv) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.peers
@needs_torch
def test_a_workload_from_end_to_end(tmp_path, capsys, monkeypatch):
    rounds = peers.rounds
    monkeypatch.setattr(peers, "rounds", lambda jobs, *_: rounds(jobs, 0.02, 2))
    argv = ["--workloads", "sinusoid", "--quick", "--out", str(tmp_path / "out")]
    assert runs.main(peers.Settings, peers.run, peers.__doc__, argv) == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["outer"]["ratio"] > 0 and row["warm"]["first_step_s"] > 0
    assert "sinusoid" in capsys.readouterr().out


@pytest.mark.slow
def test_the_times_of_a_tiny_recogniser(capsys, monkeypatch):
    monkeypatch.setattr(saved, "recogniser", tiny.recogniser)
    argv = ["--minutes", "1", "--tokens", "5"]
    assert runs.main(recognition.Settings, recognition.run, recognition.__doc__, argv) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    told = ["a minute of audio", "1 minutes of features", "adapted to 10.0 s: all, error text, 5 steps"]
    told += ["adapted to 10.0 s: film, error suta, 10 steps", "adapted to 10.0 s: film, error learned, 1 steps"]
    assert all(what.strip().startswith(one) for (what, *_), one in zip(rows, told, strict=True))
    for (_, took, share), length in zip(rows, (60, 60, 10, 10, 10), strict=True):
        assert float(took) >= 0 and float(share) == pytest.approx(float(took) / length, abs=1.1e-4)


@pytest.mark.slow
def test_training_from_disk_beside_training_from_memory(capsys, monkeypatch):
    part = stream.part
    monkeypatch.setattr(stream, "FRAMES", 48)
    monkeypatch.setattr(stream, "GROUPS", 3)
    monkeypatch.setattr(stream, "part", lambda number: part(number, 60))
    monkeypatch.setattr(stream, "recogniser", tiny.recogniser)
    argv = ["--shards", "2", "--rounds", "2", "--block", "2", "--memory", "0"]  # a limit would be this process's
    assert runs.main(stream.Settings, stream.run, stream.__doc__, argv) == 0
    rows = [line.split("|")[1:6] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["joint", "FOMAML"]
    assert all(float(value) > 0 for row in rows for value in row[1:])


@pytest.mark.slow
@pytest.mark.peers
@needs_torch
def test_adaptation_of_a_tiny_pretrained_encoder_from_end_to_end(tmp_path, capsys):
    argv = ["--size", "tiny", "--seconds", "0.5", "--repeats", "1", "--out", str(tmp_path / "times")]
    assert runs.main(pretrained.Settings, pretrained.run, pretrained.__doc__, argv) == 0
    ours, theirs = json.loads((tmp_path / "times" / "results.json").read_text())["found"]
    alone = {"all layers, held by neither", "all layers, kernels changed"}
    assert set(ours["found"]) - set(theirs["found"]) == alone
    assert ours["found"]["all layers"][1] < ours["found"]["the head"][1] + 1  # losses, which agree with PyTorch's
    assert "| all layers, held, PyTorch |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_memory_of_maml_over_a_tiny_pretrained_encoder(tmp_path, capsys):
    argv = ["--memory", "--sizes", "tiny", "--seconds", "0.5", "--out", str(tmp_path / "memory")]
    assert runs.main(pretrained.Settings, pretrained.run, pretrained.__doc__, argv) == 0
    (found,) = json.loads((tmp_path / "memory" / "results.json").read_text())["found"].values()
    kinds = found["found"]
    assert set(kinds) == {"1 steps", "5 steps", "10 steps", "first order", "run"}
    assert kinds["10 steps"]["temporaries"] < 1.5 * kinds["5 steps"]["temporaries"]
    assert found["peak"] > 100 and "| tiny | 0.1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_of_a_meta_gradient_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hypergradient_cost.models, "tcresnet8", tiny.tcresnet8)
    monkeypatch.setattr(hypergradient_cost, "WAYS", {name: hypergradient_cost.WAYS[name] for name in ("first order",)})
    argv = ["--num-steps", "1", "2", "--tasks", "1", "--repeats", "1", "--out", str(tmp_path / "out")]
    assert runs.main(hypergradient_cost.Settings, hypergradient_cost.run, None, argv) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["num_steps"] for row in rows] == [1, 2] and all(row["memory_mib"] > 0 for row in rows)
    assert (tmp_path / "out" / "cost.png").stat().st_size > 1000
