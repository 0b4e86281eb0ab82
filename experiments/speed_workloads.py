"""The workloads of `adaptation_speed.py`, metajax's side of them, and the child process that serves a side.

A workload is numbers; both sides make the same network, corpus, augmentation and MAML of it. `python speed_workloads.py
SIDE` answers pickled requests on standard input, so that threads and memory of one library never meet the other's.
"""

import contextlib
import importlib
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BEGAN = time.perf_counter()
RATE = 1e-3  # of the outer Adam, on both sides
CLASSES, CLIPS = 20, 30  # of the corpus: words and recordings of each; for CTC speakers and their utterances
VOCABULARY, TOKENS = 32, 12  # of the transcripts
# metajax's default augmentation without its two resamplings
AUGMENTATION = {
    "warp": 0.0, "stretch": 0.0, "shift": 10, "gain": 6.0, "noise": 0.8, "noise_low": 5.0, "noise_high": 30.0,
    "time_mask": 12, "frequency_mask": 5,
}  # fmt: skip
# what `use_all_cores` tells glibc's allocator
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}


class Workload(NamedTuple):
    """Second-order MAML on one network; support and query are `ways * shots` and `ways * queries` examples."""

    model: str
    time: int = 98  # frames of 40 mel bands; not for the perceptron
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 4
    steps: int = 5
    rate: float = 0.01  # inner
    chunk: int | None = 1  # tasks at a time on each device, metajax on CPU
    remat: str = "step"
    convolution: str = "auto"  # metajax's formulation
    precision: str = "float32"  # of metajax's layers


WORKLOADS = {
    "sinusoid": Workload("mlp", ways=1, shots=10, queries=10, tasks=25, chunk=None, remat="none"),
    "tcresnet8": Workload("tcresnet8"),
    "conv4": Workload("conv4", time=64),
    "crnn": Workload("crnn", time=64),
    "ctc": Workload("bilstm", time=200, ways=1, shots=5, queries=5, steps=3),
}


