"""What methods with a head of their own build it from: class means, one-hot labels, linear systems."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metajax.core import Labels, Scalar
from metajax.errors import InputError
from metajax.losses.classify import check_labels, labels_of

NEWTON_STEPS = 64  # at most; a strength of 1e-6 takes about 30


def classes_of(y: Labels | Int[Array, " n"]) -> Int[Array, " n"]:
    """The classes within the episode of a batch's `y`, `Labels` or integers; an `InputError` if there are none."""
    return labels_of(y, whose="This method")


def onehot(y: Labels | Int[Array, " n"], num_classes: int, dtype: Any) -> Float[Array, "n classes"]:
    """One-hot labels of a support set; a row of zeros for an unknown one (-1).

    Raises:
      InputError: a class has no example or a label is out of range (traced: such a row is NaN), or there must be a
        class without an example.
    """
    labels = classes_of(y)
    if len(labels) < num_classes:
        raise InputError(f"The support set has {len(labels)} examples, expected one or more of {num_classes} classes.")
    check_labels(labels, num_classes)
    # traced labels have no values to look at
    if not isinstance(labels, jax.core.Tracer) and (found := set(labels.tolist()) - {-1}) != set(range(num_classes)):
        raise InputError(f"The support set has classes {sorted(found)}, expected every one of 0..{num_classes - 1}.")
    valid = (labels >= -1) & (labels < num_classes)
    return jnp.where(valid[:, None], jax.nn.one_hot(labels, num_classes, dtype=dtype), jnp.nan)


def prototypes(
    z: Float[Array, "n features"], y: Labels | Int[Array, " n"], num_classes: int
) -> Float[Array, "classes features"]:
    """Class means `[classes, features]` of embeddings `[n, features]`; an `InputError` as of `onehot`."""
    members = onehot(y, num_classes, z.dtype)
    return members.T @ z / members.sum(0)[:, None]


def nearness(z: Float[Array, "n features"], p: Float[Array, "classes features"]) -> Float[Array, "n classes"]:
    """-|z - p|^2 without its |z|^2, which is the same for all classes and changes no probability."""
    return 2 * z @ p.T - jnp.square(p).sum(-1)


def unit(z: Float[Array, "*n features"]) -> Float[Array, "*n features"]:
    """Rows scaled to length 1; a row of zeros, as dead units give it, stays one."""
    return z * jax.lax.rsqrt(jnp.square(z).sum(-1, keepdims=True) + 1e-8)


def linear_solve(matrix: Float[Array, "n n"], b: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """matrix^-1 b; on CPU one system at a time, however many tasks are batched.

    There jaxlib 0.10 factorises a batch of larger matrices on the thread pool that the devices run on, and waits for
    ever if every thread of it does the same: two devices on two cores, each with two tasks, are enough.
    """
    one = jnp.linalg.solve
    if jax.default_backend() == "cpu":
        one = jax.custom_batching.sequential_vmap(one)
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x, b, lambda _, b: one(matrix, b), lambda _, b: one(matrix.T, b)
    )


def ridge_weights(
    z: Float[Array, "n features"], y: Float[Array, "n classes"], strength: Scalar
) -> Float[Array, "features classes"]:
    """argmin_W |z W - y|^2 + strength |W|^2 = z' (z z' + strength I)^-1 y: a system as large as the support set.

    An example whose row of y is 0 has no class and does not count.
    """
    z = jnp.where(y.any(1, keepdims=True), z, 0)
    return z.T @ linear_solve(z @ z.T + strength * jnp.eye(len(z), dtype=z.dtype), y)


def logistic_weights(
    z: Float[Array, "n features"], y: Float[Array, "n classes"], strength: Scalar
) -> Float[Array, "features classes"]:
    """argmin_W sum_i cross_entropy(z_i W, y_i) + strength / 2 |W|^2; an example whose row of y is 0 does not count.

    The root of a + z' (softmax(z W) - y) = 0 for W = a / strength, or, with fewer examples than features, of
    a + softmax(z W) - y = 0 for W = z' a / strength, since W lies in their span; by damped Newton steps. Its gradient
    is that of the implicit function theorem, not of the steps.
    """
    wide = len(z) < z.shape[1]
    inputs, known = (z @ z.T if wide else z) / strength, y.any(1, keepdims=True)

    def slope(a: Array) -> Array:
        # softmax - y as sums of what is wrong, since a small strength makes it smaller than a rounding of 1
        wrong = jnp.where(known & (y == 0), jax.nn.softmax(inputs @ a), 0)
        wrong -= y * wrong.sum(1, keepdims=True)
        return a + (wrong if wide else z.T @ wrong)

    def invert(linear: Callable[[Array], Array], b: Array) -> Array:
        matrix = jax.jacfwd(linear)(jnp.zeros_like(b))
        # the same for all classes changes no probability: there the system may be as stiff as elsewhere
        even = jnp.abs(matrix).max() * jnp.eye(len(b), dtype=b.dtype)[:, None, :, None] / b.shape[1]
        a = linear_solve((matrix + even).reshape(b.size, b.size), (b - b.mean(1, keepdims=True)).reshape(-1))
        return a.reshape(b.shape) - a.reshape(b.shape).mean(1, keepdims=True)

    def newton(slope: Callable[[Array], Array], a: Array) -> Array:
        lengths = 0.5 ** jnp.arange(8, dtype=a.dtype)

        def squared(a: Array) -> Array:
            return jnp.square(slope(a)).sum()

        def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            a, old, _, count = carry
            moved = a - lengths[:, None, None] * invert(*reversed(jax.linearize(slope, a)))
            new = jax.vmap(squared)(moved)
            best = jnp.where(jnp.isnan(new), jnp.inf, new).argmin()
            falls = new[best] < 0.99 * old  # else rounding has the last word
            return jnp.where(falls, moved[best], a), new[best], falls, count + 1

        start = a, squared(a), jnp.ones((), bool), jnp.zeros((), jnp.int32)
        a, *_ = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < NEWTON_STEPS), step, start)
        return a + 0 * slope(a)  # NaN where something given is

    a = jax.lax.custom_root(slope, jnp.zeros((inputs.shape[1], y.shape[1]), z.dtype), newton, invert)
    return (z.T @ a if wide else a) / strength
