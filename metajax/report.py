"""Tables and plots from a run's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.errors import InputError

Curve = list[dict[str, Any]]  # [{"step": 0, "mean": 0.2, "ci95": 0.01}, ...]; accuracies in 0..1


def curve(mean: np.ndarray, ci95: np.ndarray) -> Curve:
    """An adaptation curve as a results file keeps it."""
    return [
        {"step": step, "mean": float(m), "ci95": float(c)} for step, (m, c) in enumerate(zip(mean, ci95, strict=True))
    ]


def table(curves: dict[str, Curve], chance: float, steps: Sequence[int]) -> str:
    """Accuracy in percent with its 95 % interval after some adaptation steps, one row per method, as Markdown."""
    width = max(map(len, [*curves, "chance"]))
    header = (
        "| "
        + " | ".join([" " * width, *(f"{f'{step} steps' if step != 1 else '1 step':>12}" for step in steps)])
        + " |"
    )
    lines = [header, "|" + "|".join(["-" * (width + 2)] + ["-" * 13 + ":"] * len(steps)) + "|"]
    for name, points in curves.items():
        by_step = {point["step"]: point for point in points}
        cells = [
            f"{100 * by_step[step]['mean']:5.1f} ± {100 * by_step[step]['ci95']:4.1f}" if step in by_step else ""
            for step in steps
        ]
        lines.append(f"| {name:<{width}} | " + " | ".join(f"{cell:>12}" for cell in cells) + " |")
    lines.append(f"| {'chance':<{width}} | " + " | ".join(f"{100 * chance:>12.1f}" for _ in steps) + " |")
    return "\n".join(lines)


def plot_curves(curves: dict[str, Curve], chance: float, title: str, path: Path) -> None:
    """Draw accuracy against adaptation step with 95 % bands into a PNG; needs the `plot` extra.

    Raises:
      InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("matplotlib is not installed; install it with: pip install 'metajax[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in curves.items():
        step, mean, ci95 = (np.array([point[field] for point in points]) for field in ("step", "mean", "ci95"))
        (line,) = axes.plot(step, 100 * mean, marker="o", markersize=4, label=f"{name}: {100 * mean[-1]:.1f} %")
        axes.fill_between(step, 100 * (mean - ci95), 100 * (mean + ci95), color=line.get_color(), alpha=0.2)
    axes.axhline(100 * chance, color="0.5", linestyle="--", label=f"chance: {100 * chance:.0f} %")
    axes.set(xlabel="adaptation steps", ylabel="query accuracy (%)", ylim=(0, 100))
    axes.set_title(title, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)
    pyplot.close(figure)
