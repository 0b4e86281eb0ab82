"""T-Net: learn a warp of every kernel through which the inner loop adapts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.film import dotted
from metajax.algorithms.maml import maml
from metajax.core import Algorithm, LossFn, Params, Theta


def tnet(loss_fn: LossFn, inner: optax.GradientTransformation, num_steps: int, **options: Any) -> Algorithm:
    """Transformation networks: theta = (params, warp), a matrix `[out, out]` per kernel, the identity at first.

    The model sees kernel @ warp.  phi_0 = params;  phi_{k+1} = phi_k - alpha grad_phi loss(phi_k @ warp, support).
    A step of the inner loop thus moves what the model sees by -alpha grad @ warp^T warp: a learned metric.

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      **options: passed to `maml`: `remat`, `first_order`, `mode`.

    Returns:
      The algorithm; its theta is `{"params", "warp"}`, warp by dotted names, e.g. `conv0.kernel`.

    Reference: Lee, Choi, "Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace", ICML 2018.
    """

    def init(params: Params) -> Theta:
        leaves = jax.tree.leaves_with_path(params)
        kernels = {dotted(path): leaf for path, leaf in leaves if leaf.ndim > 1}
        return {"params": params, "warp": {name: jnp.eye(w.shape[-1], dtype=w.dtype) for name, w in kernels.items()}}

    def join(theta: Theta, params: Params) -> Params:
        warp = theta["warp"]
        return jax.tree.map_with_path(lambda path, w: w @ warp[dotted(path)] if dotted(path) in warp else w, params)

    return maml(loss_fn, inner, num_steps, init=init, split=lambda theta: theta["params"], join=join, **options)
