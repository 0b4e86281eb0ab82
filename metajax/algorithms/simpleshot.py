"""SimpleShot: joint training, then the nearest centroid of centred embeddings of length 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.protonet import EmbedFn, nearness, prototypes, unit
from metajax.core import Algorithm, Batch, Episode, KeyArray, LossFn, Metrics, Params, Scalar, Theta
from metajax.inner import closed_form
from metajax.losses import classify


def simpleshot(embed_fn: EmbedFn, num_classes: int, loss_fn: LossFn, features: int) -> Algorithm:
    """Train min_theta E loss(theta, query) jointly; classify by the nearest class mean of CL2N-transformed embeddings.

    CL2N(z) = (z - m) / |z - m|, with m the mean of training embeddings. Its gradient is m - mean(z): gradient descent
    makes it a moving average, Adam moves it by about its rate per step.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`; ignores the head that `loss_fn` needs in `params`.
      num_classes: ways, the number of classes of an episode.
      loss_fn: what is trained, e.g. cross-entropy on corpus labels.
      features: size of an embedding.

    Returns:
      The algorithm; theta is `{"params", "mean"}`; it learns a task in one step.

    Reference: Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019.
    """

    def init(params: Params) -> Theta:
        return {"params": params, "mean": jnp.zeros(features, dtype_of(params))}

    def embed(theta: Theta, x: PyTree) -> Array:
        return unit(embed_fn(theta["params"], x) - theta["mean"])

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed(theta, support.x), support.y.episode, num_classes)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return classify(nearness(embed(theta, batch.x), phi), batch.y.episode)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        value, metrics = loss_fn(theta["params"], episode.query, key)
        mean = jax.lax.stop_gradient(embed_fn(theta["params"], episode.query.x).mean(0))
        return value + jnp.square(theta["mean"] - mean).sum() / 2, metrics

    return Algorithm(closed_form(solve, loss, init), objective)
