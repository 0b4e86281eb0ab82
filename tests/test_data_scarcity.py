"""The script about little data: what it trains, what it refuses, and what a small run leaves behind."""

import json

import data_scarcity
import jax
import numpy as np
import pytest
from data_scarcity import REMEDIES, Cell, Settings

from metajax import models, runs
from metajax.data import words
from metajax.data.corpus import Corpus
from metajax.data.features import FeatureSettings
from metajax.tasks.splits import Splits
from tests import tiny
from tests.conftest import normal, write_tones

TINY = (
    "--ways 2 --queries 1 --train-queries 1 --train-ways 3 --outer-steps 4 --tasks 1 --episodes 6 --num-steps 1"
    " --width 0.25 --points 2 --shares 1"
)
MOST = {"words": 24, "speakers": 15, "takes": 5}


@pytest.fixture
def main(tmp_path):
    """Runs the script on tones, at tiny sizes; its exit code."""

    def call(*argv: object, tones=tmp_path / "absent.csv") -> int:
        places = ["--corpus", "manifest", "--root", tones, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
        argv = [*map(str, places), *TINY.split(), *map(str, argv)]
        return runs.main(Settings, data_scarcity.run, data_scarcity.__doc__, argv)

    return call


def test_cells_are_less_of_each_kind_and_remedies_where_there_is_little():
    s = Settings(corpus="arabic", methods=("maml", "simpleshot"), shares=(0.3, 0.7))
    cells = list(data_scarcity.wanted(s, MOST))
    assert len(cells) == len(set(cells))
    sizes = [cell[2:5] for cell in cells if cell.method == "maml" and cell.remedy == "none"]
    one = [(7, 0, 0), (17, 0, 0), (0, 4, 0), (0, 10, 0), (0, 0, 2), (0, 0, 4)]
    assert sizes == [*one, (0, 0, 0), (7, 4, 0)]
    assert {cell.remedy for cell in cells if cell.method == "maml"} == set(REMEDIES)
    joint = {cell.remedy for cell in cells if cell.method == "simpleshot"}
    assert joint == {"none", "augmentation", "dropout", "weight decay", "averaging"}
    spoken = list(data_scarcity.wanted(Settings(methods=("protonet",)), MOST | {"takes": 1}))
    assert not {"head only", "synthetic too", "synthetic alone"} & {cell.remedy for cell in spoken}
    assert not [cell for cell in spoken if cell.takes]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--remedies", "sleep"], "remedies holds 'sleep', expected some of none, augmentation"),
        (["--methods", "all"], "methods holds 'all', expected some of maml"),
        (["--points", "0"], "points is 0"),
    ],
)
def test_what_cannot_be_run_is_refused(main, capsys, argv, message):
    assert main(*argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_small_run_and_its_resumption(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "tcresnet8", tiny.tcresnet8)
    tones = write_tones(tmp_path, 9, 9, 3)
    assert main("--methods", "protonet", "--remedies", "reversed classes", tones=tones) == 0
    printed = capsys.readouterr().out
    assert (
        "3 cells, 0 of them finished before" in printed
        and "| protonet | reversed classes | 5 | 5 | 3 | 75 |" in printed
    )
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["remedy"] for row in rows] == ["none", "none", "reversed classes"]
    assert [[point["step"] for point in row["curve"]] for row in rows] == [[2, 4], [2, 4], [4]]
    for row in rows:
        assert 0 <= row["test"]["mean"] <= 1 and np.shape(row["episodes"]) == (6,)
    for name in ("collect", "training"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert main("--methods", "protonet", "--remedies", "none", tones=tones) == 0
    assert "2 cells, 2 of them finished before" in capsys.readouterr().out


def test_training_tasks_of_each_remedy_are_of_one_shape():
    """Those of synthetic speech are drawn from the other corpus."""

    def noise(offset):
        label, speaker, _ = (a.reshape(-1) for a in np.mgrid[:4, :4, :2])
        x = offset + normal(32, 98, 40)
        columns, every = {"label": label, "speaker": speaker}, np.ones(32, bool)
        corpus = Corpus("noise", x, np.full(32, 98), columns, {}, None, FeatureSettings(), ())
        return words.Words(corpus, Splits(every, ~every, ~every), None, "")

    s = Settings(train_queries=1)
    for remedy in ("none", *REMEDIES[5:8], "synthetic too"):
        cell = Cell("protonet", remedy, 0, 0, 0, 0)
        sample = data_scarcity.training(s, cell, noise(0), lambda: noise(9), 3)
        assert jax.eval_shape(sample, jax.random.key(0)).query.x.shape == (3, 98, 40), remedy
