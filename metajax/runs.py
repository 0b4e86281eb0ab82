"""What scripts share: the command line, a run's folder, tables whose every cell is a file, exit codes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from metajax import checkpoint, report
from metajax.core import Theta
from metajax.errors import DivergedError, InputError
from metajax.parallel import copied

S = TypeVar("S")
PACKAGES = {
    "plot": "matplotlib",
    "images": "sklearn",
    "espeak": "espeakng_loader",
    "web": "uvicorn",
    "pretrained": "safetensors",
}


def main(settings: type[S], run: Callable[[S], Any], doc: str | None, argv: Sequence[str] | None = None) -> int:
    """Make settings of the command line, run with them, and return the exit code.

    Args:
      settings: a dataclass; its fields are the flags, their comments the help.
      run: the script's work.
      doc: the script's docstring, shown by `--help`.
      argv: arguments; None for those of the process.

    Returns:
      0, 1 where training diverged, 2 for bad input, 130 where the user stopped it; told in one sentence on stderr.
    """
    import tyro  # a tenth of a second, and no dependency of the library's own

    chosen = tyro.cli(settings, description=doc, args=argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *rest, **more: print(f"note: {message}", file=sys.stderr)
            run(chosen)
    except (InputError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("\nstopped; what was written stays", file=sys.stderr)
        return 130
    return 0


def check(settings: Any, extras: Sequence[str] = (), **least: int | float) -> None:
    """An `InputError` for a setting below its least value, an empty tuple of them, or an extra not installed."""
    for name, low in least.items():
        value = getattr(settings, name)
        if value == ():
            raise InputError(f"{name} is empty, expected one value or more.")
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not low <= one < float("inf"):
                verb = "is" if one is value else "holds"
                raise InputError(f"{name} {verb} {one}, expected a finite number, {low} or more.")
    for extra in extras:
        if find_spec(PACKAGES[extra]) is None:
            raise InputError(f"{PACKAGES[extra]} is not installed; install it with: pip install 'metajax[{extra}]'")


def config(settings: Any, leave: Sequence[str] = ("out", "resume", "cache")) -> dict[str, Any]:
    """Settings that bear on the results, as JSON has them."""
    values = dataclasses.asdict(settings)
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in leave}, default=str))


def open_folder(folder: Path, config: dict[str, Any], *, resume: bool = False) -> None:
    """Make a run's folder with its `config.json`; refuse to write over a run, or to go on with one of other settings.

    Raises:
      InputError: `folder` cannot be written, or holds a run or foreign files; or, under `resume`, holds no run, or one
        of another config, with the difference.
    """
    check_folder(folder, config, resume=resume)
    checkpoint.make_folder(folder)
    checkpoint.write_json(folder / "config.json", config)


def check_folder(folder: Path, config: dict[str, Any], *, resume: bool = False) -> None:
    """As `open_folder`, but writes nothing; `config` may be a part of the settings, those known so far."""
    path = folder / "config.json"
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: {there} is {'read-only' if there.is_dir() else 'no folder'}.")
    if not path.exists():
        if resume:
            raise InputError(f"resume: {folder} holds no run to go on with.")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} exists and is not an empty folder; choose another one.")
        return
    if not resume:
        raise InputError(f"{folder} already holds a run; choose another folder, or resume it.")
    check_same(read_json(path), config, path)


def read_json(path: Path) -> dict[str, Any]:
    """A dict from a JSON file; an `InputError` where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise InputError(f"{path} is missing or damaged: {error}.") from error


def known(name: str, values: Sequence[str], choices: Iterable[str]) -> None:
    """An `InputError` for a value that is none of the choices, with all of them."""
    if wrong := [value for value in values if value not in set(choices)]:
        raise InputError(f"{name} holds {wrong[0]!r}, expected some of {', '.join(choices)}.")


