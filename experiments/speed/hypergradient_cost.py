"""What does a second-order meta-gradient cost, in memory and time, by hypergradient mode and rematerialisation?

    python experiments/speed/hypergradient_cost.py

One outer step of MAML on TC-ResNet8 (5-way 1-shot, 15 queries per class, 98x40 inputs, 4 tasks on one device, one at a
time), for 1, 5, 10 and 50 inner steps. Memory is what the compiled step allocates for temporaries; time is the median
of the calls after the first. Prints a table, writes `results.json` and `cost.png`. About 10 minutes on 2 CPU cores.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mj
from metajax import models, report, runs
from metajax.losses import classify
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import divided


@dataclass(frozen=True)
class Settings:
    num_steps: tuple[int, ...] = (1, 5, 10, 50)  # inner steps
    tasks: int = 4  # tasks per outer step
    repeats: int = 5  # timed calls
    out: Path = Path("runs/hypergradient_cost")  # folder of the results


FIELDS = ("memory_mib", "milliseconds")
# name: options of `maml`
WAYS = {
    "reverse": {"remat": "none"},
    "reverse, remat step": {"remat": "step"},
    "reverse, remat sqrt": {"remat": "sqrt"},
    "mixed": {"mode": "mixed", "remat": "none"},
    "mixed, remat step": {"mode": "mixed", "remat": "step"},
    "mixed, remat sqrt": {"mode": "mixed", "remat": "sqrt"},
    "first order": {"first_order": True, "remat": "none"},
}


def noise(key: jax.Array) -> mj.Episode:
    """An episode of noise: cost does not depend on the values."""
    x = jax.random.normal(key, (5 * 16, 98, 40))
    label = jax.numpy.arange(5 * 16) % 5
    return divided(mj.Batch(x, mj.Labels(label, label)), 5)


def cost(num_steps: int, tasks: int, repeats: int) -> list[dict[str, Any]]:
    """Compile every setting, then run them in turn, so that a busy moment of the machine meets all alike."""
    model = models.tcresnet8(5, normalization="transductive")
    optimizer = optax.sgd(1e-3)
    key = jax.random.key(0)
    state = mj.init_state({"params": model.init(key, noise(key).support.x)}, optimizer, 1)
    compiled, rows, times = {}, {}, {name: [] for name in WAYS}
    for name, options in WAYS.items():
        algorithm = mj.maml(model.apply, classify, optax.sgd(0.01), num_steps, **options)
        step = mj.meta_step(algorithm.objective, optimizer, noise, tasks, chunk=1)
        began = time.perf_counter()
        compiled[name] = jax.jit(step).lower(state, key).compile()
        seconds = time.perf_counter() - began
        memory = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
        rows[name] = {"way": name, "num_steps": num_steps, "memory_mib": memory, "compile_seconds": seconds}
    for i in range(repeats + 1):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(state, jax.random.key(i)))
            times[name].append(1e3 * (time.perf_counter() - start))
    return [row | {"milliseconds": float(np.median(times[name][1:]))} for name, row in rows.items()]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory and time against inner steps, a line for each way."""
    with report.picture(path, "MAML on TC-ResNet8, 5-way 1-shot, 15 queries per class", 2) as both:
        for axes, field, label in zip(both, FIELDS, ("temporaries (MiB)", "outer step (ms)"), strict=True):
            for i, name in enumerate(WAYS):
                own = [row for row in rows if row["way"] == name]
                # lines that lie upon each other are told apart by their widths
                style = {"linestyle": ("-", "--", ":")[i % 3], "linewidth": 4 - i / 2, "marker": "o", "markersize": 4}
                axes.loglog([row["num_steps"] for row in own], [row[field] for row in own], label=name, **style)
            axes.set(xlabel="inner steps", ylabel=label)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        both[0].legend(fontsize=8)


def run(s: Settings) -> None:
    """Measure, print the table, write the results, draw the picture."""
    runs.check(s, ("plot",), tasks=1, repeats=1, num_steps=1)
    runs.open_folder(s.out, runs.config(s))
    use_all_cores()
    rows, header = [], ("way", "inner steps", "temporaries (MiB)", "outer step (ms)", "compile (s)")
    for num_steps in s.num_steps:
        rows += cost(num_steps, s.tasks, s.repeats)
    fields = ("num_steps", *FIELDS, "compile_seconds")
    print(report.markdown(header, [[row["way"], *(f"{row[field]:.4g}" for field in fields)] for row in rows]))
    runs.save_results(s.out, {"rows": rows, "tasks": s.tasks})
    plot(rows, s.out / "cost.png")
    print(f"\nResults and picture are in {s.out}.")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
