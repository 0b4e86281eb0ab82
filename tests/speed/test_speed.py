"""The benchmarks: what they compare, and what they refuse."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metajax import InputError, runs

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "speed"))
import hypergradient_cost
import peers
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
def test_a_workload_from_end_to_end(tmp_path, capsys):
    argv = ["--workloads", "sinusoid", "--quick", "--out", str(tmp_path / "out")]
    assert runs.main(peers.Settings, peers.run, peers.__doc__, argv) == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["outer"]["ratio"] > 0 and row["warm"]["first_step_s"] > 0
    assert "sinusoid" in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_of_a_meta_gradient_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hypergradient_cost, "WAYS", {name: hypergradient_cost.WAYS[name] for name in ("first order",)})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    argv = ["--num-steps", "1", "2", "--tasks", "1", "--repeats", "1", "--out", str(tmp_path / "out")]
    assert runs.main(hypergradient_cost.Settings, hypergradient_cost.run, None, argv) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["num_steps"] for row in rows] == [1, 2] and all(row["memory_mib"] > 0 for row in rows)
    assert (tmp_path / "out" / "cost.png").stat().st_size > 1000
