"""How long until the first outer step, and how many follow per second, for each model and algorithm?

    python experiments/speed/training_speed.py

On the embedded corpus, 5-way 1-shot, 5 queries per word, 4 tasks per outer step, 5 inner steps; sampling and
augmentation included, compilation cold. ProtoNet trains on 10 words an episode. Prints a Markdown table. About 5
minutes on 2 CPU cores.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from metajax import methods, models, recipes, report, runs
from metajax.data import words
from metajax.data.cache import default_folder
from metajax.parallel import use_all_cores

OUTER_STEPS = {"tcresnet8": 31, "conv4": 6}


@dataclass(frozen=True)
class Settings:
    corpus: str = "espeak"  # what to train on
    root: Path | None = None  # its folder
    methods: tuple[str, ...] = ("maml", "fomaml", "protonet", "joint")  # of metajax.methods
    cache: Path | None = None  # folder of cached features; None for the user's


def run(s: Settings) -> None:
    runs.known("methods", s.methods, methods.METHODS)
    use_all_cores()
    task = words.load_words(s.corpus, s.root, cache=s.cache or default_folder())
    classes, key, rows = len(words.names_of(task, "train", "label")), jax.random.key(0), []
    for name, outer_steps in OUTER_STEPS.items():
        for method in s.methods:
            row, net = methods.METHODS[method], models.network(name)  # type: ignore[arg-type]
            x = jax.ShapeDtypeStruct((5, *task.corpus.features.shape[1:]), "float32")
            built = methods.build(row, net, x, ways=5, train_ways=10, classes=classes, num_steps=5)
            queries = 1 if row.kind == "joint" else 5
            sizes: dict[str, Any] = {"ways": built.train_ways, "shots": 1, "queries": queries}
            sample = words.sampler(task, "train", augmentation=0.5, **sizes)
            theta = built.algorithm.learner.init(recipes.fresh(built.model.init, sample, key), key)
            how: dict[str, Any] = {"optimizer": recipes.adamw(), "chunk": methods.chunk_of(row), "title": method}
            with tempfile.TemporaryDirectory() as folder:
                how |= {"folder": Path(folder) / "run"}
                fit = recipes.meta_train(built.phases, theta, sample, key, outer_steps, **how)
            rate = (outer_steps - 1) / fit.seconds
            rows.append([name, method, f"{fit.first_step_seconds:.1f}", f"{rate:.2f}"])
            jax.clear_caches()
    print(report.environment()["device"])
    print(report.markdown(("model", "algorithm", "first outer step (s)", "outer steps/s"), rows, left=2))


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
