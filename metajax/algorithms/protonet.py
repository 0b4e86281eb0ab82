"""ProtoNet: classify by the nearest class mean in a learned embedding space."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.heads import classes_of, nearness, onehot, prototypes, unit
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import closed_form

Metric: TypeAlias = Literal["euclidean", "cosine"]


def protonet(
    embed: Apply,
    error: Error,
    num_classes: int,
    *,
    metric: Metric = "euclidean",
    temperature: float = 1.0,
    refinements: int = 0,
) -> Algorithm:
    """Prototypical networks: logit_c(x) = -|f_theta(x) - p_c|^2 / temperature, p_c the mean embedding of class c.

    With the cosine metric, logit_c(x) = cos(f_theta(x), p_c) / temperature; a temperature near 0.1 suits it.

    Support examples without a label (-1) do not count, unless prototypes are refined by soft k-means: a refinement is
    p_c <- sum_i w_ic z_i / sum_i w_ic over all of them, w_ic = [y_i = c] where y_i is known, else softmax_c of the
    logits of z_i. Without such examples it changes nothing.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      metric: "euclidean" or "cosine".
      temperature: divides the squared distances or cosines.
      refinements: of the prototypes by the examples without a label; Ren et al. take 1.

    Returns:
      The algorithm; it learns a task in one step.

    Raises:
      InputError: `metric` is unknown, or `refinements` negative; when called, the support set lacks a class (not seen
        under `jit`, unless there are fewer examples than classes).

    Reference: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017; Ren et al.,
      "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR 2018 (refinement).

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

    if refinements < 0:
        raise InputError(f"refinements is {refinements}, expected 0 or more.")

    def logits(z: Array, prototype: Array) -> Array:
        return (nearness(z, prototype) if metric == "euclidean" else unit(z) @ unit(prototype).T) / temperature

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        z, labels = embed(theta["params"], support.x, key), classes_of(support.y)
        prototype, members = prototypes(z, labels, num_classes), onehot(labels, num_classes, z.dtype)
        for _ in range(refinements):
            shares = jnp.where(labels[:, None] == -1, jax.nn.softmax(logits(z, prototype)), members)
            prototype = shares.T @ z / shares.sum(0)[:, None]
        return prototype

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        return logits(embed(theta["params"], x, key), phi)

    learner = closed_form(solve, predict)
    return Algorithm(learner, query_loss(learner, error, 1))
