"""Weightings of a joint multi-task loss: from losses L_i and gradients g_i of the shared parameters to one update.

Every weighting answers with weights w, for the direction d = sum_i w_i g_i, and sees the gradients through their Gram
matrix G_ij = <g_i, g_j> alone. An absent task gets the weight 0 and takes no part.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from metajax.core import KeyArray
from metajax.errors import InputError
from metajax.losses.solvers import bargain, cosines, interior_point, stand_ins

State: TypeAlias = PyTree
Losses: TypeAlias = Float[Array, " tasks"]
Present: TypeAlias = Bool[Array, " tasks"]
Gram: TypeAlias = Float[Array, "tasks tasks"]
Weigh: TypeAlias = Callable[..., tuple[Losses, State]]
Solve: TypeAlias = Callable[[Gram, Present, KeyArray], Losses]


class Weighting(NamedTuple):
    """How the tasks of a joint loss are weighed."""

    init: Callable[[int], State]  # number of tasks to what is kept from step to step, () for nothing
    weigh: Weigh  # (state, losses, present, gram, key) -> (weights, state)
    by_gradient: bool  # whether `weigh` reads the Gram matrix; otherwise it gets None
    heads: bool  # whether what is not shared descends sum_i w_i L_i, or else the plain sum


def equal() -> Weighting:
    """The plain sum: w_i = 1."""

    def weigh(state: State, losses: Losses, present: Present, gram: None, key: KeyArray) -> tuple[Losses, State]:
        return present.astype(losses.dtype), state

    return Weighting(lambda tasks: (), weigh, by_gradient=False, heads=True)


def fixed(weights: Sequence[float]) -> Weighting:
    """Weights that stay: w_i = weights[i], in the order of the losses.

    Raises:
      InputError: a weight is negative or not finite; at `init`, there are more or fewer weights than tasks.
    """
    values = tuple(float(weight) for weight in weights)
    for i, value in enumerate(values):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"weights[{i}] is {value}, expected a finite number, 0 or more.")

    def init(tasks: int) -> State:
        counted(len(values), tasks)
        return ()

    def weigh(state: State, losses: Losses, present: Present, gram: None, key: KeyArray) -> tuple[Losses, State]:
        counted(len(values), len(losses))
        return jnp.where(present, jnp.asarray(values, losses.dtype), 0), state

    return Weighting(init, weigh, by_gradient=False, heads=True)


def uncertainty(optimizer: optax.GradientTransformation | None = None) -> Weighting:
    """Homoscedastic uncertainty: w_i = exp(-s_i), where s descends sum_i exp(-s_i) L_i + s_i.

    s_i is the log of the task's noise variance; it starts at 0, and for a loss that stays it ends at log L_i, so that
    every w_i L_i is 1. (Twice the paper's Gaussian form; in its form for classes, exp(-s_i) L_i + s_i / 2, it ends at
    log 2 L_i.)

    Args:
      optimizer: of s; Adam at 1e-3 by default.

    Reference: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018.
    """
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer

    def init(tasks: int) -> State:
        s = jnp.zeros(tasks)
        return s, optimizer.init(s)

    def weigh(state: State, losses: Losses, present: Present, gram: None, key: KeyArray) -> tuple[Losses, State]:
        s, opt_state = state
        counted(len(s), len(losses))
        weights = jnp.where(present, jnp.exp(-s), 0).astype(losses.dtype)
        slope = jnp.where(present, 1 - weights * losses, 0).astype(s.dtype)
        updates, opt_state = optimizer.update(slope, opt_state, s)
        return weights, (jnp.where(present, s + updates, s), opt_state)

    return Weighting(init, weigh, by_gradient=False, heads=True)


def gradnorm(alpha: float = 1.5, optimizer: optax.GradientTransformation | None = None) -> Weighting:
    """GradNorm: weights under which the tasks' gradients are of like size, larger for tasks that lag behind.

    w descends sum_i |w_i |g_i| - c_i|, where c_i = mean_j (w_j |g_j|) r_i^alpha counts as a constant and
    r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)). The weights of all tasks, absent ones included, sum to their number
    and stay positive: w = tasks softmax(v), and v is what the optimiser steps. The paper takes |g_i| at the last shared
    layer and renormalises w itself.

    Args:
      alpha: pull towards equal rates of training; 0 makes the sizes w_i |g_i| equal.
      optimizer: of v; Adam at 0.025, the paper's rate, by default.

    Reference: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks",
    ICML 2018.
    """
    optimizer = optax.adam(0.025) if optimizer is None else optimizer

    def init(tasks: int) -> State:
        v = jnp.zeros(tasks)
        return v, jnp.zeros(tasks), optimizer.init(v)  # first losses; 0 for a task not met yet

    def weigh(state: State, losses: Losses, present: Present, gram: Gram, key: KeyArray) -> tuple[Losses, State]:
        v, first, opt_state = state
        counted(len(v), len(losses))
        first = jnp.where(present & (first == 0), losses.astype(first.dtype), first)
        norms = jnp.sqrt(jnp.diagonal(gram)).astype(v.dtype)
        ratio = jnp.where(first > 0, losses / jnp.where(first > 0, first, 1), 1).astype(v.dtype)
        average = ratio.mean(where=present)
        rate = jnp.where(average > 0, ratio / jnp.where(average > 0, average, 1), 1)

        def imbalance(v: Array) -> Array:
            sizes = len(v) * jax.nn.softmax(v) * norms
            goal = jax.lax.stop_gradient(sizes.mean(where=present) * rate**alpha)
            return jnp.abs(sizes - goal).sum(where=present)

        weights = len(v) * jax.nn.softmax(v)
        updates, opt_state = optimizer.update(jax.grad(imbalance)(v), opt_state, v)
        v = jnp.where(present.any(), v + updates, v)
        return jnp.where(present, weights, 0).astype(losses.dtype), (v, first, opt_state)

    return Weighting(init, weigh, by_gradient=True, heads=True)


def by_gram(solve: Solve) -> Weighting:
    """The weighting without a state with the weights `solve(gram, present, key)`; absent tasks' gradients are 0."""

    def weigh(state: State, losses: Losses, present: Present, gram: Gram, key: KeyArray) -> tuple[Losses, State]:
        with jax.default_matmul_precision("highest"):
            weights = solve(jnp.where(present[:, None] & present, gram, 0), present, key)
        return jnp.where(present, weights, 0).astype(losses.dtype), state

    return Weighting(lambda tasks: (), weigh, by_gradient=True, heads=False)


