"""Small convex problems of the weightings, solved on the device to rounding by Newton's method."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Gram: TypeAlias = Float[Array, "tasks tasks"]
Carry: TypeAlias = tuple[Array, Array, Array, Array]


def bargain(g: Gram, max_steps: int = 200) -> Float[Array, " tasks"]:
    """w > 0 with G w = 1 / w, for a positive definite G with a diagonal of about 1."""
    eps = jnp.finfo(g.dtype).eps

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, _, count = carry
        slope = g @ w - 1 / w
        # in units of w the Hessian is I + diag(w) G diag(w), well conditioned
        step = jnp.linalg.solve(jnp.eye(len(w), dtype=g.dtype) + w[:, None] * g * w, -w * slope)
        decrement = jnp.sqrt(jnp.maximum(-step @ (w * slope), 0))
        return w * (1 + step / jnp.where(decrement < 0.25, 1, 1 + decrement)), decrement, count + 1

    start = jnp.ones(g.shape[0], g.dtype), jnp.asarray(jnp.inf, g.dtype), jnp.zeros((), jnp.int32)
    # the step that was taken squares the error that the decrement tells of
    return jax.lax.while_loop(lambda carry: (carry[1] > eps**0.5) & (carry[2] < max_steps), newton, start)[0]


def interior_point(value: Callable[[Array], Array], a: Float[Array, " n"], max_steps: int = 60) -> Float[Array, " n"]:
    """The x that minimises a convex function, with slopes around 1, over x >= 0, <a, x> = 1.

    Primal-dual: Newton steps on slope(x) + nu a = z, <a, x> = 1, x_i z_i = mu, with mu falling tenfold each time until
    x is within rounding of the minimum, the value within its square.
    """

    eps = jnp.finfo(a.dtype).eps

    def newton(carry: Carry) -> Carry:
        x, z, nu, count = carry
        mu = 0.1 * (x @ z) / len(a)
        # a few roundings on the diagonal, for equal gradients have many a solution
        rows = jnp.concatenate([jax.hessian(value)(x) + jnp.diag(z / x + 4 * len(a) * eps), a[None]])
        system = jnp.concatenate([rows, jnp.append(a, 0)[:, None]], axis=1)
        step = jnp.linalg.solve(system, jnp.append(mu / x - jax.grad(value)(x) - nu * a, 1 - a @ x))
        solved = jnp.isfinite(step).all()  # else all is within rounding
        step = jnp.where(solved, step, 0)
        dx, dz = step[:-1], mu / x - z - z / x * step[:-1]
        fall = jnp.max(jnp.concatenate([-dx / x, -dz / z]))  # the largest relative one; nothing may reach 0
        size = jnp.minimum(1, 0.99 / jnp.maximum(fall, 0.1))
        return x + size * dx, z + size * dz, nu + size * step[-1], jnp.where(solved, count + 1, max_steps)

    def unsolved(carry: Carry) -> Array:
        return (carry[0] @ carry[1] > eps**2) & (carry[3] < max_steps)

    start = jnp.where(a > 0, 1 / a.sum(), 1), jnp.ones_like(a), jnp.zeros((), a.dtype), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unsolved, newton, start)[0]


def stand_ins(present: Bool[Array, " tasks"]) -> Int[Array, " tasks"]:
    """Each task's own index, or, for an absent task, that of the first present one, which stands in for it."""
    return jnp.where(present, jnp.arange(len(present)), jnp.argmax(present))


def cosines(gram: Gram) -> tuple[Gram, Float[Array, " tasks"]]:
    """<g_i, g_j> / (|g_i| |g_j|) and |g_i|; a gradient of 0 counts as one of length 1 without any products."""
    diagonal = jnp.diagonal(gram)
    norms = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    return gram / norms / norms[:, None], norms
