"""A small perceptron and a transformer block, for the methods that learn one beside the model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.core import KeyArray, Params


def dtype_of(params: Params) -> Any:
    """The dtype that parameters added to these should have."""
    return jnp.result_type(*jax.tree.leaves(params))


def dense_init(key: KeyArray, sizes: Sequence[int], dtype: Any, last: float = 1.0) -> Params:
    """Kernels `[in, out]` from N(0, 2 / in), the last layer's times `last`; biases 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    params = {
        f"dense{i}": {"kernel": (2 / a) ** 0.5 * jax.random.normal(key, (a, b), dtype), "bias": jnp.zeros(b, dtype)}
        for i, (key, a, b) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }
    final = params[f"dense{len(keys) - 1}"]
    final["kernel"] = last * final["kernel"]
    return params


def dense_apply(params: Params, x: Float[Array, "... features"]) -> Float[Array, "... outputs"]:
    """The perceptron's outputs, with ReLU between its layers."""
    for i in range(len(params)):
        layer = params[f"dense{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def standard(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Rows with mean 0 and variance 1: layer normalisation, whose scale the next matrix learns."""
    return jax.nn.standardize(x, epsilon=1e-5)


def attention_block(layer: Params, x: Float[Array, "n width"], memory: Float[Array, "m width"], heads: int) -> Array:
    """A transformer block without masks in which x attends to the memory: x + attention, then x + perceptron."""
    given = {"query": x, "key": memory, "value": memory}
    q, k, v = ((standard(a) @ layer[name]).reshape(len(a), heads, -1) for name, a in given.items())
    # jax.nn.dot_product_attention would be single precision at most
    attention = jax.nn.softmax(jnp.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5)
    x = x + jnp.einsum("hnm,mhd->nhd", attention, v).reshape(x.shape) @ layer["out"]
    return x + dense_apply(layer["mlp"], standard(x))
