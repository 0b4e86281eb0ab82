"""RelationNet: a learned comparison of an example with each class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of
from metajax.algorithms.protonet import EmbedFn, prototypes
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def relation(embed_fn: EmbedFn, num_classes: int, *, features: int, hidden: int = 64, seed: int = 0) -> Algorithm:
    """Relation networks: logit_c(x) = g_theta([f_theta(x), p_c]), p_c the mean embedding of class c, g a perceptron.

    Trained by softmax cross-entropy over the scores; the paper fits them to 0 and 1 by squared error.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      hidden: size of the relation module's hidden layer.
      seed: of the relation module's start.

    Returns:
      The algorithm; theta is `{"params", "relation"}`; it learns a task in one step.

    Reference: Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning", CVPR 2018.
    """

    def init(params: Params) -> Theta:
        return {
            "params": params,
            "relation": dense_init(jax.random.key(seed), (2 * features, hidden, 1), dtype_of(params)),
        }

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed_fn(theta["params"], support.x), support.y.episode, num_classes)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        z = embed_fn(theta["params"], batch.x)
        shape = (len(z), num_classes, features)
        pairs = jnp.concatenate([jnp.broadcast_to(z[:, None], shape), jnp.broadcast_to(phi, shape)], -1)
        return classify(dense_apply(theta["relation"], pairs)[..., 0], batch.y.episode)

    learner = closed_form(solve, loss, init)
    return Algorithm(learner, query_loss(learner, num_steps=1))
