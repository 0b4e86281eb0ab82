"""Google's speech embedding: 330 thousand parameters that have heard 200 million clips."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PyTree

from metajax.conv import conv
from metajax.core import KeyArray, Params
from metajax.data.features import powers
from metajax.data.speech_embedding import CONVOLUTIONS, read_speech_embedding
from metajax.models.pretrained.layers import Encoded, Pretrained, samples_of
from metajax.models.pretrained.layout import available

WINDOW, HOP, FFT, MELS = 400, 160, 512, 32
CONTEXT, STRIDE = 76, 8  # mel frames that one value sees, and from one to the next
REACH = WINDOW + (CONTEXT - 1) * HOP
POOLS = {2: (2, 2), 6: (1, 2), 10: (2, 2), 14: (1, 2), 18: (2, 2)}  # time and mel, after these convolutions


def speech_embedding(*, dtype: DTypeLike = jnp.float32) -> tuple[Pretrained, Params]:
    """The encoder of Google's speech_embedding, its weights read from the installed package pyopen-wakeword.

    ln(mel + 0.001) of magnitudes, 32 bands of 60-3800 Hz every 10 ms; 20 convolutions, `conv0` to `conv19`, each but
    the last followed by max(leaky(x), -0.4). It is convolutional in time: a value sees 775 ms, and padding touches none
    that counts. The package's own version lacks a rectifier after the first convolution and has another mel front end,
    so that its values differ; these are the original's.

    Args:
      dtype: of the parameters, and of what is computed with them.

    Returns:
      The model, whose `apply` takes samples at 16 kHz within -1..1, `[n, samples]` or `Utterances` of them, and gives
      96 values every 80 ms, `[n, frames, 96]`; its parameters. `averaged(model)` gives one vector an utterance.

    Raises:
      InputError: a package is not installed; when called, x has fewer than 12,400 samples.

    Reference: Lin et al., "Training Keyword Spotters with Limited and Synthesized Speech Data", ICASSP 2020.
    """
    layers, dtype = enumerate(read_speech_embedding()), available(dtype)
    params = {f"conv{i}": {"kernel": jnp.asarray(k, dtype), "bias": jnp.asarray(b, dtype)} for i, (k, b) in layers}

    def init(key: KeyArray, x: PyTree) -> Params:
        keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
        normal = jax.nn.initializers.he_normal()
        return {
            name: {"kernel": normal(keys[name], p["kernel"].shape, dtype), "bias": jnp.zeros_like(p["bias"])}
            for name, p in params.items()
        }

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Float[Array, "n frames 96"]:
        return encode(params, x).output

    return Pretrained(init, apply, lambda params, x: {}, encode), params


def encode(params: Params, x: PyTree) -> Encoded:
    """Values of utterances, and how many count; there are no layers of one frame rate to give."""
    wave, lengths = samples_of(x, REACH)
    mels = jnp.maximum((lengths - WINDOW) // HOP + 1, 0)
    hidden = convolved(params, log_mel(wave)[..., None], range(CONVOLUTIONS))
    return Encoded(hidden[:, :, 0], (), jnp.maximum((mels - CONTEXT) // STRIDE + 1, 0))


def convolved(
    params: Params, x: Float[Array, "n time mel channels"], layers: range
) -> Float[Array, "n time2 mel2 channels2"]:
    """What some of the convolutions make of what goes into the first of them: log-mels `[n, time, 32, 1]` for all.

    Args:
      params: of the encoder; of these convolutions is enough.
      x: what goes into the first.
      layers: which follow one another, such as `range(14)` for those to be held and `range(14, 20)` for the others.
    """
    hidden = x.astype(params[f"conv{layers[0]}"]["kernel"].dtype)
    for i in layers:
        p = params[f"conv{i}"]
        across = p["kernel"].shape[1] // 2
        hidden = conv(hidden, p["kernel"], pads=((0, 0), (across, across))) + p["bias"]
        if i == 0:  # relu, then a scale that is folded into the kernel: it is positive
            hidden = jnp.maximum(hidden, p["bias"])
        if i < CONVOLUTIONS - 1:
            hidden = jnp.maximum(jax.nn.leaky_relu(hidden, 0.2), -0.4)
        for axis, size in enumerate(POOLS.get(i, ())):
            hidden = _halved(hidden, 1 + axis) if size == 2 else hidden
    return hidden


def log_mel(wave: Float[Array, "n samples"]) -> Float[Array, "n time 32"]:
    """ln(mel + 0.001) of the magnitudes of every frame that lies within the wave."""
    power = powers(wave, WINDOW, HOP, FFT)
    magnitude = jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1)), 0)  # with a slope at 0
    return jnp.log(jnp.dot(magnitude, _bands().astype(wave.dtype), precision=jax.lax.Precision.HIGHEST) + 0.001)


def _bands() -> Float[np.ndarray, "frequency 32"]:
    """Triangles of height 1, even on the mel scale 1127 ln(1 + f / 700 Hz) in place and in slope; none holds 0 Hz."""
    mel = 1127 * np.log1p(np.fft.rfftfreq(FFT, 1 / 16000) / 700)
    low, high = (1127 * np.log1p(hertz / 700) for hertz in (60, 3800))
    edges = np.linspace(low, high, MELS + 2)
    rising = (mel[:, None] - edges[:-2]) / (edges[1] - edges[0])
    falling = (edges[2:] - mel[:, None]) / (edges[1] - edges[0])
    return np.maximum(0, np.minimum(rising, falling))


def _halved(x: Array, axis: int) -> Array:
    """The larger of every two along an axis; an odd last one is left out."""
    pairs = x.shape[axis] // 2
    a, b = (jax.lax.slice_in_dim(x, start, start + 2 * pairs - 1, 2, axis) for start in (0, 1))
    return jnp.where(a >= b, a, b)
