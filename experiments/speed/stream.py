"""How fast is training from shards on disk, three times as large as its memory, next to utterances in memory?

    taskset -c 0 python experiments/speed/stream.py

Random utterances of 248 frames in 106 groups, of which a small Conformer learns jointly and by FOMAML of 2 inner steps,
4 tasks of 16 utterances an outer step. The process may take `--memory` in all (on Linux; mapped files and the system's
own copies of what was read do not count). Blocks of outer steps from memory and from the stream by turns; prints the
median rates and the median of the rounds' ratios, by the clock and by the time on the processor, which tells of both
where other work shares the cores.
"""

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import recipes, report, runs
from metajax.core import Batch
from metajax.data import stream
from metajax.losses import ctc
from metajax.models import recogniser
from metajax.parallel import replicate, task_mesh, use_all_cores
from metajax.tasks.groups import groups
from metajax.train import block_of, streamed_block_of

FRAMES, TOKENS, GROUPS, TASKS = 248, 80, 106, 4


@dataclass(frozen=True)
class Settings:
    shards: int = 4  # in memory, of 528 utterances, 21 MB each
    memory: int = 3072  # MiB that this process may take; the stream has three times as many, on disk; 0 for no limit
    rounds: int = 20  # by turns
    block: int = 20  # outer steps of a round from each


def part(number: int, size: int = 528) -> tuple[Batch, np.ndarray]:
    """A shard of utterances, and the group of each."""
    draw = np.random.default_rng(number)
    lengths: Any = draw.integers(FRAMES // 2, FRAMES + 1, size).astype(np.int32)
    tokens: Any = draw.integers(1, TOKENS, (size, 24)).astype(np.int32)
    frames: Any = draw.normal(size=(size, FRAMES, 40)).astype(np.float32)
    group = draw.integers(GROUPS, size=size)
    return Batch(mj.Utterances(frames, lengths), mj.Transcripts(tokens, lengths // 12)), group


def run(s: Settings) -> None:
    runs.check(s, shards=1, memory=0, rounds=1, block=1)
    if s.memory and sys.platform.startswith("linux"):
        import resource  # which other systems lack

        resource.setrlimit(resource.RLIMIT_DATA, (s.memory * 2**20,) * 2)
    use_all_cores()
    key, mesh, rows = jax.random.key(0), task_mesh(TASKS), []
    model, optimizer = recogniser(width=0.5, num_layers=2)(TOKENS), recipes.adamw(1e-3)
    how: dict[str, Any] = {"chunk": 1 if jax.default_backend() == "cpu" else None, "mesh": mesh}
    batch, group = jax.tree.map(lambda *a: np.concatenate(a), *map(part, range(s.shards)))
    size = sum(a.nbytes for a in jax.tree.leaves(batch)) / s.shards
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stream.write(Path(folder) / "items", map(part, range(max(s.shards, math.ceil(3 * s.memory * 2**20 / size)))))
        opened = stream.open(Path(folder) / "items", batch)
        joint, fomaml = mj.joint(model.apply, ctc), mj.fomaml(model.apply, ctc, optax.sgd(0.03), 2)
        for name, method, shots in (("joint", joint, 1), ("FOMAML", fomaml, 8)):
            sizes: dict[str, Any] = {"shots": shots, "queries": 16 - shots}
            sample, at = groups(batch.x, batch.y, group, **sizes), stream.episodes(opened, **sizes, num_tasks=TASKS)
            theta = {"params": recipes.fresh(model.init, sample, key)}
            state = replicate(mj.init_state(theta, optimizer, 10**6), mesh)
            drawn = block_of(mj.meta_step(method.objective, optimizer, sample, TASKS, **how), key)
            given = mj.outer_step(method.objective, optimizer, **how)
            both = [drawn, streamed_block_of(given, key, map(at, itertools.count()))]
            states, took = [jax.tree.map(jnp.copy, state) for _ in both], []

            def timed(place: int, run: Callable[..., Any], states: list[Any] = states) -> tuple[float, float]:
                start = time.perf_counter(), time.process_time()
                states[place], metrics = run(states[place], jnp.asarray(s.block))
                jax.block_until_ready((states[place], metrics))
                return time.perf_counter() - start[0], time.process_time() - start[1]

            for number in range(s.rounds + 1):  # the first of which compiles
                order = (0, 1) if number % 2 else (1, 0)
                took.append([seconds for _, seconds in sorted((place, timed(place, both[place])) for place in order)])
            clock, processor = np.moveaxis(np.array(took[1:]), 2, 0)
            rates = [f"{rate:.2f}" for rate in np.median(s.block / clock, 0)]
            ratios = [f"{np.median(of[:, 0] / of[:, 1]):.3f}" for of in (clock, processor)]
            rows.append([name, *rates, *ratios])
    print(report.environment()["device"])
    print(report.markdown(("", "steps/s in memory", "from the stream", "ratio", "of processor time"), rows))


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
