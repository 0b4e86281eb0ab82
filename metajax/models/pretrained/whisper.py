"""Whisper's encoder: a transformer on the log-mel of half a minute, silence after shorter utterances."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Params
from metajax.data.features import FeatureSettings, mel_filterbank
from metajax.errors import InputError
from metajax.models.pretrained.layers import (
    ACTIVATIONS,
    Encoded,
    attention,
    conv,
    known,
    layer_norm,
    linear,
    normalized,
    required,
    samples_of,
)
from metajax.models.pretrained.layout import Shapes
from metajax.models.pretrained.layout import linear as linear_shapes
from metajax.models.pretrained.layout import norm as norm_shapes

KINDS = ("whisper",)
ARCHITECTURES = ("Model", "ForConditionalGeneration")
CARRIED = r"decoder\.|proj_out\."  # the decoder is not read
WINDOW, HOP = 400, 160
_NEEDED = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what it leaves out; an `InputError` where it lacks a field, or one has a value not read."""
    c = {"max_source_positions": 1500, "activation_function": "gelu"} | config
    required(c, _NEEDED, "d_model", "encoder_attention_heads")
    known(c["activation_function"], ACTIVATIONS, "activation_function")
    return c


def shapes(c: dict[str, Any], head: bool) -> Shapes:
    """What the encoder reads, by common name, as PyTorch has it."""
    size = c["d_model"]
    found: Shapes = {"encoder.embed_positions.weight": (c["max_source_positions"], size)}
    for name, into in (("conv1", c["num_mel_bins"]), ("conv2", size)):
        found |= {f"encoder.{name}.weight": (size, into, 3), f"encoder.{name}.bias": (size,)}
    for i in range(c["encoder_layers"]):
        name = f"encoder.layers.{i}"
        for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear_shapes(f"{name}.self_attn.{which}", size, size, bias=which != "k_proj")
        found |= norm_shapes(f"{name}.self_attn_layer_norm", size) | norm_shapes(f"{name}.final_layer_norm", size)
        found |= linear_shapes(f"{name}.fc1", c["encoder_ffn_dim"], size)
        found |= linear_shapes(f"{name}.fc2", size, c["encoder_ffn_dim"])
    return found | norm_shapes("encoder.layer_norm", size)


def encode(c: dict[str, Any], params: Params, x: PyTree, normalize: bool, first: int | None = None) -> Encoded:
    """Frames of utterances, one every 20 ms; all of them see the silence behind, so that none is set to 0.

    Args:
      c: the configuration, `checked`.
      params: of the model.
      x: samples at 16 kHz within -1..1, `[n, samples]`, or `Utterances` of them.
      normalize: whether to give each utterance mean 0 and variance 1 first.
      first: the layer to begin at; x are then `Utterances` of the frames that go into it.

    Returns:
      Half a minute of frames, 1,500 of Whisper; those that count touch the utterance. The layers are those before the
      last normalisation.

    Raises:
      InputError: x is of another shape, shorter than a window or longer than what the encoder takes.
    """
    p = params["encoder"]
    hidden, lengths = _entered(c, p, x, normalize) if first is None else x
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
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    starts = HOP * np.arange(num_frames)[:, None]  # a last frame, centred on the end, is left out
    spectrum = jnp.fft.rfft(around[:, starts + np.arange(WINDOW)] * hann.astype(wave.dtype))
    filters = mel_filterbank(FeatureSettings(fft_size=WINDOW, num_mels=num_mels, low=0.0, high=8000.0))
    power = spectrum.real**2 + spectrum.imag**2
    mel = jnp.dot(power, filters.astype(wave.dtype), precision=jax.lax.Precision.HIGHEST)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max((1, 2), keepdims=True) - 8) + 4) / 4


def _layer(c: dict[str, Any], p: Params, x: Array) -> Array:
    x = x + attention(p["self_attn"], layer_norm(p["self_attn_layer_norm"], x, 1e-5), c["encoder_attention_heads"])
    hidden = ACTIVATIONS[c["activation_function"]](linear(p["fc1"], layer_norm(p["final_layer_norm"], x, 1e-5)))
    return x + linear(p["fc2"], hidden)
