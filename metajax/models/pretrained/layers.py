"""What the layers of pretrained encoders compute, as functions of their parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from metajax.core import KeyArray, Params, Utterances
from metajax.errors import InputError
from metajax.models.model import Model, check_shape


class Encoded(NamedTuple):
    """What an encoder makes of utterances."""

    output: Float[Array, "n frames features"]
    layers: tuple[Float[Array, "n frames features"], ...]  # what goes into the first layer, what each layer gives
    lengths: Int[Array, " n"]  # how many frames count


class Pretrained(NamedTuple):
    """A `Model` that also tells what every layer gives."""

    init: Callable[[KeyArray, PyTree], Params]
    apply: Callable[..., Array]
    statistics: Callable[[Params, PyTree], dict[str, Array]]
    encode: Callable[[Params, PyTree], Encoded]  # parameters, samples at 16 kHz `[n, samples]` or `Utterances` of them
    # the same from a layer on, 0 the first: its x are the frames that go into it, or `Utterances` of them
    above: "Callable[[int], Pretrained] | None" = None  # None without layers


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def averaged(model: Pretrained, layer: int | None = None) -> Model:
    """A model of one vector an utterance: the mean over its frames of what the encoder gives, or one of its layers.

    Args:
      model: the encoder.
      layer: 0 for what goes into the first layer, k for what layer k gives, negative from the last; None for the
        encoder's output.

    Returns:
      A model with outputs `[n, features]`, for the same parameters.

    Raises:
      InputError: when called, there is no such layer.
    """

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Float[Array, "n features"]:
        output, layers, lengths = model.encode(params, x)
        if layer is not None and not -len(layers) <= layer < len(layers):
            raise InputError(f"layer is {layer}, expected {-len(layers)}..{len(layers) - 1}.")
        output = output if layer is None else layers[layer]
        counts = within(lengths, output.shape[1])[..., None]
        return jnp.where(counts, output, 0).sum(1) / jnp.maximum(counts.sum(1), 1).astype(output.dtype)

    return Model(model.init, apply, model.statistics)


def split(model: Pretrained, params: Params, layer: int) -> tuple[Callable[[PyTree], PyTree], Pretrained]:
    """An encoder in two: what lies below a layer, frozen, and that layer and what lies above it.

    Args:
      model: the encoder.
      params: its parameters, which `encode` closes over.
      layer: 0 for the first, so that the convolutions are frozen; the number of layers to freeze all of them.

    Returns:
      `encode(x)`: the frames that go into the layer, `Utterances` where x is; a model of these, for the same params.

    Raises:
      InputError: the encoder has no layers, or none of this number.

    Example:
      Low-rank changes of the last two of 12 layers, and a head; theta holds no more, a step computes no more::

        encode, upper = split(model, params, 10)
        part = mj.frozen(mj.lora(4, *last_layers(params, 2)), params)
        learner = mj.cached(mj.descent(upper.apply, error, optax.sgd(0.1), part=part), encode)
        theta = learner.init({"lm_head": params["lm_head"]}, key)
    """
    if model.above is None:
        raise InputError("The encoder has no layers to be split at.")
    if not 0 <= layer <= (most := len(params["encoder"]["layers"])):
        raise InputError(f"layer is {layer}, expected 0..{most}.")

    def encode(x: PyTree) -> PyTree:
        _, layers, lengths = model.encode(params, x)  # those above are computed in vain, but not once it is compiled
        # where all frames count, a mask within every attention would cost a tenth of a step
        return Utterances(layers[layer], lengths) if isinstance(x, Utterances) else layers[layer]

    return encode, model.above(layer)


def frames_of(x: PyTree) -> tuple[Float[Array, "n frames features"], Int[Array, " n"]]:
    """Frames and how many of them count, all where x is no `Utterances`."""
    return x if isinstance(x, Utterances) else (x, jnp.full(len(x), x.shape[1]))


def last_layers(params: Params, count: int) -> tuple[str, ...]:
    """Patterns of the last layers of an encoder, for any part: `only(*last_layers(params, 2), "lm_head")`.

    Example:
      >>> last_layers({"encoder": {"layers": {"0": {}, "1": {}, "2": {}}}}, 2)
      ('encoder.layers.1', 'encoder.layers.2')
    """
    layers = len(params["encoder"]["layers"])
    if not 1 <= count <= layers:
        raise InputError(f"count is {count}, expected 1..{layers} layers.")
    return tuple(f"encoder.layers.{i}" for i in range(layers - count, layers))


def windowed(model: Model, frames: int) -> Model:
    """A model of running audio: every so many frames that follow one another, as one vector.

    Args:
      model: of frames, `[n, frames, features]`.
      frames: of a window; the next one begins a frame later.

    Returns:
      A model with outputs `[n, windows, frames * features]`, for the same parameters.
    """

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Float[Array, "n windows features"]:
        output = model.apply(params, x)
        windows = output.shape[1] - frames + 1
        return jnp.concatenate([output[:, i : i + windows] for i in range(frames)], -1)

    return Model(model.init, apply, model.statistics)


def samples_of(x: PyTree, reach: int) -> tuple[Float[Array, "n samples"], Int[Array, " n"]]:
    """Samples, 0 past each utterance's end, and lengths.

    Raises:
      InputError: they are integers, of no utterance, or fewer than `reach`; of one in a batch where that is known, so
        not once it is compiled, and but for one of no sample, which fills up a batch.
    """
    wave, lengths = x if isinstance(x, Utterances) else (x, None)
    wave = jnp.asarray(wave)
    check_shape(wave, "n samples", reach)
    if not jnp.issubdtype(wave.dtype, jnp.floating):
        raise InputError(f"x is {wave.dtype}, expected samples of floating point within -1..1.")
    if not len(wave):
        raise InputError(f"x has shape {wave.shape}, expected one utterance or more.")
    if lengths is None:
        return wave, jnp.full(len(wave), wave.shape[1])
    if not isinstance(lengths, jax.core.Tracer):
        for i, length in enumerate(np.asarray(lengths).tolist()):
            if 0 < length < reach:
                raise InputError(f"x: utterance {i} has {length} samples, expected {reach} or more for a frame.")
    return jnp.where(within(lengths, wave.shape[1]), wave, 0), jnp.minimum(lengths, wave.shape[1])


def within(lengths: Int[Array, " n"], size: int) -> Bool[Array, "n size"]:
    """Which of so many places lie before each length."""
    return jnp.arange(size) < lengths[:, None]


def normalized(wave: Float[Array, "n samples"], lengths: Int[Array, " n"]) -> Float[Array, "n samples"]:
    """Each utterance less its mean, over its standard deviation (its variance plus 1e-7), and 0 past its end."""
    count = jnp.maximum(lengths, 1)[:, None].astype(wave.dtype)
    inside = within(lengths, wave.shape[1])
    centred = jnp.where(inside, wave - wave.sum(1, keepdims=True) / count, 0)  # the wave is 0 past its end
    return centred / jnp.sqrt(jnp.square(centred).sum(1, keepdims=True) / count + 1e-7)


def linear(p: Params, x: Array) -> Array:
    """y = x @ kernel + (x @ a) @ b of a `lora` + bias; y + gelu(y @ down + bias) @ up + bias of an `adapter`."""
    y = x @ p["kernel"]
    y = y + (x @ p["lora"]["a"]) @ p["lora"]["b"] if "lora" in p else y
    y = y + p["bias"] if "bias" in p else y
    return y + linear(p["adapter"]["up"], jax.nn.gelu(linear(p["adapter"]["down"], y))) if "adapter" in p else y


def conv(p: Params, x: Array, stride: int = 1, pads: tuple[int, int] = (0, 0), groups: int = 1) -> Array:
    """Convolution over time, `[n, time, features]`, of groups of features each by itself, at stride 1 if several."""
    kernel = p["kernel"]
    if groups == 1:
        y = jax.lax.conv_general_dilated(x, kernel, (stride,), (pads,), dimension_numbers=("NWC", "WIO", "NWC"))
    else:
        y = _grouped(jnp.pad(x, ((0, 0), pads, (0, 0))), kernel, groups)
    return y + p["bias"] if "bias" in p else y


def _grouped(x: Array, kernel: Array, groups: int) -> Array:
    """A product for each group with what all taps see: with slopes a quarter of a grouped convolution on CPU."""
    n, taps, outputs = len(x), len(kernel), kernel.shape[-1]
    places = np.arange(x.shape[1] - taps + 1)[:, None] + np.arange(taps)

    @jax.checkpoint  # what the taps see is many times as large as x
    def one(pair: tuple[Array, Array]) -> Array:
        x, kernel = pair
        return x[:, places].reshape(n * len(places), -1) @ kernel.reshape(-1, kernel.shape[-1])

    apart = jnp.moveaxis(x.reshape(n, -1, groups, x.shape[-1] // groups), 2, 0)
    kernels = jnp.moveaxis(kernel.reshape(taps, -1, groups, outputs // groups), 2, 0)
    y = jax.lax.map(one, (apart, kernels)).reshape(groups, n, len(places), -1)
    return jnp.moveaxis(y, 0, 2).reshape(n, len(places), outputs)


def layer_norm(p: Params, x: Array, eps: float) -> Array:
    """scale (x - mean) / sqrt(variance + eps) + bias over the features, at least in single precision."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def channel_norm(p: Params, x: Array, lengths: Int[Array, " n"]) -> Array:
    """Every feature of every utterance normalised over the frames that count."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inside = within(lengths, x.shape[1])[..., None]
    count = jnp.maximum(lengths, 1)[:, None, None].astype(wide.dtype)
    mean = jnp.where(inside, wide, 0).sum(1, keepdims=True) / count
    centred = jnp.where(inside, wide - mean, 0)
    y = centred * jax.lax.rsqrt(jnp.square(centred).sum(1, keepdims=True) / count + 1e-5)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def looked_up(p: Params, x: Array) -> tuple[Array, Array]:
    """Keys and values for `attend`."""
    return linear(p["k_proj"], x), linear(p["v_proj"], x)


def attend(
    p: Params,
    x: Float[Array, "n queries features"],
    keys: Float[Array, "n keys features"],
    values: Float[Array, "n keys features"],
    heads: int,
    seen: Bool[Array, "..."] | None = None,
    bias: Float[Array, "n heads queries keys"] | None = None,
) -> Float[Array, "n queries features"]:
    """Attention: softmax(q k^T / sqrt(size) + bias) v where `seen`, for each head."""
    # heads first: with slopes a seventh less time on CPU than with heads behind time
    each = (linear(p["q_proj"], x), keys, values)
    q, k, v = (a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3) for a in each)
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(2, 3)
    scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
    if bias is not None:
        scores = scores + bias
    if seen is not None:  # finite, so that an utterance of no frames gives no NaN
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, -1).astype(x.dtype)
    return linear(p["out_proj"], (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape))


def required(config: dict[str, Any], fields: tuple[str, ...], size: str, heads: str) -> None:
    """An `InputError` where config.json lacks one of `fields`, or its size does not divide into its heads."""
    if missing := [field for field in fields if field not in config]:
        raise InputError(f"config.json lacks {missing[0]}, which a {config['model_type']} model needs.")
    if config[size] % config[heads]:
        raise InputError(f"config.json: {size} is {config[size]}, expected a multiple of {heads} = {config[heads]}.")


def known(value: Any, allowed: Any, field: str) -> Any:
    """The value; an `InputError` that names the field of config.json where it is not among those that are read."""
    if value not in allowed:
        raise InputError(f"config.json: {field} is {value!r}, expected one of {', '.join(map(str, allowed))}.")
    return value
