"""The embedding of words that comes with metajax."""

from typing import NamedTuple

import jax.numpy as jnp

from metajax.core import Params
from metajax.data.speech_embedding import read_words
from metajax.models.model import Model
from metajax.models.pretrained import averaged, speech_embedding, windowed
from metajax.models.whitened import whitened

FRAMES = 6  # of the encoder in a clip of 1.25 s, and in a window


class Trained(NamedTuple):
    """A model with its parameters."""

    model: Model
    params: Params
    unknown: dict[str, float]  # scale, bias and growth of `open_set` that fit it
    card: dict[str, str]  # what it heard, command, commit, seed, date, licence, results, limits


def words(*, spotting: bool = False) -> Trained:
    """Words of any language as vectors of length 1: Google's speech embedding, whitened by synthetic words alone.

    x is waves at 16 kHz within -1..1, `[n, 20000]`, as `metajax.data.waves.word_waves` gives them, and f(x) `[n, 96]`:
    the mean over 6 frames, mapped by the shipped `whitening`.

    Args:
      spotting: a model of running audio instead, `[n, 20000 or more]` to `[n, windows, 96]`; window i is what the model
        of a clip gives for samples 1280 i to 1280 i + 20000.

    Returns:
      The model, its parameters `encoder` and `whitening`, numbers for `open_set` that were fitted on synthetic words,
      and the card.

    Raises:
      InputError: the extra `encoder` is not installed.

    Example:
      ``model, params, unknown, card = mj.models.words()``
      ``learner = mj.open_set(model.apply, mj.losses.classify, 3, **unknown).learner``
    """
    encoder, weights = speech_embedding()
    tensors, card = read_words()
    params = {"encoder": weights, "whitening": {name: jnp.asarray(tensors[name]) for name in ("mean", "kernel")}}
    unknown = {name: float(tensors[name]) for name in ("scale", "bias", "growth")}
    return Trained(whitened(windowed(encoder, FRAMES) if spotting else averaged(encoder)), params, unknown, card)
