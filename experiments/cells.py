"""What scripts share: checks, exit codes, and tables whose every cell is a file, so that a stopped run goes on."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, report


def refuse(old: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """An `InputError` if a file was made with other settings."""
    for name, value in now.items():
        if old.get(name) != value:
            raise mj.InputError(
                f"{path} was made with {name} = {old.get(name)}, now it is {value}; choose another --out."
            )


def measured(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, and where; an `InputError` if with other settings."""
    if not path.exists():
        return {"settings": now, "measured": {}} | report.environment()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        refuse(kept["settings"], now, path)
        return kept | {"measured": dict(kept["measured"])}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, mj.InputError):
            raise
        raise mj.InputError(f"{path} is damaged ({error}); remove it and it is made anew.") from error


def finished(folder: Path, now: dict[str, Any], cell: type) -> dict[Any, dict[str, Any]]:
    """The cells that lie in the folder, named tuples; an `InputError` if they were made with other settings."""
    found, fields = {}, cell._fields  # type: ignore[attr-defined]
    for path in sorted((folder / "cells").glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            old, key = result["settings"], cell(**{field: result[field] for field in fields})
        except (ValueError, KeyError, TypeError) as error:
            raise mj.InputError(f"{path} is damaged ({error}); remove it and it is made anew.") from error
        refuse(old, now, path)
        found[key] = result
    return found


def complete(
    folder: Path, settings: dict[str, Any], wanted: Sequence[Any], run: Callable[[Any], dict[str, Any]]
) -> dict[Any, dict[str, Any]]:
    """The results of all cells, those of earlier calls too; each is a file of the folder as soon as it is there."""
    done = finished(folder, settings, type(wanted[0]))
    missing = [cell for cell in wanted if cell not in done]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them finished before.", flush=True)
    for cell in (bar := tqdm(missing, unit="cell", dynamic_ncols=True)):
        bar.set_description(", ".join(f"{name} {value}" for name, value in cell._asdict().items()))
        done[cell] = {**cell._asdict(), "settings": settings, **run(cell), **report.environment()}
        name = "-".join(re.sub(r"[^a-zA-Z0-9.]+", "_", str(value)) for value in cell)
        checkpoint.write_json(folder / "cells" / f"{name}.json", done[cell])
        if rejected := done[cell].get("rejected_steps"):
            bar.write(f"note: {name}: {rejected} training steps were not finite and changed nothing", file=sys.stderr)
    return done


def rate(block: Callable[..., tuple[Any, Any]], state: Any, seconds: float, *rest: Any) -> float:
    """Calls per second of `(state, key, *rest) -> (state, metrics)`; the first, which compiles, is left out."""
    times: list[float] = []
    while sum(times[1:]) < seconds or len(times) < 4:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(block(state, jax.random.key(len(times)), *rest))
        times.append(time.perf_counter() - began)
    return 1 / float(np.median(times[1:]))


def check(args: argparse.Namespace, extras: Sequence[str], **least: float) -> None:
    """An `InputError` for a number below its least value, or for an extra of metajax that is not installed."""
    for name, low in least.items():
        if not low <= (value := getattr(args, name)) < float("inf"):
            raise mj.InputError(f"--{name.replace('_', '-')} is {value}, expected a finite number, {low} or more.")
    for extra in extras:
        if find_spec(package := {"plot": "matplotlib", "images": "sklearn"}[extra]) is None:
            raise mj.InputError(f"{package} is not installed; install it with: pip install 'metajax[{extra}]'")


def guarded(work: Callable[[], None], stopped: str = "the same command goes on with the cells that are missing") -> int:
    """Do the work; the exit code, with one sentence where it ended early, which is `stopped` where the user did."""
    try:
        work()
    except (mj.InputError, mj.DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, mj.InputError) else 1
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130
    return 0