def check_same(old: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """An `InputError` if a file was made with other settings, with the difference."""
    for name, value in sorted(now.items()):
        if old.get(name) != value:
            raise InputError(f"{name} is {value!r} now but {old.get(name)!r} in {path}, expected the same.")


def complete(
    folder: Path, settings: dict[str, Any], wanted: Sequence[Any], run: Callable[[Any], dict[str, Any]]
) -> dict[Any, dict[str, Any]]:
    """The results of all cells of a table; each is a file as soon as it is there, so that a stopped run goes on.

    Args:
      folder: made by `open_folder`, unless it is there; the cells lie in its folder `cells`.
      settings: of all cells; cells made with others are refused.
      wanted: named tuples.
      run: a cell to its result, as JSON has it.

    Returns:
      By cell, those of earlier calls too.

    Raises:
      InputError: as `open_folder`; a file is damaged, or was made with other settings.
    """
    known = (folder / "config.json").exists()
    if known or not (folder / "cells").is_dir():  # older tables have none: there each cell tells its settings
        open_folder(folder, settings, resume=known)
    done = {}
    for path in sorted((folder / "cells").glob("*.json")):
        result = read_json(path)
        if missing := [name for name in (*wanted[0]._fields, "settings") if name not in result]:
            raise InputError(f"{path} is damaged: it lacks {missing[0]!r}; remove it and it is made anew.")
        check_same(result["settings"], settings, path)
        done[type(wanted[0])(**{name: result[name] for name in wanted[0]._fields})] = result
    missing = [cell for cell in wanted if cell not in done]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them finished before.", flush=True)
    for cell in (bar := tqdm(missing, unit="cell", dynamic_ncols=True)):
        bar.set_description(", ".join(f"{name} {value}" for name, value in cell._asdict().items()))
        done[cell] = {**cell._asdict(), "settings": settings, **run(cell), **report.environment()}
        name = "-".join(re.sub(r"[^a-zA-Z0-9.]+", "_", str(value)) for value in cell)
        checkpoint.make_folder(folder / "cells")
        if (path := folder / "cells" / f"{name}.json").exists():
            raise InputError(f"{path} holds another cell, whose name differs in special characters alone.")
        checkpoint.write_json(path, done[cell])
    return done


def card(results: dict[str, Any], **told: str) -> dict[str, str]:
    """What a file that comes with metajax says of itself: what is told, results, commit, date and licence."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    made = {"commit": head.stdout.strip() or "unknown", "date": time.strftime("%Y-%m-%d")}
    return told | made | {"licence": "Apache-2.0, as metajax", "results": json.dumps(results)}


class Cell(NamedTuple):
    """An entry of a table of arms."""

    seed: int
    arm: str


def compare(
    folder: Path, settings: dict[str, Any], seeds: Sequence[int], arms: Iterable[str],
    bench: Callable[[int], Callable[[str], dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """`complete` for arms over seeds: by arm the results of every seed, which are `bench(seed)(arm)`."""
    of_seed, arms = lru_cache(1)(bench), list(arms)
    wanted = [Cell(seed, arm) for seed in seeds for arm in arms]
    done = complete(folder, settings, wanted, lambda cell: of_seed(cell.seed)(cell.arm))
    return {arm: [done[Cell(seed, arm)] for seed in seeds] for arm in arms}


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, with the device and the versions that the results came about with."""
    checkpoint.write_json(folder / "results.json", results | report.environment())


class Record(NamedTuple):
    """What a training's recorder carries from block to block."""

    best: float | None = None  # validation score
    theta: Theta | None = None  # that of the best
    seconds: float = 0.0  # spent on outer steps, in earlier calls too
    before: float = 0.0  # those of earlier calls
    pending: tuple[tuple[int, dict[str, float]], ...] = ()  # calls since the last line: outer steps, mean metrics


def begin(folder: Path | None, state: PyTree, *, resume: bool = False) -> tuple[PyTree, Record]:
    """Open a training's folder: the state to go on from, and its record.

    Args:
      folder: gets `metrics.jsonl` and the checkpoints `last` and `best`; None for none.
      state: before the first step; a tuple with `count` and `theta`.
      resume: go on from `folder / "last"`.

    Raises:
      InputError: `resume` without a checkpoint that fits, or a folder that holds a run without `resume`.
    """
    if folder is None:
        if resume:
            raise InputError("resume needs the folder of the run to go on from.")
        return state, Record()
    log = folder / "metrics.jsonl"
    if not resume:
        checkpoint.make_folder(folder)
        if taken := [name for name in ("metrics.jsonl", "last", "best") if (folder / name).exists()]:
            raise InputError(f"{folder} already holds {taken[0]} of another run; choose another folder, or resume.")
        return state, Record()
    state = checkpoint.restore(folder / "last", state)
    lines = [line for line in checkpoint.read_lines(log) if line["step"] <= int(state.count)]
    checkpoint.write_lines(log, lines)
    best = max((line["validation"] for line in lines if "validation" in line), default=None)
    theta = checkpoint.restore(folder / "best", state.theta) if best is not None else None
    seconds = lines[-1]["seconds"] if lines else 0.0
    return state, Record(best, theta, seconds, seconds)


def write(
    record: Record,
    folder: Path | None,
    state: PyTree,
    theta: Theta,
    validate: Callable[[Theta], float] | None,
    *,
    save: bool,
) -> Record:
    """Record a block: one line of metrics, the means over its calls; the best theta, where it validates; the state.

    Raises:
      DivergedError: the validation score is not finite.
    """
    calls = sum(count for count, _ in record.pending)
    names = record.pending[-1][1]
    line = {name: sum(count * call[name] for count, call in record.pending) / calls for name in names}
    record = record._replace(pending=())
    if validate is not None:
        line["validation"] = validate(theta)
        if not np.isfinite(line["validation"]):
            kept = folder and checkpoint.exists(folder / "last")
            told = f"; the checkpoint before it is kept in {folder / 'last'}" if kept and folder else ""
            raise DivergedError(f"The validation score is {line['validation']} at outer step {int(state.count)}{told}.")
        if record.best is None or line["validation"] > record.best:
            record = record._replace(best=line["validation"], theta=copied(theta))
            if folder:
                checkpoint.save(folder / "best", theta)
    if folder:
        checkpoint.append_line(folder / "metrics.jsonl", {"step": int(state.count), "seconds": record.seconds} | line)
        if save:
            checkpoint.save(folder / "last", state)
    return record


def diverged(folder: Path | None, state: PyTree) -> str:
    """Keep the last finite state, and say where and what to do."""
    if folder:
        checkpoint.save(folder / "last", state)
    kept = f"; the state before it is kept in {folder / 'last'}" if folder else ""
    if not int(state.count):
        cure = (
            "At the first step no rate is to blame: look for inputs that are not finite, labels out of range and "
            "derivatives that are not finite, as that of a root at 0."
        )
    else:
        cure = "A smaller inner or outer learning rate is the usual cure."
    return f"The loss is not finite at outer step {int(state.count) + 1}{kept}. {cure}"
