"""What users mean by adaptation speed: steps and milliseconds until a learner has 90 % of its final accuracy.

    python experiments/speed/adaptation.py --results runs/keyword_fewshot/results.json

Reads results of `keyword_fewshot.py`, whose milliseconds it divides by steps, or of `compare_algorithms.py`, which has
none. Prints a table, the fastest first. Takes no time.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metajax as mj
from metajax import report, runs

SHARE = 0.9


@dataclass(frozen=True)
class Settings:
    results: tuple[Path, ...]  # files of results


def reached(means: Sequence[float], chance: float) -> int | None:
    """The first step from which the curve keeps 90 % of its final accuracy; None if it ends at chance."""
    if means[-1] <= 1.1 * chance:
        return None
    short = [step for step, mean in enumerate(means) if mean < SHARE * means[-1]]
    return short[-1] + 1 if short else 0


def read(found: dict[str, Any]) -> Iterator[tuple[str, float, int | None, float | None]]:
    """Of each learner its name, final accuracy, steps and milliseconds."""
    for row in found.get("rows", ()):
        means = [point["mean"] for point in row["accuracy"]]
        name = f"{row['method']}, {row['normalization']}, {row['shots']}-shot"
        yield name, means[-1], reached(means, 1 / found["config"]["ways"]), None
    for name, curve in found.get("curves", {}).items():
        means, ms = [point["mean"] for point in curve], found["methods"][name]["adapt_ms"]
        steps = reached(means, found["chance"])
        # measured over so many steps
        each = ms / max(1, min(len(means) - 1, found["config"]["num_steps"]))
        yield name, means[-1], steps, None if steps is None else each * steps


def run(s: Settings) -> None:
    rows = []
    for path in s.results:
        try:
            rows += [(path, *row) for row in read(runs.read_json(path))]
        except (LookupError, TypeError, AttributeError) as error:
            raise mj.InputError(f"{path} holds no results of the two scripts: {error!r} is not there.") from error
    rows.sort(key=lambda row: (row[4] is None, row[4] or 0, row[3] is None, row[3] or 0, -row[2]))
    shown = [
        (str(path), name, f"{100 * last:.1f}", "never" if n is None else str(n), "" if ms is None else f"{ms:.1f}")
        for path, name, last, n, ms in rows
    ]
    print(report.markdown(("results", "learner", "final accuracy (%)", "steps to 90 % of it", "ms"), shown, left=2))


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
