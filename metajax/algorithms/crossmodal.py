"""Cross-modal matching: from a word to an image through pairs seen once, two nearest neighbours in a row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.heads import unit
from metajax.core import Algorithm, Apply, Batch, Error, KeyArray, Theta, query_loss
from metajax.inner import closed_form


def crossmodal(embed: Apply, error: Error, *, given: int, wanted: int, temperature: float = 0.1) -> Algorithm:
    """P(j | i) = sum_s a_is b_sj: from query i to support pair s by what is given, from s to item j by what is wanted.

    a_is = softmax_s(cos(u_i, u_s) / temperature) of the given modality, b_sj = softmax_j(cos(v_s, v_j) / temperature)
    of the wanted one, j over all items of the query set. No class is learned: a pair of the support set ties two
    things that need have nothing in common. Pairs that lack one of the two do not count.

    Args:
      embed: `(params, x, key) -> [n, modalities, features]`, such as `fusion(kind="apart")`.
      error: of log-probabilities `[n, n]` and rows of the right items, such as `classify`.
      given: number of the modality that asks.
      wanted: number of the one to choose from.
      temperature: divides the cosines.

    Returns:
      The algorithm, for episodes of `tasks.crossmodal.choices`; it learns a task in one step.

    Reference: Eloff, Engelbrecht, Kamper, "Multimodal One-Shot Learning of Speech and Images", ICASSP 2019, where both
      spaces are learned apart; here the matching itself is trained.

    Example:
      >>> import metajax as mj
      >>> learner = crossmodal(lambda p, x, key: x, mj.losses.classify, given=0, wanted=1).learner
      >>> pairs = jnp.array([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]]])  # what is [1, 0] there is [0, 1] here
      >>> phi = learner.step({"params": ()}, None, mj.Batch(pairs, ()), jax.random.key(0))
      >>> asked = jnp.array([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])
      >>> learner.predict({"params": ()}, phi, asked, None).argmax(-1).tolist()
      [1, 0]
    """

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[Array, Array]:
        z = embed(theta["params"], support.x, key)
        return unit(z), (z[:, jnp.array([given, wanted])] != 0).any(-1).all(-1)

    def predict(theta: Theta, phi: tuple[Array, Array], x: PyTree, key: KeyArray | None) -> Array:
        (pairs, whole), z = phi, unit(embed(theta["params"], x, key))
        first = jnp.where(whole, z[:, given] @ pairs[:, given].T / temperature, jnp.finfo(z.dtype).min / 2)
        second = jax.nn.log_softmax(pairs[:, wanted] @ z[:, wanted].T / temperature)
        return jax.nn.logsumexp(jax.nn.log_softmax(first)[:, :, None] + second, 1)

    learner = closed_form(solve, predict)
    return Algorithm(learner, query_loss(learner, error, 1))
