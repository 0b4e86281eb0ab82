"""Whisper: a transformer on the log-mel of half a minute, silence after shorter utterances, and one on tokens of text.

What its decoder writes is found by `pretrained.transcriber`.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Params
from metajax.data.features import FeatureSettings, mel_filterbank, powers
from metajax.errors import InputError
from metajax.models.pretrained.layers import (
    ACTIVATIONS,
    Encoded,
    attend,
    conv,
    frames_of,
    known,
    layer_norm,
    linear,
    looked_up,
    normalized,
    required,
    samples_of,
)
from metajax.models.pretrained.layout import Shapes
from metajax.models.pretrained.layout import linear as linear_shapes
from metajax.models.pretrained.layout import norm as norm_shapes

KINDS = ("whisper",)
ARCHITECTURES = ("Model", "ForConditionalGeneration")
CARRIED = r"proj_out\.weight$"  # the embedding of tokens once more, where config.json does not part them
WINDOW, HOP = 400, 160
_NEEDED = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
_DECODER = ("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "vocab_size")
Cache: TypeAlias = list[tuple[Array, Array]]  # keys and values of each layer, [n, positions or frames, features]


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what it leaves out; an `InputError` where it lacks a field, or one has a value not read."""
    c = {"max_source_positions": 1500, "max_target_positions": 448, "activation_function": "gelu"} | config
    required(c, _NEEDED, "d_model", "encoder_attention_heads")
    known(c["activation_function"], ACTIVATIONS, "activation_function")
    return c


def shapes(c: dict[str, Any], head: bool) -> Shapes:
    """What the encoder reads, and the decoder if it is there, by common name, as PyTorch has it."""
    size = c["d_model"]
    found: Shapes = {"encoder.embed_positions.weight": (c["max_source_positions"], size)}
    for name, into in (("conv1", c["num_mel_bins"]), ("conv2", size)):
        found |= {f"encoder.{name}.weight": (size, into, 3), f"encoder.{name}.bias": (size,)}
    found |= _layer_shapes(c, "encoder", ("self_attn",))
    if head:
        required(c, _DECODER, "d_model", "decoder_attention_heads")
        found["decoder.embed_tokens.weight"] = (c["vocab_size"], size)
        found["decoder.embed_positions.weight"] = (c["max_target_positions"], size)
        found |= _layer_shapes(c, "decoder", ("self_attn", "encoder_attn"))
        if not c.get("tie_word_embeddings", True):
            found["proj_out.weight"] = (c["vocab_size"], size)
    return found


def _layer_shapes(c: dict[str, Any], side: str, attentions: tuple[str, ...]) -> Shapes:
    size, found = c["d_model"], norm_shapes(f"{side}.layer_norm", c["d_model"])
    for i in range(c[f"{side}_layers"]):
        name = f"{side}.layers.{i}"
        for part in attentions:
            for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= linear_shapes(f"{name}.{part}.{which}", size, size, bias=which != "k_proj")
            found |= norm_shapes(f"{name}.{part}_layer_norm", size)
        found |= norm_shapes(f"{name}.final_layer_norm", size)
        found |= linear_shapes(f"{name}.fc1", c[f"{side}_ffn_dim"], size)
        found |= linear_shapes(f"{name}.fc2", size, c[f"{side}_ffn_dim"])
    return found


def encode(c: dict[str, Any], params: Params, x: PyTree, normalize: bool, first: int | None = None) -> Encoded:
    """Frames of utterances, one every 20 ms; all of them see the silence behind, so that none is set to 0.

    Args:
      c: the configuration, `checked`.
      params: of the model.
      x: samples at 16 kHz within -1..1, `[n, samples]`, or `Utterances` of them.
      normalize: whether to give each utterance mean 0 and variance 1 first.
      first: the layer to begin at; x are then the frames that go into it, or `Utterances` of them.

    Returns:
      Half a minute of frames, 1,500 of Whisper; those that count touch the utterance. The layers are those before the
      last normalisation.

    Raises:
      InputError: x is of another shape, shorter than a window or longer than what the encoder takes.
    """
    p = params["encoder"]
    hidden, lengths = _entered(c, p, x, normalize) if first is None else frames_of(x)
    layers = [hidden]
    for i in range(first or 0, c["encoder_layers"]):
        layers.append(_layer(c, p["layers"][str(i)], layers[-1]))
    return Encoded(layer_norm(p["layer_norm"], layers[-1], 1e-5), tuple(layers), lengths)


