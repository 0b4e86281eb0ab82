"""Scenarios on top of any sampler: a room, a noise, a line, a clipping amplifier, the same for all of a task."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from metajax.core import KeyArray, Scalar, Utterances
from metajax.data.acoustics import add_noise, band, convolved, looped, overdriven, room
from metajax.data.features import FeatureSettings, log_mels
from metajax.errors import InputError

Range: TypeAlias = tuple[float | Scalar, float | Scalar]  # the lowest value and the highest


class Scenarios(NamedTuple):
    """What scenarios there are: how probable each part is, 0 by default, and the ranges that its values are drawn from.

    The defaults are clean. What is tested on may have ranges that training never saw, and noises of its own.
    """

    room: float | Scalar = 0.0  # probability of
    rt60: Range = (0.2, 0.5)  # seconds in which its sound falls by 60 dB
    direct: Range = (-3.0, 6.0)  # dB of the direct sound above the rest
    noise: float | Scalar = 0.0  # probability of
    kinds: Range = (0, 0)  # the first and the last of the recordings of noise
    snr: Range = (10.0, 30.0)  # dB of the signal, room and all, above the noise
    line: float | Scalar = 0.0  # probability of a telephone's or a codec's band
    low: Range = (300.0, 300.0)  # its lower edge, in Hz
    high: Range = (3400.0, 3400.0)  # its upper edge
    clip: float | Scalar = 0.0  # probability of clipping
    over: Range = (3.0, 12.0)  # dB of the peak above what is cut off


def scenarios(
    given: Scenarios, noises: Float[Array, "kinds noise_samples"], settings: FeatureSettings, *, longest: float = 1.0
) -> Callable[[PyTree, KeyArray], PyTree]:
    """Return (waves, key) -> log-mel, as heard in one scenario: one draw for all waves of a call.

    A wave goes through the room, gets its own part of the noise, goes through the line and is clipped, in this order,
    and ends where it ended; what rings on is lost. Without any of them the log-mel is that of the corpus. On top of a
    sampler of waves, `with_inputs(sample, scenarios(...))`, support and query of a task share the scenario.

    Args:
      given: probabilities and ranges; they may be traced, so that one program serves many.
      noises: recordings of noise at `settings.sample_rate`, each a kind, such as `coloured` and `babble` make.
      settings: of the features.
      longest: seconds of a room's response, the longest `rt60`.

    Returns:
      A function of `[n, samples]`, or of `Utterances` of waves with lengths in samples, to the same of log-mel frames.

    Raises:
      InputError: where the values are concrete, a probability is none, a range is reversed or beyond what there is.

    Example:
      ``hear = scenarios(Scenarios(noise=1.0, snr=(0.0, 20.0)), noises, corpus.settings)``
    """
    _check(given, noises, settings, longest)
    rate, (first, last) = settings.sample_rate, given.kinds
    values = given._replace(kinds=(first, last + 1))
    chances = [value for value in values if not isinstance(value, tuple)]
    ranges = [value for value in values if isinstance(value, tuple)]

    def hear(x: PyTree, key: KeyArray) -> PyTree:
        waves, lengths = x if isinstance(x, Utterances) else (x, jnp.full(len(x), x.shape[1]))
        inside = jnp.arange(waves.shape[1]) < lengths[:, None]
        draw_key, room_key, start_key = jax.random.split(key, 3)
        draw = jax.random.uniform(draw_key, (len(values),))
        on, draw = [u < chance for u, chance in zip(draw, chances, strict=False)], draw[len(chances) :]
        rt60, direct, kind, snr, low, high, over = (a + (b - a) * u for (a, b), u in zip(ranges, draw, strict=True))
        kind = jnp.minimum(jnp.floor(kind), last).astype(jnp.int32)

        def reverberant(waves: Array) -> Array:
            response = room(jax.random.normal(room_key, (round(longest * rate),)), rt60, direct, rate)
            return jax.vmap(lambda wave: convolved(wave, response))(waves)

        def noisy(waves: Array) -> Array:
            starts = jnp.floor(jax.random.uniform(start_key, lengths.shape) * noises.shape[1]).astype(jnp.int32)
            parts = jax.vmap(lambda start: looped(noises[kind], start, waves.shape[1]))(starts)
            return jax.vmap(add_noise, (0, 0, None, 0))(waves, parts, snr, lengths)

        line, clipping = (jax.vmap(f) for f in (lambda w: band(w, low, high, rate), lambda w: overdriven(w, over)))
        for chosen, stage in zip(on, (reverberant, noisy, line, clipping), strict=True):
            # zero past the end again: only the room, which looks back alone, may see anything else there
            waves = jnp.where(inside, jax.lax.cond(chosen, stage, lambda waves: waves, waves), 0)
        heard = log_mels(Utterances(waves, lengths), settings)
        return heard if isinstance(x, Utterances) else heard.frames

    return hear


def _check(given: Scenarios, noises: Array, settings: FeatureSettings, longest: float) -> None:
    bounds = {"rt60": (0.01, longest), "kinds": (0, len(noises) - 1), "over": (0.0, jnp.inf)}
    bounds |= dict.fromkeys(("low", "high"), (0.0, settings.sample_rate / 2))
    for name, value in given._asdict().items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            continue
        low, high = bounds.get(name, (-jnp.inf, jnp.inf))
        if isinstance(value, tuple) and not low <= value[0] <= value[1] <= high:
            raise InputError(f"{name} is from {value[0]} to {value[1]}, expected a range within {low:g} to {high:g}.")
        if not isinstance(value, tuple) and not 0 <= value <= 1:
            raise InputError(f"{name} is {value}, expected a probability.")
