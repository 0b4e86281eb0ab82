"""Audio, image and text in one model, whichever of them an example has."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from metajax.errors import InputError
from metajax.models.frames import FrameNormalization, check_normalization
from metajax.models.image import ImageEncoder
from metajax.models.layers import Conv, Norm
from metajax.models.model import Model, check_shape, from_linen
from metajax.models.tcresnet import TCResNet8

Kind = Literal["concat", "gated", "bottleneck", "experts", "apart"]
MODALITIES = ("audio", "image", "text")
LATENTS, HEADS = 4, 4  # tokens of the bottleneck, heads of its attention


class Characters(nn.Module):
    """Embeddings of characters, two convolutions over three of them with normalisation and ReLU; 0 is padding."""

    symbols: int
    width: int

    @nn.compact
    def __call__(self, ids: Int[Array, "n length"]) -> Float[Array, "n length width"]:
        check_shape(ids, "n length")
        written = (ids > 0)[..., None]
        table = self.param("table", nn.initializers.normal(1.0), (self.symbols, self.width))
        x = table.at[ids].get(mode="fill", fill_value=jnp.nan) * written  # no number is taken for another character
        for i in range(2):
            rows = Conv(self.width, (3,), name=f"conv{i}")(x).reshape(-1, self.width)
            x = jax.nn.relu(Norm("layer", name=f"norm{i}")(rows)).reshape(x.shape) * written
        return x


class Fusion(nn.Module):
    """An encoder for each modality, the fusion, and a linear head, if asked."""

    num_outputs: int | None
    kind: Kind
    modalities: tuple[str, ...]
    width: int
    normalization: FrameNormalization
    symbols: int

    @nn.compact
    def __call__(self, x: dict[str, Any]) -> Array:
        here = _present(x, self.modalities)
        z, tokens, counts = [], [], []
        for name, own in zip(self.modalities, here.T, strict=True):
            # what is absent is replaced before it is looked at: neither it nor its slope can be anything but 0
            given = jnp.where(own.reshape(-1, *[1] * (x[name].ndim - 1)), x[name], 0)
            features, count = self.encoded(name, given)
            if self.kind == "bottleneck":
                place = self.param(f"{name}_place", nn.initializers.normal(0.1), (self.width,))
                tokens.append(nn.Dense(self.width, name=f"{name}_token")(features) + place)
                counts.append(count & own[:, None])
                continue
            # the pixels too: few classes teach a network features that fit them alone
            parts = [features, given] if name == "image" else [_mean(features, count)]
            whole = jnp.concatenate([part.reshape(len(given), -1) for part in parts], 1)
            z.append(jnp.where(own[:, None], nn.Dense(self.width, name=f"{name}_vector")(whole), 0))
        if self.kind == "bottleneck":
            fused = self.read(jnp.concatenate(tokens, 1), jnp.concatenate(counts, 1))
        else:
            fused = self.fused(jnp.stack(z, 1), here)
        fused = jnp.where(here.any(1).reshape(-1, *[1] * (fused.ndim - 1)), fused, jnp.nan)
        return fused if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(fused)

    def encoded(self, name: str, x: Array) -> tuple[Float[Array, "n tokens features"], Bool[Array, "n tokens"]]:
        """Tokens of one modality, and which of them count."""
        if name == "text":
            return Characters(self.symbols, self.width, name=name)(x), x > 0
        if name == "audio":
            features = TCResNet8(None, self.normalization, self.width / 48, pooled=False, name=name)(x)
        else:
            flat = ImageEncoder(None, "layer", self.width // 4, name=name)(x)
            features = flat.reshape(len(x), -1, self.width // 4 * 4)
        return features, jnp.ones(features.shape[:2], bool)

    def fused(self, z: Float[Array, "n modalities width"], here: Bool[Array, "n modalities"]) -> Array:
        """One vector of those that are there; a row of zeros stands for one that is not."""
        if self.kind == "apart":
            return z
        told = jnp.concatenate([z.reshape(len(z), -1), here.astype(z.dtype)], 1)
        if self.kind == "concat":
            return nn.Dense(self.width, name="fuse")(told)
        if self.kind == "gated":
            scores = nn.Dense(len(self.modalities), name="gate")(told)
            share = jax.nn.softmax(jnp.where(here, scores, jnp.finfo(z.dtype).min))
            return jnp.einsum("nm,nmw->nw", share, z)
        sure = jnp.stack([nn.Dense(self.width, name=f"{m}_sure")(z[:, i]) for i, m in enumerate(self.modalities)], 1)
        precision = jax.nn.softplus(sure) * here[..., None]
        return (precision * z).sum(1) / (1 + precision.sum(1))

    def read(self, tokens: Float[Array, "n tokens width"], count: Bool[Array, "n tokens"]) -> Array:
        """What a few learned queries find in the tokens that count."""
        latents = self.param("latents", nn.initializers.normal(1.0), (LATENTS, self.width))
        asked = jnp.broadcast_to(latents, (len(tokens), *latents.shape))
        tokens = nn.LayerNorm(name="norm_tokens")(tokens)
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention", deterministic=True)
        found = asked + attention(asked, tokens, mask=count[:, None, None])
        found = found + nn.Dense(self.width, name="feed")(jax.nn.relu(nn.LayerNorm(name="norm_found")(found)))
        return nn.Dense(self.width, name="fuse")(found.reshape(len(found), -1))


def fusion(
    num_outputs: int | None = None,
    *,
    kind: Kind = "gated",
    modalities: Sequence[str] = MODALITIES,
    width: int = 48,
    normalization: FrameNormalization = "group",
    symbols: int = 256,
) -> Model:
    """Audio, image and text, each through an encoder of its own, in one vector; any of them may be missing.

    x is a dict of `audio`, log-mels `[n, time, mel]` (TC-ResNet8), `image` `[n, height, width]` (`image_encoder`, and a
    linear map), `text`, numbers of characters `[n, length]` with 0 for padding, and `present`, `[n, modalities]`,
    whether example i has modality m, in alphabetical order; without `present` all are there. Whatever stands in x for a
    modality that is absent, NaN too, has no influence and no gradient. With vectors z_m, and sums over what is present:

    - `concat`: W [z_1, ..., z_M, present], with zeros for what is absent;
    - `gated`: sum_m g_m z_m, g = softmax_m of a linear function of all of that: what is there decides who is heard;
    - `experts`: sum_m t_m z_m / (1 + sum_m t_m), the mean of a product of Gaussians with precisions t_m(z_m) and of a
      standard one, by coordinate;
    - `bottleneck`: 4 learned queries attend to the tokens of all (frames, patches, characters), and are read out;
    - `apart`: no fusion, `[n, modalities, width]`, zeros for what is absent: to compare one modality with another.

    Args:
      num_outputs: size of the linear head, parameter `head`; None for the embedding, `[n, width]`.
      kind: how modalities are joined; see above.
      modalities: of `audio`, `image` and `text`, those to use.
      width: of the vectors, a multiple of 4; the encoders grow with it.
      normalization: of the audio, `group` or `layer`, of each example by itself: one that lacks a modality must not
        touch others. That of images and text is `layer`: in small images a group may be one number.
      symbols: how many characters there are, padding among them.

    Returns:
      The model. An example without any modality gives NaN where `present` is traced, as does one with a number beyond
      `symbols`.

    Raises:
      InputError: an argument out of its range; when called, a modality that x lacks, modalities of different numbers
        of examples, or a concrete `present` with a row of none.

    Reference: Baltrušaitis et al., "Multimodal Machine Learning", 2019 (a survey); Arevalo et al., "Gated Multimodal
      Units", 2017; Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", NeurIPS 2021; Wu and Goodman,
      "Multimodal Generative Models", NeurIPS 2018 (product of experts).

    Example:
      >>> x = {"image": jnp.ones((2, 8, 8)), "text": jnp.array([[1, 2], [3, 0]]), "present": jnp.eye(2, dtype=bool)}
      >>> model = fusion(modalities=("image", "text"), width=8)
      >>> model.apply(model.init(jax.random.key(0), x), x).shape
      (2, 8)
    """
    check_normalization(normalization)
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}, expected one of {', '.join(get_args(Kind))}.")
    names = tuple(sorted(set(modalities)))
    if not names or not set(names) <= set(MODALITIES):
        raise InputError(f"modalities is {tuple(modalities)}, expected one or more of {', '.join(MODALITIES)}.")
    if width < 4 or width % 4 or symbols < 2:
        raise InputError(f"width is {width} and symbols {symbols}, expected a multiple of 4, and 2 or more.")
    if kind == "apart" and num_outputs is not None:
        raise InputError(f"num_outputs is {num_outputs}, expected None: modalities apart have no common head.")
    return from_linen(Fusion(num_outputs, kind, names, width, normalization, symbols))


def _present(x: dict[str, Any], names: tuple[str, ...]) -> Bool[Array, "n modalities"]:
    """Which example has which modality."""
    if missing := [name for name in names if name not in x]:
        raise InputError(f"x lacks {missing[0]!r}, expected {', '.join(names)}; an absent one still takes its place.")
    counts = {name: len(x[name]) for name in names}
    n = counts[names[0]]
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"One number of examples is expected of all modalities, found: {told}.")
    here = jnp.asarray(x["present"], bool) if "present" in x else jnp.ones((n, len(names)), bool)
    if here.shape != (n, len(names)):
        raise InputError(f"present has shape {here.shape}, expected {(n, len(names))}, for {', '.join(names)}.")
    if not isinstance(here, jax.core.Tracer) and not here.any(1).all():
        raise InputError(f"Example {int(here.any(1).argmin())} has no modality at all, expected one or more present.")
    return here


def _mean(features: Float[Array, "n tokens features"], count: Bool[Array, "n tokens"]) -> Float[Array, "n features"]:
    """Mean over the tokens that count; 0 where none does."""
    total = jnp.where(count[..., None], features, 0).sum(1)
    return total / jnp.maximum(count.sum(1), 1)[:, None]