def _entered(
    c: dict[str, Any], p: Params, x: PyTree, normalize: bool
) -> tuple[Float[Array, "n frames features"], Int[Array, " n"]]:
    """What goes into the first layer."""
    wave, lengths = samples_of(x, WINDOW)
    num_frames = 2 * c["max_source_positions"]
    wave = normalized(wave, lengths) if normalize else wave
    hidden = log_mel(wave, c["num_mel_bins"], num_frames).astype(p["conv1"]["kernel"].dtype)
    gelu = ACTIVATIONS["gelu"]
    hidden = gelu(conv(p["conv2"], gelu(conv(p["conv1"], hidden, pads=(1, 1))), 2, (1, 1)))
    return hidden + p["embed_positions"]["embedding"], -(-lengths // (2 * HOP))


def log_mel(wave: Float[Array, "n samples"], num_mels: int, num_frames: int = 3000) -> Float[Array, "n time mel"]:
    """Whisper's features: log10 of mel powers, no more than 8 below each utterance's largest, plus 4, over 4.

    Args:
      wave: samples at 16 kHz; silence follows up to the last frame.
      num_mels: bands of 0-8000 Hz on Slaney's scale, 80 or 128.
      num_frames: of 10 ms each.

    Returns:
      `[n, num_frames, num_mels]`.

    Raises:
      InputError: the wave is longer than so many frames.

    Reference: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", ICML 2023.
    """
    if (rest := num_frames * HOP - wave.shape[1]) < 0:
        raise InputError(f"x has {wave.shape[1]} samples, expected at most {num_frames * HOP}.")
    around = jnp.pad(jnp.pad(wave, ((0, 0), (0, rest))), ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    power = powers(around, WINDOW, HOP, WINDOW)[:, :-1]  # a last frame, centred on the end, is left out
    filters = mel_filterbank(FeatureSettings(fft_size=WINDOW, num_mels=num_mels, low=0.0, high=8000.0))
    mel = jnp.dot(power, filters.astype(wave.dtype), precision=jax.lax.Precision.HIGHEST)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max((1, 2), keepdims=True) - 8) + 4) / 4


def _layer(c: dict[str, Any], p: Params, x: Array) -> Array:
    q, y = p["self_attn"], layer_norm(p["self_attn_layer_norm"], x, 1e-5)
    x = x + attend(q, y, *looked_up(q, y), c["encoder_attention_heads"])
    return x + _feed(c, p, x)


def _feed(c: dict[str, Any], p: Params, x: Array) -> Array:
    hidden = ACTIVATIONS[c["activation_function"]](linear(p["fc1"], layer_norm(p["final_layer_norm"], x, 1e-5)))
    return linear(p["fc2"], hidden)


def caches(
    c: dict[str, Any], params: Params, frames: Float[Array, "n frames features"], rows: int, size: int
) -> tuple[Cache, Cache]:
    """What the decoder's layers look up: of the encoder's frames, and room for it of rows of so many tokens."""
    layers = [params["decoder"]["layers"][str(i)]["encoder_attn"] for i in range(c["decoder_layers"])]
    room = jnp.zeros((rows, size, c["d_model"]), frames.dtype)
    return [looked_up(p, frames) for p in layers], [(room, room) for _ in layers]


def decode(
    c: dict[str, Any], params: Params, tokens: Int[Array, "rows length"], start: Any, heard: Cache, cache: Cache
) -> tuple[Float[Array, "rows length vocabulary"], Cache]:
    """Scores of what follows each of the tokens that stand at `start` and after it.

    Args:
      c: the configuration, `checked`.
      params: of the model.
      tokens: rows of them, one or several for each utterance.
      start: how many tokens of each row are in the cache.
      heard: from `caches`, of each utterance.
      cache: from `caches`, of each row, with what came before.

    Returns:
      Scores, and the cache with these tokens in it.
    """
    p, heads, length = params["decoder"], c["decoder_attention_heads"], tokens.shape[1]
    positions = jax.lax.dynamic_slice_in_dim(p["embed_positions"]["embedding"], start, length)
    hidden, after = p["embed_tokens"]["embedding"][tokens] + positions, []
    seen = jnp.arange(cache[0][0].shape[1]) <= start + jnp.arange(length)[:, None]
    for i, (pair, (k, v)) in enumerate(zip(cache, heard, strict=True)):
        q = p["layers"][str(i)]
        x = layer_norm(q["self_attn_layer_norm"], hidden, 1e-5)
        new = zip(pair, looked_up(q["self_attn"], x), strict=True)
        keys, values = (jax.lax.dynamic_update_slice_in_dim(*both, start, 1) for both in new)
        after.append((keys, values))
        hidden = hidden + attend(q["self_attn"], x, keys, values, heads, seen)
        x = layer_norm(q["encoder_attn_layer_norm"], hidden, 1e-5).reshape(len(k), -1, c["d_model"])
        hidden = hidden + attend(q["encoder_attn"], x, k, v, heads).reshape(hidden.shape)
        hidden = hidden + _feed(c, q, hidden)
    hidden = layer_norm(p["layer_norm"], hidden, 1e-5)
    return linear(params.get("proj_out", {"kernel": p["embed_tokens"]["embedding"].T}), hidden), after
