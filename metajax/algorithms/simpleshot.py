"""SimpleShot: joint training, then the nearest centroid of centred embeddings of length 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.heads import classes_of, nearness, prototypes, unit
from metajax.core import Algorithm, Apply, Batch, Episode, Error, KeyArray, Metrics, Params, Scalar, Theta, ascribe
from metajax.inner import closed_form


def simpleshot(embed: Apply, error: Error, num_classes: int, apply: Apply, features: int) -> Algorithm:
    """Train min_theta E error(apply(theta, query)) jointly; classify by the nearest mean of CL2N(embeddings).

    CL2N(z) = (z - m) / |z - m|, with m the mean of training embeddings, a running statistic with gradient m - mean(z):
    an outer step moves `theta["statistics"]` as an exact moving average, whatever the outer optimiser.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`; ignores the head that `apply` needs in `params`.
      error: what is trained, of the outputs of `apply`, e.g. `classify_corpus`.
      num_classes: ways, the number of classes of an episode.
      apply: the model with its head.
      features: size of an embedding.

    Returns:
      The algorithm; theta is `{"params", "statistics"}`; it learns a task in one step.

    Reference: Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019.

    Example:
      >>> import metajax as mj
      >>> algorithm = simpleshot(lambda p, x, key: x, mj.losses.classify, 2, lambda p, x, key: x, 2)
      >>> theta = algorithm.learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> batch = mj.Batch(jnp.array([[1.0, 3.0], [3.0, 1.0]]), jnp.array([0, 1]))
      >>> grads = jax.grad(lambda t: algorithm.objective(t, mj.Episode(batch, batch), jax.random.key(0))[0])(theta)
      >>> grads["statistics"]["mean"].tolist()  # 0 - mean(z)
      [-2.0, -2.0]
    """

    def init(params: Params, key: KeyArray) -> Theta:
        return {"params": params, "statistics": {"mean": jnp.zeros(features, dtype_of(params))}}

    def centred(theta: Theta, x: PyTree, key: KeyArray | None) -> Array:
        return unit(embed(theta["params"], x, key) - theta["statistics"]["mean"])

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(centred(theta, support.x, key), classes_of(support.y), num_classes)

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        return nearness(centred(theta, x, key), phi)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        value, metrics = error(apply(theta["params"], episode.query.x, key), episode.query.y)
        mean = theta["statistics"]["mean"]
        track = ascribe(mean, mean - embed(theta["params"], episode.query.x, key).mean(0))
        return value + track - jax.lax.stop_gradient(track), metrics

    return Algorithm(closed_form(solve, predict, init), objective)
