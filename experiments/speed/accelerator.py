"""Is metajax right on this machine's accelerator, and how fast is it, next to PyTorch doing the same mathematics?

    PYTHONPATH=. python experiments/speed/accelerator.py --out runs/accelerator
    PYTHONPATH=. python experiments/speed/accelerator.py --small        # everything at tiny sizes, on CPU
    PYTHONPATH=. python experiments/speed/accelerator.py --prepare --references DIR --minutes 60     # before, elsewhere

Second-order MAML, Adam outside, on the workloads of `workloads.py`, in four sections, each with its share of the time:

- checks: theta after 20 outer steps on fixed episodes in float32, TF32 and bfloat16 against float64 on CPU, and the
  accuracy on words of another corpus after 500 outer steps against float32 on CPU;
- formulations: which way to compute a convolution, and how many tasks at a time, is fastest;
- peers: outer steps per second next to PyTorch: a loop over tasks, `torch.func`, that compiled, each also as one CUDA
  graph;
- scaling: tasks per second, memory and the share of the peak against tasks per outer step.

Every variant is a process of its own; those of a section compile side by side, and are timed one after the other. What
is computed on CPU, and PyTorch's compiler, run in the background and stand back; without `--references`, prepared
before, the checks come too early for most of it. A variant that fails or is not compiled in time has its reason in the
table. `accelerator.json` and `accelerator.md` are written after every row.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import accelerator_sections as sections
from context import Context, add, within
from workloads import WORKLOADS

SHARES = {"checks": 0.32, "formulations": 0.26, "peers": 0.24, "scaling": 0.18}  # of the time


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; by argparse, as a bare GPU machine has no tyro."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--out", type=Path, default=Path("runs/accelerator"), help="folder of the results")
    flag("--small", action="store_true", help="tiny sizes, on CPU")
    flag("--minutes", type=float, default=8.0, help="time for all sections; what is not done by then is left out")
    flag("--section", choices=tuple(SHARES), nargs="+", default=list(SHARES), help="what to run")
    flag("--workload", choices=tuple(WORKLOADS), nargs="+", default=list(WORKLOADS), help="next to PyTorch")
    flag("--compile", choices=tuple(WORKLOADS), nargs="*", default=["sinusoid"], help="of which by torch.compile too")
    flag(
        "--references",
        type=Path,
        help="folder of what the CPU computes: used where it is there, else kept there; empty it when the code changes",
    )
    flag("--prepare", action="store_true", help="compute those references alone, without an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the sections; 0, or 1 where a check failed."""
    args, began = parse(argv), time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.small:  # compiled in a third of the time
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    report: dict[str, Any] = {"command": " ".join(sys.argv[1:]), "date": time.strftime("%F"), "sections": {}}
    cache = Path(tempfile.mkdtemp())
    deadline = began + 60 * args.minutes
    context = Context(args.out, report, args.small, cache, deadline, args.workload, [], args.references)
    try:
        if args.prepare:
            return sections.prepare(context, args.section)
        first = context.start("metajax", context.workload("sinusoid"))
        report |= first.ask("settings", limit=120)
        report["peak"] = sections.peaks(context, first.ask)
        first.stop()
        print(f"{report['device']}, {report['versions']}, matmul peaks in TFLOP/s {report['peak']}", flush=True)
        background = sections.begin_in_background(context, args.section, args.compile)
        left = {name: share for name, share in SHARES.items() if name in args.section}
        for name in list(left):
            limited, start = within(context, left[name] / sum(left.values())), time.monotonic()
            del left[name]
            try:
                getattr(sections, name)(limited, background)
            except Exception as error:  # a section's failure is no other's
                add(limited, name, f"stopped: {type(error).__name__}: {error}")
            add(limited, name, f"{time.monotonic() - start:.0f} s")
    finally:
        for process in context.processes:
            process.stop()
        shutil.rmtree(cache, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s in all; {args.out / 'accelerator.md'}")
    return int(any("FAILED" in row for section in report["sections"].values() for row in section["rows"]))


if __name__ == "__main__":
    sys.exit(main())
