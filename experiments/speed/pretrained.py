"""How fast is low-rank adaptation of a large encoder next to PyTorch, and how much memory does MAML over it take?

    python experiments/speed/pretrained.py
    python experiments/speed/pretrained.py --memory

A random wav2vec 2.0, the same weights in both libraries, each a process of its own: Transformers' PyTorch with low-rank
matrices written by hand and, where it is installed, by peft; and metajax, which computes what lies below the first
layer that adapts once for all steps. q_proj and v_proj change by rank 8, or the CTC head alone; SGD, float32; the
losses after the steps must agree. `--memory` tells what the compiled gradient of MAML needs, from the features on: of
the three large encoders by a straight line through one and three layers. 5 minutes each on 2 CPU cores.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from peers import agree
from pretrained_torch import COMMON, HEAD_RATE, RANK, RATE, SIZES, TOKENS, answer, cases, data, median

import metajax as mj
from metajax import report, runs
from metajax.losses import ctc
from metajax.models import pretrained
from metajax.parallel import hoisted, use_all_cores

ADAPTED = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Settings:
    memory: bool = False  # the table of memory in place of times
    sizes: tuple[str, ...] = tuple(SIZES)  # of encoders in that table
    size: Literal["tiny", "small", "base"] = "base"  # of the encoder that is timed
    batch: int = 4  # utterances to adapt to, and of a query
    seconds: float = 4.0  # of each
    steps: tuple[int, ...] = (1, 5, 10)  # inner steps in the table of memory; the second is timed
    repeats: int = 5  # of which the median is told
    out: Path = Path("runs/speed_pretrained")  # folder of the results


def in_metajax(s: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and losses of metajax, by case, on PyTorch's weights."""
    use_all_cores()
    model, params, _ = pretrained.load(s["folder"], normalize=False)
    wave, tokens, factor = data(s)
    x, y = jnp.asarray(wave), mj.Transcripts(jnp.asarray(tokens), jnp.full(len(tokens), TOKENS))
    forward = jax.jit(model.apply)
    found = {"forward": (median(lambda: jax.block_until_ready(forward(params, x)), s["repeats"])[0], 0.0)}

    @cache  # a tiny one's last 2 layers are all
    def adapt(first: int, held: bool = True, beside: bool = True) -> Any:
        encode, upper = pretrained.split(model, params, first)
        used = upper if held else model
        layers = params["encoder"]["layers"]
        names = [(i, which) for i in range(first, len(layers)) for which in ADAPTED]
        patterns = [f"encoder.layers.{i}.*.{w}" for i, w in names]
        part = mj.frozen(mj.lora(RANK, *patterns, beside=beside) if names else mj.only("lm_head"), params)
        learner = mj.descent(used.apply, ctc, optax.sgd(RATE if names else HEAD_RATE), part=part, first_order=True)
        learner = mj.cached(learner, encode) if held else learner
        theta = learner.init({"lm_head": params["lm_head"]}, jax.random.key(0))
        for i, which in names:
            theta["lora"][f"encoder.layers.{i}.attention.{which}.kernel"]["a"] = factor(i, ADAPTED.index(which))

        @hoisted
        def run(theta: Any, x: Any) -> Any:
            phi, _ = mj.adapt(learner, theta, mj.Batch(x, y), jax.random.key(0), s["steps"][1])
            features = phi.features if held else x
            phi = phi.phi if held else phi
            return ctc(used.apply(part.join(theta, phi.own, phi.count), features), y)[0]

        return lambda: float(run(theta, x))

    found |= {name: median(adapt(first), s["repeats"]) for name, first in cases(s).items()}
    found |= {"all layers, held by neither": median(adapt(0, held=False), s["repeats"])}
    return found | {"all layers, kernels changed": median(adapt(0, beside=False), s["repeats"])}


def needed(
    s: dict[str, Any], layers: int, steps: int, first_order: bool = False, run: bool = False
) -> dict[str, float]:
    """MiB of the compiled gradient of MAML over LoRA: of its arguments, of its temporaries; `run`: it is run, too."""
    size = COMMON | SIZES[s["size"]] | {"num_hidden_layers": layers}
    model, key = pretrained.random(size), jax.random.key(0)
    params = jax.eval_shape(lambda key: model.init(key, ()), key)
    shape, n = jax.ShapeDtypeStruct, s["batch"]
    lengths = shape((n,), jnp.int32)
    x = mj.Utterances(shape((n, round(50 * s["seconds"]) - 1, size["hidden_size"]), jnp.float32), lengths)
    batch = mj.Batch(x, mj.Transcripts(shape((n, TOKENS), jnp.int32), lengths))

    def method(params: Any) -> mj.Algorithm:
        part = mj.frozen(mj.lora(RANK, *(f"*.{which}" for which in ADAPTED)), params)
        upper = model.above(0).apply
        return mj.maml(upper, ctc, optax.sgd(RATE), steps, part=part, first_order=first_order)

    def gradient(params: Any, theta: Any, episode: Any) -> Any:
        return jax.grad(lambda theta: method(params).objective(theta, episode, key)[0])(theta)

    theta = jax.eval_shape(lambda p: method(p).learner.init({"lm_head": p["lm_head"]}, key), params)
    arguments = params, theta, mj.Episode(batch, batch)
    compiled = jax.jit(gradient).lower(*arguments).compile()
    if run:
        jax.block_until_ready(compiled(*jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), arguments)))
    found, weights = compiled.memory_analysis(), sum(leaf.size for leaf in jax.tree.leaves(params))
    mib = {"arguments": found.argument_size_in_bytes / 2**20, "temporaries": found.temp_size_in_bytes / 2**20}
    return mib | {"millions": weights / 1e6}


