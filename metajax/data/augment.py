"""Augmentation and normalisation of log-mel spectrograms on the device, each example with its own random numbers.

The parts take one example and `draw`s, numbers uniform in [0, 1), and are deterministic; `augment` does the drawing.
Those that look along time take a `length` too: frames past it are not looked at, and what becomes of them is undefined.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from metajax.core import KeyArray, Utterances
from metajax.errors import InputError

LogMel: TypeAlias = Float[Array, "time mel"]
Draw: TypeAlias = Float[Array, ""]  # uniform in [0, 1)
Length: TypeAlias = Int[Array, ""] | None  # frames of the example that count; None for all

_NEPER = math.log(10) / 10  # natural logarithm of one decibel of power
_DRAWS = 13  # of an example, without those of the parts that are off by default


class Augmentation(NamedTuple):
    """Strengths of the parts of `augment`; zero turns a part off. Defaults suit words of 1 s in 98 frames, 40 mels."""

    warp: float = 0.1  # largest change of the frequency scale: ratios from 1/1.1 to 1.1
    stretch: float = 0.15  # largest change of the tempo, likewise
    shift: int = 10  # largest shift in time, in frames
    gain: float = 6.0  # largest change of level, in dB
    noise: float = 0.8  # probability of added noise
    noise_low: float = 5.0  # lowest and
    noise_high: float = 30.0  # highest signal-to-noise ratio, in dB
    time_mask: int = 12  # largest width, in frames
    frequency_mask: int = 5  # largest width, in mel bands
    # off by default
    pitch: float = 0.0  # largest shift along the mel bands, in bands
    room: float = 0.0  # probability of a room's sound
    band: int = 0  # most mel bands lost at either end, as on a telephone line


def scaled(factor: float) -> Augmentation:
    """The default augmentation, stronger or weaker; signal-to-noise ratios stay."""
    default = Augmentation()
    parts = {name: value for name, value in default._asdict().items() if name not in ("noise_low", "noise_high")}
    changed = {name: round(v * factor) if isinstance(v, int) else v * factor for name, v in parts.items()}
    return default._replace(**changed | {"noise": min(1.0, changed["noise"])})


def augment(
    settings: Augmentation, noise: Float[Array, "noise_time mel"] | None = None
) -> Callable[[Any, KeyArray], Any]:
    """Return (x, key) -> x, which augments each example by its own draw of all parts.

    Their order: warp, pitch, stretch, shift, room, gain, noise, band, masks.

    x is `[n, time, mel]` or `Utterances`, of which the frames within the lengths are augmented and the others kept.

    Args:
        settings: strengths.
        noise: log-mel of a long recording that noise is cut from; coloured noise where None.

    Raises:
        InputError: a strength is negative, not finite or not whole where it counts frames or bands, `noise` or `room`
            is no probability, or the range of ratios is empty; when called, a shift or a mask is longer than its axis.

    Example:
        ``x = augment(Augmentation(stretch=0))(x, jax.random.key(0))``
    """
    for name, value in settings._asdict().items():
        if not math.isfinite(value) or (value < 0 and name not in ("noise_low", "noise_high")):
            raise InputError(f"augmentation {name} is {value}, expected a finite number, 0 or more.")
        if name in ("shift", "time_mask", "frequency_mask", "band") and value != int(value):
            raise InputError(f"augmentation {name} is {value}, expected a whole number.")
    for name in ("noise", "room"):
        if (value := getattr(settings, name)) > 1:
            raise InputError(f"augmentation {name} is {value}, expected a probability.")
    if (low := settings.noise_low) > (high := settings.noise_high):
        raise InputError(f"noise_low is {low} dB, expected at most noise_high = {high} dB.")
    settings = Augmentation._make(type(default)(value) for default, value in zip(Augmentation(), settings, strict=True))

    more = bool(settings.pitch or settings.room or settings.band)

    def one(x: LogMel, length: Length, draws: Float[Array, " draws"], bits: UInt32[Array, "_ _"]) -> LogMel:
        warp, tempo, shift, level, chance, ratio, tilt, hump, start, *masks = draws[:_DRAWS]
        pitch, place, decay, loud, low, high = draws[_DRAWS:] if more else [draws[0]] * 6
        given = x
        if settings.warp:
            x = warp_frequency(x, warp, 1 + settings.warp)
        if settings.pitch:
            x = shift_bands(x, pitch, settings.pitch)
        if settings.stretch:
            x = stretch(x, tempo, 1 + settings.stretch, length)
        if settings.shift:
            x = time_shift(x, shift, settings.shift, length)
        if settings.room:
            x = jnp.where(place < settings.room, reverberant(x, decay, loud), x)
        if settings.gain:
            x = gain(x, level, settings.gain)
        if settings.noise:
            segment = coloured_noise(tilt, hump, bits) if noise is None else cut(noise, start, x.shape[0])
            mixed = add_noise(x, segment, ratio, settings.noise_low, settings.noise_high, length)
            x = jnp.where(chance < settings.noise, mixed, x)
        if settings.band:
            x = limit_band(x, low, high, settings.band, length)
        if settings.time_mask:
            x = time_mask(x, masks[0], masks[1], settings.time_mask, length)
        if settings.frequency_mask:
            x = frequency_mask(x, masks[2], masks[3], settings.frequency_mask, length)
        return _within(x, length, given)

    def many(x: Any, key: KeyArray) -> Any:
        frames, lengths = x if isinstance(x, Utterances) else (x, None)
        # all random numbers from two calls of the generator: each call costs a second of compilation on CPU
        draw_key, noise_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (_DRAWS + 6 * more, frames.shape[0]), frames.dtype)
        cells = frames.shape if settings.noise and noise is None else (frames.shape[0], 0, 0)
        bits = jax.random.bits(noise_key, cells, jnp.uint32)
        changed = jax.vmap(one, (0, 0, 1, 0))(frames, lengths, draws, bits)
        return changed if lengths is None else Utterances(changed, lengths)

    return many


def warp_frequency(x: LogMel, draw: Draw, max_ratio: float) -> LogMel:
    """Return x(t, m / r), log r uniform in [-log max_ratio, log max_ratio]: as from a vocal tract of another length.

    Bands are counted from 0; between them the value is interpolated linearly, beyond the last one it is held.

    Reference:
        Jaitly and Hinton, Vocal Tract Length Perturbation (VTLP) improves speech recognition (2013).
    """
    bands = x.shape[1]
    return _interpolate(x.T, jnp.arange(bands) / _ratio(draw, max_ratio)).T


def shift_bands(x: LogMel, draw: Draw, max_bands: float) -> LogMel:
    """Return x(t, m - s), s uniform in [-max_bands, max_bands]; interpolated and held as by `warp_frequency`."""
    if not 0 <= max_bands < x.shape[1]:
        raise InputError(f"pitch is at most {max_bands} bands, expected 0 to less than {x.shape[1]}, all bands.")
    return _interpolate(x.T, jnp.arange(x.shape[1]) - max_bands * (2 * draw - 1)).T


def stretch(x: LogMel, draw: Draw, max_ratio: float, length: Length = None) -> LogMel:
    """Return x(c + (t - c) / r, m) about the centre c, log r uniform in [-log max_ratio, log max_ratio].

    Between frames the value is interpolated linearly; beyond the ends it is the band's minimum.
    """
    last = (x.shape[0] if length is None else length) - 1
    position = last / 2 + (jnp.arange(x.shape[0]) - last / 2) / _ratio(draw, max_ratio)
    inside = (position >= 0) & (position <= last)
    return jnp.where(inside[:, None], _interpolate(x, position), _within(x, length, jnp.inf).min(0))


def time_shift(x: LogMel, draw: Draw, max_frames: int, length: Length = None) -> LogMel:
    """Return x(t - s, m), s uniform in -max_frames..max_frames; vacated frames hold each band's minimum."""
    frames = x.shape[0]
    if not 0 <= max_frames < frames:
        raise InputError(f"shift is at most {max_frames} frames, expected 0 to {frames - 1} with {frames} frames.")
    source = jnp.arange(frames) - (_whole(draw, 2 * max_frames + 1) - max_frames)
    inside = (source >= 0) & (source < (frames if length is None else length))
    return jnp.where(inside[:, None], x[jnp.clip(source, 0, frames - 1)], _within(x, length, jnp.inf).min(0))


