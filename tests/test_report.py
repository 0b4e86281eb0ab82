import numpy as np

from metajax import report


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
