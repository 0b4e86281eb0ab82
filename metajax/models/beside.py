"""A learned embedding beside one that needs no learning."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.algorithms.heads import unit
from metajax.core import KeyArray, Params
from metajax.models.model import Model


def beside(model: Model, known: Callable[[PyTree], Array], weight: float = 1.0) -> Model:
    """The embedding (f(x) / |f(x)|, weight k(x) / |k(x)|), whose cosine is the weighted mean of both cosines.

    What is known of speech without learning, such as `features.endpointed`, and what a small network learns from little
    speech without labels err on other clips: together they are better than each.

    Args:
      model: whose outputs are embeddings, `[n, features]`.
      known: a vector of one example.
      weight: of the known part.

    Returns:
      A model with the parameters of `model`.

    Example:
      ``beside(tcresnet8(normalization="group"), features.endpointed)``
    """

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Array:
        return jnp.concatenate([unit(model.apply(params, x, key)), weight * unit(jax.vmap(known)(x))], -1)

    return Model(model.init, apply, model.statistics)
