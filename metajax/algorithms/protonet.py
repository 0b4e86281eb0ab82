"""ProtoNet: classify by the nearest class mean in a learned embedding space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def prototypes(
    z: Float[Array, "n features"], labels: Int[Array, " n"], num_classes: int
) -> Float[Array, "classes features"]:
    """Class means `[classes, features]` of embeddings `[n, features]`."""
    onehot = jax.nn.one_hot(labels, num_classes, dtype=z.dtype)
    return onehot.T @ z / onehot.sum(0)[:, None]


def protonet(embed_fn: Callable[[Params, PyTree], Array], num_classes: int, *, temperature: float = 1.0) -> Algorithm:
    """Prototypical networks: logit_c(x) = -|f_theta(x) - p_c|^2 / temperature, p_c the mean embedding of class c.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      temperature: divides the squared distances.

    Returns:
      The algorithm; it learns a task in one step.

    Reference: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed_fn(theta, support.x), support.y.episode, num_classes)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        z = embed_fn(theta, batch.x)
        # |z|^2 is the same for all classes: left out, it changes no probability
        logits = (2 * z @ phi.T - jnp.square(phi).sum(-1)) / temperature
        return classify(logits, batch.y.episode)

    learner = closed_form(solve, loss)
    return Algorithm(learner, query_loss(learner, num_steps=1))
