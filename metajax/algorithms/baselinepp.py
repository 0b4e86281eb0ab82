"""Baseline++: joint training of a cosine classifier, then a fresh one per task on frozen embeddings."""

import jax
import optax
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.heads import classes_of, onehot, unit
from metajax.core import Algorithm, Apply, Batch, Episode, Error, KeyArray, Learner, Metrics, Params, Scalar, Theta
from metajax.inner import Fast, Part, descent
from metajax.losses import classify_corpus


def baselinepp(
    embed: Apply,
    error: Error,
    num_classes: int,
    inner: optax.GradientTransformation,
    train_classes: int,
    features: int,
    *,
    joint_error: Error = classify_corpus,
    temperature: float = 0.1,
) -> Algorithm:
    """logit_c(x) = cos(f_theta(x), w_c) / temperature; theta and w trained jointly, a task learns w afresh by descent.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of a task's logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      inner: inner optimiser of a task's head, any optax transformation.
      train_classes: classes of the training corpus.
      features: size of an embedding.
      joint_error: of the joint head's logits `[n, train_classes]` and labels.
      temperature: divides the cosines.

    Returns:
      The algorithm; theta is `{"params", "head"}`; phi keeps the embedded support set, and a head `[num_classes,
      features]` that starts at random.

    Reference: Chen et al., "A Closer Look at Few-shot Classification", ICLR 2019.

    Example:
      >>> import jax.numpy as jnp, metajax as mj
      >>> learner = baselinepp(lambda p, x, key: x, mj.losses.classify, 2, optax.sgd(1.0), 9, 2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> phi, _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([0, 1])), jax.random.key(0), 20)
      >>> learner.predict(theta, phi, jnp.eye(2), None).argmax(-1).tolist()
      [0, 1]
    """

    def draw(key: KeyArray, classes: int, params: Params) -> Array:
        return jax.random.normal(key, (classes, features), dtype_of(params)) / features**0.5

    def logits(head: Array, z: Array, key: KeyArray | None = None) -> Array:
        return unit(z) @ unit(head).T / temperature

    head_alone = Part(lambda params, key: {}, lambda theta: theta["head"], lambda theta, own, count: own)
    on_embeddings = descent(logits, error, inner, part=head_alone)

    def init(params: Params, key: KeyArray) -> Theta:
        return {"params": params, "head": draw(key, train_classes, params)}

    def start(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Fast]:
        z = embed(theta["params"], support.x, key)
        onehot(classes_of(support.y), num_classes, z.dtype)  # raises for a missing class
        fresh = {"head": draw(key, num_classes, theta["params"])}
        return z, on_embeddings.start(fresh, support, key)

    def step(theta: Theta, phi: tuple[Array, Fast], support: Batch, key: KeyArray) -> tuple[Array, Fast]:
        return phi[0], on_embeddings.step(theta, phi[1], support._replace(x=phi[0]), key)

    def predict(theta: Theta, phi: tuple[Array, Fast], x: PyTree, key: KeyArray | None) -> Array:
        return logits(phi[1].own, embed(theta["params"], x, key))

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        outputs = logits(theta["head"], embed(theta["params"], episode.query.x, key))
        return joint_error(outputs, episode.query.y)

    return Algorithm(Learner(init, start, step, predict), objective)
