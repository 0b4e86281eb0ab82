"""A model is two functions; flax stays behind them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PyTree

from metajax.core import KeyArray, Params, Referenced


class Model(NamedTuple):
    """A pure-functional model."""

    init: Callable[[KeyArray, Array], Params]  # key, one batch of inputs -> parameters, a nested dict by layer name
    apply: Callable[[Params, Array | Referenced], Array]  # parameters, inputs -> outputs


def from_linen(module: nn.Module) -> Model:
    """A `Model` from a flax.linen module that is called as `module(x, num_reference)`.

    Args:
      module: keeps nothing but parameters. `num_reference`: how many leading examples give the normalisation
        statistics; None for all of them.

    Returns:
      The model. Given `Referenced` inputs it normalises by the reference and returns outputs for `x` alone.
    """

    def init(key: KeyArray, x: Array) -> Params:
        return dict(module.init(key, x))["params"]

    def apply(params: Params, x: Array | Referenced) -> Array:
        if not isinstance(x, Referenced):
            return jnp.asarray(module.apply({"params": params}, x))
        num_reference = x.reference.shape[0]
        outputs = module.apply({"params": params}, jnp.concatenate([x.reference, x.x]), num_reference)
        return jnp.asarray(outputs)[num_reference:]

    return Model(init, apply)


def in_bfloat16(model: Model) -> Model:
    """The model computed in bfloat16, for accelerators: f(bfloat16(params), bfloat16(x)) in single precision.

    theta, phi, their gradients and every inner and outer step stay in single precision, as do the statistics of `Norm`;
    products of bfloat16 are summed in single precision. Meant for the matrix units of GPUs and TPUs, where nobody has
    measured it yet.

    Args:
      model: any whose layers follow the type of their inputs, as all here do. Of a `multitask` model its encoders.

    Returns:
      The model; its parameters are those of `model`.

    Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """

    def apply(params: Params, x: PyTree) -> Array:
        return model.apply(rounded(params), rounded(x)).astype(jnp.float32)

    return Model(model.init, apply)


def rounded(tree: PyTree) -> PyTree:
    """All floating-point leaves in bfloat16."""
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)
