"""The template of a new method, and what the comparison makes of its cells."""

import json

import compare_algorithms as compare
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cells import finished
from methods import METHODS
from new_algorithm import WAYS, my_algorithm

import metajax as mj
from metajax.models import mlp
from metajax.tasks.probes import blobs
from tests.conftest import assert_close, write_tones


def test_the_template_is_proto_maml():
    model, key = mlp(None, hidden=(8,)), jax.random.key(0)
    episode = blobs(WAYS, 2, 3)(key)
    theta = model.init(key, episode.support.x)
    results = [
        jax.jit(jax.value_and_grad(lambda t, a=algorithm: a.objective(t, episode, key)[0]))(theta)
        for algorithm in (
            my_algorithm(model.apply, optax.sgd(0.01), 2),
            mj.proto_maml(model.apply, optax.sgd(0.01), 2, WAYS),
        )
    ]
    assert_close(*results, 1e-5)


@pytest.mark.slow
def test_a_whole_comparison_of_a_method_in_phases(tmp_path, capsys, monkeypatch):
    """Here ProtoNet, the quickest to compile, whose second phase rejects every step; a second call finds its cell."""
    method = METHODS["protonet"]

    def phases(s):
        objective = method.make(s).objective

        def broken(theta, episode, key):
            loss, metrics = objective(theta, episode, key)
            return loss * jnp.nan, metrics

        return [(0.3, objective), (0.7, broken)]

    monkeypatch.setitem(METHODS, "protonet", method._replace(phases=phases))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(compare, "MEASURED", 0.01)
    argv = ["--normalizations", "group", "--methods", "protonet", "--seeds", "0", "--budget", "0.1", "--width", "0.25"]
    argv += ["--episodes", "20", "--tasks", "2"]
    argv += ["--corpus", "manifest", "--root", str(write_tones(tmp_path, 17, 9, 2)), "--test-queries", "1"]
    argv += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path)]
    for found in (0, 1):
        assert compare.main(argv) == 0
        assert f"1 cells, {found} of them finished before" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    (cell,) = (tmp_path / "out" / "cells").glob("protonet*.json")
    cell = json.loads(cell.read_text())
    # blocks of ten steps, one at least for each share of the budget
    taken = [point["outer_steps"] for point in cell["by_time"]]
    assert len(taken) == 4 and taken == sorted(set(taken))
    assert cell["outer_steps"] == taken[-1] >= 40
    assert taken[1] <= cell["outer_steps"] - cell["rejected_steps"] <= taken[2] - 10
    assert len(cell["unseen_words"]) == 5 and len(cell["unseen_speakers"]) == 2
    assert len(json.loads((tmp_path / "out" / "rates.json").read_text())["measured"]["protonet-group-1"]) == 2
    assert [point["step"] for point in row["accuracy"]] == [0, 1]
    assert row["accuracy"][1]["mean"] > 0.3


def made_up(cell, mean, settings):
    accuracy = [{"step": 0, "mean": 0.2, "ci95": 0.0}, {"step": 1, "mean": mean, "ci95": 0.03}]
    times = [{"seconds": share * 10, "outer_steps": 10, "accuracy": accuracy} for share in compare.SHARES]
    return cell._asdict() | {
        "settings": settings, "accuracy": accuracy, "by_time": times, "outer_steps_per_second": 2.0,
        "unseen_words": ["a"], "unseen_speakers": ["b"],
    }  # fmt: skip


def test_cells_are_kept_averaged_and_guarded(tmp_path, capsys):
    argv = ["--methods", "maml", "relation", "--seeds", "0", "1", "--out", str(tmp_path), "--cache", str(tmp_path)]
    args = compare.parse(argv)
    cells = list(compare.wanted(args))
    # maml is principal and has both normalisations, relation the first alone
    assert len(cells) == 6 and len(set(cells)) == 6
    (tmp_path / "cells").mkdir()
    for cell in cells:
        mean = 0.5 + 0.1 * cell.seed + (0.2 if cell.method == "relation" else 0)
        result = made_up(cell, mean, compare.settings(args))
        (tmp_path / "cells" / f"{'-'.join(map(str, cell))}.json").write_text(json.dumps(result))
    rows = compare.summary(finished(args.out, compare.settings(args), compare.Cell))
    assert [(row["normalization"], row["method"]) for row in rows] == [
        ("group", "maml"), ("transductive", "relation"), ("transductive", "maml"),
    ]  # fmt: skip
    assert rows[1]["seeds"] == pytest.approx([0.7, 0.8])
    np.testing.assert_allclose(rows[1]["accuracy"][-1]["mean"], 0.75)
    np.testing.assert_allclose(rows[1]["accuracy"][-1]["ci95"], 0.03 / 2**0.5)
    # nothing is missing: no cell is run, the table and the pictures are made
    assert compare.main(argv) == 0
    assert "| relation | transductive | 1 | 75.0 ± 2.1 | 70.0, 80.0 | 1 | 2.0 |" in capsys.readouterr().out
    assert (tmp_path / "by_step.png").stat().st_size > 1000 and (tmp_path / "by_time.png").exists()
    assert compare.main([*argv, "--budget", "7"]) == 2
    assert "was made with budget = 120.0, now it is 7.0" in capsys.readouterr().err
    next((tmp_path / "cells").iterdir()).write_text("[]")
    assert compare.main(argv) == 2 and "is damaged" in capsys.readouterr().err
    assert compare.main([*argv, "--budget", "nan"]) == 2
