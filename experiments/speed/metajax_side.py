"""metajax's side of the benchmarks: tasks over cores, outer steps in compiled blocks, episodes drawn on the device."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workloads as wl
from operations import compilers_own, flat, flops, matmul
from workloads import Side, Workload, timed

import metajax as mj
from metajax import losses, models, report
from metajax.conv import formulation, pool
from metajax.core import Apply, Sampler
from metajax.data.augment import Augmentation, augment, normalized
from metajax.models import layers
from metajax.parallel import copied, hoist, hoisted, over_tasks, replicate, run_once, task_mesh, use_all_cores
from metajax.tasks.episodes import divided, episodes, with_inputs
from metajax.tasks.probes import sinusoids


def model_of(w: Workload) -> tuple[models.Model, Apply]:
    """The network, and how it is computed; the compiler's own convolution changes the whole process."""
    model = getattr(models, w.model)({"mlp": 1, "bilstm": wl.VOCABULARY}.get(w.model, w.ways))
    if w.precision == "bfloat16":
        model = models.in_bfloat16(model)
    if w.formulation == "xla":
        layers.conv = pool.conv = compilers_own  # type: ignore[assignment]
        return model, model.apply

    def apply(params: Any, x: Any, key: Any = None) -> jax.Array:
        with formulation(w.formulation):  # type: ignore[arg-type]
            return model.apply(params, x, key)

    return model, apply


def sampler(w: Workload, seed: int = 0) -> Sampler:
    """Sinusoids, or clips of a random corpus on the device, augmented and normalised."""
    if w.model == "mlp":
        return sinusoids(w.shots, w.queries)
    clips, tokens = map(jnp.asarray, wl.corpus(w, seed))

    def prepare(x: jax.Array, key: jax.Array) -> jax.Array:
        return normalized(augment(Augmentation(**wl.AUGMENTATION))(x, key))

    if w.model != "bilstm":
        label = np.repeat(np.arange(wl.CLASSES), wl.CLIPS)
        sizes = {"ways": w.ways, "shots": w.shots, "queries": w.queries}
        return with_inputs(episodes(clips, label, np.zeros_like(label), across="none", **sizes), prepare)

    def utterances(key: jax.Array) -> mj.Episode:
        numbers = jax.random.uniform(key, (1 + wl.CLIPS,))
        which = jax.lax.top_k(numbers[1:], w.shots + w.queries)[1] + wl.CLIPS * (wl.CLASSES * numbers[0]).astype(int)
        return divided(mj.Batch(clips[which], mj.Transcripts(tokens[which], jnp.full(which.shape, wl.TOKENS))), w.shots)

    return with_inputs(utterances, prepare)


