"""wav2vec 2.0, HuBERT and WavLM: convolutions on samples, then a transformer; with a CTC head, and MMS's adapters.

Utterances of unequal length give what each gives alone: where Transformers lets padding into the statistics of a group
or batch normalisation, it is left out here.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from metajax.core import Params, Utterances
from metajax.errors import InputError
from metajax.models.pretrained.layers import (
    ACTIVATIONS,
    Encoded,
    attend,
    channel_norm,
    conv,
    frames_of,
    known,
    layer_norm,
    linear,
    looked_up,
    normalized,
    required,
    samples_of,
    within,
)
from metajax.models.pretrained.layout import Shapes
from metajax.models.pretrained.layout import linear as linear_shapes
from metajax.models.pretrained.layout import norm as norm_shapes

KINDS = ("wav2vec2", "hubert", "wavlm")
ARCHITECTURES = ("Model", "ForCTC", "ForPreTraining")
CARRIED = r"masked_spec_embed$|quantizer\.|project_(q|hid)\.|.*num_batches_tracked$"  # only training reads them
# what config.json may leave out
DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "conv_bias": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
    "add_adapter": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
    "pad_token_id": 0,
    "vocab_size": 32,
}
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_stride",
          "conv_kernel", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups")  # fmt: skip


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what it leaves out.

    Raises:
      InputError: it lacks a field, or a field has a value that is not read.
    """
    c = DEFAULTS | config
    required(c, NEEDED, "hidden_size", "num_attention_heads")
    for field in ("hidden_act", "feat_extract_activation"):
        known(c[field], ACTIVATIONS, field)
    known(c["feat_extract_norm"], ("group", "layer"), "feat_extract_norm")
    known(c["add_adapter"], (False,), "add_adapter")
    if not len(c["conv_dim"]) == len(c["conv_stride"]) == len(c["conv_kernel"]):
        raise InputError("config.json: conv_dim, conv_stride and conv_kernel differ in length, expected one number.")
    return c


