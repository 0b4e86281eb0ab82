"""The benchmark on an accelerator, with processes that compute nothing: what it asks, tells and survives."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metajax import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "speed"))
import accelerator
import context
from processes import Child, start
from workloads import WORKLOADS

WALK = {"float64": 0.0, "float32": 0.01, "tf32": 0.05, "bfloat16": 0.1}  # distances from float64 of a way of 1
MILLISECONDS = {"metajax": 2.0, "torch": 100.0, "torch_func": 40.0, "torch_compiled": 20.0}


def made_up(monkeypatch, walk=WALK, fails=lambda side, w, name: False):
    """Children that answer at once; `fails` says which of them do not."""

    def started(side, w, device, cache=None, *, keep=False, nice=0):
        def ask(name, *, limit=None, count=1, peer="metajax", precision=None, **arguments):
            if fails(side, w, name):
                raise InputError("out of memory")
            right = np.where(np.arange(400) % 2, 1.0, 0.0)
            answers = {
                "settings": {"device": "made up", "versions": {}}, "matmul": 1e5, "start": None, "memory": 7.0,
                "work": {"flops": 1e9 * w.tasks, "parameters": 2}, "check": ({}, 1.5, {}), "accuracy": right,
                "outer": count * MILLISECONDS[peer] * w.tasks / 1e3,
                "trajectory": (np.array([0.0, 0.0]), np.array([1.0, walk[w.precision]])),
            }  # fmt: skip
            return answers[name]

        return Child(ask, lambda: None)

    monkeypatch.setattr(context, "start", started)


def ran(tmp_path, *arguments):
    code = accelerator.main(["--small", "--out", str(tmp_path), *arguments])
    report = tmp_path / "accelerator.json"
    return code, json.loads(report.read_text())["sections"] if report.exists() else {}


def test_all_sections(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    made_up(monkeypatch)
    code, found = ran(tmp_path)
    assert code == 0 and list(found) == ["checks", "formulations", "peers", "scaling"]
    for section in found.values():
        assert all(len(row) == len(section["header"]) for row in section["rows"])
    by_name = {row[0]: row for row in found["peers"]["rows"]}
    assert list(by_name) == list(WORKLOADS)
    # steps per second of metajax, the loop, torch.func and what was compiled; the ratio to the fastest
    assert by_name["sinusoid"][1:6] == ["250", "5", "12.5", "25", "10"] and by_name["ctc"][4] == "(not compiled)"
    assert by_name["ctc"][5] == "20"
    verdicts = [(row[0], row[1], row[2], row[5]) for row in found["checks"]["rows"]]
    walks = [("theta", "sinusoid", precision, "ok") for precision in ("float32", "tf32", "bfloat16")]
    assert verdicts == [*walks, ("accuracy", "tcresnet8", "bfloat16", "ok")]
    assert [row[:3] + row[5:8] for row in found["scaling"]["rows"][:2]] == [
        ["sinusoid", "4", "4", "8", "500", "0.5"], ["sinusoid", "8", "8", "16", "500", "0.5"],
    ]  # fmt: skip
    told = (tmp_path / "accelerator.md").read_text()
    assert "made up" in told and "## scaling" in told and "| sinusoid | 250 |" in told


def test_theta_too_far_from_the_truth_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    made_up(monkeypatch, WALK | {"tf32": 0.11})
    code, found = ran(tmp_path, "--section", "checks")
    assert code == 1
    assert [row[5] for row in found["checks"]["rows"]] == ["ok", "FAILED", "ok", "ok"]
    made_up(monkeypatch, WALK | {"tf32": np.nan})
    assert ran(tmp_path, "--section", "checks")[0] == 1


def test_a_variant_that_fails_leaves_the_others(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    made_up(monkeypatch, fails=lambda side, w, name: w.model == "conv4" or (side == "torch" and w.model == "crnn"))
    code, found = ran(tmp_path, "--section", "peers")
    by_name = {row[0]: row for row in found["peers"]["rows"]}
    assert code == 0 and by_name["conv4"][1] == "(out of memory)"
    assert by_name["crnn"][1:4] == ["250", "(out of memory)", "(out of memory)"]
    assert by_name["tcresnet8"][5] == "20"


def test_a_process_past_its_limit_is_ended_and_says_so():
    process = start("nothing", WORKLOADS["sinusoid"], "cpu")
    with pytest.raises(InputError, match="The nothing process failed during 'make': ModuleNotFoundError"):
        process.ask("outer", limit=30)
    process.stop()
    process = start("nothing", WORKLOADS["sinusoid"], "cpu")
    with pytest.raises(InputError, match="not done with 'make' in its 0 s"):
        process.ask("outer", limit=0)


def test_what_a_cpu_computed_before_is_not_computed_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    made_up(monkeypatch)
    kept = ["--references", str(tmp_path / "kept")]
    assert ran(tmp_path, "--prepare", *kept, "--minutes", "1")[0] == 0
    by_cpu = {"float64", "check", "work"}
    made_up(monkeypatch, fails=lambda side, w, name: side == "metajax" and {name, w.precision} & by_cpu)
    code, found = ran(tmp_path, *kept)
    assert code == 0 and {row[5] for row in found["checks"]["rows"]} == {"ok"}
    assert next(row for row in found["peers"]["rows"] if row[0] == "ctc")[5] == "20"
    with pytest.raises(InputError, match="--references, which is missing"):
        ran(tmp_path, "--prepare")
