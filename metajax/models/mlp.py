"""A multi-layer perceptron, the network of regression and probe tasks."""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.models.model import Model, check_shape, from_linen


class MLP(nn.Module):
    """Dense layers with ReLU between them; a linear head, if asked."""

    num_outputs: int | None
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Array:
        check_shape(x, "n features")
        for i, width in enumerate(self.hidden):
            x = jax.nn.relu(nn.Dense(width, name=f"dense{i}")(x))
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


def mlp(num_outputs: int | None = None, *, hidden: Sequence[int] = (40, 40)) -> Model:
    """A perceptron on vectors `[n, features]`; parameters `dense0`, `dense1`, ... and `head`.

    Args:
      num_outputs: size of the linear head; None for the last hidden layer, `[n, hidden[-1]]`.
      hidden: widths of the hidden layers.

    Returns:
      The model.

    Raises:
      InputError: when called, inputs of another shape.
    """
    return from_linen(MLP(num_outputs, tuple(hidden)))
