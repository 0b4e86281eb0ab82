"""A task encoder: the support set, read once, modulates the network by FiLM."""

import jax
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of, standard
from metajax.algorithms.heads import classes_of, nearness, prototypes
from metajax.algorithms.parts import context, shifted
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Theta, query_loss
from metajax.inner import closed_form


def task_encoder(
    embed: Apply, error: Error, num_classes: int, *, features: int, size: int = 32, patterns: tuple[str, ...] = ()
) -> Algorithm:
    """ProtoNet under f_{theta + c F}, c = h_theta(standard(mean_i f_theta(x_i))) of the support set; phi = (c, p).

    F is that of the part `context`; the perceptron h starts at 0, where this is ProtoNet. Its input is standardised.
    The paper writes the head by a second network; here it is the modulated prototypes p.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      size: of the context vector.
      patterns: of the parameters that the context shifts; none for all vectors, such as scales and biases.

    Returns:
      The algorithm; theta is `{"params", "encoder", "context"}`; it learns a task in one step.

    Raises:
      InputError: when theta is made, a pattern matches no parameter.

    Reference: Requeima et al., "Fast and Flexible Multi-Task Classification Using Conditional Neural Adaptive
    Processes", NeurIPS 2019.

    Example:
      >>> import jax.numpy as jnp, metajax as mj
      >>> learner = task_encoder(lambda p, x, key: x + p["bias"], mj.losses.classify, 2, features=2, size=3).learner
      >>> theta = learner.init({"bias": jnp.zeros(2)}, jax.random.key(0))
      >>> (vector, p), _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([0, 1])), jax.random.key(0), 1)
      >>> vector.tolist(), p.tolist()
      ([0.0, 0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    """
    part = context(size, *patterns)

    def init(params: Params, key: KeyArray) -> Theta:
        encoder_key, key = jax.random.split(key)
        encoder = dense_init(encoder_key, (features, 2 * size, size), dtype_of(params), last=0.0)
        return {"params": params, "encoder": encoder} | part.init(params, key)

    def modulated(theta: Theta, vector: Array, x: PyTree, key: KeyArray | None) -> Array:
        return embed(shifted(theta["params"], theta["context"], vector), x, key)

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Array]:
        summary = standard(embed(theta["params"], support.x, key).mean(0))
        # over the hidden size: an outer step on h then moves the parameters about as far as one on themselves
        vector = dense_apply(theta["encoder"], summary) / (2 * size)
        return vector, prototypes(modulated(theta, vector, support.x, key), classes_of(support.y), num_classes)

    def predict(theta: Theta, phi: tuple[Array, Array], x: PyTree, key: KeyArray | None) -> Array:
        return nearness(modulated(theta, phi[0], x, key), phi[1])

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