def in_memory(s: dict[str, Any]) -> dict[str, Any]:
    """Of one size: `needed` for every number of steps, and first order; of large ones by a line through 1 and 3."""
    layers, (_, middle, _) = SIZES[s["size"]]["num_hidden_layers"], s["steps"]

    def line(*how: Any) -> dict[str, float]:
        if layers < 12:
            return needed(s, layers, *how)
        one, three = needed(s, 1, *how), needed(s, 3, *how)
        return {name: one[name] + (layers - 1) * (three[name] - one[name]) / 2 for name in one}

    whole = {"run": needed(s, layers, middle, run=True)} if layers <= 12 else {}
    told = {middle: whole["run"]} if layers < 12 else {}  # one program
    found = {f"{steps} steps": told.get(steps) or line(steps) for steps in s["steps"]}
    return found | {"first order": line(middle, True)} | whole


def ask(kind: str, s: dict[str, Any]) -> Any:
    """What a process of its own found, and its peak memory."""
    file = Path(__file__).with_name("pretrained_torch.py") if kind == "torch" else Path(__file__)
    done = subprocess.run([sys.executable, str(file), kind, json.dumps(s)], capture_output=True, text=True)
    if done.returncode:
        raise mj.InputError(f"The process of {kind} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def times(s: Settings) -> tuple[Any, list[str], list[list[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        given = json.loads(json.dumps(asdict(s) | {"folder": folder}, default=str))
        theirs, ours = (ask(kind, given) for kind in ("torch", "metajax"))
    rows = []
    for name, (ms, loss) in ours["found"].items():
        other, other_loss = theirs["found"].get(name, theirs["found"]["all layers"])
        agree(name, loss, {"torch": other_loss})
        rows.append([name, f"{ms:.0f}", f"{other:.0f}", f"{other / ms:.2f}"])
    for name in ("all layers, held", "all layers, by peft"):
        if name in theirs["found"]:
            (ms, loss), (other, other_loss) = ours["found"]["all layers"], theirs["found"][name]
            agree(name, loss, {"torch": other_loss})
            rows.append([f"{name}, PyTorch", f"{ms:.0f}", f"{other:.0f}", f"{other / ms:.2f}"])
    rows.append(["peak of the process (MiB)", f"{ours['peak']:.0f}", f"{theirs['peak']:.0f}", ""])
    return [ours, theirs], [f"{s.steps[1]} steps and the loss", "metajax (ms)", "PyTorch (ms)", "ratio"], rows


def memory(s: Settings) -> tuple[Any, list[str], list[list[str]]]:
    found, rows = {}, []
    for size in s.sizes:
        found[size] = ask("memory", json.loads(json.dumps(asdict(s) | {"size": size}, default=str)))
        one = found[size]["found"]
        told = [f"{one[name]['temporaries']:.0f}" for name in one if name != "run"]
        first = next(iter(one.values()))
        measured = f"{one['run']['temporaries']:.0f}, {found[size]['peak']:.0f}" if "run" in one else ""
        rows.append([size, f"{first['millions']:.1f}", f"{first['arguments']:.0f}", *told, measured])
    steps = [f"{k} inner steps" for k in s.steps]
    head = ["MiB", "million weights", "weights and data", *steps, f"{s.steps[1]}, first order", "whole, process"]
    return found, head, rows


def run(s: Settings) -> None:
    runs.check(s, batch=1, seconds=0.5, steps=1, repeats=1)
    runs.known("sizes", s.sizes, SIZES)
    runs.open_folder(s.out, runs.config(s))
    found, head, rows = memory(s) if s.memory else times(s)
    runs.save_results(s.out, {"found": found, "config": runs.config(s)})
    print(f"\n{report.environment()['device']}\n\n{report.markdown(head, rows)}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["metajax"], ["memory"]):
        answer({"metajax": in_metajax, "memory": in_memory}[sys.argv[1]])
    else:
        sys.exit(runs.main(Settings, run, __doc__))
