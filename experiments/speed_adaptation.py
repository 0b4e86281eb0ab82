"""What users mean by adaptation speed: steps and milliseconds until a learner has 90 % of its final accuracy.

Accuracies are those of `keyword_fewshot.py` or of `compare_algorithms.py`; milliseconds of the latter's methods, which
it does not measure, are measured here: its network with fresh parameters on random inputs, which cost what speech does.
They count the start, e.g. a pass over the support set before step 0; a run's are its share by steps.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from compare_algorithms import BASELINE_RATE
from keyword_fewshot import built, initial, network
from keyword_fewshot import parse as parse_run
from methods import METHODS
from tqdm import tqdm

import metajax as mj
from metajax import report
from metajax.evaluate import adaptation_ms
from metajax.losses import cross_entropy
from metajax.models import NORMALIZATIONS
from metajax.tasks.episodes import episodes

SHARE = 0.9
FRAMES, MEL, CLASSES = 98, 40, 32  # of one second; words of the made-up corpus
NAMES = {"joint": "fine-tuning", "from_scratch": "from scratch"}


def reached(means: Sequence[float], chance: float, share: float = SHARE) -> int | None:
    """The first step from which the curve keeps `share` of its final accuracy; None if it ends at chance."""
    if means[-1] <= 1.1 * chance:
        return None
    short = [step for step, mean in enumerate(means) if mean < share * means[-1]]
    return short[-1] + 1 if short else 0


def read(path: Path) -> list[dict[str, Any]]:
    """One row for each learner; `ms` where the results have it or it can be measured.

    Raises:
      InputError: these are no results of the two scripts.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = list(of_comparison(found) if "rows" in found else of_run(found))
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        raise mj.InputError(
            f"{path}: expected results of keyword_fewshot.py or compare_algorithms.py, found {error!r}."
        ) from error
    for row in tqdm(rows, desc="measuring", unit="learner", disable=not any("cell" in row for row in rows)):
        if cell := row.pop("cell", None):
            row["ms"] = milliseconds(*cell, row["steps"])
    return [{"results": str(path)} | row for row in rows]


def of_run(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The algorithm and its baselines, from results of `keyword_fewshot.py`."""
    curves = {name: one["accuracy"] for name, one in found["baselines"].items() if name != "chance"}
    if found["algorithm"] != "joint":  # whose accuracy is that of fine-tuning, among the baselines
        curves = {found["algorithm"]: found["accuracy"]} | curves
    for name, points in curves.items():
        means = [point["mean"] for point in points]
        steps = reached(means, found["baselines"]["chance"])
        row = {"learner": name, "final": means[-1], "steps": steps, "ms": None}
        if name == found["algorithm"] and steps is not None and found["adapt_ms"] is not None:
            row["ms"] = found["adapt_ms"] * steps / (len(means) - 1)
        yield row


def of_comparison(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All methods and settings, from results of `compare_algorithms.py`; `cell` is what to measure."""
    if "settings" not in found:
        raise ValueError("no settings in it; run compare_algorithms.py on its folder again, which adds them")
    own = [part for name in ("width", "num_steps") for part in (f"--{name.replace('_', '-')}", found["settings"][name])]
    for row in found["rows"]:
        means, method = [point["mean"] for point in row["accuracy"]], row["method"]
        if method not in (*METHODS, "from_scratch") or row["normalization"] not in NORMALIZATIONS:
            raise ValueError(f"method {method}, normalization {row['normalization']}")
        options = parse_run(["--normalization", row["normalization"], "--shots", str(row["shots"]), *own])
        steps = reached(means, 1 / options.ways)
        learner = f"{NAMES.get(method, method)}, {row['normalization']}, {row['shots']}-shot"
        one = {"learner": learner, "final": means[-1], "steps": steps, "ms": None}
        yield one if steps is None else one | {"cell": (method, options)}


def milliseconds(method: str, options: Any, num_steps: int) -> float:
    """Median time in which a method of `methods.py` takes `num_steps` steps on one task, compiled, on one device."""
    options = Namespace(**vars(options) | {"algorithm": "joint" if method == "from_scratch" else method})
    label = np.arange(CLASSES).repeat(2 * (options.shots + options.queries))
    x = jax.random.normal(jax.random.key(1), (len(label), FRAMES, MEL))
    sizes = {"ways": options.ways, "shots": options.shots, "queries": options.queries}
    sample, key = episodes(x, label, np.zeros_like(label), across="none", **sizes), jax.random.key(0)
    if options.algorithm == "joint":  # fine-tuned from anywhere, as compare_algorithms.py does
        classifier = network(options.ways, options)
        learner = mj.descent(cross_entropy(classifier.apply), optax.sgd(BASELINE_RATE))
        return adaptation_ms(learner, initial(classifier, sample, key), sample, num_steps)
    made = built(options, sample, CLASSES)
    theta = made.algorithm.learner.init(initial(made.model, sample, key))
    return adaptation_ms(made.tested.learner, theta, sample, num_steps)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown, the fastest first."""
    lines = []
    for row in fastest_first(rows):
        steps = "never" if row["steps"] is None else str(row["steps"])
        ms = "" if row["ms"] is None else f"{row['ms']:.1f}"
        lines.append((row["learner"], f"{100 * row['final']:.1f}", steps, ms))
    return report.markdown(("learner", "final accuracy (%)", "steps to 90 % of it", "ms"), lines)


def fastest_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By milliseconds, then steps; those that are not known last."""
    return sorted(
        rows, key=lambda r: (r["ms"] is None, r["ms"] or 0.0, r["steps"] is None, r["steps"] or 0, -r["final"])
    )
