"""The script about speech without labels: what it refuses, and what a small run leaves behind."""

import json

import pytest
import unsupervised
from unsupervised import Cell, Settings

from metajax import models, runs
from tests import tiny
from tests.conftest import write_tones

pytest.importorskip("sklearn", reason="k-means is scikit-learn's")

TINY = (
    "--ways 2 --queries 1 --train-ways 2 --many 3 --clusters 3 --partitions 2 --unlabelled 1 --outer-steps 3 --tasks 1"
    " --episodes 6 --num-steps 2 --width 0.25 --clips 20 --shots 1"
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), 15, 9, 3)


@pytest.fixture
def main(tones, tmp_path):
    """Runs the script on tones, at tiny sizes; its exit code."""

    def call(*argv: object) -> int:
        places = ["--corpus", "manifest", "--root", tones, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
        argv = [*map(str, places), *TINY.split(), *map(str, argv)]
        return runs.main(Settings, unsupervised.run, unsupervised.__doc__, argv)

    return call


def test_cells_are_all_sources_by_methods_and_fewer_clips_for_the_first():
    cells = list(unsupervised.wanted(Settings(methods=("protonet", "maml"), clips=(50,), seeds=(0, 1))))
    assert len(cells) == len(set(cells)) == 24
    assert Cell("contrastive", "protonet", 0, 1) in cells and Cell("contrastive", "maml", 0, 1) not in cells
    assert [cell for cell in cells if cell.clips] == [Cell("umtra", "protonet", 50, seed) for seed in (0, 1)]
    served = list(unsupervised.wanted(Settings(methods=("in_context", "maml"), sources=("umtra", "masked"), clips=())))
    assert Cell("masked", "maml", 0, 0) in served and Cell("masked", "in_context", 0, 0) not in served
    assert Cell("umtra", "in_context", 0, 0) in served
    assert not [cell for cell in unsupervised.wanted(Settings(sources=("supervised",))) if cell.clips]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sources", "all"], "sources holds 'all', expected some of umtra, contrastive, cactus, masked, supervised"),
        (["--methods", "joint"], "methods holds 'joint', expected some of maml"),
        (["--augment", "0"], "augment is 0.0, expected a finite number, 0.1 or more"),
        (["--warp", "-1"], "warp is -1.0"),
        (["--episodes", "1"], "episodes is 1"),
    ],
)
def test_what_cannot_be_run_is_refused(main, capsys, argv, message):
    assert main(*argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_small_run_and_its_resumption(main, tmp_path, capsys, monkeypatch):
    """A gradient-based method on clusters, then a metric one; the cells that are there are found."""
    monkeypatch.setattr(models, "network", tiny.network)
    monkeypatch.setattr(models, "tcresnet8", tiny.tcresnet8)
    assert main("--methods", "maml", "--sources", "cactus", "--clips") == 0
    assert "3 cells, 0 of them finished before" in capsys.readouterr().out
    first = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(first) == ["none, cepstra", "none, from scratch", "cactus, maml"]
    assert first["none, cepstra"]["1-shot"]["mean"] > 0.7  # tones are told apart without learning
    assert main("--methods", "protonet", "--sources", "masked") == 0
    assert "4 cells, 2 of them finished before" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(rows) == [*list(first)[:2], "masked, protonet", "masked, protonet, 20 clips"]
    for name, row in rows.items():
        assert 0 <= row["1-shot"]["mean"] <= 1 and row["1-shot"]["ci95"] >= 0
        assert ("refined" in row) == ("1-shot beside" in row) == ("protonet" in name)
        assert row["steps"] == ("0" if "none" in name else "3")
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert main("--methods", "protonet", "--queries", "2") == 2
    assert "queries is 2 now but 1" in capsys.readouterr().err
