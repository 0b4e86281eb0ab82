"""R2D2: a ridge regression head, solved in closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.protonet import EmbedFn, onehot
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def ridge_weights(
    z: Float[Array, "n features"], y: Float[Array, "n classes"], strength: Scalar
) -> Float[Array, "features classes"]:
    """argmin_W |z W - y|^2 + strength |W|^2 = z' (z z' + strength I)^-1 y: a system as large as the support set."""
    return z.T @ linear_solve(z @ z.T + strength * jnp.eye(len(z), dtype=z.dtype), y)


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


def ridge(embed_fn: EmbedFn, num_classes: int, *, strength: float = 1.0, scale: float = 10.0) -> Algorithm:
    """Ridge regression on one-hot labels: logits(x) = scale f_theta(x) W, W = `ridge_weights` of the support set.

    Strength and scale are learned, as logarithms. The paper's bias is left out: the same for all classes, it changes no
    probability.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      strength: of the L2 penalty, at the start.
      scale: of the logits, at the start.

    Returns:
      The algorithm; theta is `{"params", "log_strength", "log_scale"}`; it learns a task in one step.

    Reference: Bertinetto et al., "Meta-learning with Differentiable Closed-form Solvers", ICLR 2019.
    """
    return linear_head(embed_fn, num_classes, ridge_weights, strength, scale)


def linear_head(
    embed_fn: EmbedFn,
    num_classes: int,
    weights: Callable[[Array, Array, Scalar], Array],
    strength: float,
    scale: float,
) -> Algorithm:
    """logits(x) = scale f_theta(x) W, W = weights(embeddings, one-hot labels, strength) of the support set."""

    def init(params: Params) -> Theta:
        logs = (jnp.log(jnp.asarray(value, dtype_of(params))) for value in (strength, scale))
        return {"params": params} | dict(zip(("log_strength", "log_scale"), logs, strict=True))

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        z = embed_fn(theta["params"], support.x)
        # linear systems are not solved in half precision
        wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        members = onehot(support.y.episode, num_classes, wide.dtype)
        return weights(wide, members, jnp.exp(theta["log_strength"].astype(wide.dtype))).astype(z.dtype)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        logits = jnp.exp(theta["log_scale"]) * (embed_fn(theta["params"], batch.x) @ phi)
        return classify(logits, batch.y.episode)

    learner = closed_form(solve, loss, init)
    return Algorithm(learner, query_loss(learner, num_steps=1))
