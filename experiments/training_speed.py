"""How long until the first outer step, and how many follow per second, for each model and algorithm?

    python experiments/training_speed.py

On the embedded corpus, 5-way 1-shot, 5 queries per word, 4 tasks per outer step, 5 inner steps; sampling and
augmentation included, compilation cold. ProtoNet trains on 10 words an episode. Prints a Markdown table.
"""

import sys
import tempfile
from pathlib import Path

import jax
from keyword_fewshot import MODELS, built, load_task, names_of, parse, sampler, train

from metajax import report
from metajax.parallel import use_all_cores

ALGORITHMS = ("maml", "fomaml", "protonet", "joint")
OUTER_STEPS = {"tcresnet8": 31, "conv4": 6}


def main() -> int:
    use_all_cores()
    args = parse()
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
                fitted = train(args, made.model, made.algorithm, sample, *settings)
            rate = (args.outer_steps - 1) / fitted.seconds
            rows.append(f"| {args.model} | {args.algorithm} | {fitted.first_step_seconds:.1f} | {rate:.2f} |")
    print(f"\n{report.environment()['device']}\n\n| model | algorithm | first outer step (s) | outer steps/s |")
    print("|---|---|---:|---:|\n" + "\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
