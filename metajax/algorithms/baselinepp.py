"""Baseline++: joint training of a cosine classifier, then a fresh one per task on frozen embeddings."""

import jax
import optax
from jaxtyping import Array

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.protonet import EmbedFn, onehot, unit
from metajax.core import Algorithm, Batch, Episode, KeyArray, Learner, Metrics, Params, Scalar, Theta
from metajax.inner import Fast, descent
from metajax.losses import classify, cross_entropy


def baselinepp(
    embed_fn: EmbedFn,
    num_classes: int,
    inner: optax.GradientTransformation,
    train_classes: int,
    features: int,
    *,
    temperature: float = 0.1,
    seed: int = 0,
) -> Algorithm:
    """logit_c(x) = cos(f_theta(x), w_c) / temperature; theta and w trained jointly, a task learns w afresh by descent.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      inner: inner optimiser of a task's head, any optax transformation.
      train_classes: classes of the training corpus, `Labels.corpus`.
      features: size of an embedding.
      temperature: divides the cosines.
      seed: of the joint head's start.

    Returns:
      The algorithm; theta is `{"params", "head"}`, phi a head `[num_classes, features]`, started at random, with its
      optimiser's state, beside the embedded support set.

    Reference: Chen et al., "A Closer Look at Few-shot Classification", ICLR 2019.
    """

    def draw(key: KeyArray, classes: int, params: Params) -> Array:
        return jax.random.normal(key, (classes, features), dtype_of(params)) / features**0.5

    def logits(head: Array, z: Array) -> Array:
        return unit(z) @ unit(head).T / temperature

    on_embeddings = descent(cross_entropy(logits), inner, join=lambda theta, head: head)

    def init(params: Params) -> Theta:
        return {"params": params, "head": draw(jax.random.key(seed), train_classes, params)}

    def start(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Fast]:
        head = draw(key, num_classes, theta)
        z = embed_fn(theta["params"], support.x)
        onehot(support.y.episode, num_classes, z.dtype)  # raises for a missing class
        return z, Fast(head, inner.init(head))

    def step(theta: Theta, phi: tuple[Array, Fast], support: Batch, key: KeyArray) -> tuple[Array, Fast]:
        return phi[0], on_embeddings.step(theta, phi[1], support._replace(x=phi[0]), key)

    def loss(theta: Theta, phi: tuple[Array, Fast], batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return on_embeddings.loss(theta, phi[1], batch._replace(x=embed_fn(theta["params"], batch.x)), key)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        z = embed_fn(theta["params"], episode.query.x)
        return classify(logits(theta["head"], z), episode.query.y.corpus)

    return Algorithm(Learner(init, start, step, loss), objective)
