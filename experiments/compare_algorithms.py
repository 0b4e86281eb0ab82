"""Which method learns new words best for an equal budget of training time?

    python experiments/compare_algorithms.py

Trains every method of `methods.py` on one corpus for the same number of seconds (compilation and testing not counted),
with several seeds, and tests all of them on the same episodes of unseen words by unseen speakers. Each cell (method,
normalisation, shots, seed) is a file of its own under `--out`: stopped at any time, the same command goes on with the
cells that are missing. Ends with a table, `results.json` and two pictures: accuracy against adaptation step, and
against training time. All cells with the default budget take some hours on 2 CPU cores.

    python experiments/compare_algorithms.py --methods maml protonet --seeds 0 --budget 30   # a few minutes
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from keyword_fewshot import load_task, network, parse as parse_run, sampler
from methods import METHODS, build
from tqdm import tqdm

import metajax as mj
from metajax import checkpoint, report
from metajax.data.cache import default_folder
from metajax.models import NORMALIZATIONS
from metajax.parallel import hoisted, replicate, task_mesh, use_all_cores
from metajax.train import average_of, averaged

# shares of the training budget after which the methods are tested
SHARES = (0.125, 0.25, 0.5, 1.0)
BLOCK = 10  # outer steps per compiled call
TRAIN_WAYS = 10  # words per training episode of metric methods, 32 of joint ones
PRINCIPAL = (
    "maml", "fomaml", "anil", "meta_sgd", "meta_curvature", "proto_maml", "protonet", "matching", "ridge", "simpleshot",
)  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare all methods on one corpus and one budget.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--corpus", default="espeak", help="as in keyword_fewshot.py")
    parser.add_argument("--root", type=Path, help="its folder")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), help="which methods")
    parser.add_argument(
        "--normalizations", nargs="+", choices=NORMALIZATIONS, default=("transductive", "group"),
        help="the first for all methods, the others for the ten principal ones",
    )  # fmt: skip
    parser.add_argument("--shots", type=int, default=1, help="support clips per word")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="of splits, fresh parameters, episodes")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of training per cell")
    parser.add_argument("--episodes", type=int, default=1000, help="test episodes")
    parser.add_argument("--tasks", type=int, default=4, help="episodes per outer step")
    parser.add_argument("--num-steps", type=int, default=5, help="inner steps")
    parser.add_argument("--outer-rate", type=float, default=2e-3, help="outer learning rate (AdamW)")
    parser.add_argument("--augment", type=float, default=0.5, help="strength of the augmentation")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="folder of cached features")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_algorithms"), help="folder of the results")
    return parser.parse_args(argv)


def cell(args: argparse.Namespace, name: str, normalization: str, seed: int) -> dict[str, Any]:
    """Train and test one method with one normalisation and seed."""
    method = METHODS[name]
    options = parse_run(["--corpus", args.corpus, "--normalization", normalization, "--seed", str(seed)])
    for field in ("root", "shots", "tasks", "num_steps", "outer_rate", "augment", "cache", "episodes"):
        setattr(options, field, getattr(args, field))
    task = load_task(args.corpus, args.root, options)
    classes = len(np.unique(task.corpus.columns["label"][task.splits.train]))
    train_ways = {
        "gradient": options.ways, "metric": min(TRAIN_WAYS, classes), "joint": min(32, classes)
    }[method.kind]  # fmt: skip
    if name == "in_context":  # it knows as many labels as it was trained on
        train_ways = options.ways
    queries = 1 if method.kind == "joint" else options.queries
    training = sampler(task, "train", options, ways=train_ways, queries=queries, training=True)
    test = sampler(task, "test", options, ways=options.ways, queries=15)
    features = jax.eval_shape(
        lambda key: network(None, options).init_and_apply(key, training(key).support.x), jax.random.key(0)
    ).shape[-1]
    built = build(
        method, lambda outputs: network(outputs, options), features,
        ways=options.ways, train_ways=train_ways, classes=classes, num_steps=args.num_steps,
    )  # fmt: skip

    began = time.perf_counter()
    init_key, key = jax.random.split(jax.random.key(seed))
    shape = jax.eval_shape(training, key).support.x
    theta = built.algorithm.learner.init(built.model.init(init_key, jnp.zeros(shape.shape)))
    optimizer = averaged(outer_optimizer(options), 0.99)
    mesh = task_mesh(args.tasks)
    chunk = 1 if method.kind == "gradient" and jax.default_backend() == "cpu" else None
    step = mj.meta_step(built.algorithm.objective, optimizer, training, args.tasks, chunk=chunk, mesh=mesh)
    state = replicate(mj.init_state(theta, optimizer), mesh)

    @partial(hoisted, donate=(0,))
    def block(state: mj.MetaState, key: jax.Array) -> tuple[mj.MetaState, dict[str, jax.Array]]:
        return jax.lax.scan(step, state, jax.random.split(key, BLOCK))

    test_mesh = task_mesh(args.episodes)

    @hoisted
    def measure(theta: Any, key: jax.Array) -> jax.Array:
        return mj.evaluate(built.tested.learner, theta, test, key, args.episodes, built.num_steps, mesh=test_mesh)

    ...
    return {}
