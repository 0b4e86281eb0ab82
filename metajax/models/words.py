"""The embedding of words that comes with metajax."""

from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.core import KeyArray, Params
from metajax.data.speech_embedding import read_words
from metajax.models.beside import beside
from metajax.models.model import Model
from metajax.models.pretrained import averaged, speech_embedding, windowed
from metajax.models.whitened import whitened
from metajax.models.wordnet import FRONT_END, on_waves, word_net

WEIGHT = 0.5  # of the network's cosine beside the encoder's, before both are divided by the sum of squares
CLIP, HOP = 20000, 1280  # samples of a clip and of a window, and from one window to the next
FRAMES = 6  # of the encoder in a clip of 1.25 s, and in a window
# of running audio, by `experiments/spotting.py`: the cosine of one false alarm an hour of synthetic speech, and the
# length that 5 % of synthetic clips fall below
ALARM, FAINT = 0.63, 53.0


class Trained(NamedTuple):
    """A model with its parameters."""

    model: Model
    params: Params
    unknown: dict[str, float]  # scale, bias and growth of `open_set` that fit it
    card: dict[str, str]  # what it heard, command, commit, seed, date, licence, results, limits
    faint: float  # clips whose embedding is shorter hold so little speech that any speech is like them


def words(encoder: bool | None = None, *, spotting: bool = False) -> Trained:
    """Words of any language as vectors: a network that has heard synthetic speech alone, or Google's encoder beside it.

    x is waves at 16 kHz within -1..1, `[n, 20000]`, as `metajax.data.waves.word_waves` gives them. The encoder's mean
    over 6 frames is whitened within synthetic words; cosines are those of both, that of the network weighted by 1/4.

    Args:
      encoder: whether the encoder is asked, too, whose 200 million clips were real; None for whether the extra
        `encoder` is installed. `Trained.card["what"]` tells which is in use.
      spotting: a model of running audio instead, `[n, 20000 or more]` to `[n, windows, ...]`. With the encoder, the 6
        frames of samples 1280 i to 1280 i + 20000, whitened, one after another: their order counts, which in running
        speech few share. Without it, what the network gives for these samples.

    Returns:
      The model, its parameters, numbers for `open_set` that were fitted on synthetic speech, the card, and what tells a
      clip that had better be recorded again.

    Raises:
      InputError: `encoder` is True, and the extra is not installed; or safetensors is not.

    Example:
      ``trained = mj.models.words()``
      ``learner = mj.open_set(trained.model.apply, mj.losses.classify, 3, **trained.unknown).learner``
    """
    network, net_params, net_unknown, net_card = _network()
    if encoder is None:
        encoder = find_spec("pyopen_wakeword") is not None and find_spec("tflite") is not None
    if not encoder:
        return Trained(_windows(network) if spotting else network, net_params, net_unknown, net_card, 0.0)
    heard, weights = speech_embedding()
    tensors, card = read_words()
    params = {"encoder": weights, "whitening": {name: jnp.asarray(tensors[name]) for name in ("mean", "kernel")}}
    unknown = {name: float(tensors[name]) for name in ("scale", "bias", "growth")}
    if spotting:
        unknown |= {"bias": unknown["scale"] * ALARM}
        return Trained(windowed(whitened(heard, length=True), FRAMES), params, unknown, card, FAINT)
    model = beside(whitened(averaged(heard)), lambda wave: network.apply(net_params, wave[None])[0], WEIGHT)
    return Trained(model, params, unknown, card, 0.0)


def _network() -> tuple[Model, Params, dict[str, float], dict[str, str]]:
    """The network of waves, its parameters, numbers for `open_set` and card."""
    tensors, card = read_words("word_net")
    params: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = jnp.asarray(tensor, jnp.float32)
    unknown = {name: float(value) for name, value in params.pop("unknown").items()}
    features, width = params["map"]["kernel"].shape[1], params["conv0"]["kernel"].shape[2]
    heard, edge = on_waves(word_net(features, width=width)), (CLIP - FRONT_END.num_samples) // 2

    def apply(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
        return heard.apply(params, waves[:, edge:-edge], key)  # the second in the middle, as in training

    return heard._replace(apply=apply), params, unknown, card


def _windows(network: Model) -> Model:
    """The network on every window of running audio."""

    def apply(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
        starts = HOP * jnp.arange(1 + (waves.shape[1] - CLIP) // HOP)
        cut = jax.vmap(lambda wave: wave[starts[:, None] + jnp.arange(CLIP)])(waves)
        return network.apply(params, cut.reshape(-1, CLIP)).reshape(*cut.shape[:2], -1)

    return network._replace(apply=apply)
