"""Meta-Curvature: learn the matrices that transform the inner gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta

AXES = {"taps": "tio,st->sio", "in": "tio,ji->tjo", "out": "tio,po->tip"}


def as_kernel(leaf: Float[Array, "..."]) -> Float[Array, "taps inputs outputs"]:
    """A tensor as `[taps, in, out]`, the axes before the last two flattened and those it lacks of size 1."""
    return leaf.reshape(-1, *(1, 1, *leaf.shape)[-2:])


def meta_curvature(loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, **options: Any) -> Algorithm:
    """MAML with learned curvature: theta = (params, curvature), square matrices that are the identity at first.

    phi_{k+1} = phi_k + M inner(grad loss(phi_k, support)),  M = M_taps x M_in x M_out for each kernel
    `[*taps, in, out]`, one matrix on each axis, the taps flattened; vectors and scalars have M_out only.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      **options: passed to `maml`: `remat`, `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "curvature"}`.

    Reference: Park, Oliva, "Meta-Curvature", NeurIPS 2019.
    """

    def identities(leaf: Array) -> dict[str, Array]:
        sizes = dict(zip(AXES, as_kernel(leaf).shape, strict=True))
        return {name: jnp.eye(n, dtype=leaf.dtype) for name, n in sizes.items() if n > 1 or name == "out"}

    def transform(update: Array, matrices: dict[str, Array]) -> Array:
        kernel = as_kernel(update)
        for name, matrix in matrices.items():
            kernel = jnp.einsum(AXES[name], kernel, matrix)
        return kernel.reshape(update.shape)

    def init(params: Params) -> Theta:
        return {"params": params, "curvature": jax.tree.map(identities, params)}

    return maml(
        loss_fn,
        inner,
        num_steps,
        init=init,
        split=lambda theta: theta["params"],
        precondition=lambda theta, updates: jax.tree.map(transform, updates, theta["curvature"]),
        **options,
    )
