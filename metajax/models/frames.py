"""What encoders of utterances share: whatever lies past an utterance's end changes nothing before it."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metajax.core import Utterances
from metajax.errors import InputError
from metajax.models.layers import Conv, Norm
from metajax.models.model import check_shape

FrameNormalization = Literal["layer", "group"]
Inputs: TypeAlias = Array | Utterances


def check_normalization(normalization: str) -> None:
    """Raise InputError unless every frame is normalised by itself."""
    if normalization not in get_args(FrameNormalization):
        raise InputError(
            f"normalization is {normalization!r}, expected one of {', '.join(get_args(FrameNormalization))}: "
            "padded frames must not count."
        )


def frames_of(inputs: Inputs) -> tuple[Float[Array, "n time mel"], Int[Array, " n"]]:
    """Frames and lengths; of a plain array all frames count."""
    x = inputs.frames if isinstance(inputs, Utterances) else inputs
    check_shape(x, "n time mel")
    lengths = inputs.lengths if isinstance(inputs, Utterances) else jnp.full(len(x), x.shape[1])
    if lengths.shape != x.shape[:1]:
        raise InputError(f"lengths has shape {lengths.shape}, expected one for each of {len(x)} utterances.")
    return x, lengths


def masked(x: Float[Array, "n time features"], lengths: Int[Array, " n"]) -> Float[Array, "n time features"]:
    """x with zeros past the lengths, as if the array ended there."""
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)


def frame_norm(x: Float[Array, "n time features"], normalization: FrameNormalization, name: str) -> Array:
    """A layer `name`, within the module that calls this: each frame normalised by itself."""
    return Norm(normalization, name=name)(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def quarter_rate(
    x: Float[Array, "n time mel"], lengths: Int[Array, " n"], width: int, normalization: FrameNormalization
) -> tuple[Float[Array, "n quarter width"], Int[Array, " n"]]:
    """Two convolutions of stride 2 over time, layers of the module that calls this; and the new lengths."""
    # whole blocks of 4 frames: a strided convolution's alignment depends on where the array ends
    x = jnp.pad(masked(x, lengths), ((0, 0), (0, -x.shape[1] % 4), (0, 0)))
    for i in range(2):
        lengths = (lengths + 1) // 2
        x = Conv(width, (5,), 2, name=f"conv{i}")(x)
        x = masked(jax.nn.relu(frame_norm(x, normalization, f"norm{i}")), lengths)
    return x, lengths
