"""Names and axes of a checkpoint's tensors, as PyTorch has them and as parameters here."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from metajax.core import KeyArray, Params
from metajax.data.checkpoints import Files
from metajax.errors import InputError
from metajax.names import merged, named

Shapes: TypeAlias = dict[str, tuple[int, ...]]  # of every tensor that is read, by name, as PyTorch has it
PREFIXES = ("wav2vec2.", "hubert.", "wavlm.", "model.")  # the encoder within a model with a head
_OLD = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


class Settings(NamedTuple):
    """What a checkpoint says of itself, and what is needed to write it back."""

    config: dict[str, Any]  # config.json
    vocabulary: dict[str, Any]  # vocab.json: number by token, of MMS by language; empty where there is none
    normalize: bool  # whether the model normalises each utterance before it looks at it
    shapes: Shapes  # of the tensors that became parameters, by common name
    names: dict[str, str]  # the name in the file of each common name
    types: dict[str, np.dtype]  # of these tensors, by common name
    files: Files  # documents, and the tensors that are no parameters


def common(name: str) -> str:
    """The name without the prefix of a model with a head, and with the newer names of weight normalisation."""
    name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_OLD[last]}" if last in _OLD else name


def placed(name: str, shape: tuple[int, ...]) -> str:
    """The name of a tensor as a parameter.

    Example:
      >>> placed("lm_head.weight", (32, 768)), placed("encoder.layer_norm.weight", (768,))
      ('lm_head.kernel', 'encoder.layer_norm.scale')
    """
    stem, _, last = name.rpartition(".")
    if last in ("original0", "original1"):
        return stem.removesuffix("parametrizations.weight") + ("gain" if last == "original0" else "kernel")
    if last != "weight":
        return name
    if len(shape) == 1:
        return f"{stem}.scale"
    return f"{stem}.embedding" if "embed" in stem.rpartition(".")[2] else f"{stem}.kernel"


def to_params(tensors: Mapping[str, np.ndarray], shapes: Shapes, dtype: DTypeLike) -> Params:
    """Nested dicts of parameters: kernels `[*taps, in, out]`, scales, biases, gains `[taps]`."""
    leaves, dtype = {}, available(dtype)
    for name, shape in shapes.items():
        leaf = _turned(placed(name, shape), tensors[name])
        leaves[placed(name, shape)] = jnp.asarray(leaf.reshape(-1) if _is_gain(name) else leaf, dtype)
    return merged({}, leaves)


def available(dtype: DTypeLike) -> DTypeLike:
    """The type; an `InputError` where it is none of floating point, or double precision is switched off."""
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise InputError(f"dtype is {jnp.dtype(dtype)}, expected a floating type; float64 needs jax_enable_x64.")
    return dtype


def to_tensors(params: Params, settings: Settings) -> dict[str, np.ndarray]:
    """The tensors of parameters, by the names, types and shapes that they had in the file.

    Raises:
      InputError: a parameter is missing, unexpected or of another shape.
    """
    leaves, tensors = named(params), {}
    for name, shape in settings.shapes.items():
        place = placed(name, shape)
        if place not in leaves:
            raise InputError(f"params lack {place}, which the checkpoint's {settings.names[name]} is written from.")
        leaf = np.asarray(leaves.pop(place))
        tensor = leaf.reshape(shape) if _is_gain(name) and leaf.size == shape[-1] else _turned(place, leaf)
        if tensor.shape != shape:
            raise InputError(f"params have {place} of shape {list(leaf.shape)}, the checkpoint {list(shape)}.")
        tensors[settings.names[name]] = tensor.astype(settings.types[name])
    if leaves:
        raise InputError(f"params hold {min(leaves)}, which the checkpoint has no tensor for.")
    return tensors


def fitted(
    held: Mapping[str, np.ndarray], shapes: Shapes, carried: str, where: str = "The checkpoint"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors that a model reads, by common name, and their names in the file.

    Args:
      held: the tensors of the file, by name.
      shapes: what the model reads.
      carried: a pattern of common names that are no part of it and are left in the file as they are.
      where: the file, for messages.

    Raises:
      InputError: a tensor is missing, unexpected, of another shape or not of floating point.
    """
    names: dict[str, str] = {}
    for name in held:
        if common(name) in names:
            raise InputError(f"{where} holds both {names[common(name)]} and {name}, which are the same tensor.")
        names[common(name)] = name
    if missing := [name for name in shapes if name not in names]:
        raise InputError(f"{where} lacks {missing[0]}{_more(missing)}, which config.json asks for.")
    if extra := [names[name] for name in names if name not in shapes and not re.match(carried, name)]:
        raise InputError(f"{where} holds {extra[0]}{_more(extra)}, for which config.json has no place.")
    tensors = {name: held[names[name]] for name in shapes}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            found, wanted = list(tensor.shape), list(shapes[name])
            raise InputError(f"{where}: {names[name]} has shape {found}, config.json asks for {wanted}.")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(f"{where}: {names[name]} is {tensor.dtype}, expected floating point.")
    return tensors, {name: names[name] for name in shapes}


def fresh(key: KeyArray, shapes: Shapes, dtype: DTypeLike) -> Params:
    """Random parameters: kernels of variance 1 / inputs, scales 1, biases 0."""
    leaves = {}
    for (name, shape), one in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        place = placed(name, shape)
        if place.endswith("kernel"):
            leaves[place] = jax.random.normal(one, shape[::-1], dtype) / np.prod(shape[1:]) ** 0.5
        elif place.endswith("embedding"):
            leaves[place] = 0.02 * jax.random.normal(one, shape, dtype)
        else:
            ones = place.endswith(("scale", "gain", "running_var", "const"))
            leaves[place] = jnp.full(shape[-1:] if _is_gain(name) else shape, float(ones), dtype)
    return merged({}, leaves)


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    """The tensors of a linear layer."""
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, size: int) -> Shapes:
    """The tensors of a normalisation."""
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _turned(place: str, array: np.ndarray) -> np.ndarray:
    """Axes from PyTorch's order to that of parameters, or back."""
    return array.T if place.endswith(".kernel") else array


def _is_gain(name: str) -> bool:
    return name.endswith("original0")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
