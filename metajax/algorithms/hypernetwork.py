"""A hypernetwork that writes a linear head from class means."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of
from metajax.algorithms.heads import classes_of, prototypes
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Theta, query_loss
from metajax.inner import closed_form


def hypernetwork(embed: Apply, error: Error, num_classes: int, *, features: int, hidden: int = 64) -> Algorithm:
    """logit_c(x) = w_c' f_theta(x) + b_c, (w_c, b_c) = (2 p_c, -|p_c|^2) + h_theta(p_c), p_c the mean of class c.

    The perceptron h starts at 0, where this is ProtoNet.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      features: size of an embedding.
      hidden: size of the hypernetwork's hidden layer.

    Returns:
      The algorithm; theta is `{"params", "hypernetwork"}`; it learns a task in one step.

    Reference: Ha, Dai, Le, "HyperNetworks", ICLR 2017; Qiao et al., "Few-Shot Image Recognition by Predicting
    Parameters from Activations", CVPR 2018.

    Example:
      >>> import jax, metajax as mj
      >>> learner = hypernetwork(lambda p, x, key: x * p["w"], mj.losses.classify, 2, features=2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> phi, _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([0, 1])), jax.random.key(0), 1)
      >>> phi.tolist()
      [[2.0, 0.0, -1.0], [0.0, 2.0, -1.0]]
    """

    def init(params: Params, key: KeyArray) -> Theta:
        network = dense_init(key, (features, hidden, features + 1), dtype_of(params), last=0.0)
        return {"params": params, "hypernetwork": network}

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        p = prototypes(embed(theta["params"], support.x, key), classes_of(support.y), num_classes)
        head = jnp.concatenate([2 * p, -jnp.square(p).sum(-1, keepdims=True)], 1)
        return head + dense_apply(theta["hypernetwork"], p)

    def predict(theta: Theta, phi: Array, x: PyTree, key: KeyArray | None) -> Array:
        return embed(theta["params"], x, key) @ phi[:, :-1].T + phi[:, -1]

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
