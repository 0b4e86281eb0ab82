"""Models of several tasks at once: what all share, and a linear head for each."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import KeyArray, Params
from metajax.errors import InputError
from metajax.models.layers import Norm
from metajax.models.model import Model, from_linen


class Multitask(NamedTuple):
    """A pure-functional model of several tasks; `params["shared"]` is what all share, `params["heads"]` the heads."""

    init: Callable[[KeyArray, Mapping[str, PyTree]], Params]  # key, one batch of inputs for every task -> parameters
    apply: Callable[..., dict[str, Array]]  # parameters, inputs of any tasks, key=None -> their logits, [n, classes]
    embed: Callable[..., Array]  # parameters, task, its inputs, key=None -> what its head sees, [n, width]
    heads: dict[str, int]  # classes of each task, 2 or more


def embedding_heads(heads: Mapping[str, int] | None = None, *, num_tokens: int = 1000, width: int = 128) -> Multitask:
    """The reference model: one table of embeddings, pooled over the tokens of an input, and a linear head per task.

    logits = W_task mean_t E[x_t] + b_task, so a task sees how often each token occurs and nothing of their order: its
    classifier is linear in those frequencies, W_task E^T, of rank at most `width`.

    Args:
      heads: classes of each task; None for speech with 30 and image with 10.
      num_tokens: rows of the table.
      width: columns of the table.

    Returns:
      The model on tokens `[n, length]`, integers in 0..num_tokens - 1; negative ones are padding, and an input of
      nothing else has the embedding 0. Initialised as PyTorch's `Embedding` and `Linear`.

    Raises:
      InputError: a head has fewer than 2 classes, or there is none; when called, a task has no head, a head has no
        task, or a token is beyond the table (where tokens are traced, their logits are NaN).
    """
    heads = _checked({"speech": 30, "image": 10} if heads is None else heads)

    def init(key: KeyArray, inputs: Mapping[str, PyTree]) -> Params:
        _check_inputs(heads, inputs)
        table_key, heads_key = jax.random.split(key)
        table = jax.random.normal(table_key, (num_tokens, width))
        return {"shared": {"embedding": table}, "heads": _init_heads(heads_key, width, heads)}

    def embed(
        params: Params, task: str, x: Int[Array, "n length"], key: KeyArray | None = None
    ) -> Float[Array, "n width"]:
        if x.size and not isinstance(x, jax.core.Tracer) and (found := np.asarray(x).max()) >= num_tokens:
            raise InputError(f"The inputs of task {task!r} hold token {found}, expected at most {num_tokens - 1}.")
        table, real = params["shared"]["embedding"], x >= 0
        share = jnp.where(real, 1 / jnp.maximum(real.sum(1, keepdims=True), 1), 0)
        share = jnp.where(x < num_tokens, share, jnp.nan).astype(table.dtype)
        rows, columns = jnp.arange(len(x))[:, None], jnp.clip(x, 0, num_tokens - 1)
        # a product with the frequencies of the tokens: the gradient of looking rows up is up to seven times slower
        return jnp.zeros((len(x), num_tokens), table.dtype).at[rows, columns].add(share) @ table

    return Multitask(init, partial(_apply_heads, embed, heads), embed, heads)


def multitask(
    encoders: Mapping[str, Model],
    heads: Mapping[str, int],
    *,
    modality: Mapping[str, str] | None = None,
    width: int = 64,
    depth: int = 2,
) -> Multitask:
    """Encoders into one shared space, a trunk that all tasks share, and a linear head per task.

    z = P_m encoder_m(x); z <- z + W_k relu(V_k norm(z)) for each of `depth` blocks k; logits = W_task norm(z) + b_task.

    Args:
      encoders: models without a head by modality, outputs `[n, features]`, e.g. `tcresnet8(normalization="group")`.
        Under `transductive` statistics masked examples still count for the statistics of the others.
      heads: classes of each task.
      modality: encoder of each task; tasks that are not in it have the encoder of their own name.
      width: size of the shared space.
      depth: residual blocks of the trunk, 0 or more.

    Returns:
      The model; parameters `encoders` by modality (`body` and `projection`), `shared` (the trunk) and `heads` by task.

    Raises:
      InputError: a head has fewer than 2 classes, or there is none; a head has no encoder, or an encoder no head;
        `modality` names a task without a head; when called, a task has no head or, in `init`, a head no task.

    Reference: Caruana, "Multitask Learning", Machine Learning 1997.
    """
    heads, modality = _checked(heads), dict(modality or {})
    if unknown := [task for task in modality if task not in heads]:
        raise InputError(f"modality names task {unknown[0]!r} without a head, expected some of {', '.join(heads)}.")
    source = {task: modality.get(task, task) for task in heads}
    for task, name in source.items():
        if name not in encoders:
            found = ", ".join(encoders) or "none"
            raise InputError(f"The head {task!r} has no task to read: expected encoder {name!r}, found {found}.")
    if unused := [name for name in encoders if name not in source.values()]:
        raise InputError(f"The encoder {unused[0]!r} has no task: the tasks are {', '.join(heads)}.")
    trunk = from_linen(Trunk(depth))

    def init(key: KeyArray, inputs: Mapping[str, PyTree]) -> Params:
        _check_inputs(heads, inputs)
        trunk_key, heads_key, *keys = jax.random.split(key, 2 + len(encoders))
        parts = {}
        for (name, encoder), key in zip(encoders.items(), keys, strict=True):
            x = next(inputs[task] for task in heads if source[task] == name)
            body_key, key = jax.random.split(key)
            body = encoder.init(body_key, x)
            features = jax.eval_shape(encoder.apply, body, x).shape[-1]
            parts[name] = {"body": body, "projection": _init_linear(key, features, width)}
        shared = trunk.init(trunk_key, jnp.zeros((1, width)))
        return {"encoders": parts, "shared": shared, "heads": _init_heads(heads_key, width, heads)}

    def embed(params: Params, task: str, x: PyTree, key: KeyArray | None = None) -> Float[Array, "n width"]:
        part = params["encoders"][source[task]]
        features = encoders[source[task]].apply(part["body"], x, key)
        return trunk.apply(params["shared"], linear(part["projection"], features))

    return Multitask(init, partial(_apply_heads, embed, heads), embed, heads)


class Trunk(nn.Module):
    """Residual blocks of two layers, normalised before each and at the end."""

    depth: int

    @nn.compact
    def __call__(self, z: Float[Array, "n width"]) -> Array:
        for i in range(self.depth):
            y = nn.Dense(z.shape[-1], name=f"dense{i}a")(Norm("layer", name=f"norm{i}")(z))
            z = z + nn.Dense(z.shape[-1], name=f"dense{i}b")(jax.nn.relu(y))
        return Norm("layer", name="norm")(z)


def _checked(heads: Mapping[str, int]) -> dict[str, int]:
    """The heads as a dict of their own, once they are known to be sound."""
    if not heads:
        raise InputError("heads is empty, expected the classes of one task or more.")
    for task, classes in heads.items():
        if classes < 2:
            raise InputError(f"The head of task {task!r} has {classes} classes, expected 2 or more.")
    return dict(heads)


def _check_inputs(heads: Mapping[str, int], inputs: Mapping[str, object], every: bool = True) -> None:
    """Raise InputError where a task of the batch has no head or, where `every` task is needed, a head no task."""
    if unknown := [task for task in inputs if task not in heads]:
        raise InputError(f"The batch holds task {unknown[0]!r}, but the model has heads for {', '.join(heads)} only.")
    if absent := [task for task in heads if every and task not in inputs]:
        found = ", ".join(inputs) or "none"
        raise InputError(f"The head {absent[0]!r} has no task: init needs inputs of every task, found {found}.")


def _apply_heads(
    embed: Callable[..., Array],
    heads: dict[str, int],
    params: Params,
    inputs: Mapping[str, PyTree],
    key: KeyArray | None = None,
) -> dict[str, Array]:
    """The logits of every task that `inputs` holds."""
    _check_inputs(heads, inputs, every=False)
    keys = {task: None if key is None else jax.random.fold_in(key, i) for i, task in enumerate(heads)}
    return {task: linear(params["heads"][task], embed(params, task, x, keys[task])) for task, x in inputs.items()}


def linear(params: Params, x: Float[Array, "n features"]) -> Float[Array, "n outputs"]:
    """x @ kernel + bias."""
    return x @ params["kernel"] + params["bias"]


def _init_linear(key: KeyArray, features: int, outputs: int) -> Params:
    """Kernel and bias, uniform within 1 / sqrt(features) of 0."""
    kernel_key, bias_key = jax.random.split(key)
    bound = features**-0.5
    kernel = jax.random.uniform(kernel_key, (features, outputs), minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound)}


def _init_heads(key: KeyArray, width: int, heads: dict[str, int]) -> Params:
    """A linear head for each task."""
    keys = jax.random.split(key, len(heads))
    return {task: _init_linear(key, width, classes) for (task, classes), key in zip(heads.items(), keys, strict=True)}
