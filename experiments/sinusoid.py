"""Does a network that was meta-trained on sinusoids learn a new one from ten points?

    python experiments/sinusoid.py

The regression of the MAML paper: y = a sin(x - p), a in 0.1..5, p in 0..pi, x in -5..5; a perceptron with two hidden
layers of 40; MAML with one inner step of 0.01, 25 tasks per outer step, Adam at 1e-3. Tested after 0..10 steps on 2,000
fresh sinusoids, next to joint training (one network for all sinusoids) and to training from scratch. Prints a table,
writes `results.json` and `curve.png`. About 3 minutes on 2 CPU cores.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import optax
from cells import check, guarded

import metajax as mj
from metajax import checkpoint, report
from metajax.losses import squared_error
from metajax.models import mlp
from metajax.parallel import hoisted, use_all_cores
from metajax.tasks.probes import sinusoids


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="MAML on sinusoid regression.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shots", type=int, default=10, help="support points per sinusoid")
    parser.add_argument("--num-steps", type=int, default=1, help="inner steps while training")
    parser.add_argument("--inner-rate", type=float, default=0.01, help="inner learning rate")
    parser.add_argument("--outer-steps", type=int, default=70_000, help="outer steps, as in the paper")
    parser.add_argument("--episodes", type=int, default=2_000, help="test sinusoids")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--out", type=Path, default=Path("runs/sinusoid"), help="folder of the results")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    model = mlp(1)
    loss_fn = squared_error(model.apply)
    inner = optax.sgd(args.inner_rate)
    sample = sinusoids(args.shots, args.shots)
    test = sinusoids(args.shots, 100)
    init_key, fit_key, test_key = jax.random.split(jax.random.key(args.seed), 3)
    fresh = model.init(init_key, sample(init_key).support.x)
    curves, seconds = {}, {}

    @hoisted
    def measure(theta: Any, key: Any) -> Any:
        tuned = mj.descent(loss_fn, inner)
        return mj.evaluate(tuned, theta, test, key, args.episodes, 10, chunk=100)["loss"]

    algorithms = {"maml": mj.maml(loss_fn, inner, args.num_steps), "joint": mj.joint(loss_fn)}
    for name, algorithm in algorithms.items():
        optimizer = optax.adam(1e-3)
        step = mj.meta_step(algorithm.objective, optimizer, sample, 25)
        fitted = mj.fit(
            step, mj.init_state(fresh, optimizer), fit_key, args.outer_steps,
            num_tasks=25, block=500, validate_every=5_000, folder=args.out / name, title=name,
        )  # fmt: skip
        seconds[name] = fitted.seconds
        curves[name] = report.curve(*mj.mean_ci95(measure(fitted.theta, test_key)))
    curves["from scratch"] = report.curve(*mj.mean_ci95(measure(fresh, test_key)))
    return {"mean_squared_error": curves, "seconds": seconds, "episodes": args.episodes, "seed": args.seed}


def show(args: argparse.Namespace) -> None:
    """Run it, write the results, print the table, draw the picture."""
    check(args, ("plot",), episodes=2, shots=1, num_steps=0, inner_rate=0, outer_steps=1, seed=0)
    use_all_cores()
    results = run(args) | {"config": vars(args) | {"out": str(args.out)}} | report.environment()
    checkpoint.write_json(args.out / "results.json", results)
    curves = results["mean_squared_error"]
    title = f"Sinusoid regression, {args.shots}-shot, {args.episodes} unseen sinusoids, 95 % intervals"
    print(f"\n{title}, mean squared error\n\n{report.table(curves, None, range(11), percent=False)}")
    report.plot_curves(curves, None, title, args.out / "curve.png", percent=False, what="mean squared error")
    print(f"\nResults and picture are in {args.out}.")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return guarded(lambda: show(args), "start again with another --out")


if __name__ == "__main__":
    sys.exit(main())