def reverberant(x: LogMel, decay: Draw, level: Draw) -> LogMel:
    """Return log(p_t + g sum_{s < t} e^(-(t - s) / d) p_s) of the powers p = exp(x), as in a room.

    log d is uniform between 2 and 12 frames, log g between 0.05 and 0.5. As in `add_noise`, powers are added.
    """
    later = jnp.arange(x.shape[0])[:, None] - jnp.arange(x.shape[0])
    tail = 0.05 * 10**level * jnp.exp(-later / (2 * 6**decay))
    return jnp.logaddexp(x, jnp.log(jnp.where(later > 0, tail, 0) @ jnp.exp(x) + 1e-20))


def limit_band(x: LogMel, low: Draw, high: Draw, max_bands: int, length: Length = None) -> LogMel:
    """Return x with the first and the last 0..max_bands bands as quiet as its quietest cell."""
    if not 0 <= 2 * max_bands < (bands := x.shape[1]):
        raise InputError(f"band is {max_bands} bands at either end, expected less than half of {bands} bands.")
    at = jnp.arange(bands)
    kept = (at >= _whole(low, max_bands + 1)) & (at < bands - _whole(high, max_bands + 1))
    return jnp.where(kept, x, _within(x, length, jnp.inf).min())


def gain(x: LogMel, draw: Draw, max_db: float) -> LogMel:
    """Return x with its power changed by a level uniform in [-max_db, max_db] dB."""
    return x + _NEPER * max_db * (2 * draw - 1)


