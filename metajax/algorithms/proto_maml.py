"""Proto-MAML: MAML whose head starts at the prototypes."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from metajax.algorithms.heads import classes_of, prototypes
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Remat, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import Fast, Own, Part, descent, everything


def proto_maml(
    embed: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    num_classes: int,
    *,
    part: Part = everything(),  # noqa: B008  (pure functions)
    remat: Remat = "step",
    **how: Any,
) -> Algorithm:
    """MAML from (theta, W, b) with W_c = 2 p_c, b_c = -|p_c|^2, p_c the mean embedding of class c; all of it adapts.

    Without steps it is ProtoNet. The meta-gradient runs through the prototypes too.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      num_classes: ways, the number of classes of an episode.
      part: what of the embedding a task learns beside the head.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **how: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm.

    Raises:
      InputError: a `rule` is given.

    Reference: Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
    ICLR 2020.

    Example:
      >>> import jax, metajax as mj
      >>> learner = proto_maml(lambda p, x, key: x * p["w"], mj.losses.classify, optax.sgd(0.1), 1, 2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> support = mj.Batch(jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
      >>> learner.start(theta, support, jax.random.key(0)).own["kernel"].tolist()
      [[2.0, 6.0]]
    """
    if "rule" in how:
        raise InputError("rule is given, but the head is made anew in every task: nothing can be learned for it.")

    def join(theta: Theta, own: Own, count: Array) -> Params:
        return {"body": part.join(theta, own["body"], count), "kernel": own["kernel"], "bias": own["bias"]}

    def apply(params: Params, x: Any, key: KeyArray | None) -> Array:
        return embed(params["body"], x, key) @ params["kernel"] + params["bias"]

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        body, count = part.split(theta), jnp.zeros((), jnp.int32)
        z = embed(part.join(theta, body, count), support.x, key)
        p = prototypes(z, classes_of(support.y), num_classes)
        own = {"body": body, "kernel": 2 * p.T, "bias": -jnp.square(p).sum(-1)}
        return Fast(own, inner.init(own), count)

    whole = Part(part.init, part.split, join, part.max_steps)
    learner = descent(apply, error, inner, part=whole, **how)._replace(start=start)
    return Algorithm(learner, query_loss(learner, error, num_steps, remat=remat))
