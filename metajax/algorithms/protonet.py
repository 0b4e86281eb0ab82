"""ProtoNet: classify by the nearest class mean in a learned embedding space."""

from typing import Literal, TypeAlias, get_args

from jaxtyping import Array, PyTree

from metajax.algorithms.heads import classes_of, nearness, prototypes, unit
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import closed_form

Metric: TypeAlias = Literal["euclidean", "cosine"]


def protonet(
    embed: Apply, error: Error, num_classes: int, *, metric: Metric = "euclidean", temperature: float = 1.0
) -> Algorithm:
    """Prototypical networks: logit_c(x) = -|f_theta(x) - p_c|^2 / temperature, p_c the mean embedding of class c.

    With the cosine metric, logit_c(x) = cos(f_theta(x), p_c) / temperature; a temperature near 0.1 suits it.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      metric: "euclidean" or "cosine".
      temperature: divides the squared distances or cosines.

    Returns:
      The algorithm; it learns a task in one step.

    Raises:
      InputError: `metric` is unknown; when called, the support set lacks a class (not seen under `jit`, unless there
        are fewer examples than classes).

    Reference: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = protonet(lambda p, x, key: x * p["w"], mj.losses.classify, 2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> support = mj.Batch(jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
      >>> phi, _ = mj.adapt(learner, theta, support, jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.array([[1.5], [2.5]]), None).argmax(-1).tolist()
      [0, 1]
    """
    if metric not in get_args(Metric):
        raise InputError(f"metric is {metric!r}, expected one of {', '.join(get_args(Metric))}.")

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed(theta["params"], support.x, key), classes_of(support.y), num_classes)

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        z = embed(theta["params"], x, key)
        logits = nearness(z, phi) if metric == "euclidean" else unit(z) @ unit(phi).T
        return logits / temperature

    learner = closed_form(solve, predict)
    return Algorithm(learner, query_loss(learner, error, 1))
