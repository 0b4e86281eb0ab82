"""Augmentation: each part does what it says, per example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data import augment as parts
from metajax.data.augment import Augmentation, augment, normalize
from metajax.errors import InputError

# Compiling is most of the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
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
}
KEYS = jax.random.split(jax.random.key(7), 400)


def clip(key=0, time=98, mel=40):
    return 3 * jax.random.normal(jax.random.key(key), (time, mel)) - 5


def draws(function, keys=KEYS):
    return np.asarray(jit(jax.vmap(function))(keys))


def power(x):
    return np.exp(np.asarray(x, np.float64)).mean(axis=(-2, -1))


def decibel(ratio):
    return 10 * np.log10(ratio)


def test_parts_depend_on_the_key_and_differ_between_examples():
    function = jit(lambda x, key: {name: augment(settings)(x, key) for name, settings in ALONE.items()})
    x = jnp.stack([clip()] * 6)
    given, again, other = (function(x, jax.random.key(seed)) for seed in (1, 1, 2))
    for name, y in given.items():
        assert y.shape == x.shape and y.dtype == jnp.float32 and jnp.isfinite(y).all(), name
        np.testing.assert_array_equal(y, again[name])
        assert (y != other[name]).any(), name
        assert len({example.tobytes() for example in np.asarray(y)}) >= 4, name  # masks and shifts may fall alike


def test_vmap_is_the_loop():
    x = jnp.stack([clip(0), clip(1), clip(2)])
    keys = KEYS[:3]
    functions = (
        lambda x, key: parts.warp_frequency(x, key, 1.2),
        lambda x, key: parts.stretch(x, key, 1.2),
        lambda x, key: parts.time_shift(x, key, 20),
        lambda x, key: parts.gain(x, key, 10.0),
        lambda x, key: parts.add_noise(x, key, 0.0, 20.0),
        lambda x, key: parts.time_mask(x, key, 20),
        lambda x, key: parts.frequency_mask(x, key, 20),
    )

    def one(x, key):
        return jnp.stack([function(x, key) for function in functions])

    loop = [jit(one)(example, key) for example, key in zip(x, keys, strict=True)]
    np.testing.assert_allclose(jit(jax.vmap(one))(x, keys), np.stack(loop), atol=1e-4)


def test_zero_strength_is_the_identity():
    x = jnp.stack([clip(0), clip(1)])
    np.testing.assert_array_equal(jit(augment(OFF))(x, jax.random.key(0)), x)
    functions = (
        lambda key: parts.warp_frequency(x[0], key, 1.0),
        lambda key: parts.stretch(x[0], key, 1.0),
        lambda key: parts.time_shift(x[0], key, 0),
        lambda key: parts.gain(x[0], key, 0.0),
        lambda key: parts.time_mask(x[0], key, 0),
        lambda key: parts.frequency_mask(x[0], key, 0),
    )
    for given in jit(lambda key: [function(key) for function in functions])(KEYS[0]):
        np.testing.assert_array_equal(given, x[0])


def test_shifts_are_uniform_and_fill_with_the_minimum():
    x = np.asarray(clip(time=30))
    seen = set()
    for given in draws(lambda key: parts.time_shift(jnp.asarray(x), key, 3)):
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
    given = draws(lambda key: parts.gain(clip(), key, 6.0))
    change = decibel(power(given) / power(clip()))
    assert -6.001 < change.min() < -5.5 and 5.5 < change.max() < 6.001 and abs(change.mean()) < 0.6
    assert np.ptp(given - np.asarray(clip()), axis=(1, 2)).max() < 1e-5


@pytest.mark.parametrize("recorded", [False, True])
def test_noise_has_the_asked_ratio(recorded):
    x, noise = clip(), jax.random.normal(jax.random.key(5), (500, 40)) + jnp.linspace(-9, 9, 500)[:, None]
    noise = noise if recorded else None
    mixed = draws(lambda key: parts.add_noise(x, key, 15.0, 15.0, noise), KEYS[:20])
    np.testing.assert_allclose(decibel(power(x) / (power(mixed) - power(x))), 15, atol=0.01)
    spread = draws(lambda key: parts.add_noise(x, key, -10.0, 0.0, noise))
    measured = decibel(power(x) / (power(spread) - power(x)))
    assert -10.01 < measured.min() < -9.7 and -0.3 < measured.max() < 0.01 and abs(measured.mean() + 5) < 0.6


def test_recorded_noise_is_a_segment_of_the_recording():
    noise = jnp.arange(200.0)[:, None] * jnp.array([[0.1, 0.0]])
    quiet = jnp.full((50, 2), -200.0)
    starts = set()
    for mixed in draws(lambda key: parts.add_noise(quiet, key, -200.0, -200.0, noise)):
        slope = mixed[:, 0] - mixed[:, 1]  # 0.1 * (start + t)
        np.testing.assert_allclose(np.diff(slope), 0.1, atol=1e-2)
        starts.add(round(float(slope[0] * 10)))
    assert min(starts) <= 5 and 145 <= max(starts) <= 150 and len(starts) > 80
    for wrong in (jnp.zeros((49, 2)), jnp.zeros((200, 3))):
        with pytest.raises((InputError, TypeError), match="noise"):  # TypeError where signatures are checked
            parts.add_noise(quiet, KEYS[0], 0.0, 0.0, wrong)


def test_drawn_noise_fluctuates_as_chi_squared_and_is_coloured():
    quiet = jnp.full((400, 40), -300.0)
    noise = draws(lambda key: parts.add_noise(quiet, key, 0.0, 0.0), KEYS[:50]) + 300
    cells = np.exp(noise.astype(np.float64)) - 1  # without the power of `quiet` itself
    level = cells.mean(axis=1, keepdims=True)
    assert abs((cells / level).var(axis=1).mean() - 2 / 4) < 0.03  # 2 / degrees of freedom
    tilt = np.log(level[:, 0, -1] / level[:, 0, 0])
    assert -6.3 < tilt.min() < -4.5 and 0.8 < tilt.max() < 2.3


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_are_one_run_no_wider_than_asked(axis):
    function = (parts.time_mask, parts.frequency_mask)[axis]
    x = clip(time=20, mel=15)
    widths, ends = set(), set()
    for given in draws(lambda key: function(x, key, 6)):
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
    for given in draws(lambda key: parts.warp_frequency(x, key, 1.2)):
        np.testing.assert_array_equal(given, np.broadcast_to(given[:1], given.shape))
        peaks.append((given[0] * np.arange(40)).sum() / given[0].sum())
    ratios = np.array(peaks) / 20
    assert 1 / 1.21 < ratios.min() < 1 / 1.17 and 1.17 < ratios.max() < 1.21
    assert abs(np.log(ratios).mean()) < 0.02
    held = draws(lambda key: parts.warp_frequency(jnp.arange(40.0) * jnp.ones((2, 1)), key, 1.2))
    assert held.max() == 39 and held.min() == 0


def test_stretch_moves_frames_from_the_centre_by_the_ratio():
    line = jnp.arange(99.0)[:, None] * jnp.array([[1.0, -1.0]])
    slopes = []
    for given in draws(lambda key: parts.stretch(line, key, 1.25)):
        assert given[49, 0] == 49
        slope = given[50, 0] - 49
        position = 49 + (np.arange(99) - 49) * slope
        inside, outside = (position > 0.01) & (position < 97.99), (position < -0.01) | (position > 98.01)
        np.testing.assert_allclose(given[inside, 0], position[inside], atol=1e-3)
        assert (given[outside] == [0, -98]).all()
        slopes.append(slope)
    assert 0.8 <= min(slopes) < 0.82 and 1.22 < max(slopes) <= 1.2501 and abs(np.log(slopes).mean()) < 0.03


def test_noise_is_added_with_its_probability():
    x = jnp.broadcast_to(clip(time=20), (400, 20, 40))
    given = jit(augment(OFF._replace(noise=0.3)))(x, jax.random.key(0))
    assert 0.22 < float((given != x).any(axis=(1, 2)).mean()) < 0.38


@pytest.mark.parametrize(
    "change",
    [{"warp": -0.1}, {"gain": float("nan")}, {"shift": 1.5}, {"noise": 1.1}, {"noise_low": 31.0}, {"time_mask": -1}],
)
def test_strengths_that_mean_nothing_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        augment(Augmentation(**change))


def test_strengths_longer_than_the_axis_are_refused():
    x = jnp.zeros((20, 10))
    for function in (
        lambda: parts.time_shift(x, KEYS[0], 20),
        lambda: parts.time_mask(x, KEYS[0], 21),
        lambda: parts.frequency_mask(x, KEYS[0], 11),
        lambda: parts.warp_frequency(x, KEYS[0], 0.9),
        lambda: parts.stretch(x, KEYS[0], float("inf")),
    ):
        with pytest.raises(InputError):
            function()


def test_normalize():
    x = clip() + jnp.linspace(-3, 3, 40)
    clamped, unclamped, mean, full, wide, coloured, louder = jit(
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
    assert jnp.isfinite(jit(jax.grad(lambda x: normalize(x, mode).sum()))(constant)).all()


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