def corpus(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Random log-mels `[CLASSES * CLIPS, time, 40]`, class by class, and transcripts `[CLASSES * CLIPS, TOKENS]`."""
    generator = np.random.default_rng(0)
    pattern = np.repeat(generator.standard_normal((CLASSES, w.time, 40), np.float32), CLIPS, 0)
    clips = pattern + generator.standard_normal(pattern.shape, np.float32)
    return clips, generator.integers(1, VOCABULARY, (len(clips), TOKENS))


def check_episodes(w: Workload) -> tuple[Any, Any]:
    """Fixed episodes to compare losses on: (x, y) of support and query, each with a leading axis of tasks."""
    generator = np.random.default_rng(1)
    sides = []
    for count in (w.shots, w.queries):
        shape = (w.tasks, w.ways * count)
        if w.model == "mlp":
            x = generator.uniform(-5, 5, (*shape, 1)).astype(np.float32)
            sides.append((x, np.sin(x)))
        else:
            x = generator.standard_normal((*shape, w.time, 40), np.float32)
            tokens = generator.integers(1, VOCABULARY, (*shape, TOKENS))
            label = np.broadcast_to(np.repeat(np.arange(w.ways), count), shape)
            sides.append((x, (tokens, np.full(shape, TOKENS)) if w.model == "bilstm" else label))
    return sides[0], sides[1]


def resident_mib(peak: bool = True) -> float:
    """Memory of this process, its peak or what it has now; `ru_maxrss` would start at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(f: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return times


Side = dict[str, Callable[..., Any]]  # what a child answers to
Ask = Callable[..., Any]  # (name, **arguments) -> its answer


def metajax_side(w: Workload, device: str, cache: Path | None) -> Side:
    """The library at its best: tasks over cores, outer steps in compiled blocks, episodes drawn on the device."""
    import jax
    import jax.numpy as jnp
    import optax

    import metajax as mj
    from metajax import losses, models, report
    from metajax.ctc import Transcripts, ctc
    from metajax.data.augment import Augmentation, augment, normalize
    from metajax.parallel import copied, hoist, hoisted, over_tasks, replicate, task_mesh, use_all_cores
    from metajax.tasks.episodes import divided, episodes, with_inputs
    from metajax.tasks.probes import sinusoids

    ready, baseline = time.perf_counter(), resident_mib(peak=False)
    use_all_cores(cache)
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise mj.InputError(f"JAX finds no {device.upper()}.") from error
    chunk = w.chunk if device == "cpu" else None
    speech = w.model == "bilstm"
    outputs = {"mlp": 1, "bilstm": VOCABULARY}.get(w.model, w.ways)
    options = {} if w.model == "mlp" else {"convolution": w.convolution}
    model = getattr(models, w.model)(outputs, **options)
    if w.precision == "bfloat16":
        model = models.in_bfloat16(model)
    make = {"mlp": losses.squared_error, "bilstm": ctc}.get(w.model, losses.cross_entropy)
    inner, optimizer, key = optax.sgd(w.rate), optax.adam(RATE), jax.random.key(0)
    algorithm = mj.maml(make(model.apply), inner, w.steps, remat=w.remat)

    def prepare(x: jax.Array, key: jax.Array) -> jax.Array:
        return jax.vmap(lambda clip: normalize(clip, "mean_variance"))(augment(Augmentation(**AUGMENTATION))(x, key))

    def sampler() -> mj.core.Sampler:
        if w.model == "mlp":
            return sinusoids(w.shots, w.queries)
        clips, tokens = map(jnp.asarray, corpus(w))
        if not speech:
            label = np.repeat(np.arange(CLASSES), CLIPS)
            sizes = {"ways": w.ways, "shots": w.shots, "queries": w.queries}
            return with_inputs(episodes(clips, label, np.zeros_like(label), across="none", **sizes), prepare)

        def utterances(key: jax.Array) -> mj.Episode:
            numbers = jax.random.uniform(key, (1 + CLIPS,))
            which = jax.lax.top_k(numbers[1:], w.shots + w.queries)[1] + CLIPS * (CLASSES * numbers[0]).astype(int)
            return divided(mj.Batch(clips[which], Transcripts(tokens[which], jnp.full(which.shape, TOKENS))), w.shots)

        return with_inputs(utterances, prepare)

    sample = sampler()
    theta = jax.jit(model.init)(key, jnp.zeros(jax.eval_shape(sample, key).support.x.shape))
    mesh = task_mesh(w.tasks)
    outer_step = mj.meta_step(algorithm.objective, optimizer, sample, w.tasks, chunk=chunk, mesh=mesh)
    state = copied(replicate(mj.init_state(theta, optimizer), mesh))  # its buffers are donated

    def block(state: Any, count: jax.Array) -> Any:
        def body(_: jax.Array, state: Any) -> Any:
            return outer_step(state, jax.random.fold_in(key, state.count))[0]

        return jax.lax.fori_loop(0, count, body, state)

    steps = hoisted(block, donate=(0,))

    def outer(count: int) -> float:
        nonlocal state

        def run() -> None:
            nonlocal state
            state = jax.block_until_ready(steps(state, jnp.asarray(count)))

        return timed(run, 1)[0]

    def batches(side: tuple[Any, Any]) -> mj.Batch:
        x, y = jax.tree.map(jnp.asarray, side)
        return mj.Batch(x, y if w.model == "mlp" else Transcripts(*y) if speech else mj.Labels(y, y))

    def check() -> Any:
        """Parameters, mean query loss and meta-gradient on the fixed episodes."""
        run = jax.jit(jax.value_and_grad(lambda theta, one: algorithm.objective(theta, one, key)[0]))
        sides = [batches(side) for side in check_episodes(w)]
        each = [run(theta, mj.Episode(*jax.tree.map(lambda a, i=i: a[i], sides))) for i in range(w.tasks)]
        loss, grads = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
        return jax.tree.map(np.asarray, theta), float(loss), grads

    local = jax.device_put(theta, jax.devices()[0])
    runs: dict[Any, Any] = {}

    def learn(num_steps: int) -> Callable[..., Any]:
        return lambda theta, support: mj.adapt(algorithm.learner, theta, support, key, num_steps)[0].params

    def adapt(num_steps: int, repeats: int) -> list[float]:
        """Seconds of single adaptations, one after the other."""
        if num_steps not in runs:
            support = jax.device_put(hoisted(sample)(key).support, jax.devices()[0])
            runs[num_steps] = jax.jit(learn(num_steps)), support
        run, support = runs[num_steps]
        return timed(lambda: jax.block_until_ready(run(local, support)), repeats)

    def users(count: int, repeats: int) -> list[float]:
        """Seconds until `count` users, who arrive at once, are all served."""
        if "users" not in runs:
            mesh = task_mesh(count)
            keys = jax.random.split(key, count)
            supports = hoisted(jax.vmap(lambda key: sample(key).support))(keys)
            spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("tasks"))

            def serve(theta: Any, supports: Any) -> Any:
                return jax.lax.map(lambda one: learn(w.steps)(theta, one), supports, batch_size=chunk or count)

            run = jax.jit(over_tasks(serve, mesh))
            runs["users"] = run, replicate(theta, mesh), jax.device_put(supports, spread)
        run, shared, supports = runs["users"]
        return timed(lambda: jax.block_until_ready(run(shared, supports)), repeats)

    def matmul(size: int, repeats: int) -> float:
        """GFLOP/s of float32 matrix products, one on every device at once."""
        if "matmul" not in runs:
            mesh = task_mesh(jax.device_count())
            a = jax.device_put(
                jnp.ones((mesh.size, size, size)), jax.NamedSharding(mesh, jax.sharding.PartitionSpec("tasks"))
            )
            runs["matmul"] = jax.jit(over_tasks(lambda b, a: a @ b, mesh)), replicate(a[0], mesh), a
        run, b, a = runs["matmul"]
        return len(a) * 2 * size**3 / min(timed(lambda: jax.block_until_ready(run(b, a)), repeats)) / 1e9

    def work() -> dict[str, float]:
        """Operations of one outer step without sampling and remat, but with `conv_max_pool`'s own (Conv4: 1.5 %)."""
        plain = mj.maml(make(model.apply), inner, w.steps, remat="none")
        one = jax.eval_shape(sample, key)
        grad = jax.grad(lambda theta, one: plain.objective(theta, one, key)[0])
        total = flops(jax.make_jaxpr(grad)(theta, one).jaxpr, {})
        return {"flops": w.tasks * total, "parameters": sum(a.size for a in jax.tree.leaves(theta))}

    def memory() -> float:
        on_gpu = jax.devices()[0].memory_stats() or {}
        return on_gpu.get("peak_bytes_in_use", 0) / 2**20 if device == "gpu" else resident_mib() - baseline

    def cost(repeats: int) -> dict[str, float]:
        """Time, temporaries and compilation of one outer step."""
        began = time.perf_counter()
        consts, opened, _ = hoist(block, state, jnp.asarray(1))
        consts = jax.device_put(consts, jax.tree.leaves(state)[0].sharding)  # once, not in every call
        compiled = jax.jit(opened, donate_argnums=1).lower(consts, state, jnp.asarray(1)).compile()
        seconds = time.perf_counter() - began
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        states = [copied(state)]

        def run() -> None:
            states[0] = jax.block_until_ready(compiled(consts, states[0], jnp.asarray(1)))

        each = timed(run, repeats + 1)[1:]
        return {"outer_ms": 1e3 * float(np.median(each)), "memory_mib": memory, "compile_seconds": seconds}

    return {
        "check": check, "outer": outer, "adapt": adapt, "users": users, "matmul": matmul, "work": work, "cost": cost,
        "begun": lambda: ready, "memory": memory,
        "settings": lambda: report.environment() | {
            "chunk": chunk, "remat": w.remat, "convolution": w.convolution, "mesh": mesh.size,
            "outer steps": "one compiled block",
        },
    }  # fmt: skip


def flops(jaxpr: Any, known: dict[Any, float]) -> float:
    """Operations of a program: every instruction's as the compiler counts them, loops times their length.

    The compiler's own count of a whole program takes a loop's body once.
    """
    import jax
    from jax.extend.core import jaxprs_in_params

    from metajax.models.conv import conv_p, kernel_grad_p

    total = 0.0
    for eqn in jaxpr.eqns:
        if inside := list(jaxprs_in_params(eqn.params)):
            each = [flops(sub, known) for sub in inside]
            total += max(each) if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(each)
            continue
        shapes = [v.aval for v in eqn.invars]
        name = f"{eqn.primitive} {shapes} {eqn.params}"
        if eqn.primitive in (conv_p, kernel_grad_p):  # on CPU a loop, of which the compiler counts one turn
            kernel, maps = shapes[1], eqn.outvars[0].aval
            if eqn.primitive is kernel_grad_p:
                kernel, maps = maps, kernel
            known[name] = 2.0 * maps.size * math.prod(kernel.shape[1:-1])
        elif name not in known:
            bind = jax.jit(lambda *args, eqn=eqn: eqn.primitive.bind(*args, **eqn.params))
            known[name] = (bind.lower(*shapes).cost_analysis() or {}).get("flops", 0.0)
        total += known[name]
    return total


@contextlib.contextmanager
def child(
    side: str, workload: Workload, device: str, cache: Path | None = None, *, keep: bool = False
) -> Iterator[Ask]:
    """A process of one library, which sleeps until it is asked; an `InputError` with its reason where it fails.

    `keep`: freed memory stays with the process, as `use_all_cores` has it.
    """
    from metajax.errors import InputError  # not at the top: PyTorch's process is to be free of JAX

    platform = {"cpu": "cpu", "gpu": "cuda"}[device]
    environment = os.environ | {"JAX_PLATFORMS": platform, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    environment |= MALLOC if keep else {}
    process = subprocess.Popen(
        [sys.executable, __file__, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin and process.stdout

    def ask(name: str, **arguments: Any) -> Any:
        try:
            pickle.dump((name, arguments), process.stdin)
            process.stdin.flush()
            kind, value = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise InputError(f"The {side} process ended with exit code {process.wait()} during {name!r}.") from error
        if kind == "error":
            raise InputError(f"The {side} process failed during {name!r}: {value}")
        return value

    try:
        ask("make", w=workload, device=device, cache=cache)
        yield ask
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()


def first(side: Side, **arguments: Any) -> dict[str, float]:
    """A fresh process's time to its first outer step, and its peak memory after three."""
    side["outer"](1, **arguments)
    seconds = time.perf_counter() - side["begun"]()
    side["outer"](2, **arguments)
    return {"import_s": side["begun"]() - BEGAN, "first_step_s": seconds, "memory_mib": side["memory"]()}


def main() -> None:
    """Answer requests `(name, arguments)` with `("result", value)` or `("error", sentence)` until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between
    side: Side = {}
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            value = None
            if name == "make":
                make = metajax_side if sys.argv[1] == "metajax" else importlib.import_module("torch_speed").torch_side
                side = make(**arguments)
            else:
                value = first(side, **arguments) if name == "first" else side[name](**arguments)
            answer = ("result", value)
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    main()
