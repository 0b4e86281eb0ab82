"""The embedding of words that comes with metajax."""

from typing import NamedTuple

import jax.numpy as jnp

from metajax.core import Params
from metajax.data.speech_embedding import read_words
from metajax.models.model import Model
from metajax.models.pretrained import averaged, speech_embedding, windowed
from metajax.models.whitened import whitened

FRAMES = 6  # of the encoder in a clip of 1.25 s, and in a window
# of running audio, by `experiments/spotting.py`: the cosine of one false alarm an hour of synthetic speech, and the
# length that 5 % of synthetic clips fall below
ALARM, FAINT = 0.64, 73.2


class Trained(NamedTuple):
    """A model with its parameters."""

    model: Model
    params: Params
    unknown: dict[str, float]  # scale, bias and growth of `open_set` that fit it
    card: dict[str, str]  # what it heard, command, commit, seed, date, licence, results, limits
    faint: float  # clips whose embedding is shorter hold so little speech that any speech is like them


def words(*, spotting: bool = False) -> Trained:
    """Words of any language as vectors of length 1: Google's speech embedding, whitened by synthetic words alone.

    x is waves at 16 kHz within -1..1, `[n, 20000]`, as `metajax.data.waves.word_waves` gives them, and f(x) `[n, 96]`:
    the mean over 6 frames, mapped by the shipped `whitening`.

    Args:
      spotting: a model of running audio instead, `[n, 20000 or more]` to `[n, windows, 576]`: the 6 frames of samples
        1280 i to 1280 i + 20000, whitened, one after another. Their order counts, which in running speech few share.

    Returns:
      The model, its parameters `encoder` and `whitening`, numbers for `open_set` that were fitted on synthetic speech,
      the card, and what tells a clip that had better be recorded again.

    Raises:
      InputError: the extra `encoder` is not installed.

    Example:
      ``trained = mj.models.words()``
      ``learner = mj.open_set(trained.model.apply, mj.losses.classify, 3, **trained.unknown).learner``
    """
    encoder, weights = speech_embedding()
    tensors, card = read_words()
    params = {"encoder": weights, "whitening": {name: jnp.asarray(tensors[name]) for name in ("mean", "kernel")}}
    unknown = {name: float(tensors[name]) for name in ("scale", "bias", "growth")}
    model = windowed(whitened(encoder, length=True), FRAMES) if spotting else whitened(averaged(encoder))
    unknown |= {"bias": unknown["scale"] * ALARM} if spotting else {}
    return Trained(model, params, unknown, card, FAINT if spotting else 0.0)
