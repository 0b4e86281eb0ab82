"""Conformer: convolution and self-attention over log-mel frames, a quarter of the frame rate out, for CTC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from metajax.errors import InputError
from metajax.losses.ctc import blank_after
from metajax.models.frames import (
    FrameNormalization,
    Inputs,
    check_normalization,
    frame_norm,
    frames_of,
    masked,
    quarter_rate,
)
from metajax.models.model import Model, from_linen

_FAR = -1e9  # the score of a frame that no frame may look at; finite, so that derivatives are


class Feed(nn.Module):
    """W2 swish(W1 norm(x))."""

    normalization: FrameNormalization
    expansion: int

    @nn.compact
    def __call__(self, x: Float[Array, "n time features"]) -> Array:
        features = x.shape[-1]
        x = nn.Dense(self.expansion * features, name="up")(frame_norm(x, self.normalization, "norm"))
        return nn.Dense(features, name="down")(jax.nn.swish(x))


class Attention(nn.Module):
    """softmax(q k / sqrt(size)) v over all frames of the utterance; q and k turned by angles that grow with time."""

    normalization: FrameNormalization
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n time features"], lengths: Int[Array, " n"]) -> Array:
        (n, time, features), x = x.shape, frame_norm(x, self.normalization, "norm")
        each = [nn.Dense(features, name=name)(x) for name in ("query", "key", "value")]
        q, k, v = (a.reshape(n, time, self.heads, -1) for a in each)
        scores = jnp.einsum("nqhd,nkhd->nhqk", _turned(q), _turned(k)) / (features // self.heads) ** 0.5
        scores = jnp.where((jnp.arange(time) < lengths[:, None])[:, None, None], scores, _FAR)
        x = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).reshape(n, time, features)
        return nn.Dense(features, name="out")(x)


class Convolution(nn.Module):
    """W2 swish(norm(depthwise(glu(W1 norm(x))))); what lies past the end is zero for it."""

    normalization: FrameNormalization
    taps: int

    @nn.compact
    def __call__(self, x: Float[Array, "n time features"], lengths: Int[Array, " n"]) -> Array:
        features, time = x.shape[-1], x.shape[1]
        x = nn.Dense(2 * features, name="gate")(frame_norm(x, self.normalization, "norm0"))
        x = masked(jax.nn.glu(x), lengths)
        kernel = self.param("kernel", nn.initializers.normal(self.taps**-0.5), (self.taps, features))
        x = jnp.pad(x, ((0, 0), (self.taps // 2, self.taps // 2), (0, 0)))
        # shifted sums: as a grouped convolution it would be slow under per-task weights
        x = jnp.stack([x[:, i : i + time] * kernel[i] for i in range(self.taps)]).sum(0)
        return nn.Dense(features, name="out")(jax.nn.swish(frame_norm(x, self.normalization, "norm1")))


class Sizes(NamedTuple):
    """What `conformer` is asked for."""

    normalization: FrameNormalization
    width: int
    num_layers: int
    heads: int
    taps: int
    expansion: int


class Layer(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, each added; normalised."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "n time features"], lengths: Int[Array, " n"]) -> Array:
        how, _, _, heads, taps, expansion = self.sizes
        x = x + Feed(how, expansion, name="feed0")(x) / 2
        x = x + Attention(how, heads, name="attention")(x, lengths)
        x = x + Convolution(how, taps, name="convolution")(x, lengths)
        x = x + Feed(how, expansion, name="feed1")(x) / 2
        return frame_norm(x, how, "norm")


class Layers(nn.Module):
    """One layer after the other, by number."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "n time features"], lengths: Int[Array, " n"]) -> Array:
        for i in range(self.sizes.num_layers):
            x = Layer(self.sizes, name=str(i))(x, lengths)
        return x


class Encoder(nn.Module):
    """Two convolutions of stride 2, then the layers."""

    sizes: Sizes

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, Array]:
        x, lengths = quarter_rate(*frames_of(inputs), self.sizes.width, self.sizes.normalization)
        x = nn.Dense(self.sizes.width, name="input")(x)
        return masked(Layers(self.sizes, name="layers")(x, lengths), lengths), lengths


class Conformer(nn.Module):
    """The encoder; a linear head, if asked."""

    num_outputs: int | None
    sizes: Sizes

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        x, lengths = Encoder(self.sizes, name="encoder")(inputs)
        return x if self.num_outputs is None else blank_after(nn.Dense(self.num_outputs, name="head")(x), lengths)


def conformer(
    num_outputs: int | None = None,
    *,
    normalization: FrameNormalization = "layer",
    width: int = 128,
    num_layers: int = 4,
    heads: int = 4,
    taps: int = 15,
    expansion: int = 2,
) -> Model:
    """A small Conformer (1.2 M parameters) on log-mels `[n, time, mel]`, or on `Utterances` of unequal lengths.

    Unlike there, positions are told by rotation of queries and keys, and the convolution's normalisation is of each
    frame by itself, so that padding and the other utterances change nothing. Parameters have names such as
    `encoder.layers.0.attention.query.kernel` and `head.bias`.

    Args:
      num_outputs: size of the vocabulary, blank included: logits `[n, ceil(time / 4), num_outputs]` with certain blanks
        past each utterance's end; None for the embeddings, `[n, ceil(time / 4), width]`, zero there.
      normalization: `layer` or `group`, of each frame by itself; see `Norm`.
      width: features of a frame.
      num_layers: Conformer layers.
      heads: of the attention; each has an even number of the features.
      taps: frames, of a quarter of the rate, that the convolution sees; odd.
      expansion: features within the feed-forward steps, as a multiple of the width.

    Returns:
      The model.

    Raises:
      InputError: another normalisation, or sizes that do not fit; when called, inputs of another shape.

    Reference: Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", Interspeech 2020;
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    check_normalization(normalization)
    if heads < 1 or width < 2 * heads or width % (2 * heads):
        raise InputError(f"width is {width}, expected a multiple of {2 * heads}: an even number for each of the heads.")
    if taps < 1 or taps % 2 == 0:
        raise InputError(f"taps is {taps}, expected an odd number.")
    if num_layers < 1 or expansion < 1:
        raise InputError(f"num_layers is {num_layers} and expansion {expansion}, expected 1 or more.")
    return from_linen(Conformer(num_outputs, Sizes(normalization, width, num_layers, heads, taps, expansion)))


def _turned(x: Float[Array, "n time heads size"]) -> Float[Array, "n time heads size"]:
    """Pairs of features turned by time times a frequency: products depend on differences in time alone."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000 ** (-jnp.arange(half) / half)
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
