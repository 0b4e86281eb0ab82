"""How long until the first outer step, and how many follow per second, for each model and algorithm?

    python experiments/training_speed.py

On the embedded corpus, 5-way 1-shot, 5 queries per word, 4 tasks per outer step, 5 inner steps; sampling and
augmentation included, compilation cold. ProtoNet trains on 10 words an episode. Prints a Markdown table. About 5
minutes on 2 CPU cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
from cells import guarded
from keyword_fewshot import CORPORA, MODELS, built, load_task, names_of, sampler, train
from keyword_fewshot import parse as parse_run

from metajax import report
from metajax.data.cache import default_folder
from metajax.parallel import use_all_cores

ALGORITHMS = ("maml", "fomaml", "protonet", "joint")
OUTER_STEPS = {"tcresnet8": 31, "conv4": 6}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time outer steps.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", choices=CORPORA, default="espeak", help="what to train on")
    parser.add_argument("--root", type=Path, help="its folder")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="folder of cached features")
    return parser.parse_args(argv)


def run(given: argparse.Namespace) -> None:
    use_all_cores()
    args = argparse.Namespace(**vars(parse_run([])) | vars(given))
    task = load_task(args.corpus, args.root, args)
    classes = len(names_of(task, "train", "label"))
    rows = []
    for args.model in MODELS:
        for args.algorithm in ALGORITHMS:
            jax.clear_caches()
            args.outer_steps = OUTER_STEPS[args.model]
            made = built(args, sampler(task, "train", args, ways=args.ways), classes)
            queries = 1 if args.algorithm == "joint" else None
            sample = sampler(task, "train", args, ways=made.train_ways, queries=queries, training=True)
            with tempfile.TemporaryDirectory() as folder:
                key = jax.random.key(args.seed)
                settings = (None, key, Path(folder), args.algorithm, args.outer_steps)
                fitted = train(args, made.model, made.algorithm.learner, made.phases, sample, *settings)
            rate = (args.outer_steps - 1) / fitted.seconds
            rows.append((args.model, args.algorithm, f"{fitted.first_step_seconds:.1f}", f"{rate:.2f}"))
    header = ("model", "algorithm", "first outer step (s)", "outer steps/s")
    print(f"\n{report.environment()['device']}\n\n{report.markdown(header, rows, left=2)}")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return guarded(lambda: run(args), "nothing is kept of it")


if __name__ == "__main__":
    sys.exit(main())
