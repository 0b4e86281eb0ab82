"""MatchingNet: classify by attention over the support set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.heads import classes_of, onehot, unit
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Theta, query_loss
from metajax.inner import closed_form


def matching(embed: Apply, error: Error, num_classes: int, *, temperature: float = 0.1) -> Algorithm:
    """Matching networks: P(c | x) = sum_i a_i [y_i = c], a = softmax_i(cos(f_theta(x), f_theta(x_i)) / temperature).

    Without the paper's full-context embeddings.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      temperature: divides the cosines; 1 in the paper.

    Returns:
      The algorithm; it learns a task in one step.

    Reference: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016.

    Example:
      >>> import metajax as mj
      >>> learner = matching(lambda p, x, key: x, mj.losses.classify, 2).learner
      >>> support = mj.Batch(jnp.eye(2), jnp.array([1, 0]))
      >>> phi = learner.step({"params": ()}, None, support, jax.random.key(0))
      >>> learner.predict({"params": ()}, phi, jnp.array([[1.0, 0.1]]), None).argmax(-1).tolist()
      [1]
    """

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Array]:
        z = unit(embed(theta["params"], support.x, key))
        return z, onehot(classes_of(support.y), num_classes, z.dtype)

    def predict(theta: Theta, phi: tuple[Array, Array], x: PyTree, key: KeyArray | None) -> Array:
        z, members = phi
        scores = unit(embed(theta["params"], x, key)) @ z.T / temperature
        # log P but for a constant; finite, so that classes are even where phi knows none yet
        scores = jnp.where(members.T > 0, scores[:, None], jnp.finfo(z.dtype).min / 2)
        return jax.nn.logsumexp(scores, -1)

    learner = closed_form(solve, predict)
    return Algorithm(learner, query_loss(learner, error, 1))
