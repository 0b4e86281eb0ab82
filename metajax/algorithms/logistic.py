"""A logistic regression head, differentiated through its optimum: MetaOptNet with another convex loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.algorithms.protonet import EmbedFn
from metajax.algorithms.ridge import linear_head, linear_solve
from metajax.core import Algorithm, Scalar

NEWTON_STEPS = 16


def logistic_weights(
    z: Float[Array, "n features"], y: Float[Array, "n classes"], strength: Scalar
) -> Float[Array, "features classes"]:
    """argmin_W sum_i cross_entropy(z_i W, y_i) + strength / 2 |W|^2.

    Its optimum lies in the span of the support set: W = z' a with strength a + softmax(z z' a) - y = 0. Damped Newton
    steps find the root; its gradient is that of the implicit function theorem, not of the steps.
    """
    gram = z @ z.T

    def slope(a: Array) -> Array:
        return strength * a + jax.nn.softmax(gram @ a) - y

    def invert(linear: Callable[[Array], Array], b: Array) -> Array:
        matrix = jax.jacfwd(linear)(jnp.zeros_like(b)).reshape(b.size, b.size)
        a = linear_solve(matrix, b.reshape(-1)).reshape(b.shape)
        return a - a.mean(1, keepdims=True)  # 0 but for rounding, which a small strength would blow up

    def newton(slope: Callable[[Array], Array], a: Array) -> Array:
        lengths = jnp.append(0.5 ** jnp.arange(8, dtype=a.dtype), 0)  # 0: stay, where rounding has the last word

        def step(_: Array, a: Array) -> Array:
            moved = a - lengths[:, None, None] * invert(*reversed(jax.linearize(slope, a)))
            return moved[jnp.square(jax.vmap(slope)(moved)).sum((1, 2)).argmin()]

        return jax.lax.fori_loop(0, NEWTON_STEPS, step, a)

    return z.T @ jax.lax.custom_root(slope, jnp.zeros_like(y), newton, invert)


def logistic(embed_fn: EmbedFn, num_classes: int, *, strength: float = 1.0, scale: float = 1.0) -> Algorithm:
    """Multinomial logistic regression: logits(x) = scale f_theta(x) W, W = `logistic_weights` of the support set.

    The paper's heads are a support vector machine and ridge regression. Strength and scale are learned, as logarithms.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      strength: of the L2 penalty, at the start.
      scale: of the logits, at the start.

    Returns:
      The algorithm; theta is `{"params", "log_strength", "log_scale"}`; it learns a task in one step.

    Reference: Lee et al., "Meta-Learning with Differentiable Convex Optimization", CVPR 2019.
    """
    return linear_head(embed_fn, num_classes, logistic_weights, strength, scale)
