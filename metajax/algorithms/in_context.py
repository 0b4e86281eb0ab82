"""A transformer that learns in context: support set in, query labels out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import attention_block, dense_init, dtype_of, standard
from metajax.algorithms.heads import classes_of, onehot
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import closed_form


def in_context(
    embed: Apply,
    error: Error,
    num_classes: int,
    *,
    features: int,
    layers: int = 2,
    heads: int = 4,
    width: int = 64,
    max_classes: int = 64,
) -> Algorithm:
    """logits(x) = read_theta(f_theta(x), phi); phi = what each layer of a transformer makes of the support set.

    A support example is its embedding plus a learned embedding of its label, and attends to all of the support set. A
    query has no label and attends to the support set alone, so that no query sees another and support order is nothing.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      layers, heads, width: of the transformer: its blocks, their attention heads, its channels.
      max_classes: labels that theta has embeddings for, so that `num_classes` may differ at test.

    Returns:
      The algorithm; theta is `{"params", "reader"}`; it learns a task in one step.

    Raises:
      InputError: more classes than `max_classes`, no layers, or `heads` does not divide `width`.

    Reference: Kirsch et al., "General-Purpose In-Context Learning by Meta-Learning Transformers", 2022; Fifty et al.,
    "Context-Aware Meta-Learning", ICLR 2024.

    Example:
      >>> import metajax as mj
      >>> learner = in_context(lambda p, x, key: x, mj.losses.classify, 2, features=2, width=8).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> phi, _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([0, 1])), jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.ones((3, 2)), None).shape
      (3, 2)
    """
    if num_classes > max_classes:
        raise InputError(f"num_classes is {num_classes}, expected at most max_classes, {max_classes}.")
    if layers < 1:
        raise InputError(f"layers is {layers}, expected 1 or more.")
    if width % heads:
        raise InputError(f"width is {width}, expected a multiple of heads, {heads}.")

    def init(params: Params, key: KeyArray) -> Theta:
        dtype = dtype_of(params)

        def draw(key: KeyArray, rows: int) -> Array:
            return jax.random.normal(key, (rows, width), dtype) / rows**0.5

        embed_key, label_key, *keys = jax.random.split(key, 2 + layers)
        labels = draw(label_key, max_classes) * max_classes**0.5
        reader = {"embed": draw(embed_key, features), "labels": labels, "read": jnp.eye(width, dtype=dtype)}
        for i, key in enumerate(keys):
            match_key, mlp_key = jax.random.split(key)
            # at the start an example collects the labels of those that it resembles
            layer = {name: draw(match_key, width) for name in ("query", "key")}
            layer |= {name: jnp.eye(width, dtype=dtype) for name in ("value", "out")}  # donated: no array twice
            reader[f"layer{i}"] = layer | {"mlp": dense_init(mlp_key, (width, 2 * width, width), dtype, last=0.0)}
        return {"params": params, "reader": reader}

    def tokens(theta: Theta, x: PyTree, key: KeyArray | None) -> Array:
        return standard(embed(theta["params"], x, key)) @ theta["reader"]["embed"]

    def solve(theta: Theta, support: Batch, key: KeyArray) -> list[Array]:
        x = tokens(theta, support.x, key)
        states = [x + onehot(classes_of(support.y), num_classes, x.dtype) @ theta["reader"]["labels"][:num_classes]]
        for i in range(layers - 1):
            states.append(attention_block(theta["reader"][f"layer{i}"], states[-1], states[-1], heads))
        return states

    def predict(theta: Theta, phi: list[Array], x: PyTree, key: KeyArray | None) -> Array:
        reader, x = theta["reader"], tokens(theta, x, key)
        for i, memory in enumerate(phi):
            x = attention_block(reader[f"layer{i}"], x, memory, heads)
        return standard(x) @ reader["read"] @ reader["labels"][:num_classes].T / width**0.5

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
