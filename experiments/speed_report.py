"""Tables and pictures of `adaptation_speed.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax import report

# least ratios on 2 CPU cores: outer steps, one adaptation of 5 steps
TARGETS = {"sinusoid": (60, 15), "tcresnet8": (5, 4), "conv4": (2.5, 2), "crnn": (4, 3), "ctc": (4, 3)}

USERS = 64  # who arrive at once


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results in Markdown; ratios with their targets on 2 CPU cores."""
    head = ["workload", "peer", "metajax (ms)", "peer (ms)", "ratio", "target", "tasks/s", "GFLOP/s", "of matmul peak"]
    lines = []
    for row in rows:
        ratio, peer_ms = (f"{row[key]:.2f}" if "ratio" in row else "" for key in ("ratio", "peer_ms"))
        line = (row["name"], row.get("peer", "none"), f"{row['metajax_ms']:.2f}", peer_ms, ratio)
        line += (str(TARGETS[row["name"]][0]), f"{row['metajax_tasks_per_second']:.0f}")
        lines.append((*line, f"{row['metajax_gflops']:.1f}", f"{100 * row['share_of_peak']:.0f} %"))
    tables = [report.markdown(head, lines, left=2)]
    head = ["workload", "one adaptation", "metajax (ms)", "5-95 %", "peer (ms)", "ratio", "target"]
    lines = []
    for row in rows:
        for steps, one in (*row["adaptation"].items(), ("users", row["users"])):
            users = steps == "users"
            low, high = (one["metajax"][p] for p in ("p5", "p95")) if not users else (0.0, 0.0)
            ratio, peer_ms = (f"{one[key]:.2f}" if "ratio" in one else "" for key in ("ratio", "peer_ms"))
            what = f"{USERS} users at once" if users else f"{steps} step{'s' if steps != '1' else ''}"
            target = "5" if users else str(TARGETS[row["name"]][1]) if steps == "5" else ""
            interval = f"{one['metajax_per_second']:.0f}/s" if users else f"{low:.2f}-{high:.2f}"
            lines.append((row["name"], what, f"{one['metajax_ms']:.3f}", interval, peer_ms, ratio, target))
    tables.append(report.markdown(head, lines, left=2))
    head = ["workload", "process", "imports (s)", "then to first outer step (s)", "peak memory above imports (MiB)"]
    lines = []
    for row in rows:
        for kind, one in row["first"].items():
            label = f"metajax, {kind}" if kind in ("cold", "warm") else kind
            seconds = (f"{one['import_s']:.1f}", f"{one['first_step_s']:.1f}")
            lines.append((row["name"], label, *seconds, f"{one['memory_mib']:.0f}"))
    return "\n\n".join([*tables, report.markdown(head, lines, left=2)])


def plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Ratios as bars, their targets as lines."""
    ones = [list(rows), [row["adaptation"]["5"] for row in rows]]
    names = ("outer steps/s", "one adaptation, 5 steps")
    with report.picture(path, title, 2, figsize=(10, 4)) as both:
        for i, (axes, each, what) in enumerate(zip(both, ones, names, strict=True)):
            for place, (row, one) in enumerate(zip(rows, each, strict=True)):
                bar = axes.bar(place, one["ratio"], width=0.6, color="C0")
                axes.bar_label(bar, fmt="%.1f", fontsize=9)
                target = TARGETS[row["name"]][i]
                axes.hlines(target, place - 0.4, place + 0.4, color="C3", label="" if place else "target")
            axes.set_xticks(range(len(rows)), [row["name"] for row in rows])
            axes.set(yscale="log", ylabel="times as fast as the faster PyTorch peer", title=what)
            axes.axhline(1, color="0.5", linewidth=0.8)
            axes.legend(loc="upper right", fontsize=8)


def plot_adaptation(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Milliseconds to 90 % of the final accuracy as bars, with the steps and that accuracy, the fastest on top."""
    known = [row for row in rows if row["ms"] is not None][::-1]
    labels = [f" {row['steps']} step{'' if row['steps'] == 1 else 's'}, {100 * row['final']:.1f} %" for row in known]
    title = "milliseconds to 90 % of the final accuracy; after each bar the steps and that accuracy"
    with report.picture(path, title, figsize=(8, 1.5 + 0.22 * len(known))) as (axes,):
        bars = axes.barh(range(len(known)), [max(row["ms"], 1e-3) for row in known], color="C0")
        axes.set_yticks(range(len(known)), [row["learner"] for row in known])
        axes.bar_label(bars, labels, fontsize=7)
        axes.set(xscale="log", ylim=(-0.6, len(known) - 0.4), xlabel="milliseconds")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="y", labelsize=7)
        axes.margins(x=0.35)


def plot_scaling(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and memory, one line for each workload, one column for each axis; each row on one scale."""
    names = list(dict.fromkeys(point["axis"] for point in points))
    options = {"nrows": 2, "figsize": (2.6 * len(names), 6), "sharey": "row"}
    with report.picture(path, "", len(names), **options) as every:
        draw_scaling(points, names, np.reshape(every, (2, -1)))


def draw_scaling(points: Sequence[dict[str, Any]], names: list[str], grid: np.ndarray) -> None:
    """The panels of `plot_scaling`."""
    from matplotlib.ticker import LogFormatter

    rows = (("outer_ms", "outer step (ms)"), ("memory_mib", "temporaries (MiB)"))
    for (field, label), row in zip(rows, grid, strict=True):
        for name, axes in zip(names, row, strict=True):
            here = [point for point in points if point["axis"] == name]
            for workload in dict.fromkeys(point["workload"] for point in here):
                own = [point for point in here if point["workload"] == workload]
                axes.loglog([p["value"] for p in own], [p[field] for p in own], "o-", markersize=4, label=workload)
            axes.set_xticks(values := sorted({point["value"] for point in here}), values, minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # plain, and few of them
            axes.set_xlabel({"steps": "inner steps", "time": "frames"}.get(name, name))
            axes.grid(alpha=0.3)
        row[0].set_ylabel(label)
    grid[0, 0].legend(fontsize=8)