def pcgrad() -> Weighting:
    """PCGrad: each task's gradient loses what conflicts with another's, then all are added.

    g_i' = g_i, and for every other task j, where <g_i', g_j> < 0: g_i' <- g_i' - <g_i', g_j> / |g_j|^2 g_j;
    d = sum_i g_i'. The others come in an order drawn anew for each task and step.

    Reference: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020.
    """

    def solve(g: Gram, present: Present, key: KeyArray) -> Losses:
        tasks = len(g)

        def project(i: Array, key: KeyArray) -> Array:
            def surgery(a: Array, j: Array) -> tuple[Array, None]:
                inner = a @ g[:, j]
                conflict = (inner < 0) & (j != i)
                return a.at[j].add(jnp.where(conflict, -inner / jnp.where(conflict, g[j, j], 1), 0)), None

            order = jax.random.permutation(key, tasks)
            return jax.lax.scan(surgery, jax.nn.one_hot(i, tasks, dtype=g.dtype), order)[0]

        rows = jax.vmap(project)(jnp.arange(tasks), jax.random.split(key, tasks))
        return jnp.where(present[:, None], rows, 0).sum(0)

    return by_gram(solve)


def mgda() -> Weighting:
    """MGDA: the shortest d in the convex hull of the gradients: min_w |sum_i w_i g_i|^2, w >= 0, sum_i w_i = 1.

    <d, g_i> >= |d|^2 for every task; d is 0, up to the root of a rounding, where no direction serves all tasks. So a
    task whose gradient is 0 takes all the weight.

    Reference: Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018; Désidéri, 2012.
    """

    def solve(g: Gram, present: Present, key: KeyArray) -> Losses:
        still, order = present & (jnp.diagonal(g) == 0), stand_ins(present)
        cos, norms = cosines(g[order][:, order])
        # the problem in u_i = w_i |g_i|, all of like size whatever the sizes of the gradients
        w = interior_point(lambda u: u @ cos @ u / 2, norms.min() / norms) / norms
        return jnp.where(still.any(), still / still.sum(), jnp.zeros_like(w).at[order].add(w / w.sum()))

    return by_gram(solve)


