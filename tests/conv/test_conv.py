"""Convolution and pooling against those of jax.lax, in every order of derivative and under every vmap."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import metajax as mj
from metajax.conv import conv, formulation, max_pool
from metajax.conv.formulations import LAYOUTS, chosen, conv_groups, current, kernel_grad_groups
from metajax.models import bilstm, conv4, crnn, image_encoder, tcresnet8
from tests.conftest import assert_close, equations


def lax_conv(x, kernel, stride=1):
    axes = kernel.ndim - 2
    return jax.lax.conv_general_dilated(x, kernel, [stride] * axes, "SAME", dimension_numbers=LAYOUTS[axes])


def operands(space, taps, lead=(), features=2, outputs=3, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(*lead, 2, *space, features)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(generator.normal(size=(*lead, *taps, features, outputs)).astype(dtype))


SHAPES = [  # space, taps, stride: odd and even sizes, taps beyond the size, strides beyond the taps
    *(((size,), (taps,), stride) for size, taps, stride in (
        (7, 1, 1), (8, 2, 1), (4, 9, 1), (7, 1, 2), (8, 1, 2), (7, 4, 2), (8, 9, 2), (1, 3, 2),
        (7, 1, 3), (8, 2, 3), (9, 3, 3), (11, 7, 3),
    )),
    ((5, 4), (3, 3), 1), ((6, 5), (3, 3), 2), ((5, 7), (2, 5), 2), ((7, 6), (3, 1), 3),
]  # fmt: skip


@pytest.mark.parametrize(("space", "taps", "stride"), SHAPES)
def test_conv_is_that_of_lax(space, taps, stride):
    x, kernel = operands(space, taps)
    wanted = lax_conv(x, kernel, stride)
    y = jax.jit(partial(conv, stride=stride))(x, kernel)
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_conv_pads_as_told(unchecked):
    x, kernel = operands((9, 6), (3, 1))
    wanted = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (2, 1)), dimension_numbers=LAYOUTS[2])
    np.testing.assert_allclose(conv(x, kernel, pads=((0, 0), (2, 1))), wanted, atol=1e-5)
    with pytest.raises(mj.InputError, match="stride is 2, expected 1 where pads are given"):
        conv(x, kernel, 2, ((0, 0), (2, 1)))


def scalar(function, stride, x, kernel):
    return jnp.sin(function(x, kernel, stride)).sum()


def derivatives(function, stride):
    """First derivatives and the Hessian both ways, in both operands."""
    f = partial(scalar, function, stride)

    def grad(x, kernel):
        return jax.grad(f, (0, 1))(x, kernel)

    return lambda x, kernel: {
        "grad": grad(x, kernel),
        "jacfwd of grad": jax.jacfwd(grad, (0, 1))(x, kernel),
        "jacrev of jacfwd": jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1))(x, kernel),
    }


VMAPS = {
    "both": ((3,), (3,), lambda f: jax.vmap(f)),
    "x": ((3,), (), lambda f: jax.vmap(f, (0, None))),
    "kernel": ((), (3,), lambda f: jax.vmap(f, (None, 0))),
    "both, then x": ((2, 2), (2,), lambda f: jax.vmap(jax.vmap(f, (0, None)))),
    "kernel, then both at other axes": ((2,), (2, 3), lambda f: jax.vmap(jax.vmap(f, (None, 1), 2), (0, 0), 1)),
}


@pytest.mark.parametrize(
    ("name", "space", "taps", "stride"),
    [
        *((name, (4,), (3,), 1) for name in ("x", "kernel")),
        *(pytest.param(name, (4,), (3,), 1, marks=pytest.mark.slow) for name in VMAPS if name not in ("x", "kernel")),
        pytest.param("both", (5,), (2,), 2, marks=pytest.mark.slow),
        pytest.param("both", (3, 2), (2, 2), 1, marks=pytest.mark.slow),
    ],
)
def test_derivatives_of_conv_under_vmap_are_those_of_lax(x64, name, space, taps, stride):
    x_lead, kernel_lead, transform = VMAPS[name]
    x = operands(space, taps, x_lead, 1, 2, 0, np.float64)[0]
    kernel = operands(space, taps, kernel_lead, 1, 2, 1, np.float64)[1]
    results, wanted = (jax.jit(transform(derivatives(f, stride)))(x, kernel) for f in (conv, lax_conv))
    assert jax.tree.leaves(results)[0].dtype == jnp.float64
    for (path, a), b in zip(jax.tree.leaves_with_path(results), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=str(path))


@pytest.mark.parametrize(
    ("space", "taps", "features", "name"),
    [
        pytest.param((8,), (3,), 6, "direct", marks=pytest.mark.slow),
        ((5, 4), (3, 3), 5, "direct"),
        pytest.param((6, 5), (3, 2), 1, "direct", marks=pytest.mark.slow),
        pytest.param((5, 4), (3, 3), 5, "winograd", marks=pytest.mark.slow),
    ],
)
def test_blocks_of_examples_change_nothing(x64, monkeypatch, space, taps, features, name):
    """On CPU large inputs go by blocks: here of one example, of two, and all at once."""
    x, kernel = operands(space, taps, (3,), features, dtype=np.float64)
    x = jnp.concatenate([x, 2 * x, -x], 1)  # 6 examples

    def second_order(x, kernel):
        grads, vhp = jax.vjp(jax.grad(partial(scalar, conv, 1), (0, 1)), x, kernel)
        return grads, vhp(grads)

    def results():
        with formulation(name):
            lowered = jax.jit(jax.vmap(second_order)).lower(x, kernel)
        return lowered.compile()(x, kernel), lowered.as_text().count("stablehlo.while")

    whole, loops = results()
    monkeypatch.setattr("metajax.conv.formulations.CACHE", 0)
    padded = math.prod(size + tap - 1 for size, tap in zip(space, taps, strict=True)) * features * 8
    for block in (1, 2 * padded):
        monkeypatch.setattr("metajax.conv.formulations.BLOCK", dict.fromkeys(("direct", "winograd"), block))
        blocks, more_loops = results()
        assert more_loops > loops
        assert_close(blocks, whole, 1e-11)


@pytest.mark.parametrize(
    ("groups", "space", "taps", "pads", "features"),
    [
        (1, (6, 7), (3, 3), ((1, 1), (1, 1)), 3),  # no whole tiles of Winograd's
        (3, (8, 5), (3, 3), ((0, 2), (2, 0)), 2),
        (1, (14, 12), (3, 3), ((-1, 1), (2, -1)), 48),  # wide and large: `auto` is Winograd's on CPU
        (3, (6, 7), (3, 2), ((1, 1), (0, 2)), 3),
        (1, (9,), (3,), ((1, 1),), 5),
    ],
)
def test_all_formulations_agree(x64, groups, space, taps, pads, features):
    x, kernel = operands(space, taps, (groups,), features, features + 1, dtype=np.float64)
    ways = [("direct", "cpu"), *itertools.product(("auto", "products", "winograd"), ("cpu", "other"))]

    @jax.jit
    def both(x, kernel):
        found = []
        for name, platform in ways:
            how = {"pads": pads, "formulation": name, "platform": platform}
            y = conv_groups(x, kernel, **how)
            found.append((y, kernel_grad_groups(x, y, **how)))
        return found

    wanted, *others = both(x, kernel)
    assert wanted[1].shape == kernel.shape
    for way, found in zip(ways[1:], others, strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11 * np.abs(other).max(), err_msg=str(way))


def test_the_formulation_is_kept_in_every_derivative(monkeypatch):
    seen = []

    def spy(name, *args):
        seen.append(name)
        return chosen(name, *args)

    monkeypatch.setattr("metajax.conv.formulations.chosen", spy)
    x, kernel = operands((6, 5), (3, 3), (3,))

    def norm(x, kernel):
        grads = jax.grad(lambda *args: jnp.sin(conv(*args)).sum(), (0, 1))(x, kernel)
        return sum(jnp.vdot(g, g) for g in grads)

    with formulation("winograd"):
        traced = jax.jit(jax.vmap(jax.grad(norm, (0, 1)))).trace(x, kernel)
    traced.lower()  # long after it was traced
    assert len(seen) >= 4
    assert set(seen) == {"winograd"}


def test_auto_depends_on_platform_groups_and_shape():
    wide, narrow, long = (3, 3, 64, 64), (3, 3, 1, 64), (9, 64, 64)
    ways = [chosen("auto", "cpu", 4, 160, kernel) for kernel in (wide, narrow, long)]
    assert ways == ["winograd", "direct", "direct"]
    assert chosen("auto", "cpu", 1, 132, (3, 3, 48, 49)) == "winograd"  # as above
    assert chosen("auto", "cpu", 4, 40, wide) == "direct"
    assert chosen("auto", "cpu", 1, 160, (3, 3, 1, 2048)) == "direct"  # 32 tasks that share their inputs
    assert [chosen("auto", "cuda", groups, 160, wide) for groups in (1, 4)] == ["direct", "products"]
    ways = [chosen("winograd", "cuda", 1, 40, kernel) for kernel in (wide, narrow, long)]
    assert ways == ["winograd", "winograd", "direct"]


def test_single_precision_of_winograd_is_close():
    x, kernel = operands((16, 10), (3, 3), (1,), 64, 64)
    y, wanted = (
        jax.jit(partial(conv_groups, pads=((1, 1), (1, 1)), formulation=name, platform="cpu"))(x, kernel)
        for name in ("winograd", "direct")
    )
    assert float(jnp.abs(y - wanted).max()) < 1e-5 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize("way", ["direct", "winograd"])
def test_half_precision_is_rounded_once(monkeypatch, way):
    """Sums over planes and over blocks are taken in single precision."""
    monkeypatch.setattr("metajax.conv.formulations.CACHE", 0)
    monkeypatch.setattr("metajax.conv.formulations.BLOCK", dict.fromkeys(("direct", "winograd"), 1))  # one example
    x, kernel = operands((16, 10), (3, 3), (1,), 64, 64)
    x, kernel = jnp.tile(x, (1, 8, 1, 1, 1)).astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

    def both(x, kernel, name):
        options = {"pads": ((1, 1), (1, 1)), "formulation": name, "platform": "cpu"}
        return conv_groups(x, kernel, **options), kernel_grad_groups(x, jnp.sin(x), **options)

    got = jax.jit(partial(both, name=way))(x, kernel)
    exact = jax.jit(partial(both, name="direct"))(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for ours, wanted in zip(got, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        distance = jnp.linalg.norm(ours.astype(jnp.float32) - wanted) / jnp.linalg.norm(wanted)
        assert float(distance) < 4e-3


FORMULATED = {
    "conv4": (conv4, (16, 16)), "crnn": (crnn, (16, 16)), "tcresnet8": (tcresnet8, (20, 5)),
    "bilstm": (bilstm, (20, 5)), "image_encoder": (image_encoder, (8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULATED)
def test_the_formulation_holds_for_every_convolution_of_a_model(name):
    make, shape = FORMULATED[name]
    model, x = make(2, width=1.0 if name == "tcresnet8" else 4), jnp.zeros((2, *shape))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    grad = jax.grad(lambda params, x: model.apply(params, x).sum())
    with formulation("products"):
        eqns = list(equations(grad, params, x))
    seen = [eqn.params["formulation"] for eqn in eqns if "formulation" in eqn.params]
    assert len(seen) >= 4 and set(seen) == {"products"}


def test_the_formulation_ends_with_its_block():
    with formulation("direct"):
        with pytest.raises(KeyError), formulation("winograd"):
            assert current() == "winograd"
            raise KeyError
        assert current() == "direct"
    assert current() == "auto"


def test_an_unknown_formulation_gets_one_sentence(unchecked):
    wanted = "name is 'fast', expected one of auto, direct, products, winograd"
    with pytest.raises(mj.InputError, match=wanted), formulation("fast"):
        pass
    assert current() == "auto"


@pytest.mark.parametrize(
    ("x", "kernel"),
    [((2, 5, 3), (3, 2, 4)), ((2, 5, 5, 3), (3, 3, 4)), ((5, 3), (3, 4)), ((2, 4, 4, 4, 3), (3, 3, 3, 3, 4))],
)
def test_operands_that_do_not_fit_get_one_sentence(unchecked, x, kernel):
    with pytest.raises(
        mj.InputError, match=r"x is float32 of shape \(.*\) and kernel float32 of shape .*, expected one type"
    ):
        conv(jnp.zeros(x), jnp.zeros(kernel))
    with pytest.raises(mj.InputError, match="x is int32 of shape .* and kernel float32"):
        conv(jnp.zeros((2, 5, 3), int), jnp.zeros((3, 3, 4)))


def test_one_program_runs_on_every_platform():
    """Each with its own formulation: on CPU a loop over the tasks, elsewhere one product."""
    x, kernel = operands((8, 8), (3, 3), (4,))
    f = jax.jit(jax.vmap(jax.grad(partial(scalar, conv, 2), (0, 1))))
    exported = export.export(f, platforms=["cpu", "cuda", "tpu"])(x, kernel)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert_close(exported.call(x, kernel), f(x, kernel), 1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_no_derivative_under_vmap_becomes_a_grouped_convolution(platform):
    """What the file is for: plain convolutions and matrix products only."""
    x, kernel = operands((8, 8), (3, 3), (4,))

    def norm(x, kernel):
        return sum(jnp.vdot(g, g) for g in jax.grad(partial(scalar, conv, 2), (0, 1))(x, kernel))

    def text(f, *args):
        return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()

    found = text(jax.vmap(jax.grad(norm, (0, 1))), x, kernel)
    assert "dot_general" in found
    convolutions = [line for line in found.splitlines() if "stablehlo.convolution" in line]
    assert bool(convolutions) == (platform == "cpu")  # one task after the other there
    plain = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "batch_group_count = 1", "feature_group_count = 1"
    assert all(part in line for line in convolutions for part in plain)
    shared = text(jax.vmap(partial(conv, stride=2), (0, None)), x, kernel[0])
    assert shared.count("stablehlo.convolution") == 1


@pytest.mark.parametrize(("space", "size"), [((6,), 2), ((6,), 3), ((4, 6), 2)])
def test_max_pool_is_reduce_window(x64, space, size):
    x = operands(space, (1,) * len(space), dtype=np.float64)[0]
    window = (1, *[size] * len(space), 1)

    def wanted(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    def both(f):
        return jax.jit(lambda x: (f(x), jax.grad(lambda x: jnp.sin(f(x)).sum())(x)))(x)

    (found, slope), (most, wanted_slope) = both(lambda x: max_pool(x, size)), both(wanted)
    np.testing.assert_array_equal(found, most)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-12)


def test_max_pool_leaves_a_remainder_out():
    x = operands((7, 5), (1, 1))[0]
    np.testing.assert_array_equal(max_pool(x), max_pool(x[:, :6, :4]))
    assert max_pool(x).shape == (2, 3, 2, 2)
