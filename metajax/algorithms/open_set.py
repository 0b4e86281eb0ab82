"""Open set: class means by cosine, which may also say that an example is of no class."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from metajax.algorithms.heads import classes_of, onehot, prototypes, unit
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Params, Theta, query_loss
from metajax.inner import closed_form


class Known(NamedTuple):
    """What a task has learned."""

    means: Float[Array | np.ndarray, "classes features"]  # of length 1
    counts: Float[Array | np.ndarray, " classes"]  # examples that each is the mean of


def open_set(
    embed: Apply, error: Error, num_classes: int, *, scale: float = 20.0, bias: float = 8.0, growth: float = 1.0
) -> Algorithm:
    """Class means that know what they do not know: one more logit, b, stands for none of the classes.

    logit_c(x) = a cos(f_theta(x), p_c) - g ln n_c,  p_c the mean embedding of the n_c examples of class c. The mean of
    more examples is nearer to its members, which g makes up for. theta holds a, b, g as `unknown`: outer steps on
    episodes whose queries are partly of other classes make the softmax of the logits a calibrated probability.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`, to recognise also `[..., features]`.
      error: of logits `[n, classes + 1]` and labels, such as `classify`; the label `num_classes` is none of them.
      num_classes: ways, the number of classes of an episode.
      scale: a at first.
      bias: b at first.
      growth: g at first.

    Returns:
      The algorithm; it learns a task in one step.

    Raises:
      InputError: when called, the support set lacks a class (not seen under `jit`, unless there are fewer examples than
        classes).

    Reference: Liu, Kang, Li, Hua, Vasconcelos, "Few-Shot Open-Set Recognition using Meta-Learning", CVPR 2020.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = open_set(lambda p, x, key: x, mj.losses.classify, 2).learner
      >>> theta = learner.init({}, jax.random.key(0))
      >>> support = mj.Batch(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))
      >>> phi, _ = mj.adapt(learner, theta, support, jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.array([[2.0, 0.1], [0.1, 1.0], [-1.0, -1.0]]), None).argmax(-1).tolist()
      [0, 1, 2]
    """

    def init(params: Params, key: KeyArray) -> Theta:
        numbers = {"scale": scale, "bias": bias, "growth": growth}
        return {"params": params, "unknown": {name: jnp.float32(value) for name, value in numbers.items()}}

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Known:
        z, y = embed(theta["params"], support.x, key), classes_of(support.y)
        return Known(unit(prototypes(z, y, num_classes)), onehot(y, num_classes, z.dtype).sum(0))

    def predict(theta: Theta, phi: Known, x: PyTree, key: KeyArray | None) -> Float[Array, "*n classes_and_none"]:
        a, b, g = (theta["unknown"][name] for name in ("scale", "bias", "growth"))
        z = unit(embed(theta["params"], x, key))
        # before any step there are no examples
        logits = a * (z @ phi.means.T) - g * jnp.log(jnp.maximum(phi.counts, 1))
        return jnp.concatenate([logits, jnp.broadcast_to(b, (*z.shape[:-1], 1))], -1)

    learner = closed_form(solve, predict, init)
    return Algorithm(learner, query_loss(learner, error, 1))
