"""The four sections of `accelerator.py`."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from context import SIDE_BY_SIDE, Context, add, at_once, attempt, measured, started, within
from peers import agree
from processes import Ask, Child
from workloads import WORKLOADS, Workload, num_cores

import metajax as mj

# largest distance from float64's theta over the way of 20 outer steps; on CPU, on words of finer patterns, float32
# ended 0.010 and bfloat16 0.034 away on TC-ResNet8, as every ReLU that rounding turns moves the gradient by up to 0.002
TOLERANCE = {"float32": 0.05, "tf32": 0.1, "bfloat16": 0.2}
LOSSES = 0.01  # that the losses of both libraries may differ by, in TF32
PEERS = ("torch", "torch_graph", "torch_func", "torch_func_graph", "torch_compiled", "torch_compiled_graph")
VARIANTS = (
    "workload", "tasks", "at a time", "formulation", "precision", "ms / outer step", "tasks/s", "TFLOP/s",
    "of the peak", "MiB",
)  # fmt: skip


def peaks(context: Context, ask: Ask) -> dict[str, float]:
    """TFLOP/s of the largest products, by type."""
    found = {}
    for name in ("float32", "tf32", "bfloat16"):
        how = {"dtype": name.replace("tf", "float"), "precision": "highest" if name == "float32" else "default"}
        sizes = (256,) if context.small else (2048, 4096, 8192)
        rates = [attempt(ask, "matmul", limit=60, size=size, repeats=3, **how) for size in sizes]
        found[name] = max([rate / 1e3 for rate in rates if isinstance(rate, float)], default=float("nan"))
    return found


def begin_in_background(context: Context, wanted: Sequence[str], compiled: Sequence[str]) -> dict[Any, "Future[Any]"]:
    """What is computed on CPU: of each workload (parameters, loss, gradient), and its operations; for the checks theta
    in float64 and accuracies in float32. Then PyTorch's compiler, a workload at a time."""
    jobs: dict[Any, Callable[[], Any]] = {}

    def reference(question: str, name: str, precision: str = "float32", **arguments: Any) -> Callable[[], Any]:
        w = context.workload(name, chunk=None if name == "sinusoid" else 1, precision=precision)
        return partial(context.reference, question, w, **arguments)

    for name in context.workloads if "peers" in wanted else ():
        jobs["check", name] = reference("check", name)
    for name in {*context.workloads, "sinusoid", "tcresnet8"} if {*wanted} & {"peers", "scaling"} else ():
        jobs["work", name] = reference("work", name)
    if "checks" in wanted:
        for question, name, precision, arguments in questions(context):
            jobs.setdefault((question, name), reference(question, name, precision, **arguments))
    futures = dict(zip(jobs, at_once(jobs.values(), max(1, num_cores() // 4)), strict=True))

    def compile(name: str) -> Child:
        params = futures["check", name].result()[0]
        process = context.start("torch", context.workload(name), nice=15)
        process.ask("start", params=params)
        process.ask("outer", count=1, peer="torch_compiled", tune=False)
        return process

    names = [name for name in compiled if ("check", name) in futures]
    builds = at_once([partial(compile, name) for name in names], 1)
    return futures | {("compiled", name): build for name, build in zip(names, builds, strict=True)}


def prepare(context: Context, wanted: Sequence[str]) -> int:
    """Compute and keep what a CPU computes; 1 where something of it failed."""
    if context.references is None:
        raise mj.InputError("--prepare keeps what it computes in the folder --references, which is missing.")
    found = {key: future.result() for key, future in begin_in_background(context, wanted, ()).items()}
    for key, value in found.items():
        print(*key, value if isinstance(value, str) else "kept")
    return int(any(isinstance(value, str) for value in found.values()))


def variants(context: Context, section: str, each: Sequence[tuple[str, Workload]], background: Any) -> list[Any]:
    """A row for each variant; milliseconds of an outer step, or why there are none."""
    add(context, section, header=VARIANTS)
    found = []
    for (name, w), process in zip(each, started(context, [w for _, w in each]), strict=True):
        ms, memory = process, ""
        if not isinstance(process, str):
            ms = measured(context, {"metajax": process.ask})["metajax"]
            memory = attempt(process.ask, "memory", limit=10)
            process.stop()
        rate = 1e3 * w.tasks / ms if isinstance(ms, float) else ""
        work = ("work", name) in background and background["work", name].done() and background["work", name].result()
        done = rate * work["flops"] / context.workload(name).tasks / 1e12 if rate and isinstance(work, dict) else ""
        share = done / context.report["peak"][w.precision] if done else ""
        shown = (name, w.tasks, w.chunk or w.tasks, w.formulation, w.precision, ms, rate, done, share, memory)
        add(context, section, *shown)
        found.append(ms)
    return found


def formulations(context: Context, background: Any) -> None:
    """Outer steps by formulation, of few tasks and of many, and by the number of tasks at a time."""
    many = 4 if context.small else 64
    each = [(name, {"formulation": way}) for way in ("products", "xla") for name in ("tcresnet8", "conv4")]
    each += [("tcresnet8", {"formulation": "products", "tasks": many, "chunk": n}) for n in (many, many // 4)]
    each += [("tcresnet8", {"formulation": "xla", "tasks": many, "chunk": many})]
    each += [("tcresnet8", {"formulation": "direct"})]
    made = [(name, context.workload(name, **how)) for name, how in (each[::6] if context.small else each)]
    best: dict[str, tuple[float, Workload]] = {}
    for (name, w), ms in zip(made, variants(context, "formulations", made, background), strict=True):
        if isinstance(ms, float):
            kind = f"{name} {w.tasks}"
            best[kind] = min(best.get(kind, (ms, w)), (ms, w), key=lambda pair: pair[0])
    for name, (_, w) in best.items():
        add(context, "formulations", f"{name} tasks: {w.formulation}, {w.chunk or w.tasks} at a time")
    context.report["best"] = {name: [w.formulation, w.chunk or w.tasks] for name, (_, w) in best.items()}


def peers(context: Context, background: Any) -> None:
    """Outer steps per second next to PyTorch."""
    names = [peer for peer in PEERS if not (context.small and peer.endswith("_graph"))]
    shown = [name.removeprefix("torch_").replace("torch", "loop").replace("_", ", ") for name in names]
    header = ("workload", "metajax steps/s", *shown, "times the fastest", "of the peak", "MiB", "PyTorch's", "losses")
    add(context, "peers", header=header)
    best = context.report.get("best", {})
    kin = {"crnn": "conv4", "ctc": "tcresnet8"}
    ways = [best.get(f"{kin.get(name, name)} {WORKLOADS[name].tasks}", ["auto"])[0] for name in context.workloads]
    made = [context.workload(n, formulation=way) for n, way in zip(context.workloads, ways, strict=True)]
    for i, (name, w, ours) in enumerate(zip(context.workloads, made, started(context, made), strict=True)):
        turn = within(context, 1 / (len(made) - i))
        reference = attempt(background["check", name].result, timeout=turn.left())
        if failed := next((found for found in (ours, reference) if isinstance(found, str)), None):
            add(context, "peers", name, failed, *[""] * (len(header) - 2))
            continue
        theirs = context.start("torch", w, keep=True)
        checked = attempt(theirs.ask, "check", params=reference[0], peer="torch", limit=turn.left())
        losses = {"torch": checked if isinstance(checked, str) else checked[1]}
        asks = {"metajax": ours.ask} | {peer: theirs.ask for peer in names if "compiled" not in peer}
        compiled = background.get(("compiled", name))
        if compiled is not None and compiled.done() and not isinstance(compiled.result(), str):
            asks |= {peer: compiled.result().ask for peer in names if "compiled" in peer}
        ms = measured(turn, asks)
        memory = [attempt(process.ask, "memory", limit=10) for process in (ours, theirs)]
        known = {peer: value for peer, value in ms.items() if isinstance(value, float)}
        ratio = min((v for p, v in known.items() if p != "metajax"), default=np.nan) / known.get("metajax", np.nan)
        if isinstance(differ := attempt(agree, name, reference[1], losses, LOSSES), str):
            ratio = differ
        work = attempt(background["work", name].result, timeout=turn.left())
        rate = work["flops"] / known["metajax"] / 1e9 if isinstance(work, dict) and "metajax" in known else np.nan
        steps = [1e3 / ms[p] if p in known else ms.get(p, "(not compiled)") for p in ("metajax", *names)]
        told = f"{reference[1]:.4g}, {losses['torch']:.4g}" if isinstance(losses["torch"], float) else losses["torch"]
        add(context, "peers", name, *steps, ratio, rate / context.report["peak"]["tf32"], *memory, told)
        for process in (ours, theirs):
            process.stop()


def questions(context: Context) -> list[tuple[str, str, str, dict[str, Any]]]:
    """What the checks ask, each first in the precision of the truth."""
    walk = {"count": 5 if context.small else 20}
    learn = {"num_steps": 10, "num_tasks": 20} if context.small else {"num_steps": 500, "num_tasks": 400}
    names = ("sinusoid",) if context.small else ("tcresnet8", "sinusoid")  # first what takes longest to compile
    walks = [("trajectory", name, precision, walk) for name in names for precision in ("float64", *TOLERANCE)]
    learns = [("accuracy", "tcresnet8", precision, learn) for precision in ("float32", *TOLERANCE)]
    return walks + (learns[2:] if context.small else learns)


def checks(context: Context, background: Any) -> None:
    """theta after 20 outer steps against float64, accuracy after 500 against float32, both on CPU."""
    asked = [one for i, one in enumerate(questions(context)) if one[:2] in [q[:2] for q in questions(context)[:i]]]
    jobs = [
        partial(context.answer, question, context.workload(name, precision=precision), **arguments)
        for question, name, precision, arguments in asked
    ]
    add(context, "checks", header=("check", "workload", "precision", "found", "expected", "verdict"))
    for (question, name, precision, _), future in zip(asked, at_once(jobs, SIDE_BY_SIDE), strict=True):
        truth, ours = attempt(background[question, name].result, timeout=context.left()), future.result()
        if failed := next((found for found in (truth, ours) if isinstance(found, str)), None):
            add(context, "checks", question, name, precision, failed, "", "")
        elif question == "trajectory":
            distance, way = (float(np.linalg.norm(end - truth[1])) for end in (ours[1], truth[0]))
            told = f"{distance / way:.1e} of the way, {distance / np.linalg.norm(truth[1]):.1e} of theta"
            verdict = "ok" if distance <= TOLERANCE[precision] * way else "FAILED"
            add(context, "checks", "theta", name, precision, told, f"<= {TOLERANCE[precision]}", verdict)
        else:
            mean, ci, wanted, its = (float(a[0]) for scores in (ours, truth) for a in mj.mean_ci95(scores[:, None]))
            # at chance all agree, whatever is wrong
            learned = context.small or wanted - its > 1 / context.workload(name).ways
            verdict = "ok" if learned and abs(mean - wanted) <= np.hypot(ci, its) else "FAILED"
            told = [f"{100 * m:.1f} ± {100 * c:.1f} %" for m, c in ((mean, ci), (wanted, its))]
            add(context, "checks", question, name, precision, *told, verdict)


def scaling(context: Context, background: Any) -> None:
    """Tasks per second against tasks per outer step."""
    sizes = (4, 8) if context.small else (8, 64, 512, 4096)
    way, chunk = context.report.get("best", {}).get(f"tcresnet8 {4 if context.small else 64}", ("auto", 64))
    each = [("tcresnet8", {"tasks": n, "chunk": min(n, chunk), "formulation": way}) for n in sizes]
    if not context.small:
        each += [("tcresnet8", {"tasks": 512, "chunk": chunk, "formulation": way, "precision": "bfloat16"})]
    each = [("sinusoid", {"tasks": n}) for n in sizes] + each
    variants(context, "scaling", [(name, context.workload(name, **how)) for name, how in each], background)