def add_noise(x: LogMel, noise: LogMel, draw: Draw, low_db: float, high_db: float, length: Length = None) -> LogMel:
    """Return log(exp(x) + a exp(noise)), with the signal-to-noise ratio uniform in [low_db, high_db] dB.

    The ratio is that of the mel powers of signal and noise, each averaged over all cells of the clip. Adding powers
    ignores the cross term of the waves, 2 Re(X conj(N)): it is right on average, not cell by cell. The noise has the
    shape of x and comes from `coloured_noise` or `cut`.
    """
    ratio = _NEPER * (low_db + (high_db - low_db) * draw)
    power, noise_power = (jax.nn.logsumexp(_within(a, length, -jnp.inf)) for a in (x, noise))
    return jnp.logaddexp(x, noise + (power - noise_power - ratio))


def coloured_noise(tilt: Draw, hump: Draw, bits: UInt32[Array, "time mel"]) -> LogMel:
    """Log-mel of noise of random spectral tilt and hump, each cell chi-squared with 4 degrees of freedom.

    From the first to the last band the level rises by up to 9 dB or falls by up to 26 dB, by `tilt`; in the middle
    there is a `hump` up to 9 dB high or deep. The random `bits` have the shape of the result.
    """
    band = jnp.linspace(-0.5, 0.5, bits.shape[1], dtype=tilt.dtype)
    colour = (8 * tilt - 6) * band + (2 * hump - 1) * jnp.cos(2 * jnp.pi * band)
    # two uniforms from one word: random bits are most of the cost
    first, second = ((half.astype(tilt.dtype) + 0.5) / 65536 for half in (bits >> 16, bits & 65535))
    return colour + jnp.log(-jnp.log(first * second))


def tilted(x: LogMel, draws: Float[Array, "6"], max_db: float) -> LogMel:
    """Return x + c(m) with a smooth curve over the bands, as of another microphone or line.

    c(m) = max_db sum_k (2 u_k - 1) / k cos(pi k m / M), k = 1..6, over M bands: at most 2.45 `max_db` anywhere.
    """
    k = jnp.arange(1, 7, dtype=x.dtype)
    basis = jnp.cos(jnp.pi * k[:, None] * jnp.linspace(0, 1, x.shape[1], dtype=x.dtype)) / k[:, None]
    return x + _NEPER * max_db * ((2 * draws - 1) @ basis)


