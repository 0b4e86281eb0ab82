"""WordNet: words as vectors, by temporal convolution over log-mel frames and attention over time."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from metajax.algorithms.heads import unit
from metajax.core import KeyArray, Params
from metajax.data.augment import among_speech, stretch
from metajax.data.features import FeatureSettings, endpointed, log_mel
from metajax.models.beside import beside
from metajax.models.frames import frame_norm
from metajax.models.layers import Conv
from metajax.models.model import Model, check_shape, from_linen

FRONT_END = FeatureSettings(high=3800.0)  # so that telephone lines and 8 kHz recordings look like others
TEMPO = 1.18  # by which a word is heard slower and faster
CEPSTRA = 0.1  # what their cosine counts beside the network's


class WordNet(nn.Module):
    """A first convolution, four residual blocks of two, some weighted means over time, a linear map."""

    features: int
    width: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n time mel"]) -> Float[Array, "n features"]:
        check_shape(x, "n time mel")

        def layer(x: Array, taps: int, stride: int, name: str) -> Array:
            return frame_norm(Conv(self.width, (taps,), stride, name=f"conv{name}")(x), "layer", f"norm{name}")

        x = jax.nn.relu(layer(x, 5, 2, "0"))
        for i in range(1, 5):
            stride = 2 if i == 1 else 1
            y = layer(jax.nn.relu(layer(x, 5, stride, f"{i}a")), 5, 1, f"{i}b")
            x = jax.nn.relu(y + (x if stride == 1 else Conv(self.width, (1,), stride, name="short")(x)))
        weights = jax.nn.softmax(nn.Dense(self.heads, use_bias=False, name="attention")(x), axis=1)
        means = jnp.einsum("nth,ntc->nhc", weights, x).reshape(len(x), -1)
        return unit(nn.Dense(self.features, use_bias=False, name="map")(means))


def word_net(features: int = 128, *, width: int = 96, heads: int = 4) -> Model:
    """An embedding of words of length 1, from log-mels `[n, time, mel]` (0.45 million parameters at width 96).

    Every clip is seen alone, and 40 ms of it at a time by the attention: w_ht = softmax_t(a_h . x_t), and the map of
    the means sum_t w_ht x_t over all heads h.

    Args:
      features: of an embedding.
      width: channels of every layer.
      heads: weighted means over time.
    """
    return from_linen(WordNet(features, width, heads))


def at_tempos(model: Model) -> Model:
    """The mean of three embeddings, brought to length 1: of a clip as it is, `TEMPO` times slower and faster.

    x is log-mels `[n, time, mel]` that are not normalised; each version is, by its own speech.
    """

    def apply(params: Params, x: Float[Array, "n time mel"], key: KeyArray | None = None) -> Array:
        ends = [jax.vmap(lambda one, end=end: stretch(one, jnp.float32(end), TEMPO))(x) for end in (0, 1)]
        return unit(sum(model.apply(params, jax.vmap(among_speech)(heard), key) for heard in (x, *ends)))

    return model._replace(apply=apply)


def with_cepstra(model: Model) -> Model:
    """An embedding of log-mels beside `endpointed` cepstra, which noise and rooms disturb otherwise, of length 1.

    Its cosine is (cos f + `CEPSTRA` cos c) / (1 + `CEPSTRA`). x is log-mels `[n, time, mel]` that are not normalised.
    """
    both = beside(model, endpointed, CEPSTRA**0.5)
    return both._replace(apply=lambda params, x, key=None: unit(both.apply(params, x, key)))


def on_waves(model: Model, settings: FeatureSettings = FRONT_END, *, tempos: bool = True) -> Model:
    """The model of log-mels on waves `[n, samples]` at `settings.sample_rate`, each normalised by its own speech.

    Args:
      model: of log-mels.
      settings: of the log-mels.
      tempos: whether each is heard `at_tempos`, which takes three times as long, and `with_cepstra`.
    """

    def seen(waves: Float[Array, "n samples"]) -> Float[Array, "n time mel"]:
        return jax.vmap(lambda wave: log_mel(wave, settings))(waves)

    def apply(params: Params, waves: Float[Array, "n samples"], key: KeyArray | None = None) -> Array:
        x = seen(waves)
        if not tempos:
            return model.apply(params, jax.vmap(among_speech)(x), key)
        return with_cepstra(at_tempos(model)).apply(params, x, key)

    return Model(lambda key, waves: model.init(key, seen(waves)), apply, lambda params, waves: {})
