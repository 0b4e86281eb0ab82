"""RelationNet: a learned comparison of an example with each class."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of
from metajax.algorithms.heads import classes_of, prototypes
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Theta, query_loss
from metajax.inner import closed_form


def relation(embed: Apply, error: Error, num_classes: int, *, features: int, hidden: int = 64) -> Algorithm:
    """Relation networks: logit_c(x) = g_theta([f_theta(x), p_c]), p_c the mean embedding of class c, g a perceptron.

    Trained by the error of the scores, e.g. softmax cross-entropy; the paper fits them to 0 and 1 by squared error.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      hidden: size of the relation module's hidden layer.

    Returns:
      The algorithm; theta is `{"params", "relation"}`; it learns a task in one step.

    Reference: Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning", CVPR 2018.

    Example:
      >>> import jax, metajax as mj
      >>> learner = relation(lambda p, x, key: x, mj.losses.classify, 2, features=3, hidden=8).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> theta["relation"]["dense0"]["kernel"].shape
      (6, 8)
    """

    def init(params: Params, key: KeyArray) -> Theta:
        return {"params": params, "relation": dense_init(key, (2 * features, hidden, 1), dtype_of(params))}

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed(theta["params"], support.x, key), classes_of(support.y), num_classes)

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        z = embed(theta["params"], x, key)
        shape = (len(z), num_classes, features)
        pairs = jnp.concatenate([jnp.broadcast_to(z[:, None], shape), jnp.broadcast_to(phi, shape)], -1)
        return dense_apply(theta["relation"], pairs)[..., 0]

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
