"""A hypernetwork that writes a linear head from class means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of
from metajax.algorithms.protonet import EmbedFn, prototypes
from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.inner import closed_form
from metajax.losses import classify


def hypernetwork(embed_fn: EmbedFn, num_classes: int, *, features: int, hidden: int = 64, seed: int = 0) -> Algorithm:
    """logit_c(x) = w_c' f_theta(x) + b_c, (w_c, b_c) = (2 p_c, -|p_c|^2) + h_theta(p_c), p_c the mean of class c.

    The perceptron h starts at 0, where this is ProtoNet.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      hidden: size of the hypernetwork's hidden layer.
      seed: of the hypernetwork's start.

    Returns:
      The algorithm; theta is `{"params", "hypernetwork"}`; it learns a task in one step.

    Reference: Ha, Dai, Le, "HyperNetworks", ICLR 2017; Qiao et al., "Few-Shot Image Recognition by Predicting
    Parameters from Activations", CVPR 2018.
    """

    def init(params: Params) -> Theta:
        sizes = (features, hidden, features + 1)
        return {
            "params": params,
            "hypernetwork": dense_init(jax.random.key(seed), sizes, dtype_of(params), last=0.0),
        }

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        p = prototypes(embed_fn(theta["params"], support.x), support.y.episode, num_classes)
        head = jnp.concatenate([2 * p, -jnp.square(p).sum(-1, keepdims=True)], 1)
        return head + dense_apply(theta["hypernetwork"], p)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        logits = embed_fn(theta["params"], batch.x) @ phi[:, :-1].T + phi[:, -1]
        return classify(logits, batch.y.episode)

    learner = closed_form(solve, loss, init)
    return Algorithm(learner, query_loss(learner, num_steps=1))
