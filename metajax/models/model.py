"""A model is three functions; flax stays behind them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from metajax.core import KeyArray, Params
from metajax.errors import InputError
from metajax.names import named, renewed


class Model(NamedTuple):
    """A pure-functional model of inputs `x`, an array or a tree of arrays."""

    init: Callable[[KeyArray, PyTree], Params]  # key, one batch of inputs -> parameters, a nested dict by layer name
    apply: Callable[..., PyTree]  # parameters, inputs, key=None -> outputs; without a key they are deterministic
    # parameters, a support set's inputs -> mean and variance of each `support` normalisation, which `apply` uses where
    # they are among the parameters, by dotted names such as "norm0.mean"; empty under any other normalisation
    statistics: Callable[[Params, PyTree], dict[str, Array]]


def from_linen(module: nn.Module) -> Model:
    """A `Model` from a flax.linen module that is called as `module(x)` and keeps nothing but parameters.

    Args:
      module: the layers. One that is random, such as dropout, must be deterministic where
        `self.has_rng("dropout")` is false.

    Returns:
      The model. Parameters may be any tree that flax reads, a `FrozenDict` for one.

    Raises:
      InputError: when called, parameters that do not fit the inputs.
    """

    def run(params: Params, x: PyTree, **options: Any) -> Any:
        if unread := [name for name in named(params) if {"adapter", "lora"} & {*name.split(".")}]:
            raise InputError(f"params hold {unread[0]}, which this model does not read; pretrained ones do.")
        try:
            return module.apply({"params": params}, x, **options)
        except (errors.ScopeParamShapeError, errors.ScopeParamNotFoundError) as error:
            shape, reason = jax.tree.map(jnp.shape, x), str(error).split(" (http")[0]
            raise InputError(f"x of shape {shape} and params do not fit each other: {reason}") from error

    def init(key: KeyArray, x: PyTree) -> Params:
        return dict(module.init(key, x))["params"]

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Array:
        return jnp.asarray(run(params, x, rngs=None if key is None else {"dropout": key}))

    def statistics(params: Params, x: PyTree) -> dict[str, Array]:
        return flatten_dict(run(params, x, mutable=["statistics"])[1].get("statistics", {}), sep=".")

    return Model(init, apply, statistics)


def identity() -> Model:
    """The model of what is embedded already: its outputs are its inputs, and it has no parameters."""
    return Model(lambda key, x: {}, lambda params, x, key=None: x, lambda params, x: {})


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

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Array:
        return model.apply(_rounded(params), _rounded(x), key).astype(jnp.float32)

    def statistics(params: Params, x: PyTree) -> dict[str, Array]:
        return model.statistics(_rounded(params), _rounded(x))

    return Model(model.init, apply, statistics)


def check_shape(x: Array, axes: str, least: int = 1) -> None:
    """Raise InputError unless x has these axes, `[n, ...]`, all but the first at least so long."""
    if x.ndim != len(axes.split()) or min(x.shape[1:], default=least) < least:
        first, *rest = axes.split()
        wanted = f"[{', '.join((first, *rest))}] with {least} or more of {' and '.join(rest)}"
        raise InputError(f"x has shape {x.shape}, expected {wanted}.")


def _rounded(tree: PyTree) -> PyTree:
    """All floating-point leaves in bfloat16, but for statistics of a support set."""

    def change(name: str, leaf: Array) -> Array:
        kept = name.endswith((".mean", ".variance")) or not jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf if kept else leaf.astype(jnp.bfloat16)

    return renewed(tree, change)