def in_other_throats(x: Utterances, key: KeyArray, ratio: float, max_db: float, together: bool = False) -> Utterances:
    """Each utterance from a vocal tract of another length over another channel: `tilted`, then `warp_frequency`.

    Args:
        x: utterances.
        key: of the draws.
        ratio: largest change of the frequency scale, 1 or more.
        max_db: as in `tilted`.
        together: the same change for all, as if one person spoke them.
    """
    draws = jax.random.uniform(key, (1 if together else len(x.frames), 7))
    change = lambda one, u: warp_frequency(tilted(one, u[:6], max_db), u[6], ratio)  # noqa: E731
    return x._replace(frames=jax.vmap(change)(x.frames, jnp.broadcast_to(draws, (len(x.frames), 7))))


def sometimes(
    change: Callable[[Utterances, KeyArray], Utterances], share: float
) -> Callable[[Utterances, KeyArray], Utterances]:
    """Return (x, key) -> x, each utterance changed with probability `share`, by itself."""

    def changed(x: Utterances, key: KeyArray) -> Utterances:
        chosen = jax.random.uniform(jax.random.fold_in(key, 2), x.lengths.shape) < share
        return x._replace(frames=jnp.where(chosen[:, None, None], change(x, key).frames, x.frames))

    return changed


def cut(noise: Float[Array, "noise_time mel"], draw: Draw, frames: int) -> LogMel:
    """Return `frames` successive frames of the log-mel of a longer recording, the first of them uniform.

    Raises:
        InputError: `noise` is shorter.
    """
    if noise.shape[0] < frames:
        raise InputError(f"noise has {noise.shape[0]} frames, expected at least {frames}.")
    return jax.lax.dynamic_slice_in_dim(noise, _whole(draw, noise.shape[0] - frames + 1), frames)


def time_mask(x: LogMel, width: Draw, start: Draw, max_width: int, length: Length = None) -> LogMel:
    """Return x with w successive frames set to its mean, w uniform in 0..max_width.

    Reference:
        Park et al., SpecAugment (2019).
    """
    mask = _mask(width, start, x.shape[0], max_width, "frames", length)
    return jnp.where(mask[:, None], _mean(x, length).mean(), x)


def frequency_mask(x: LogMel, width: Draw, start: Draw, max_width: int, length: Length = None) -> LogMel:
    """Return x with w successive mel bands set to its mean, w uniform in 0..max_width; as `time_mask`."""
    return jnp.where(_mask(width, start, x.shape[1], max_width, "bands"), _mean(x, length).mean(), x)


def turned(images: Float[Array, "n size size"], key: KeyArray) -> Float[Array, "n size size"]:
    """Return all images turned by the same one of four right angles, mirrored or not: other classes to learn from."""
    turns = [lambda a, k=k, step=step: jnp.rot90(a[:, ::step], k, (1, 2)) for k in range(4) for step in (1, -1)]
    return jax.lax.switch(jax.random.randint(key, (), 0, 8), turns, images)


def occluded(image: Float[Array, "height width"], row: Draw, column: Draw, share: Draw) -> Float[Array, "height width"]:
    """Return the image with a square of 0 whose side is `share` of the height, its place uniform."""
    side, inside = jnp.round(share * image.shape[0]), []
    for draw, size in zip((row, column), image.shape, strict=True):
        place, first = jnp.arange(size), jnp.floor(draw * (size - side + 1))
        inside.append((place >= first) & (place < first + side))
    return jnp.where(inside[0][:, None] & inside[1], 0, image)


def misspelt(
    text: Int[Array, " length"],
    wrong: Float[Array, " length"],
    letter: Float[Array, " length"],
    share: Draw,
    symbols: int,
) -> Int[Array, " length"]:
    """Return the text, numbers of characters padded with 0, each with probability `share` one of 1..symbols - 1."""
    return jnp.where((wrong < share) & (text > 0), 1 + _whole(letter, symbols - 1), text)