def metajax_side(w: Workload, device: str, cache: Path | None) -> Side:
    """Answers to a benchmark's requests."""
    ready, baseline = time.perf_counter(), wl.resident_mib(peak=False)
    use_all_cores(cache)
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise mj.InputError(f"JAX finds no {device.upper()}.") from error
    model, apply = model_of(w)
    error = {"mlp": losses.squared_error, "bilstm": losses.ctc}.get(w.model, losses.classify)
    inner, optimizer, key = optax.sgd(w.rate), optax.adam(wl.RATE), jax.random.key(0)
    algorithm = mj.maml(apply, error, inner, w.steps, remat=w.remat)
    sample = sampler(w)
    dtype = jnp.float64 if w.precision == "float64" else jnp.float32
    shape = jax.eval_shape(sample, key).support.x.shape
    with jax.enable_x64(False):  # the same numbers in every precision
        params = run_once(model.init, key, jnp.zeros(shape))
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    theta = algorithm.learner.init(params, key)
    mesh = task_mesh(w.tasks)

    def state_of() -> Any:
        return copied(replicate(mj.init_state(theta, optimizer, 10**6), mesh))  # its buffers are donated

    def block_on(sample: Sampler) -> Callable[..., Any]:
        step = mj.meta_step(algorithm.objective, optimizer, sample, w.tasks, chunk=w.chunk, mesh=mesh)

        def block(state: Any, count: jax.Array) -> Any:
            def body(_: jax.Array, state: Any) -> Any:
                return step(state, jax.random.fold_in(key, state.count))[0]

            return jax.lax.fori_loop(0, count, body, state)

        return block

    block = block_on(sample)
    steps = hoisted(block, donate=(0,))
    state = state_of()

    def outer(count: int) -> float:
        nonlocal state

        def run() -> None:
            nonlocal state
            state = jax.block_until_ready(steps(state, jnp.asarray(count)))

        return timed(run, 1)[0]

    def batches(side: tuple[Any, Any]) -> mj.Batch:
        x, y = jax.tree.map(jnp.asarray, side)
        y = y.astype(dtype) if w.model == "mlp" else mj.Transcripts(*y) if w.model == "bilstm" else mj.Labels(y, y)
        return mj.Batch(x.astype(dtype), y)

    def check() -> Any:
        """Parameters, mean query loss and meta-gradient on the fixed episodes."""
        run = jax.jit(jax.value_and_grad(lambda theta, one: algorithm.objective(theta, one, key)[0]))
        sides = [batches(side) for side in wl.check_episodes(w)]
        each = [run(theta, mj.Episode(*jax.tree.map(lambda a, i=i: a[i], sides))) for i in range(w.tasks)]
        loss, grads = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
        return jax.tree.map(np.asarray, params), float(loss), grads["params"]

    def trajectory(count: int) -> tuple[np.ndarray, np.ndarray]:
        """theta before and after outer steps on fixed episodes, flat; by plain descent, as Adam would make large steps
        of what rounding leaves of a gradient that is zero."""
        optimizer = optax.sgd(1e-2)
        made = [mj.Episode(*map(batches, wl.check_episodes(w, 1 + i))) for i in range(count)]
        items = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
        step = mj.outer_step(algorithm.objective, optimizer, chunk=w.chunk)
        run = jax.jit(lambda state, items: jax.lax.scan(lambda s, one: (step(s, one, key)[0], None), state, items)[0])
        after = run(mj.init_state(theta, optimizer, count), items).theta
        return flat(theta), flat(after)

    def accuracy(num_steps: int, num_tasks: int) -> np.ndarray:
        """Of each of the test tasks, words of another corpus, after meta-training."""
        # the program of `outer`, on another corpus
        after = hoisted(block_on(sampler(w)))(state_of(), jnp.asarray(num_steps)).theta
        test, chunk = sampler(w, 1), w.chunk or 50
        over = task_mesh(num_tasks)

        def curves(theta: Any) -> Any:
            found = mj.evaluate(algorithm.learner, error, theta, test, key, num_tasks, w.steps, chunk=chunk, mesh=over)
            return found["accuracy"][:, -1]

        return np.asarray(hoisted(curves)(replicate(jax.tree.map(np.asarray, after), over)))

    local = jax.device_put(theta, jax.devices()[0])
    runs: dict[Any, Any] = {}

    def learn(num_steps: int) -> Callable[..., Any]:
        return lambda theta, support: mj.adapt(algorithm.learner, theta, support, key, num_steps)[0].own

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
                return jax.lax.map(lambda one: learn(w.steps)(theta, one), supports, batch_size=w.chunk or count)

            run = jax.jit(over_tasks(serve, mesh))
            runs["users"] = run, replicate(theta, mesh), jax.device_put(supports, spread)
        run, shared, supports = runs["users"]
        return timed(lambda: jax.block_until_ready(run(shared, supports)), repeats)

    def work() -> dict[str, float]:
        """Operations of one outer step without sampling and remat, but with `conv_max_pool`'s own (Conv4: 1.5 %)."""
        plain = mj.maml(apply, error, inner, w.steps, remat="none")
        one = jax.eval_shape(sample, key)
        grad = jax.grad(lambda theta, one: plain.objective(theta, one, key)[0])
        total = flops(jax.make_jaxpr(grad)(theta, one).jaxpr, {})
        return {"flops": w.tasks * total, "parameters": sum(a.size for a in jax.tree.leaves(theta))}

    def memory() -> float:
        on_gpu = jax.devices()[0].memory_stats() or {}
        return on_gpu.get("peak_bytes_in_use", 0) / 2**20 if device == "gpu" else wl.resident_mib() - baseline

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
        "check": check, "trajectory": trajectory, "accuracy": accuracy, "outer": outer, "adapt": adapt, "users": users,
        "matmul": matmul, "work": work, "cost": cost, "begun": lambda: ready, "memory": memory,
        "settings": report.environment,
    }  # fmt: skip
