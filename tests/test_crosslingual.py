"""The script about new languages: what it refuses, and what a small run leaves behind."""

import importlib.util
import json
from functools import partial

import crosslingual
import pytest
from crosslingual import Arm, Settings

from metajax import runs
from metajax.data.corpora import read
from tests import tiny
from tests.conftest import assert_refused

LANGUAGES = ("af", "az", "be", "bg", "cy", "da", "de", "el", "es", "et", "eu", "fi", "fr", "hi", "hu", "is", "it", "ja",
             "ka", "ko", "lt", "pl", "pt", "ro", "ru", "sq", "sv", "sw", "ta", "tr")  # fmt: skip
SMALL = {"fine-tuned": Arm("joint", ("all",)), "new": Arm("fomaml", ("new head",), 0.3), "none": Arm("fresh", ("all",))}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs the script at tiny sizes, on a few languages, rates and steps; its exit code."""
    monkeypatch.setattr(crosslingual, "read", partial(read, languages=LANGUAGES))
    monkeypatch.setattr(crosslingual, "STEPS", (0, 1, 3))
    monkeypatch.setattr(crosslingual, "RATES", dict.fromkeys(("all", "new head"), (0.1, 1.0)))
    monkeypatch.setattr(crosslingual, "ARMS", SMALL)
    monkeypatch.setattr(crosslingual, "recogniser", tiny.recogniser)

    def call(*argv: object) -> int:
        sizes = "--utterances 8 --held-out 2 --shots 3 --queries 2 --tested 4 --outer-steps 2 2"
        places = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
        argv = [*map(str, places), *sizes.split(), *map(str, argv)]
        return runs.main(Settings, crosslingual.run, crosslingual.__doc__, argv)

    return call


def test_what_cannot_be_compared_is_refused(main, tmp_path, capsys):
    assert_refused(
        main,
        capsys,
        (["--arms", "nonsense"], "arms holds 'nonsense', expected some of fine-tuned, new"),
        (["--held-out", "1"], "held_out is 1, expected a finite number, 2 or more"),
        (["--tested", "0"], "tested is 0, expected a finite number, 1 or more"),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_run_of_an_arm_of_each_kind(main, tmp_path, capsys):
    arms = tuple(SMALL)
    assert main("--arms", *arms) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == list(arms) and all(arm in shown for arm in arms)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000 and "cpu" in results["device"]
    cells = {(cell := json.loads(path.read_text()))["arm"]: cell for path in (tmp_path / "out" / "cells").iterdir()}
    for arm, cell in cells.items():
        assert len(cell["word"]) == 2 and [len(of_language) for of_language in cell["word"]] == [3, 3]
        assert all(part in SMALL[arm].parts and rate in (0.1, 1.0) for part, rate in cell["option"])
        assert cell["outer_steps"] == [2 * (arm != "none")] and len(cell["fewer"]) == 2
        said, before, after = cell["texts"]
        assert len(said) == len(before) == len(after) == 2 and all(text in shown for text in said)
    train, validation, test = cells["fine-tuned"]["languages"]
    assert len({*train, *validation, *test}) == len(train) + 4 <= len(LANGUAGES) and len(validation) == len(test) == 2
    zero_head = [of_language[0] for of_language in cells["new"]["word"]]
    assert zero_head == [1.0, 1.0]  # a head of zeros hears nothing
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert main("--arms", *arms) == 0  # finds every cell
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