def normalize(x: Any, mode: Literal["none", "mean", "mean_variance"], dynamic_range_db: float = 60.0) -> Any:
    """Clamp one clip from below, so that digital silence and room noise look alike, then normalise it.

    Args:
        x: one example, `[time, mel]`, or `Utterances` of one, of which the frames past the length become 0.
        mode: "none" only clamps; "mean" also subtracts each band's mean over time, which removes the channel;
            "mean_variance" then divides by the standard deviation over all cells.
        dynamic_range_db: cells further below the clip's maximum are raised to it; infinite for no clamp.

    Returns:
        The same shapes; finite, and zero for a constant clip but in mode "none".

    Raises:
        InputError: the mode is another, or `dynamic_range_db` is not positive.
    """
    if mode not in ("none", "mean", "mean_variance"):
        raise InputError(f'mode is {mode!r}, expected "none", "mean" or "mean_variance".')
    if not dynamic_range_db > 0:
        raise InputError(f"dynamic_range_db is {dynamic_range_db}, expected more than 0.")
    frames, length = x if isinstance(x, Utterances) else (x, None)
    frames = jnp.maximum(frames, _within(frames, length, -jnp.inf).max() - _NEPER * dynamic_range_db)
    if mode != "none":
        frames = frames - _mean(frames, length)
    if mode == "mean_variance":
        variance = _mean(jnp.square(frames), length).mean()
        frames = frames * jax.lax.rsqrt(variance + 1e-6)  # the offset keeps constant clips, and gradients, finite
    return frames if length is None else Utterances(_within(frames, length, 0.0), length)


def normalized(x: Any) -> Any:
    """Clips `[n, time, mel]` or `Utterances`, each normalised by its own mean and variance, as samplers draw them."""
    return jax.vmap(lambda one: normalize(one, "mean_variance"))(x)


def among_speech(x: LogMel) -> LogMel:
    """Normalise one clip by its frames of speech alone, however much silence is around them.

    0.3 (max(x_tb - m_b, -6.9) + 2), where m_b is the mean of band b over frames, weighted by w_t = sigmoid(e_t - max e
    + 5.75), e_t the log power of a frame: those within 25 dB of the loudest count, and 30 dB below m_b is silence.
    """
    power = jax.nn.logsumexp(x, axis=1)
    weight = jax.nn.sigmoid(power - power.max() + 25 * _NEPER)[:, None]
    return 0.3 * (jnp.maximum(x - (x * weight).sum(0) / weight.sum(), -30 * _NEPER) + 2)


def _within(x: LogMel, length: Length, other: LogMel | float) -> LogMel:
    """Return x up to `length` and `other` past it."""
    return x if length is None else jnp.where(jnp.arange(x.shape[0])[:, None] < length, x, other)


def _mean(x: LogMel, length: Length) -> Float[Array, " mel"]:
    """The mean over the frames within `length`."""
    return x.mean(0) if length is None else _within(x, length, 0.0).sum(0) / length


def _whole(draw: Float[Array, "*n"], count: int | Array) -> Array:
    """A whole number uniform in 0..count - 1."""
    return jnp.floor(draw * count).astype(jnp.int32)


def _mask(width: Draw, start: Draw, size: int, max_width: int, unit: str, length: Length = None) -> Array:
    if not 0 <= max_width <= size:
        raise InputError(f"mask is at most {max_width} {unit} wide, expected 0 to {size}, all {unit}.")
    limit = size if length is None else length
    cells = _whole(width, jnp.minimum(max_width, limit) + 1)
    first = _whole(start, limit - cells + 1)
    place = jnp.arange(size)
    return (place >= first) & (place < first + cells)


def _ratio(draw: Draw, max_ratio: float) -> Array:
    if not 1 <= max_ratio < math.inf:
        raise InputError(f"max_ratio is {max_ratio}, expected 1 or more.")
    return jnp.exp((2 * draw - 1) * math.log(max_ratio))


def _interpolate(x: Float[Array, "place value"], position: Float[Array, " new"]) -> Float[Array, "new value"]:
    """Return the rows of x at fractional positions, held beyond the ends; on CPU gathering is faster than matmul."""
    last = x.shape[0] - 1
    position = jnp.clip(position, 0, last)
    below = jnp.floor(position).astype(jnp.int32)
    weight = (position - below)[:, None].astype(x.dtype)
    return x[below] * (1 - weight) + x[jnp.minimum(below + 1, last)] * weight
