"""The template of a new method, and what the comparison makes of its cells."""

import json

import compare_algorithms as compare
import jax
import numpy as np
import optax
import pytest
from new_algorithm import my_algorithm

import metajax as mj
from metajax import models, runs
from metajax.losses import classify
from metajax.models import mlp
from metajax.tasks.probes import blobs
from tests import tiny
from tests.conftest import assert_close, write_tones

WAYS = 5


def main(argv):
    """The script's exit code."""
    return runs.main(compare.Settings, compare.run, compare.__doc__, argv)


@pytest.mark.slow
def test_the_template_is_proto_maml():
    model, key = mlp(None, hidden=(8,)), jax.random.key(0)
    episode = blobs(WAYS, 2, 3)(key)
    theta = {"params": model.init(key, episode.support.x)}
    results = [
        jax.jit(jax.value_and_grad(lambda t, a=algorithm: a.objective(t, episode, key)[0]))(theta)
        for algorithm in (
            my_algorithm(model.apply, optax.sgd(0.01), 2, WAYS),
            mj.proto_maml(model.apply, classify, optax.sgd(0.01), 2, WAYS),
        )
    ]
    assert_close(*results, 1e-5)


@pytest.mark.slow
def test_a_whole_comparison_in_phases(tmp_path, capsys, monkeypatch):
    """A second call finds the cell."""
    monkeypatch.setattr(models, "network", tiny.network)
    argv = ["--normalizations", "group", "--methods", "mamlpp", "--seeds", "0", "--budget", "0.2", "--width", "0.25"]
    argv += ["--episodes", "20", "--tasks", "2", "--ways", "2", "--num-steps", "2", "--queries", "1"]
    argv += ["--corpus", "manifest", "--root", str(write_tones(tmp_path, 17, 9, 2))]
    argv += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path)]
    for found in (0, 1):
        assert main(argv) == 0
        assert f"1 cells, {found} of them finished before" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    (cell,) = (tmp_path / "out" / "cells").glob("mamlpp*.json")
    cell = json.loads(cell.read_text())
    assert [point["seconds"] for point in cell["by_time"]] == pytest.approx([0.025, 0.1, 0.2])
    assert cell["outer_steps"] >= 3 and cell["rejected"] == 0
    assert [point["step"] for point in row["accuracy"]] == [0, 1, 2]


def made_up(cell, mean, settings):
    accuracy = [{"step": 0, "mean": 0.2, "ci95": 0.0}, {"step": 1, "mean": mean, "ci95": 0.03}]
    times = [{"seconds": share * 10, "accuracy": accuracy} for share in compare.SHARES]
    return cell._asdict() | {
        "settings": settings, "accuracy": accuracy, "by_time": times, "outer_steps": 20,
        "unseen_words": ["a"], "unseen_speakers": ["b"],
    }  # fmt: skip


def test_cells_are_kept_averaged_and_guarded(tmp_path, capsys):
    argv = ["--methods", "maml", "relation", "--seeds", "0", "1", "--out", str(tmp_path), "--cache", str(tmp_path)]
    s = compare.Settings(methods=("maml", "relation"), seeds=(0, 1))
    cells = list(compare.wanted(s))
    # maml is principal and has both normalisations, relation the first alone
    assert len(cells) == 6 and len(set(cells)) == 6
    (tmp_path / "cells").mkdir()
    config = runs.config(s, ("out", "cache", "methods", "shots", "seeds", "normalizations"))
    made = {}
    for cell in cells:
        mean = 0.5 + 0.1 * cell.seed + (0.2 if cell.method == "relation" else 0)
        made[cell] = made_up(cell, mean, config)
        (tmp_path / "cells" / f"{'-'.join(map(str, cell))}.json").write_text(json.dumps(made[cell]))
    rows = compare.summary(made)
    assert [(row["normalization"], row["method"]) for row in rows] == [
        ("group", "maml"), ("transductive", "relation"), ("transductive", "maml"),
    ]  # fmt: skip
    assert rows[1]["seeds"] == pytest.approx([0.7, 0.8])
    np.testing.assert_allclose(rows[1]["accuracy"][-1]["mean"], 0.75)
    np.testing.assert_allclose(rows[1]["accuracy"][-1]["ci95"], 0.03 / 2**0.5)
    # nothing is missing: no cell is run, the table and the pictures are made
    assert main(argv) == 0
    assert "| relation | transductive | 1 | 75.0 ± 2.1 | 70.0, 80.0 | 1 | 20 |" in capsys.readouterr().out
    assert (tmp_path / "by_step.png").stat().st_size > 1000 and (tmp_path / "by_time.png").exists()
    assert main([*argv, "--budget", "7"]) == 2
    assert "budget is 7.0 now but 120.0" in capsys.readouterr().err
    next((tmp_path / "cells").iterdir()).write_text("[]")
    assert main(argv) == 2 and "is damaged" in capsys.readouterr().err
    assert main([*argv, "--budget", "nan"]) == 2
