"""A transformer that learns in context: support set in, query labels out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import attention_block, dense_init, dtype_of, standard
from metajax.algorithms.protonet import EmbedFn, onehot
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import closed_form
from metajax.losses import classify


def in_context(
    embed_fn: EmbedFn,
    num_classes: int,
    *,
    features: int,
    layers: int = 2,
    heads: int = 4,
    width: int = 64,
    max_classes: int = 64,
    seed: int = 0,
) -> Algorithm:
    """logits(x) = read_theta(f_theta(x), phi); phi = what each layer of a transformer makes of the support set.

    A support example is its embedding plus a learned embedding of its label, and attends to all of the support set. A
    query has no label and attends to the support set alone, so that no query sees another and support order is nothing.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      layers, heads, width: of the transformer: its blocks, their attention heads, its channels.
      max_classes: labels that theta has embeddings for, so that `num_classes` may differ at test.
      seed: of the transformer's start.

    Returns:
      The algorithm; theta is `{"params", "reader"}`; it learns a task in one step.

    Raises:
      InputError: more classes than `max_classes`, no layers, or `heads` does not divide `width`.

    Reference: Kirsch et al., "General-Purpose In-Context Learning by Meta-Learning Transformers", 2022; Fifty et al.,
    "Context-Aware Meta-Learning", ICLR 2024.
    """
    if num_classes > max_classes:
        raise InputError(f"num_classes is {num_classes}, expected at most max_classes, {max_classes}.")
    if layers < 1:
        raise InputError(f"layers is {layers}, expected 1 or more.")
    if width % heads:
        raise InputError(f"width is {width}, expected a multiple of heads, {heads}.")

    def init(params: Params) -> Theta:
        dtype = dtype_of(params)

        def draw(key: KeyArray, rows: int) -> Array:
            return jax.random.normal(key, (rows, width), dtype) / rows**0.5

        embed_key, label_key, *keys = jax.random.split(jax.random.key(seed), 2 + layers)
        labels = draw(label_key, max_classes) * max_classes**0.5
        reader = {"embed": draw(embed_key, features), "labels": labels, "read": jnp.eye(width, dtype=dtype)}
        for i, key in enumerate(keys):
            match_key, mlp_key = jax.random.split(key)
            # at the start an example collects the labels of those that it resembles
            layer = {name: draw(match_key, width) for name in ("query", "key")}
            layer |= {name: jnp.eye(width, dtype=dtype) for name in ("value", "out")}  # donated: no array twice
            reader[f"layer{i}"] = layer | {"mlp": dense_init(mlp_key, (width, 2 * width, width), dtype, last=0.0)}
        return {"params": params, "reader": reader}

    def tokens(theta: Theta, x: PyTree) -> Array:
        return standard(embed_fn(theta["params"], x)) @ theta["reader"]["embed"]

    def solve(theta: Theta, support: Batch, key: KeyArray) -> list[Array]:
        x = tokens(theta, support.x)
        states = [x + onehot(support.y.episode, num_classes, x.dtype) @ theta["reader"]["labels"][:num_classes]]
        for i in range(layers - 1):
            states.append(attention_block(theta["reader"][f"layer{i}"], states[-1], states[-1], heads))
        return states

    def loss(theta: Theta, phi: list[Array], batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        reader, x = theta["reader"], tokens(theta, batch.x)
        for i, memory in enumerate(phi):
            x = attention_block(reader[f"layer{i}"], x, memory, heads)
        logits = standard(x) @ reader["read"] @ reader["labels"][:num_classes].T / width**0.5
        return classify(logits, batch.y.episode)

    learner = closed_form(solve, loss, init)
    return Algorithm(learner, query_loss(learner, num_steps=1))
