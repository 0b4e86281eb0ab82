"""MatchingNet: classify by attention over the support set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.algorithms.protonet import EmbedFn, onehot, unit
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def matching(embed_fn: EmbedFn, num_classes: int, *, temperature: float = 0.1) -> Algorithm:
    """Matching networks: P(c | x) = sum_i a_i [y_i = c], a = softmax_i(cos(f_theta(x), f_theta(x_i)) / temperature).

    Without the paper's full-context embeddings.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      temperature: divides the cosines; 1 in the paper.

    Returns:
      The algorithm; it learns a task in one step.

    Reference: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016.
    """

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Array]:
        z = unit(embed_fn(theta, support.x))
        return z, onehot(support.y.episode, num_classes, z.dtype)

    def loss(theta: Theta, phi: tuple[Array, Array], batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        z, members = phi
        scores = unit(embed_fn(theta, batch.x)) @ z.T / temperature
        # log P but for a constant; finite, so that classes are even where phi knows none yet
        scores = jnp.where(members.T > 0, scores[:, None], jnp.finfo(z.dtype).min / 2)
        return classify(jax.nn.logsumexp(scores, -1), batch.y.episode)

    learner = closed_form(solve, loss)
    return Algorithm(learner, query_loss(learner, num_steps=1))
