import numpy as np
import pytest

from metajax import report
from metajax.data.probe import linear_probe
from metajax.evaluate import over_seeds
from metajax.tasks.splits import Splits


def test_table_shows_percent_with_intervals_and_gaps():
    curves = {
        "maml": report.curve(np.array([0.2, 0.9]), np.array([0.01, 0.005])),
        "scratch": report.curve(np.array([0.2]), np.array([0.02])),
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.table(curves, 0.2, [0, 1]).splitlines()]
    assert rows[0] == ["", "0 steps", "1 step"]
    assert rows[2] == ["maml", "20.0 ±  1.0", "90.0 ±  0.5"]
    assert rows[3] == ["scratch", "20.0 ±  2.0", ""]
    assert rows[4] == ["chance", "20.0", "20.0"]


def test_plot_is_a_picture_written_whole(tmp_path):
    curves = {"maml": report.curve(np.array([0.2, 0.9]), np.array([0.01, 0.005]))}
    report.plot_curves(curves, 0.2, "title", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_percent_shows_an_interval_where_there_is_one():
    assert report.percent({"mean": 0.932, "ci95": 0.055}) == "93.2 ± 5.5"
    assert report.percent({"mean": 0.04, "ci95": None}, "+") == "+4.0" and report.percent(None) == ""


def test_few_seeds_have_students_interval():
    assert over_seeds([1.0, 2.0, 3.0]) == {"mean": 2.0, "ci95": pytest.approx(4.303 / 3**0.5, abs=1e-3)}
    assert over_seeds([1.0]) == {"mean": 1.0, "ci95": None}


def test_a_linear_probe_tells_what_is_linear():
    pytest.importorskip("sklearn", reason="the probe is scikit-learn's")
    x = np.random.default_rng(0).normal(size=(300, 2, 2))
    splits = Splits(*(np.arange(300) % 3 == part for part in range(3)))
    assert linear_probe(x, (x[:, 0, 0] + x[:, 1, 0] > 0).astype(int), splits)["test"] > 0.9
    assert linear_probe(x, (x[:, 0, 0] * x[:, 1, 0] > 0).astype(int), splits)["test"] < 0.65
