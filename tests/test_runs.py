"""What scripts share: exit codes, a run's folder, tables whose every cell is a file."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from metajax import DivergedError, InputError, runs


@dataclasses.dataclass
class Settings:
    out: Path = Path("runs/none")
    resume: bool = False
    ways: int = 5
    rates: tuple[float, ...] = (0.1, 0.3)
    corpus: str = "espeak"


def raises(error):
    def run(settings):
        raise error

    return run


def test_a_script_ends_with_an_exit_code_and_one_sentence(capsys):
    seen = []
    assert runs.main(Settings, seen.append, "What it asks.", ["--ways", "3", "--rates", "0.5"]) == 0
    assert seen == [Settings(ways=3, rates=(0.5,))]
    for error, code, told in (
        (InputError("ways is 0, expected 1 or more."), 2, "error: ways is 0, expected 1 or more.\n"),
        (DivergedError("The loss is not finite."), 1, "error: The loss is not finite.\n"),
        (KeyboardInterrupt(), 130, "\nstopped; what was written stays\n"),
    ):
        assert runs.main(Settings, raises(error), None, []) == code
        assert capsys.readouterr().err == told
    with pytest.raises(ZeroDivisionError):  # a fault of ours is no sentence for the user
        runs.main(Settings, raises(ZeroDivisionError()), None, [])
    with pytest.raises(SystemExit) as caught:
        runs.main(Settings, seen.append, None, ["--wayz", "3"])
    assert caught.value.code == 2
    capsys.readouterr()
    assert runs.main(Settings, lambda settings: warnings.warn("mind this", stacklevel=1), None, []) == 0
    assert capsys.readouterr().err == "note: mind this\n"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ways": 0}, "ways is 0, expected a finite number, 1 or more"),
        ({"ways": float("nan")}, "ways is nan"),
        ({"rates": (0.1, -1.0)}, "rates holds -1.0, expected a finite number, 0 or more"),
        ({"rates": ()}, "rates is empty, expected one value or more"),
    ],
)
def test_settings_below_their_least_value_are_refused(changed, told):
    runs.check(Settings(), ways=1, rates=0)
    with pytest.raises(InputError, match=told):
        runs.check(Settings(**changed), ways=1, rates=0)


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(runs.PACKAGES, "plot", "no_such_package")
    with pytest.raises(InputError, match=r"no_such_package is not installed.*pip install 'metajax\[plot\]'"):
        runs.check(Settings(), ["plot"])


def test_unknown_values_are_refused_with_the_known_ones():
    runs.known("methods", ["maml"], ["maml", "joint"])
    with pytest.raises(InputError, match="methods holds 'mamel', expected some of maml, joint"):
        runs.known("methods", ["maml", "mamel"], ["maml", "joint"])


def test_the_config_holds_what_bears_on_results_as_json_has_it():
    assert runs.config(Settings()) == {"ways": 5, "rates": [0.1, 0.3], "corpus": "espeak"}


def test_a_run_is_not_written_over_and_goes_on_with_its_own_settings_only(tmp_path):
    folder, settings = tmp_path / "a" / "run", runs.config(Settings())
    with pytest.raises(InputError, match="holds no run to go on with"):
        runs.open_folder(folder, settings, resume=True)
    runs.open_folder(folder, settings)
    assert json.loads((folder / "config.json").read_text()) == settings
    with pytest.raises(InputError, match="already holds a run; choose another folder, or resume it"):
        runs.open_folder(folder, settings)
    runs.open_folder(folder, settings, resume=True)
    with pytest.raises(InputError, match=r"ways is 3 now but 5 in .*config.json, expected the same"):
        runs.open_folder(folder, settings | {"ways": 3}, resume=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is missing or damaged"):
        runs.open_folder(folder, settings, resume=True)


def test_a_folder_with_other_files_or_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        runs.open_folder(tmp_path, {})
    with pytest.raises(InputError, match=r"cannot be written: .*notes.txt is no folder"):
        runs.open_folder(tmp_path / "notes.txt" / "run", {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


class Cell(NamedTuple):
    method: str
    seed: int


def test_a_table_goes_on_where_it_stopped(tmp_path):
    cells, settings, calls = [Cell("maml", 0), Cell("maml", 1), Cell("joint", 0)], {"seconds": 60}, []

    def run(cell):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(cell)
        return {"accuracy": 0.5 + cell.seed}

    with pytest.raises(KeyboardInterrupt):
        runs.complete(tmp_path, settings, cells, run)
    assert len(list((tmp_path / "cells").iterdir())) == 2
    done = runs.complete(tmp_path, settings, cells, lambda cell: calls.append(cell) or {"accuracy": 0.1})
    assert calls == cells
    assert {cell: result["accuracy"] for cell, result in done.items()} == dict(zip(cells, (0.5, 1.5, 0.1), strict=True))
    assert all(result["settings"] == settings and "device" in result for result in done.values())
    with pytest.raises(InputError, match=r"seconds is 30 now but 60 in .*\.json, expected the same"):
        runs.complete(tmp_path, {"seconds": 30}, cells, run)
    next((tmp_path / "cells").iterdir()).write_text("{}")
    with pytest.raises(InputError, match="is damaged: it lacks 'method'; remove it and it is made anew"):
        runs.complete(tmp_path, settings, cells, run)


def test_a_cell_is_not_written_over_another_of_like_name(tmp_path):
    cells = [Cell("a b", 0), Cell("a+b", 0)]
    with pytest.raises(InputError, match="holds another cell, whose name differs in special characters alone"):
        runs.complete(tmp_path, {}, cells, lambda cell: {"accuracy": 0.5})
    (path,) = (tmp_path / "cells").iterdir()
    assert json.loads(path.read_text())["method"] == "a b"


def test_a_card_tells_what_was_told_and_where_it_comes_from():
    card = runs.card({"accuracy": 0.5}, what="a file")
    assert card.pop("commit") and len(card.pop("date")) == 10
    assert card == {"what": "a file", "licence": "Apache-2.0, as metajax", "results": '{"accuracy": 0.5}'}
