"""The embedding of words that comes with metajax."""

from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metajax.algorithms.heads import unit
from metajax.core import KeyArray, Params
from metajax.data.augment import stretch
from metajax.data.speech_embedding import CONVOLUTIONS, by_layer, read_words
from metajax.models.model import Model
from metajax.models.pretrained import speech_embedding, windowed
from metajax.models.pretrained.layers import samples_of
from metajax.models.pretrained.speech_embedding import MELS, REACH, convolved, log_mel
from metajax.models.whitened import white, whitened
from metajax.models.wordnet import on_waves, word_net

AROUND = 24  # frames of 10 ms before and after a clip, so that the encoder sees it at twelve places
WITHIN = slice(3, -3)  # those at which it sees the clip alone
FASTER = 1.45  # times as fast it hears the clip, too: six more places
MOST = 3  # places whose values are an extreme, so that one alone counts less
# what cosines count beside the extremes' 1: that of the mean of the clip alone, which noise disturbs less, and that of
# the network
MIDDLE, NETWORK = 0.25, 0.44
CLIP, HOP = 20000, 1280  # samples of a clip and of a window, and from one window to the next
FRAMES = 6  # of the encoder in a clip of 1.25 s, and in a window
EDGE, PART, APART = 2000, 8000, 3  # samples on both sides that the network leaves out; half a second; hops between two
# of running audio, by `experiments/spotting.py`: what the network's cosine counts beside the encoder's; the cosine of
# one false alarm an hour of synthetic speech, with the encoder and without; the length of the 5 % of clips with least
RUNNING, ALARM, ALARM_ALONE, FAINT = 0.5, 0.63, 0.71, 65.0


class Trained(NamedTuple):
    """A model with its parameters."""

    model: Model
    params: Params
    unknown: dict[str, float]  # scale, bias and growth of `open_set` that fit it
    card: dict[str, str]  # what it heard, command, commit, seed, date, licence, results, limits
    faint: float  # clips whose embedding is shorter hold so little speech that any speech is like them


