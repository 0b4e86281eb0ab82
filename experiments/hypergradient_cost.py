"""What does a second-order meta-gradient cost, in memory and time, by hypergradient mode and rematerialisation?

    python experiments/hypergradient_cost.py

One outer step of MAML on TC-ResNet8 (5-way 1-shot, 15 queries per class, 98x40 inputs, 4 tasks on one device, one at a
time), for 1, 5, 10 and 50 inner steps. Memory is what the compiled step allocates for temporaries; time is the median
of the calls after the first. Prints a table, writes `results.json` and `cost.png`. About 10 minutes on 2 CPU cores.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mj
from metajax import checkpoint, models, report
from metajax.losses import cross_entropy
from metajax.parallel import use_all_cores
from metajax.tasks.episodes import divided

# name: options of `maml`
WAYS = {
    "reverse": {},
    "reverse, remat step": {"remat": "step"},
    "reverse, remat sqrt": {"remat": "sqrt"},
    "mixed": {"mode": "mixed"},
    "mixed, remat step": {"mode": "mixed", "remat": "step"},
    "mixed, remat sqrt": {"mode": "mixed", "remat": "sqrt"},
    "first order": {"first_order": True},
}


def noise(key: jax.Array) -> mj.Episode:
    """An episode of noise: cost does not depend on the values."""
    x = jax.random.normal(key, (5 * 16, 98, 40))
    label = jax.numpy.arange(5 * 16) % 5
    return divided(mj.Batch(x, mj.Labels(label, label)), 5)


def cost(name: str, num_steps: int, tasks: int, repeats: int) -> dict[str, Any]:
    """Compile one setting and run it."""
    model = models.tcresnet8(5, normalization="transductive")
    optimizer = optax.sgd(1e-3)
    algorithm = mj.maml(cross_entropy(model.apply), optax.sgd(0.01), num_steps, **WAYS[name])
    key = jax.random.key(0)
    state = mj.init_state(model.init(key, noise(key).support.x), optimizer)
    step = mj.meta_step(algorithm.objective, optimizer, noise, tasks, chunk=1)
    began = time.perf_counter()
    compiled = jax.jit(step).lower(state, key).compile()
    seconds = time.perf_counter() - began
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(state, jax.random.key(i)))
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "way": name,
        "num_steps": num_steps,
        "memory_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "milliseconds": float(np.median(times[1:])),
        "compile_seconds": seconds,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, field, label in zip(
        both, ("memory_mib", "milliseconds"), ("temporaries (MiB)", "outer step (ms)"), strict=True
    ):
        for name in WAYS:
            own = [row for row in rows if row["way"] == name]
            axes.loglog([row["num_steps"] for row in own], [row[field] for row in own], marker="o", label=name)
        axes.set(xlabel="inner steps", ylabel=label)
        axes.grid(alpha=0.3, which="both")
    both[0].legend(fontsize=8)
    figure.suptitle("MAML on TC-ResNet8, 5-way 1-shot, 15 queries per class", fontsize=10)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Memory and time of hypergradient modes.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num-steps", type=int, nargs="+", default=[1, 5, 10, 50], help="inner steps")
    parser.add_argument("--tasks", type=int, default=4, help="tasks per outer step")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls")
    parser.add_argument("--out", type=Path, default=Path("runs/hypergradient_cost"), help="folder of the results")
    args = parser.parse_args(argv)
    use_all_cores()
    rows = []
    print("| way | inner steps | temporaries (MiB) | outer step (ms) | compile (s) |\n|---|---:|---:|---:|---:|")
    for num_steps in args.num_steps:
        for name in WAYS:
            rows.append(cost(name, num_steps, args.tasks, args.repeats))
            row = rows[-1]
            print(
                f"| {name} | {num_steps} | {row['memory_mib']:.1f} | {row['milliseconds']:.0f} | "
                f"{row['compile_seconds']:.1f} |",
                flush=True,
            )
    checkpoint.make_folder(args.out)
    checkpoint.write_json(args.out / "results.json", {"rows": rows, "tasks": args.tasks} | report.environment())
    plot(rows, args.out / "cost.png")
    print(f"\nResults and picture are in {args.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
