"""Tables and plots from a run's results."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.errors import InputError

Curve = list[dict[str, Any]]  # [{"step": 0, "mean": 0.2, "ci95": 0.01}, ...]; accuracies in 0..1


def environment() -> dict[str, Any]:
    """The device and the versions that results came about with."""
    device = jax.devices()[0]
    versions = {name: _version(name) for name in ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")}
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform}), {platform.machine()}",
        "versions": versions | {"python": platform.python_version()},
    }


def _version(name: str) -> str:
    """Of a package; a bare GPU machine may run metajax from its folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def curve(mean: np.ndarray, ci95: np.ndarray, steps: Sequence[int] | None = None) -> Curve:
    """An adaptation curve as a results file keeps it, at all steps or those given."""
    steps = range(len(mean)) if steps is None else steps
    return [{"step": k, "mean": float(m), "ci95": float(c)} for k, m, c in zip(steps, mean, ci95, strict=True)]


def table(curves: dict[str, Curve], chance: float | None, steps: Sequence[int], *, percent: bool = True) -> str:
    """Means (accuracies in percent, or as they are) and 95 % intervals after some adaptation steps, as Markdown."""
    width, (scale, digits) = max(map(len, [*curves, "chance"])), (100, 1) if percent else (1, 3)
    rows = [["", *("1 step" if step == 1 else f"{step} steps" for step in steps)]]
    for name, points in curves.items():
        told = {p["step"]: f"{scale * p['mean']:5.{digits}f} ± {scale * p['ci95']:4.{digits}f}" for p in points}
        rows.append([name, *(told.get(step, "") for step in steps)])
    if chance is not None:
        rows.append(["chance", *[f"{scale * chance:.{digits}f}"] * len(steps)])
    header, *rows = [[name.ljust(width), *(cell.rjust(12) for cell in cells)] for name, *cells in rows]
    return markdown(header, rows)


def percent(value: dict[str, Any] | None, sign: str = "") -> str:
    """A mean with its 95 % interval, where it has one, in percent: "93.2 ± 5.5"; nothing for None."""
    if value is None:
        return ""
    half = value.get("ci95")
    return f"{100 * value['mean']:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown; its first `left` columns are to the left, the others to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * left + "---:|" * (len(header) - left), *lines[1:]])


def plot_curves(
    curves: dict[str, Curve], chance: float | None, title: str, path: Path, *, percent: bool = True, what: str = ""
) -> None:
    """Draw accuracy, or `what`, against adaptation step with 95 % bands into a PNG; needs the `plot` extra.

    Raises:
      InputError: matplotlib is not installed.
    """
    scale, longest = 100 if percent else 1, max(points[-1]["step"] for points in curves.values())
    with picture(path, title) as (axes,):
        for name, points in curves.items():
            step, mean, ci95 = (np.array([point[field] for point in points]) for field in ("step", "mean", "ci95"))
            last = f"{100 * mean[-1]:.1f} %" if percent else f"{mean[-1]:.3f}"
            (line,) = axes.plot(step, scale * mean, marker="o", markersize=4, label=f"{name}: {last}")
            if step[-1] == 1 and longest > 1:  # a one-step learner stays where it is
                axes.hlines(scale * mean[-1], 1, longest, color=line.get_color(), linestyle=":")
            axes.fill_between(step, scale * (mean - ci95), scale * (mean + ci95), color=line.get_color(), alpha=0.2)
        if chance is not None:
            axes.axhline(scale * chance, color="0.5", linestyle="--", label=f"chance: {scale * chance:.0f} %")
        axes.set(xlabel="adaptation steps", ylabel=what or "query accuracy (%)")
        axes.set_ylim(0, 100 if percent else None)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        # many curves leave no room within the axes
        place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(curves) > 5 else {"loc": "best"}
        axes.legend(fontsize=9, **place)


@contextmanager
def picture(path: Path, title: str, columns: int = 1, **options: Any) -> Iterator[list[Any]]:
    """Draw into the matplotlib axes that it gives, row by row; needs the `plot` extra.

    Args:
      path: the PNG, written when all is drawn, whole or not at all.
      title: above all panels.
      columns: panels side by side.
      **options: passed to `pyplot.subplots`, such as `nrows` and `figsize` (inches).

    Raises:
      InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("matplotlib is not installed; install it with: pip install 'metajax[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    options = {"figsize": (3 + 4.5 * columns, 4.5), "layout": "constrained"} | options
    figure, axes = pyplot.subplots(ncols=columns, squeeze=False, **options)
    try:
        yield list(axes.flat)
        figure.suptitle(title, fontsize=9)
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, dpi=150, format="png")
        temporary.replace(path)
    finally:
        pyplot.close(figure)


def present(
    curves: dict[str, Curve],
    chance: float,
    steps: Sequence[int],
    title: str,
    path: Path,
    told: dict[str, dict[str, Any]],
    fields: dict[str, str],
) -> None:
    """Print the table of adaptation curves and one of `told`'s fields under their titles, and draw the picture."""
    last = max(point["step"] for points in curves.values() for point in points)
    shown = sorted({step for step in steps if step <= last})
    told = {name: {field: entry.get(field) for field in fields} for name, entry in told.items()}
    rows = [[name, *("" if v is None else f"{v:.3g}" for v in entry.values())] for name, entry in told.items()]
    print(f"\n{title}\n\n{table(curves, chance, shown)}\n\n{markdown(('', *fields.values()), rows)}")
    plot_curves(curves, chance, title, path)


def plot_panels(
    panels: dict[str, dict[str, list[dict[str, Any]]]],
    title: str,
    path: Path,
    *,
    x: str,
    label: str,
    what: str = "query accuracy (%)",
) -> None:
    """Draw accuracies, or `what`, with 95 % bars against the field `x`, a panel of many curves each, into a PNG."""
    with picture(path, title, len(panels), figsize=(7 * len(panels), 6)) as every:
        for axes, (name, curves) in zip(every, panels.items(), strict=True):
            for i, (shown, points) in enumerate(curves.items()):
                at, mean, ci95 = (np.array([point[field] for point in points]) for field in (x, "mean", "ci95"))
                style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10], "marker": ".", "capsize": 2}
                told = f"{shown}: {100 * mean[-1]:.1f}"
                axes.errorbar(at, 100 * mean, 100 * ci95, label=told, linewidth=1, **style)
            axes.set(title=name, xlabel=label, ylabel=what)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, ncols=2)


def heat_map(rows: dict[str, dict[str, dict[str, Any]]], title: str, path: Path) -> None:
    """Draw mean accuracies by row and column, as numbers on colours, into a PNG; arguments as of `plot_curves`."""
    values, columns = np.array([[100 * one["mean"] for one in row.values()] for row in rows.values()]), next(iter(rows))
    with picture(path, title, figsize=(5 + 0.7 * values.shape[1], 1.5 + 0.3 * len(rows))) as (axes,):
        axes.imshow(values, aspect="auto", vmin=0, vmax=100)
        axes.set_xticks(range(values.shape[1]), rows[columns])
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        for (y, x), value in np.ndenumerate(values):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k", fontsize=8)
