"""Operations: how many a program has, how many a second the device can do; the compiler's own convolution."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import timed

from metajax.conv.primitives import conv_p, kernel_grad_p
from metajax.parallel import over_tasks, replicate, task_mesh


def matmul(size: int, repeats: int, dtype: str = "float32", precision: str = "highest") -> float:
    """GFLOP/s of matrix products, one on every device at once; of random numbers, as those of ones can be faster."""
    mesh = task_mesh(jax.device_count())
    keys = jax.random.split(jax.random.key(0), 1 + mesh.size)
    draw = jax.jit(lambda key: jax.random.normal(key, (size, size)).astype(dtype))
    b = replicate(draw(keys[0]), mesh)
    spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("tasks"))
    a = jax.device_put(jnp.stack([draw(key) for key in keys[1:]]), spread)
    run = jax.jit(over_tasks(lambda b, a: jnp.matmul(a, b, precision=precision), mesh))
    jax.block_until_ready(run(b, a))

    def ten() -> None:
        jax.block_until_ready([run(b, a) for _ in range(10)])

    return 10 * mesh.size * 2 * size**3 / min(timed(ten, repeats)) / 1e9


def flops(jaxpr: Any, known: dict[Any, float]) -> float:
    """Operations of a program: every instruction's as the compiler counts them, loops times their length.

    The compiler's own count of a whole program takes a loop's body once.
    """
    from jax.extend.core import jaxprs_in_params

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


def compilers_own(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`metajax.conv.conv` as the compiler has it: a grouped convolution under per-task weights."""
    layout = {3: ("NTC", "TIO", "NTC"), 4: ("NHWC", "HWIO", "NHWC")}[x.ndim]
    return jax.lax.conv_general_dilated(x, kernel, [stride] * (x.ndim - 2), "SAME", dimension_numbers=layout)


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