def shapes(c: dict[str, Any], head: bool) -> Shapes:
    """What the model reads, by common name, as PyTorch has it."""
    size, dims, taps = c["hidden_size"], (1, *c["conv_dim"]), c["num_conv_pos_embeddings"]
    found: Shapes = {}
    for i, kernel in enumerate(c["conv_kernel"]):
        name = f"feature_extractor.conv_layers.{i}"
        found[f"{name}.conv.weight"] = (dims[i + 1], dims[i], kernel)
        if c["conv_bias"]:
            found[f"{name}.conv.bias"] = (dims[i + 1],)
        if i == 0 or c["feat_extract_norm"] == "layer":
            found |= norm_shapes(f"{name}.layer_norm", dims[i + 1])
    if c["feat_proj_layer_norm"]:
        found |= norm_shapes("feature_projection.layer_norm", dims[-1])
    found |= linear_shapes("feature_projection.projection", size, dims[-1])
    name, kernel_shape = "encoder.pos_conv_embed", (size, size // c["num_conv_pos_embedding_groups"], taps)
    if c["conv_pos_batch_norm"]:
        found[f"{name}.conv.weight"] = kernel_shape
        found |= norm_shapes(f"{name}.batch_norm", size)
        found |= {f"{name}.batch_norm.running_{which}": (size,) for which in ("mean", "var")}
    else:
        found[f"{name}.conv.parametrizations.weight.original0"] = (1, 1, taps)
        found[f"{name}.conv.parametrizations.weight.original1"] = kernel_shape
    found[f"{name}.conv.bias"] = (size,)
    found |= norm_shapes("encoder.layer_norm", size)
    for i in range(c["num_hidden_layers"]):
        found |= _layer_shapes(c, f"encoder.layers.{i}", size, i == 0)
    return found | (linear_shapes("lm_head", c["vocab_size"], size) if head else {})


def _layer_shapes(c: dict[str, Any], name: str, size: int, first: bool) -> Shapes:
    found: Shapes = {}
    for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found |= linear_shapes(f"{name}.attention.{which}", size, size)
    if c["model_type"] == "wavlm":
        heads = c["num_attention_heads"]
        found[f"{name}.attention.gru_rel_pos_const"] = (1, heads, 1, 1)
        found |= linear_shapes(f"{name}.attention.gru_rel_pos_linear", 8, size // heads)
        if first:
            found[f"{name}.attention.rel_attn_embed.weight"] = (c["num_buckets"], heads)
    found |= norm_shapes(f"{name}.layer_norm", size) | norm_shapes(f"{name}.final_layer_norm", size)
    found |= linear_shapes(f"{name}.feed_forward.intermediate_dense", c["intermediate_size"], size)
    found |= linear_shapes(f"{name}.feed_forward.output_dense", size, c["intermediate_size"])
    if c["do_stable_layer_norm"] and c["adapter_attn_dim"] is not None:
        found |= norm_shapes(f"{name}.adapter_layer.norm", size)
        found |= linear_shapes(f"{name}.adapter_layer.linear_1", c["adapter_attn_dim"], size)
        found |= linear_shapes(f"{name}.adapter_layer.linear_2", size, c["adapter_attn_dim"])
    return found


def reach(c: dict[str, Any]) -> int:
    """The fewest samples that give a frame: 400 of wav2vec 2.0."""
    samples = 1
    for kernel, stride in zip(c["conv_kernel"][::-1], c["conv_stride"][::-1], strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def encode(c: dict[str, Any], params: Params, x: PyTree, normalize: bool, first: int | None = None) -> Encoded:
    """Frames of utterances; what lies past an utterance's end is 0.

    Args:
      c: the configuration, `checked`.
      params: of the model.
      x: samples at 16 kHz, `[n, samples]`, or `Utterances` of them.
      normalize: whether to give each utterance mean 0 and variance 1 first.
      first: the layer to begin at; x are then the frames that go into it, or `Utterances` of them.

    Returns:
      The encoder's frames; the layers of a model with `do_stable_layer_norm` are those before the last normalisation.

    Raises:
      InputError: x is of another shape, or too short for one frame.
    """
    p, stable = params["encoder"], c["do_stable_layer_norm"]
    hidden, lengths = _entered(c, params, x, normalize) if first is None else frames_of(x)
    seen = within(lengths, hidden.shape[1])
    mask, bias = seen[:, None, None] if isinstance(x, Utterances) else None, None
    if c["model_type"] == "wavlm":
        bias = _relative(c, p["layers"]["0"]["attention"]["rel_attn_embed"]["embedding"], hidden.shape[1])
    layers = [hidden]
    for i in range(first or 0, c["num_hidden_layers"]):
        layers.append(_layer(c, p["layers"][str(i)], layers[-1], mask, bias))
    output = layer_norm(p["layer_norm"], layers[-1], c["layer_norm_eps"]) if stable else layers[-1]
    output, *layers = (jnp.where(seen[..., None], a, 0) for a in (output, *layers))
    return Encoded(output, tuple(layers), lengths)


def _entered(
    c: dict[str, Any], params: Params, x: PyTree, normalize: bool
) -> tuple[Float[Array, "n frames features"], Int[Array, " n"]]:
    """What goes into the first layer."""
    dtype = params["feature_projection"]["projection"]["kernel"].dtype
    wave, lengths = samples_of(x, reach(c))
    hidden, lengths = _features(c, params, (normalized(wave, lengths) if normalize else wave).astype(dtype), lengths)
    if c["feat_proj_layer_norm"]:
        hidden = layer_norm(params["feature_projection"]["layer_norm"], hidden, c["layer_norm_eps"])
    hidden = linear(params["feature_projection"]["projection"], hidden)
    seen = within(lengths, hidden.shape[1])
    hidden = jnp.where(seen[..., None], hidden, 0)
    p = params["encoder"]
    hidden = hidden + _positions(c, p["pos_conv_embed"], hidden, seen)
    return hidden if c["do_stable_layer_norm"] else layer_norm(p["layer_norm"], hidden, c["layer_norm_eps"]), lengths


def logits(c: dict[str, Any], params: Params, encoded: Encoded) -> Float[Array, "n frames vocabulary"]:
    """Scores of the CTC head; past an utterance's end certain blanks: 0, and -inf for the tokens."""
    scores = linear(params["lm_head"], encoded.output)
    blank = jnp.full(scores.shape[-1], -jnp.inf, scores.dtype).at[c["pad_token_id"]].set(0)
    return jnp.where(within(encoded.lengths, scores.shape[1])[..., None], scores, blank)


def _features(
    c: dict[str, Any], params: Params, wave: Float[Array, "n samples"], lengths: Int[Array, " n"]
) -> tuple[Float[Array, "n frames features"], Int[Array, " n"]]:
    """Strided convolutions, and how many frames count."""
    x, act = wave[..., None], ACTIVATIONS[c["feat_extract_activation"]]
    for i, (kernel, stride) in enumerate(zip(c["conv_kernel"], c["conv_stride"], strict=True)):
        p = params["feature_extractor"]["conv_layers"][str(i)]
        x = conv(p["conv"], x, stride)
        lengths = jnp.maximum((lengths - kernel) // stride + 1, 0)
        if c["feat_extract_norm"] == "layer":
            x = layer_norm(p["layer_norm"], x, 1e-5)
        elif i == 0:
            x = channel_norm(p["layer_norm"], x, lengths)
        x = act(x)
    return x, lengths


def _positions(c: dict[str, Any], p: Params, x: Array, seen: Bool[Array, "n time"]) -> Array:
    """A convolution that tells where a frame is; an even kernel looks one frame further back than ahead."""
    taps, kernel = c["num_conv_pos_embeddings"], p["conv"]["kernel"]
    if c["conv_pos_batch_norm"]:
        q = p["batch_norm"]
        mean, variance = jax.lax.stop_gradient((q["running_mean"], q["running_var"]))  # no step changes statistics
        factor = q["scale"] * jax.lax.rsqrt(variance + 1e-5)
        x = jnp.where(seen[..., None], (x - mean) * factor + q["bias"], 0)
    else:  # weight normalisation: a length per tap
        length = jnp.sqrt(jnp.square(kernel).sum((1, 2), keepdims=True))
        kernel = kernel * (p["conv"]["gain"][:, None, None] / length)
    around, groups = (taps // 2, taps // 2 - 1 + taps % 2), c["num_conv_pos_embedding_groups"]
    y = conv({"kernel": kernel, "bias": p["conv"]["bias"]}, x, pads=around, groups=groups)
    return ACTIVATIONS[c["feat_extract_activation"]](y)


def _layer(
    c: dict[str, Any], p: Params, x: Array, seen: Bool[Array, "n 1 1 time"] | None, bias: Float[Array, "h t t"] | None
) -> Array:
    """Attention and a feed-forward network; normalised before each ("stable") or after."""
    eps, act = c["layer_norm_eps"], ACTIVATIONS[c["hidden_act"]]

    def hear(x: Array) -> Array:
        q = p["attention"]
        gated = None if bias is None else _gate(q, x, bias)
        return attend(q, x, *looked_up(q, x), c["num_attention_heads"], seen, gated)

    def feed(x: Array) -> Array:
        q = p["feed_forward"]
        return linear(q["output_dense"], act(linear(q["intermediate_dense"], x)))

    if not c["do_stable_layer_norm"]:
        x = layer_norm(p["layer_norm"], x + hear(x), eps)
        return layer_norm(p["final_layer_norm"], x + feed(x), eps)
    x = x + hear(layer_norm(p["layer_norm"], x, eps))
    x = x + feed(layer_norm(p["final_layer_norm"], x, eps))
    if "adapter_layer" in p:
        q = p["adapter_layer"]
        x = x + linear(q["linear_2"], jax.nn.relu(linear(q["linear_1"], layer_norm(q["norm"], x, 1e-5))))
    return x


def _relative(c: dict[str, Any], table: Float[Array, "buckets heads"], time: int) -> Float[Array, "heads time time"]:
    """WavLM's scores of distances: half of the buckets by sign, exact when near, logarithmic when far."""
    half = c["num_buckets"] // 2
    exact = half // 2
    distance = np.arange(time) - np.arange(time)[:, None]
    far = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / exact)
    far = exact + far / math.log(c["max_bucket_distance"] / exact) * (half - exact)
    bucket = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(far.astype(np.int64), half - 1))
    return table[bucket + half * (distance > 0)].transpose(2, 0, 1)


def _gate(p: Params, x: Float[Array, "n time features"], bias: Float[Array, "h t t"]) -> Float[Array, "n h t t"]:
    """WavLM's scores of distances, gated by what each head sees of the layer's input."""
    heads = len(bias)
    gates = linear(p["gru_rel_pos_linear"], x.reshape(*x.shape[:2], heads, -1))
    a, b = jnp.moveaxis(jax.nn.sigmoid(gates.reshape(*gates.shape[:-1], 2, 4).sum(-1)), -1, 0)
    gate = a * (b * p["gru_rel_pos_const"].reshape(heads) - 1) + 2  # [n, time, heads]
    return gate.transpose(0, 2, 1)[..., None] * bias
