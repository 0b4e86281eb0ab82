"""FiLM without touching the model: parameters shifted by a linear map of a context vector."""

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath, keystr
from jaxtyping import Array, Float

from metajax.core import Params
from metajax.errors import InputError


def dotted(path: KeyPath) -> str:
    """The name of a leaf, e.g. `norm0.scale`."""
    return keystr(path, simple=True, separator=".")


def film_init(params: Params, size: int, names: tuple[str, ...], seed: int) -> dict[str, Array]:
    """A linear map `[size, *leaf]` for each leaf whose own name is one of `names`, by dotted name, e.g. `norm0.scale`.

    The entries have variance 1 / size, so that a gradient step on the context moves the leaves about as far as the same
    step on the leaves themselves would.

    Args:
      params: the model's parameters.
      size: size of the context vector.
      names: last names of the leaves to shift.
      seed: of the random entries.

    Returns:
      The maps.

    Raises:
      InputError: no leaf has one of the names.
    """
    leaves = {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    chosen = {name: leaf for name, leaf in leaves.items() if name.rsplit(".", 1)[-1] in names}
    if not chosen:
        raise InputError(f"names is {names}, none of which is the last name of a parameter: {', '.join(leaves)}.")
    keys = jax.random.split(jax.random.key(seed), len(chosen))
    return {
        name: jax.random.normal(key, (size, *leaf.shape), leaf.dtype) / size**0.5
        for key, (name, leaf) in zip(keys, chosen.items(), strict=True)
    }


def film_apply(params: Params, film: dict[str, Array], context: Float[Array, " size"]) -> Params:
    """params with `leaf + context @ film[name]` for each leaf that has a map; context 0 changes nothing."""

    def shift(path: KeyPath, leaf: Array) -> Array:
        name = dotted(path)
        return leaf + jnp.tensordot(context, film[name], 1) if name in film else leaf

    return jax.tree.map_with_path(shift, params)
