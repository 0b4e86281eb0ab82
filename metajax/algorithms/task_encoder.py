"""A task encoder: the support set, read once, modulates the network by FiLM."""

import jax
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of, standard
from metajax.algorithms.film import film_apply, film_init
from metajax.algorithms.protonet import EmbedFn, nearness, prototypes
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def task_encoder(
    embed_fn: EmbedFn,
    num_classes: int,
    *,
    features: int,
    size: int = 32,
    names: tuple[str, ...] = ("scale", "bias"),
    seed: int = 0,
) -> Algorithm:
    """ProtoNet under f_{theta + F c}, c = h_theta(mean_i f_theta(x_i)) the support set's context vector; phi = (c, p).

    The linear map F shifts the parameters with the given names; the perceptron h starts at 0, where this is ProtoNet.
    The paper writes the head by a second network; here it is the modulated prototypes p.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      size: of the context vector.
      names: last names of the parameters to shift, e.g. `scale` for `norm0.scale`.
      seed: of the start of h and F.

    Returns:
      The algorithm; theta is `{"params", "encoder", "film"}`; it learns a task in one step.

    Raises:
      InputError: when theta is made, no parameter has one of the names.

    Reference: Requeima et al., "Fast and Flexible Multi-Task Classification Using Conditional Neural Adaptive
    Processes", NeurIPS 2019.
    """

    def init(params: Params) -> Theta:
        encoder_key = jax.random.fold_in(jax.random.key(seed), 1)
        encoder = dense_init(encoder_key, (features, 2 * size, size), dtype_of(params), last=0.0)
        return {"params": params, "encoder": encoder, "film": film_init(params, size, names, seed)}

    def embed(theta: Theta, context: Array, x: PyTree) -> Array:
        return embed_fn(film_apply(theta["params"], theta["film"], context), x)

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Array]:
        summary = standard(embed_fn(theta["params"], support.x).mean(0))
        # over the hidden size: an outer step on h then moves the parameters about as far as one on themselves
        context = dense_apply(theta["encoder"], summary) / (2 * size)
        return context, prototypes(embed(theta, context, support.x), support.y.episode, num_classes)

    def loss(theta: Theta, phi: tuple[Array, Array], batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        context, p = phi
        return classify(nearness(embed(theta, context, batch.x), p), batch.y.episode)

    learner = closed_form(solve, loss, init)
    return Algorithm(learner, query_loss(learner, num_steps=1))