def cagrad(c: float = 0.5) -> Weighting:
    """CAGrad: the worst task improves the most within a ball around the mean gradient g_0 of the present tasks.

    max_d min_i <g_i, d> subject to |d - g_0| <= c |g_0|. By duality d = g_0 + c |g_0| g_w / |g_w|, where w minimises
    <g_w, g_0> + c |g_0| |g_w| over w >= 0, sum_i w_i = 1, for g_w = sum_i w_i g_i. A task whose gradient is 0 counts in
    g_0, but is not the worst. (The paper's code divides d by 1 + c^2 or multiplies it by the number of tasks.)

    Args:
      c: radius of the ball over |g_0|; below 1 the mean loss converges to a stationary point.

    Raises:
      InputError: `c` is negative or not finite.

    Reference: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021.
    """
    if not (math.isfinite(c) and c >= 0):
        raise InputError(f"c is {c}, expected a finite number, 0 or more.")

    def solve(g: Gram, present: Present, key: KeyArray) -> Losses:
        floor, order = jnp.finfo(g.dtype).eps ** 0.5, stand_ins(present & (jnp.diagonal(g) > 0))
        cos, norms = cosines(g[order][:, order])
        mean = present / jnp.maximum(present.sum(), 1).astype(g.dtype)
        length = jnp.sqrt(jnp.maximum(mean @ g @ mean, 0))
        to_mean = jnp.clip((g @ mean)[order] / norms / jnp.where(length > 0, length, 1), -1, 1)

        # in u_i = w_i |g_i| over |g_0|; |g_w| = min_t (|g_w|^2 / t + t) / 2 over t >= floor is smooth, and exact where
        # |g_w| >= floor
        def value(x: Array) -> Array:
            u, t = x[:-1], x[-1] + floor
            return u @ to_mean + c / 2 * (u @ cos @ u / t + t)

        x = interior_point(value, jnp.append(norms.min() / norms, 0))
        u = x[:-1]
        u /= jnp.maximum(x[-1] + floor, jnp.sqrt(jnp.maximum(u @ cos @ u, 0)))
        return mean.at[order].add(c * length * u / norms)

    return by_gram(solve)


def nash() -> Weighting:
    """Nash-MTL: the bargaining solution, weights with G w = 1 / w, whatever the scale of each loss.

    They minimise w' G w / 2 - sum_i log w_i, and |d|^2 is the number of tasks. For two tasks
    d = (g_1 / |g_1| + g_2 / |g_2|) / sqrt(1 + cos(g_1, g_2)); for more, damped Newton steps, which converge from
    anywhere as the function is self-concordant. A task whose gradient is 0 has nothing to bargain for and gets the
    weight 0. Where a positive combination of the gradients is 0 (cos = -1) there is no solution; G gets a ridge of a
    few roundings of its diagonal, so that w is finite there and d is 0 up to the root of a rounding.

    Reference: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022. Its code divides G by its norm,
    which scales d by that norm's root, and clips d to the length 1: `optax.clip_by_global_norm` is for that.
    """

    def solve(g: Gram, present: Present, key: KeyArray) -> Losses:
        live, tasks, identity = jnp.diagonal(g) > 0, len(g), jnp.eye(len(g), dtype=g.dtype)
        cos, norms = cosines(g)
        cos = jnp.where(identity == 1, 1 + 4 * tasks * jnp.finfo(g.dtype).eps, cos)
        w = jnp.full(2, 1 / jnp.sqrt(cos[0, 0] + jnp.maximum(cos[0, 1], -1))) if tasks == 2 else bargain(cos)
        return jnp.where(live, w / norms, 0)

    return by_gram(solve)


def counted(weights: int, tasks: int) -> None:
    """An `InputError` where there is not one weight for each task."""
    if weights != tasks:
        raise InputError(f"There are {weights} weights for {tasks} tasks, expected one for each.")


def gram_matrix(gradients: PyTree) -> Gram:
    """G_ij = <g_i, g_j> of gradients stacked to `[tasks, ...]`."""
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]
    flat = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in flat]
    return sum(jnp.matmul(leaf, leaf.T, precision="highest") for leaf in flat)  # type: ignore[return-value]


def combine(weights: Losses, gradients: PyTree) -> PyTree:
    """d = sum_i w_i g_i of gradients stacked to `[tasks, ...]`."""
    return jax.tree.map(lambda g: jnp.tensordot(weights.astype(g.dtype), g, 1, precision="highest"), gradients)
