"""R2D2: a ridge regression head, solved in closed form."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.heads import classes_of, onehot, ridge_weights
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form


def ridge(embed: Apply, error: Error, num_classes: int, *, strength: float = 1.0, scale: float = 10.0) -> Algorithm:
    """Ridge regression on one-hot labels: logits(x) = scale f_theta(x) W, W = `ridge_weights` of the support set.

    Strength and scale are learned, as logarithms. The paper's bias is left out: the same for all classes, it changes no
    probability.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      strength: of the L2 penalty, at the start.
      scale: of the logits, at the start.

    Returns:
      The algorithm; theta is `{"params", "log_strength", "log_scale"}`; it learns a task in one step.

    Reference: Bertinetto et al., "Meta-learning with Differentiable Closed-form Solvers", ICLR 2019.

    Example:
      >>> import jax, metajax as mj
      >>> learner = ridge(lambda p, x, key: x * p["w"], mj.losses.classify, 2, scale=1.0).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> phi, _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([0, 1])), jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.eye(2), None).tolist()  # (I + I)^-1 I
      [[0.5, 0.0], [0.0, 0.5]]
    """
    return linear_head(embed, error, num_classes, ridge_weights, strength, scale)


def linear_head(
    embed: Apply,
    error: Error,
    num_classes: int,
    weights: Callable[[Array, Array, Scalar], Array],
    strength: float,
    scale: float,
) -> Algorithm:
    """logits(x) = scale f_theta(x) W, W = weights(embeddings, one-hot labels, strength) of the support set."""

    def init(params: Params, key: KeyArray) -> Theta:
        logs = (jnp.log(jnp.asarray(value, dtype_of(params))) for value in (strength, scale))
        return {"params": params} | dict(zip(("log_strength", "log_scale"), logs, strict=True))

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        z = embed(theta["params"], support.x, key)
        # linear systems are not solved in half precision
        wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        members = onehot(classes_of(support.y), num_classes, wide.dtype)
        return weights(wide, members, jnp.exp(theta["log_strength"].astype(wide.dtype))).astype(z.dtype)

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        return jnp.exp(theta["log_scale"]) * (embed(theta["params"], x, key) @ phi)

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
