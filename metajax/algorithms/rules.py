"""Rules: how the inner optimiser's updates are changed by what is learned. A new one is a function, for any method."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.core import Theta, held
from metajax.errors import InputError
from metajax.inner import Own, Rule, plain  # noqa: F401  (plain is a rule, too)

_AXES = {"taps": "tio,st->sio", "in": "tio,ji->tjo", "out": "tio,po->tip"}


def rates() -> Rule:
    """A learned factor for every parameter that adapts, 1 at first: alpha = rates * the inner optimiser's rate.

    Returns:
      The rule; theta gets `rates`, shaped as the task's own parameters.

    Reference: Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.
    """

    def apply(theta: Theta, updates: Own, count: Array) -> Own:
        return jax.tree.map(jnp.multiply, held(theta, "rates", updates), updates)

    return Rule(lambda own: {"rates": jax.tree.map(jnp.ones_like, own)}, apply)


def rates_by_step(num_steps: int) -> Rule:
    """A learned factor for every array that adapts and every step, 1 at first.

    Args:
      num_steps: K, the most steps that can be taken.

    Returns:
      The rule; theta gets `rates`, `[K]` for each of the task's own arrays.

    Raises:
      InputError: `num_steps` is below 1.

    Reference: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.
    """
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, expected 1 or more.")

    def apply(theta: Theta, updates: Own, count: Array) -> Own:
        return jax.tree.map(lambda rate, update: rate[count] * update, held(theta, "rates", updates), updates)

    return Rule(lambda own: {"rates": jax.tree.map(lambda w: jnp.ones(num_steps, w.dtype), own)}, apply, num_steps)


def curvature() -> Rule:
    """Learned matrices that transform the updates, the identity at first.

    M = M_taps x M_in x M_out for each kernel `[*taps, in, out]`, one matrix on each axis, the taps flattened; vectors
    and scalars have M_out only.

    Returns:
      The rule; theta gets `curvature`.

    Reference: Park, Oliva, "Meta-Curvature", NeurIPS 2019.
    """

    def init(own: Own) -> Theta:
        return {"curvature": jax.tree.map(_identities, own)}

    def apply(theta: Theta, updates: Own, count: Array) -> Own:
        leaves, tree = jax.tree.flatten(updates)
        matrices = held(theta, "curvature", jax.tree.map(_identities, updates))
        changed = [_transformed(u, m) for u, m in zip(leaves, tree.flatten_up_to(matrices), strict=True)]  # type: ignore[attr-defined]
        return jax.tree.unflatten(tree, changed)

    return Rule(init, apply)


def _kernel(leaf: Float[Array, "..."]) -> Float[Array, "taps inputs outputs"]:
    """A tensor as `[taps, in, out]`, the axes before the last two flattened and those it lacks of size 1."""
    return leaf.reshape(-1, *(1, 1, *leaf.shape)[-2:])


def _identities(leaf: Float[Array, "..."]) -> dict[str, Array]:
    sizes = dict(zip(_AXES, _kernel(leaf).shape, strict=True))
    return {name: jnp.eye(n, dtype=leaf.dtype) for name, n in sizes.items() if n > 1 or name == "out"}


def _transformed(update: Float[Array, "..."], matrices: dict[str, Array]) -> Array:
    kernel = _kernel(update)
    for name, matrix in matrices.items():
        kernel = jnp.einsum(_AXES[name], kernel, matrix)
    return kernel.reshape(update.shape)