def words(encoder: bool | None = None, *, spotting: bool = False) -> Trained:
    """Words of any language as vectors: a network that has heard synthetic speech alone, or Google's encoder beside it.

    x is waves at 16 kHz within -1..1, `[n, 20000]`, as `metajax.data.waves.word_waves` gives them. What the encoder
    gives, `extremes` and a mean over time, is whitened within synthetic words. Cosines are weighted: of the extremes by
    1, of the mean by `MIDDLE`, of the network, which has cepstra beside it, by `NETWORK`.

    Args:
      encoder: whether the encoder is asked, too, whose 200 million clips were real; None for whether the extra
        `encoder` is installed. `Trained.card["what"]` tells which is in use.
      spotting: a model of running audio instead, `[n, 20000 or more]` to `[n, windows, ...]`, of samples 1280 i to
        1280 i + 20000: what the network gives at one tempo for the second in their middle, and for three half seconds
        240 ms apart; before it, with the encoder, its 6 frames, whitened as their means are. In running speech, few
        share an order.

    Returns:
      The model, its parameters, numbers for `open_set` that were fitted on synthetic speech, the card, and what tells a
      clip that had better be recorded again.

    Raises:
      InputError: `encoder` is True, and the extra is not installed; or safetensors is not.

    Example:
      ``trained = mj.models.words()``
      ``learner = mj.open_set(trained.model.apply, mj.losses.classify, 3, **trained.unknown).learner``
    """
    net, net_params, net_unknown, net_card = _network()
    if encoder is None:
        encoder = find_spec("pyopen_wakeword") is not None and find_spec("tflite") is not None
    network = _running(on_waves(net, tempos=False)) if spotting else _middle(on_waves(net))
    if not encoder:
        bar = {"bias": net_unknown["scale"] * ALARM_ALONE} if spotting else {}
        return Trained(network, net_params, net_unknown | bar, net_card, 0.0)
    frames, weights = speech_embedding()
    tensors, card = read_words()
    of = "frame_" if spotting else ""
    unknown = {name: float(tensors[of + name]) for name in ("scale", "bias", "growth")}
    clips, means = ({k: jnp.asarray(tensors[of + k], jnp.float32) for k in ("mean", "kernel")} for of in ("", "frame_"))
    if spotting:
        params = {"encoder": weights, "whitening": means}
        order = windowed(whitened(frames, length=True), FRAMES)

        def apply(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
            z = order.apply(params, waves)
            known = jnp.linalg.norm(z, axis=-1, keepdims=True) * network.apply(net_params, waves)
            return jnp.concatenate([z, RUNNING**0.5 * known], -1)

        return Trained(order._replace(apply=apply), params, unknown | {"bias": unknown["scale"] * ALARM}, card, FAINT)

    def parts(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
        ends, middle = extremes(params["encoder"], waves)
        first = unit(white(params["extremes"], ends))
        second = MIDDLE**0.5 * unit(white(params["middle"], middle))
        return jnp.concatenate([first, second, NETWORK**0.5 * network.apply(net_params, waves)], -1)

    params = {"encoder": weights, "extremes": clips, "middle": means}

    def init(key: KeyArray, waves: Array) -> Params:
        return params | {"encoder": frames.init(key, waves)}

    return Trained(Model(init, parts, frames.statistics), params, unknown, card, 0.0)


def extremes(params: Params, waves: Float[Array, "n samples"]) -> tuple[Float[Array, "n 192"], Float[Array, "n 96"]]:
    """The largest and smallest of each of the encoder's values while a clip passes by; their mean over the clip alone.

    Where in a clip a word lies, and how slowly it is said, counts for less in the extremes than in a mean over time;
    the mean is disturbed less by noise. The bands' minima are put before and after the clip, so that there are places
    at which the encoder sees its end or beginning alone; and it hears the clip `FASTER`, too, so that more of a word is
    in what it sees at a time. Extremes are means of the `MOST` largest and smallest.

    Args:
      params: of the encoder, as `speech_embedding` gives them.
      waves: at 16 kHz within -1..1.

    Raises:
      InputError: they have fewer than 12,400 samples.
    """
    mels = log_mel(samples_of(waves, REACH)[0])
    silence = jnp.broadcast_to(mels.min(1, keepdims=True), (len(mels), AROUND, MELS))
    faster = jax.vmap(lambda one: stretch(one, jnp.float32(0), FASTER))(mels)
    ways = jnp.concatenate([silence, mels, silence], 1), faster
    z, quick = (convolved(params, heard[..., None], range(CONVOLUTIONS))[:, :, 0] for heard in ways)
    ordered = jnp.sort(jnp.concatenate([z, quick], 1), 1)
    return jnp.concatenate([ordered[:, -MOST:].mean(1), ordered[:, :MOST].mean(1)], 1), z[:, WITHIN].mean(1)


def _network() -> tuple[Model, Params, dict[str, float], dict[str, str]]:
    """The network, its parameters, numbers for `open_set` and card."""
    tensors, card = read_words("word_net")
    params: Params = jax.tree.map(lambda tensor: jnp.asarray(tensor, jnp.float32), by_layer(tensors))
    unknown = {name: float(value) for name, value in params.pop("unknown").items()}
    features, width = params["map"]["kernel"].shape[1], params["conv0"]["kernel"].shape[2]
    return word_net(features, width=width), params, unknown, card


def _middle(network: Model) -> Model:
    """The network on the second in the middle of clips, as in training."""

    def apply(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
        return network.apply(params, waves[:, EDGE:-EDGE], key)

    return network._replace(apply=apply)


def _running(network: Model) -> Model:
    """The network on the middle second of every window of running audio, and on three half seconds in their order."""

    def apply(params: Params, waves: Array, key: KeyArray | None = None) -> Array:
        windows = 1 + (waves.shape[1] - CLIP) // HOP

        def parts(size: int, more: int) -> Array:
            starts = (CLIP - size) // 2 + HOP * np.arange(-more, windows + more)
            cut = waves[:, starts[:, None] + np.arange(size)]
            return network.apply(params, cut.reshape(-1, size)).reshape(*cut.shape[:2], -1)

        second, half = parts(CLIP - 2 * EDGE, 0), parts(PART, APART)
        order = [half[:, k * APART :][:, :windows] for k in range(3)]
        return unit(jnp.concatenate([3**0.5 * second, *order], -1))

    return network._replace(apply=apply)
