"""Augmentation: each part does what it says, per example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.core import Utterances
from metajax.data import augment as parts
from metajax.data.augment import Augmentation, augment, misspelt, normalize, occluded, turned
from metajax.errors import InputError
from tests.conftest import normal

# Compiling is most of the time.
OFF = Augmentation(*[0] * len(Augmentation._fields))
ALONE = {
    "warp": OFF._replace(warp=0.1),
    "stretch": OFF._replace(stretch=0.15),
    "shift": OFF._replace(shift=10),
    "gain": OFF._replace(gain=6.0),
    "noise": OFF._replace(noise=1.0, noise_low=0.0, noise_high=20.0),
    "time_mask": OFF._replace(time_mask=12),
    "frequency_mask": OFF._replace(frequency_mask=5),
    "all": Augmentation(),
    "off by default": OFF._replace(pitch=2.0, room=1.0, band=6),
}
UNIFORM = np.random.default_rng(7).uniform(size=(400, 3)).astype(np.float32)
BITS = np.random.default_rng(8).integers(0, 2**32, (400, 98, 40), np.uint32)


def clip(key=0, time=98, mel=40):
    return normal(time, mel, seed=key, scale=3, mean=-5)


def draws(function, *numbers):
    """Return `function` of each row of `numbers`, 400 uniform ones where there are none."""
    return np.asarray(jax.jit(jax.vmap(function))(*(numbers or (UNIFORM[:, 0],))))


def power(x):
    return np.exp(np.asarray(x, np.float64)).mean(axis=(-2, -1))


def decibel(ratio):
    return 10 * np.log10(ratio)


@pytest.mark.slow
def test_parts_depend_on_the_key_and_differ_between_examples():
    function = jax.jit(lambda x, key: {name: augment(settings)(x, key) for name, settings in ALONE.items()})
    x = jnp.asarray(np.stack([clip()] * 6))
    given, again, other = (function(x, jax.random.key(seed)) for seed in (1, 1, 2))
    for name, y in given.items():
        assert y.shape == x.shape and y.dtype == jnp.float32 and jnp.isfinite(y).all(), name
        np.testing.assert_array_equal(y, again[name])
        assert (y != other[name]).any(), name
        assert len({example.tobytes() for example in np.asarray(y)}) >= 4, name  # masks and shifts may fall alike


def test_vmap_is_the_loop():
    x, noise = jnp.asarray(np.stack([clip(0), clip(1), clip(2)])), clip(3, time=200)

    def one(x, draw, bits):
        return jnp.stack(
            [
                parts.warp_frequency(x, draw[0], 1.2),
                parts.stretch(x, draw[0], 1.2),
                parts.time_shift(x, draw[0], 20),
                parts.gain(x, draw[0], 10.0),
                parts.add_noise(x, parts.coloured_noise(draw[1], draw[2], bits), draw[0], 0.0, 20.0),
                parts.add_noise(x, parts.cut(noise, draw[1], 98), draw[0], 0.0, 20.0),
                parts.time_mask(x, draw[0], draw[1], 20),
                parts.frequency_mask(x, draw[0], draw[1], 20),
            ]
        )

    loop = [jax.jit(one)(*example) for example in zip(x, UNIFORM, BITS[:3], strict=False)]
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(x, UNIFORM[:3], BITS[:3]), np.stack(loop), atol=1e-4)


def test_an_utterance_is_augmented_and_normalised_as_if_its_padding_were_not_there():
    x, length, draw = np.asarray(clip(time=60)), 41, jnp.asarray(UNIFORM[3])
    padded = np.concatenate([x[:length], normal(19, 40, seed=9, scale=30)])
    noise = np.asarray(clip(4, time=60))

    def both(x, noise, length):
        return jnp.stack(
            [
                parts.stretch(x, draw[0], 1.2, length),
                parts.time_shift(x, draw[0], 20, length),
                parts.add_noise(x, noise, draw[0], 0.0, 20.0, length),
                parts.time_mask(x, draw[0], draw[1], 20, length),
                parts.frequency_mask(x, draw[0], draw[1], 20, length),
            ]
        )

    given = np.asarray(jax.jit(both)(padded, noise, length))[:, :length]
    np.testing.assert_allclose(given, jax.jit(both)(x[:length], noise[:length], None), atol=1e-4)
    for mode in ("none", "mean", "mean_variance"):
        change = jax.jit(partial(normalize, mode=mode))
        one = jax.tree.map(np.asarray, change(Utterances(padded, jnp.asarray(length))))
        np.testing.assert_allclose(one.frames[:length], change(x[:length]), atol=1e-5)
        assert one.lengths == length and (one.frames[length:] == 0).all()


def test_augment_leaves_what_is_past_the_lengths_alone():
    lengths = np.array([20, 41, 60])
    past = np.arange(60) >= lengths[:, None]
    frames = jnp.asarray(np.stack([clip(i, time=60) for i in range(3)]))
    other = jnp.where(past[..., None], 25.0, frames)
    change = jax.jit(augment(Augmentation()))
    key = jax.random.key(3)
    given, again = (jax.tree.map(np.asarray, change(Utterances(x, lengths), key)) for x in (frames, other))
    frames, other = np.asarray(frames), np.asarray(other)
    np.testing.assert_array_equal(given.lengths, lengths)
    np.testing.assert_array_equal(given.frames[past], frames[past])
    np.testing.assert_array_equal(again.frames[past], other[past])
    np.testing.assert_array_equal(given.frames[~past], again.frames[~past])
    assert (given.frames[~past] != frames[~past]).mean() > 0.9
    whole = change(frames, key)
    np.testing.assert_allclose(given.frames[2], whole[2], atol=1e-4)


def test_zero_strength_is_the_identity():
    x = jnp.asarray(np.stack([clip(0), clip(1)]))
    np.testing.assert_array_equal(jax.jit(augment(OFF))(x, jax.random.key(0)), x)

    def parts_of(draw):
        return jnp.stack(
            [
                parts.warp_frequency(x[0], draw, 1.0),
                parts.stretch(x[0], draw, 1.0),
                parts.time_shift(x[0], draw, 0),
                parts.gain(x[0], draw, 0.0),
                parts.time_mask(x[0], draw, draw, 0),
                parts.frequency_mask(x[0], draw, draw, 0),
            ]
        )

    given = draws(parts_of, np.float32([0, 0.3, 1 - 2**-24]))
    np.testing.assert_array_equal(given, np.broadcast_to(x[0], given.shape))


def test_shifts_are_uniform_and_fill_with_the_minimum():
    x = np.asarray(clip(time=30))
    seen = set()
    for given in draws(lambda draw: parts.time_shift(jnp.asarray(x), draw, 3)):
        matches = [
            s for s in range(-3, 4) if (given[max(s, 0) : 30 + min(s, 0)] == x[max(-s, 0) : 30 - max(s, 0)]).all()
        ]
        assert len(matches) == 1
        (shift,) = matches
        vacated = given[:shift] if shift > 0 else given[30 + shift :]
        np.testing.assert_array_equal(vacated, np.broadcast_to(x.min(0), vacated.shape))
        seen.add(shift)
    assert seen == set(range(-3, 4))


def test_gain_is_in_decibels_and_uniform():
    given = draws(lambda draw: parts.gain(clip(), draw, 6.0))
    change = decibel(power(given) / power(clip()))
    assert -6.001 < change.min() < -5.5 and 5.5 < change.max() < 6.001 and abs(change.mean()) < 0.6
    assert np.ptp(given - np.asarray(clip()), axis=(1, 2)).max() < 1e-5


def test_noise_has_the_asked_ratio():
    x, recording = clip(), normal(500, 40, seed=5) + jnp.linspace(-9, 9, 500)[:, None]

    def mix(draw, bits):
        noises = parts.coloured_noise(draw[1], draw[2], bits), parts.cut(recording, draw[1], 98)
        return jnp.stack(
            [parts.add_noise(x, noise, draw[0], *ends) for noise in noises for ends in [(15.0, 15.0), (-10.0, 0.0)]]
        )

    mixed = draws(mix, UNIFORM, BITS)
    ratio = decibel(power(x) / (power(mixed) - power(x)))
    np.testing.assert_allclose(ratio[:, ::2], 15, atol=0.01)
    np.testing.assert_allclose(ratio[:, 1::2], -10 * (1 - UNIFORM[:, :1]) * np.ones(2), atol=0.01)


def test_recorded_noise_is_a_segment_of_the_recording():
    noise = jnp.arange(200.0)[:, None] * jnp.ones((1, 2))
    segments = draws(lambda draw: parts.cut(noise, draw, 50))
    assert (np.diff(segments, axis=1) == 1).all() and (segments[..., 0] == segments[..., 1]).all()
    starts = segments[:, 0, 0]
    assert starts.min() <= 5 and 145 <= starts.max() <= 150 and len(np.unique(starts)) > 80
    first, last = draws(lambda draw: parts.cut(noise, draw, 50), np.float32([0, 1 - 2**-24]))[:, 0, 0]
    assert (first, last) == (0, 150)
    with pytest.raises(InputError, match="noise has 49 frames"):
        parts.cut(noise[:49], jnp.asarray(0.5), 50)


def test_augment_takes_its_noise_from_the_recording():
    quiet, noise = jnp.full((6, 50, 2), -200.0), jnp.arange(200.0)[:, None] * jnp.array([[0.1, 0.0]])
    settings = OFF._replace(noise=1.0, noise_low=-200.0, noise_high=-200.0)
    mixed = np.asarray(jax.jit(augment(settings, noise))(quiet, jax.random.key(0)))
    slope = mixed[..., 0] - mixed[..., 1]  # 0.1 * (start + t)
    np.testing.assert_allclose(np.diff(slope, axis=1), 0.1, atol=1e-2)
    assert len(np.unique(np.round(slope[:, 0] * 10))) >= 4
    for wrong in (jnp.zeros((49, 2)), jnp.zeros((200, 3))):
        with pytest.raises((InputError, TypeError), match="noise"):  # TypeError where signatures are checked
            augment(settings, wrong)(quiet, jax.random.key(0))


def test_drawn_noise_fluctuates_as_chi_squared_and_is_coloured():
    bits = np.random.default_rng(9).integers(0, 2**32, (50, 400, 40), np.uint32)
    ends = np.concatenate([UNIFORM[:48, :2], np.float32([[0, 0.5], [1, 0.5]])])
    noise = draws(lambda draw, bits: parts.coloured_noise(*draw, bits), ends, bits)
    cells = np.exp(noise.astype(np.float64))
    level = cells.mean(axis=1, keepdims=True)
    assert abs((cells / level).var(axis=1).mean() - 2 / 4) < 0.03  # 2 / degrees of freedom
    tilt = np.log(level[:, 0, -1] / level[:, 0, 0])
    np.testing.assert_allclose(tilt, 8 * ends[:, 0] - 6, atol=0.3)
    hump = np.log(level[:, 0, 19:21].mean(1)) - np.log(level[:, 0, [0, -1]]).mean(1)
    np.testing.assert_allclose(hump, 2 * (2 * ends[:, 1] - 1), atol=0.3)


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_are_one_run_no_wider_than_asked(axis):
    function = (parts.time_mask, parts.frequency_mask)[axis]
    x = clip(time=20, mel=15)
    widths, ends = set(), set()
    for given in draws(lambda width, start: function(x, width, start, 6), UNIFORM[:, 0], UNIFORM[:, 1]):
        changed = given != np.asarray(x)
        np.testing.assert_allclose(given[changed], x.mean(), rtol=1e-5)
        line = changed.any(axis=1 - axis)
        assert (changed == np.expand_dims(line, 1 - axis)).all()
        places = np.flatnonzero(line)
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
        widths.add(len(places))
        ends |= {int(places[0]), int(places[-1])} if len(places) else set()
    assert widths == set(range(7)) and {0, x.shape[axis] - 1} <= ends


def test_warp_moves_peaks_by_the_ratio():
    x = jnp.exp(-(((jnp.arange(40.0) - 20) / 3) ** 2)) * jnp.ones((5, 1))
    peaks = []
    for given in draws(lambda draw: parts.warp_frequency(x, draw, 1.2)):
        np.testing.assert_array_equal(given, np.broadcast_to(given[:1], given.shape))
        peaks.append((given[0] * np.arange(40)).sum() / given[0].sum())
    ratios = np.array(peaks) / 20
    assert 1 / 1.21 < ratios.min() < 1 / 1.17 and 1.17 < ratios.max() < 1.21
    assert abs(np.log(ratios).mean()) < 0.02
    held = draws(lambda draw: parts.warp_frequency(jnp.arange(40.0) * jnp.ones((2, 1)), draw, 1.2))
    assert held.max() == 39 and held.min() == 0


def test_stretch_moves_frames_from_the_centre_by_the_ratio():
    line = jnp.arange(99.0)[:, None] * jnp.array([[1.0, -1.0]])
    slopes = []
    for given in draws(lambda draw: parts.stretch(line, draw, 1.25)):
        assert given[49, 0] == 49
        slope = given[50, 0] - 49
        position = 49 + (np.arange(99) - 49) * slope
        inside, outside = (position > 0.01) & (position < 97.99), (position < -0.01) | (position > 98.01)
        np.testing.assert_allclose(given[inside, 0], position[inside], atol=1e-3)
        assert (given[outside] == [0, -98]).all()
        slopes.append(slope)
    assert 0.8 <= min(slopes) < 0.82 and 1.22 < max(slopes) <= 1.2501 and abs(np.log(slopes).mean()) < 0.03


def test_pitch_moves_whole_spectra_by_bands():
    x, draw = clip(time=5), np.float32([1.0, 0.5, 0.0])
    up, same, down = draws(lambda draw: parts.shift_bands(x, draw, 3.0), draw)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(up[:, 3:], x[:, :-3], rtol=1e-5)
    np.testing.assert_allclose(down[:, :-3], x[:, 3:], rtol=1e-5)
    np.testing.assert_allclose(up[:, :3], np.repeat(x[:, :1], 3, 1), rtol=1e-5)


def test_a_narrow_band_loses_whole_bands_at_its_ends():
    x, ends = np.asarray(clip(time=9)), set()
    for given in draws(lambda low, high: parts.limit_band(jnp.asarray(x), low, high, 5), UNIFORM[:, 0], UNIFORM[:, 1]):
        lost = (given != x).any(0)
        kept = np.flatnonzero(~lost)
        assert (np.diff(kept) == 1).all() and (given[:, lost] == x.min()).all()
        ends |= {int(kept[0]), int(kept[-1])}
    assert ends == {*range(6), *range(34, 40)}


def test_noise_is_added_with_its_probability():
    x = jnp.broadcast_to(clip(time=20), (400, 20, 40))
    given = jax.jit(augment(OFF._replace(noise=0.3)))(x, jax.random.key(0))
    assert 0.22 < float((given != x).any(axis=(1, 2)).mean()) < 0.38


@pytest.mark.parametrize(
    "change",
    [
        {"warp": -0.1},
        {"pitch": -1.0},
        {"room": 1.5},
        {"band": -2},
        {"gain": float("nan")},
        {"shift": 1.5},
        {"noise": 1.1},
        {"noise_low": 31.0},
        {"time_mask": -1},
    ],
)
def test_strengths_that_mean_nothing_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        augment(Augmentation(**change))


def test_strengths_longer_than_the_axis_are_refused():
    x, draw = jnp.zeros((20, 10)), jnp.asarray(0.5)
    for function in (
        lambda: parts.time_shift(x, draw, 20),
        lambda: parts.time_mask(x, draw, draw, 21),
        lambda: parts.frequency_mask(x, draw, draw, 11),
        lambda: parts.shift_bands(x, draw, 10.0),
        lambda: parts.warp_frequency(x, draw, 0.9),
        lambda: parts.stretch(x, draw, float("inf")),
    ):
        with pytest.raises(InputError):
            function()


def test_normalize():
    x = clip() + jnp.linspace(-3, 3, 40)
    clamped, unclamped, mean, full, wide, coloured, louder = jax.jit(
        lambda x: (
            normalize(x, "none", 20.0),
            normalize(x, "none", float("inf")),
            normalize(x, "mean"),
            normalize(x, "mean_variance"),
            normalize(x, "mean", 1e3),
            normalize(x + jnp.linspace(-1, 1, 40), "mean", 1e3),
            normalize(x + 3, "mean_variance"),
        )
    )(x)
    np.testing.assert_allclose(clamped, np.maximum(x, x.max() - 2 * np.log(10)), rtol=1e-6)
    np.testing.assert_array_equal(unclamped, x)
    np.testing.assert_allclose(mean.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(full, mean / np.std(mean), atol=1e-5)
    np.testing.assert_allclose(coloured, wide, atol=1e-4)
    np.testing.assert_allclose(louder, full, atol=1e-5)


@pytest.mark.parametrize("mode", ["none", "mean", "mean_variance"])
def test_normalize_is_finite_for_constant_clips(mode):
    constant = jnp.full((98, 40), np.log(1e-10), jnp.float32)
    given = normalize(constant, mode)
    assert given.dtype == jnp.float32 and jnp.isfinite(given).all()
    np.testing.assert_allclose(given, constant if mode == "none" else 0, atol=0.05)
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: normalize(x, mode).sum()))(constant)).all()


def test_normalize_makes_silences_alike():
    speech = jnp.zeros((98, 40)).at[30:60].set(10.0)
    digital, room = speech.at[:20].set(-23.0), speech.at[:20].set(-9.0)
    np.testing.assert_array_equal(normalize(digital, "mean_variance", 60.0), normalize(room, "mean_variance", 60.0))


def test_normalize_refuses_other_modes_and_ranges():
    with pytest.raises((InputError, TypeError), match="mode"):  # TypeError where signatures are checked
        normalize(clip(), "minmax")
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="dynamic_range_db"):
            normalize(clip(), "mean", value)


def test_another_microphone_is_a_smooth_curve_over_the_bands_that_keeps_within_its_bound():
    changed = draws(lambda *u: parts.tilted(jnp.zeros((2, 40)), jnp.stack(u), 3.0), *np.tile(UNIFORM, 2).T)
    np.testing.assert_array_equal(changed[:, 0], changed[:, 1])  # the same at all times
    largest = np.abs(changed).max() * 10 / np.log(10)
    assert 3.0 < largest < 3.0 * sum(1 / k for k in range(1, 7))
    first = np.cos(np.pi * np.linspace(0, 1, 40)) * 3.0 * np.log(10) / 10
    only_first = jnp.array([1.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(parts.tilted(clip(), only_first, 3.0) - clip(), np.tile(first, (98, 1)), atol=1e-5)


def test_a_room_adds_what_was_said_before_and_nothing_that_comes_later():
    x, decay, level = clip(time=6, mel=2), jnp.float32(0.3), jnp.float32(0.7)
    later, tail = np.exp(np.asarray(x, np.float64)), 0.05 * 10**level
    for t in range(6):
        for s in range(t):
            later[t] += tail * np.exp(-(t - s) / (2 * 6**decay)) * np.exp(np.asarray(x[s], np.float64))
    np.testing.assert_allclose(jax.jit(parts.reverberant)(x, decay, level), np.log(later), atol=1e-5)


def test_silence_around_a_word_and_its_level_do_not_change_how_speech_is_normalised():
    word = np.asarray(clip(time=40))
    among_speech, silence = jax.jit(parts.among_speech), np.full((30, 40), -23, np.float32)
    alone = among_speech(word)
    padded = np.asarray(among_speech(np.concatenate([silence, word + 4.0, silence])))
    np.testing.assert_allclose(padded[30:70], alone, atol=1e-4)
    np.testing.assert_allclose(padded[:30], 0.3 * (2 - 3 * np.log(10)), atol=1e-4)  # 30 dB below the mean


def test_images_are_turned_alike_and_hidden_by_a_square():
    images = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (3, 8, 8)), jnp.float32)
    hide = jax.jit(occluded)
    turns = [np.rot90(one, k, (1, 2)) for one in (np.asarray(images), np.asarray(images)[:, ::-1]) for k in range(4)]
    found = jax.jit(jax.vmap(turned, (None, 0)))(images, jax.random.split(jax.random.key(1), 200))
    hits = [np.flatnonzero([np.array_equal(one, turn) for turn in turns]) for one in np.asarray(found)]
    assert all(len(hit) == 1 for hit in hits) and len(np.unique(hits)) == 8
    for row, column in ((0.0, 0.999), (0.5, 0.3)):
        seen = np.asarray(hide(images[0], np.float32(row), np.float32(column), np.float32(0.5)))
        rows, columns = np.nonzero(seen == 0)
        assert len(rows) == 16 and np.ptp(rows) == np.ptp(columns) == 3
        assert (rows[0], columns[0]) == (int(row * 5), int(column * 5))
        np.testing.assert_array_equal(seen[seen > 0], np.asarray(images[0])[seen > 0])
    np.testing.assert_array_equal(hide(images[0], *np.zeros(3, np.float32)), images[0])


def test_characters_are_replaced_at_their_rate_and_padding_stays():
    text = np.concatenate([np.full(4000, 3), np.zeros(50, int)])
    draws = np.random.default_rng(2).uniform(size=(2, 4050)).astype(np.float32)
    change = jax.jit(lambda rate: misspelt(jnp.asarray(text), *jnp.asarray(draws), rate, 9))
    wrong = np.asarray(change(np.float32(0.4)))
    assert (wrong[4000:] == 0).all() and set(wrong[:4000].tolist()) == set(range(1, 9))
    assert abs((wrong[:4000] == 3).mean() - (0.6 + 0.4 / 8)) < 0.03
    np.testing.assert_array_equal(change(np.float32(0)), text)


def test_other_throats_are_one_for_all_or_one_each_and_come_as_often_as_asked():
    frames, key = np.tile(normal(1, 6, 20), (64, 1, 1)), jax.random.key(1)
    x = Utterances(jnp.asarray(frames), jnp.asarray(np.full(64, 6)))

    @jax.jit
    def heard(x, key):
        one, each = (parts.in_other_throats(x, key, 1.2, 6.0, together).frames for together in (True, False))
        u = jax.random.uniform(key, (1, 7))[0]
        expected = parts.warp_frequency(parts.tilted(x.frames[0], u[:6], 6.0), u[6], 1.2)
        louder = parts.sometimes(lambda x, key: x._replace(frames=x.frames + 100), 0.25)(x, key).frames
        return one, each, expected, louder

    one, each, expected, louder = (np.asarray(a) for a in heard(x, key))
    np.testing.assert_allclose(one, np.broadcast_to(expected, frames.shape), atol=1e-5)
    assert len({float(value) for value in each[:, 0, 5]}) > 60
    changed = (louder > 50).all((1, 2))
    assert 4 < changed.sum() < 30 and (louder[~changed] == frames[~changed]).all()
