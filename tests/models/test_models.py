"""Models: shapes, sizes, the head, and what an example may know of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError, Referenced
from metajax.models import NORMALIZATIONS, conv4, tcresnet8
from metajax.models.conv_pool import max_pool
from metajax.models.norm import Norm
from tests.conftest import assert_close

KEY = jax.random.key(0)
# maker, smallest options, input [time, mel], size of the embedding
MODELS = {"conv4": (conv4, {"width": 8}, (17, 33), 16), "tcresnet8": (tcresnet8, {}, (9, 5), 48)}
CASES = [(name, normalization) for name in MODELS for normalization in NORMALIZATIONS]


def some_params(model, x):
    """Random parameters without `init`, which takes seconds to compile."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.3), s.dtype), shapes)


def inputs(name, n, seed=1):
    return jax.random.normal(jax.random.key(seed), (n, *MODELS[name][2]))


@pytest.mark.parametrize("name", MODELS)
def test_the_embedding_is_the_input_of_the_head(name):
    make, options, _, size = MODELS[name]
    model, embed = make(3, **options), make(**options)
    x = inputs(name, 4)
    params = some_params(model, x)
    body = {layer: value for layer, value in params.items() if layer != "head"}
    assert jax.tree.structure(body) == jax.tree.structure(jax.eval_shape(embed.init, KEY, x))
    z = jax.jit(embed.apply)(body, x)
    assert z.shape == (4, size)
    y = jax.jit(model.apply)(params, x)
    assert y.shape == (4, 3)
    np.testing.assert_allclose(y, z @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-4, atol=1e-5)


def count(model, shape):
    shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_numbers_of_parameters():
    conv4_body = 64 * 9 + 3 * 64 * 64 * 9 + 4 * 2 * 64
    assert count(conv4(5), (2, 100, 40)) == conv4_body + 2 * 64 * 5 + 5
    assert count(conv4(), (2, 100, 40)) == conv4_body
    blocks = sum(9 * a * b + 9 * b * b + a * b + 3 * 2 * b for a, b in ((16, 24), (24, 32), (32, 48)))
    assert count(tcresnet8(12), (2, 100, 40)) == 3 * 40 * 16 + blocks + 48 * 12 + 12


@pytest.mark.parametrize(("name", "normalization"), CASES)
def test_what_an_output_depends_on(name, normalization):
    """The other queries matter under transductive statistics alone; the support set where it gives the statistics."""
    make, options, _, _ = MODELS[name]
    model = make(3, normalization=normalization, **options)
    query, support = inputs(name, 3), inputs(name, 4, 2)
    params = some_params(model, query)
    apply = jax.jit(model.apply)
    other = query.at[1:].set(5 * inputs(name, 2, 3))
    first, changed = apply(params, Referenced(query, support)), apply(params, Referenced(other, support))
    assert first.shape == (3, 3)
    if normalization == "transductive":
        assert np.abs(first[0] - changed[0]).max() > 1e-3
    else:
        np.testing.assert_allclose(first[0], changed[0], atol=1e-6)
    assert np.abs(first[1:] - changed[1:]).max() > 1e-3
    shifted = apply(params, Referenced(query, 3 * support + 1))
    if normalization in ("group", "layer"):
        np.testing.assert_allclose(shifted, first, atol=1e-5)
    else:
        assert np.abs(shifted - first).max() > 1e-3


def test_support_statistics_do_not_see_any_query():
    """The reference itself is embedded as if the queries were not there."""
    x = jax.random.normal(KEY, (6, 5, 4))
    norm, params = Norm("support"), {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    np.testing.assert_allclose(norm.apply(params, x, 2)[:2], norm.apply(params, x[:2]), rtol=1e-6)
    np.testing.assert_allclose(norm.apply(params, x), Norm("transductive").apply(params, x), rtol=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("space", [(5,), (3, 4)])
def test_norm_against_its_definition(normalization, space):
    x = 100 + np.random.default_rng(0).normal(size=(6, *space, 16)).astype(np.float32)
    module = Norm(normalization)
    scale, bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)), np.float32)
    y = jax.jit(lambda x: module.apply({"params": {"scale": scale, "bias": bias}}, x, 4))(x)
    v = x.astype(np.float64)
    wanted = np.empty_like(v)
    for i in range(6):
        for c in range(16):
            source = {
                "transductive": v[..., c],
                "support": v[:4, ..., c],
                "group": v[i, ..., c // 2 * 2 : c // 2 * 2 + 2],
                "layer": v[i],
            }[normalization]
            wanted[i, ..., c] = (v[i, ..., c] - source.mean()) / np.sqrt(source.var() + 1e-5) * scale[c] + bias[c]
    np.testing.assert_allclose(y, wanted, atol=2e-4)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pooling_first_is_pooling_after(x64, normalization):
    """Value, gradient and second derivative, for scales of both signs; a remainder is part of the statistics."""
    x, v = np.random.default_rng(0).normal(size=(2, 6, 5, 4, 16))
    module, scale = Norm(normalization), np.random.default_rng(1).normal(size=16)
    params = {"params": {"scale": jnp.asarray(scale), "bias": jnp.ones(16)}}

    def first(params, x):
        return module.apply(params, x, 4, pool=2)

    def after(params, x):
        return max_pool(module.apply(params, x, 4))

    def derivatives(f):
        grad = jax.grad(lambda *args: jnp.sin(f(*args)).sum(), (0, 1))
        return jax.jit(lambda params, x: (f(params, x), jax.jvp(grad, (params, x), (params, v))))(params, x)

    x = jnp.asarray(x)
    assert (scale < 0).any() and first(params, x).shape == (6, 2, 2, 16)
    assert_close(derivatives(first), derivatives(after), 1e-10)


def test_default_normalization_is_transductive():
    for name, (make, options, _, _) in MODELS.items():
        x = inputs(name, 3)
        params = some_params(make(2, **options), x)
        default, transductive, layer = (
            str(jax.make_jaxpr(make(2, **options, **more).apply)(params, x))
            for more in ({}, {"normalization": "transductive"}, {"normalization": "layer"})
        )
        assert default == transductive != layer


@pytest.mark.parametrize("make", [conv4, tcresnet8])
def test_an_unknown_normalization_is_refused_with_those_known(unchecked, make):
    with pytest.raises(InputError, match=r"batch.*transductive.*support.*group.*layer"):
        jax.eval_shape(make(3, normalization="batch").init, KEY, jnp.zeros((1, 16, 16)))


def test_group_normalization_takes_the_most_groups_that_divide_the_width():
    x = jax.random.normal(KEY, (2, 5, 12))
    norm = Norm("group")
    y = norm.apply(norm.init(KEY, x), x).reshape(2, 5, 6, 2)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-3)


def test_initialisation_depends_on_the_key_alone():
    model = conv4(3, width=2)
    x = jnp.zeros((1, 16, 16))
    init = jax.jit(model.init)
    a, b, c = init(KEY, x), init(KEY, x + 1), init(jax.random.key(1), x)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)
    assert np.abs(a["conv0"]["kernel"] - c["conv0"]["kernel"]).max() > 1e-2


@pytest.mark.parametrize("make", (conv4, tcresnet8))
def test_compiled_gradients_are_those_of_the_parts_compiled_one_by_one(x64, make):
    """XLA may compute an activation twice, rounded differently; a maximum found by equality then loses its gradient."""
    model = make(3, width=0.25 if make is tcresnet8 else 3)
    x = jax.random.normal(jax.random.key(3), (6, 17, 18))
    params = jax.tree.map(lambda a: a.astype(x.dtype), some_params(model, x))

    def loss(params):
        return jax.nn.log_softmax(model.apply(params, x))[:, 0].mean()

    whole, parts = jax.jit(jax.grad(loss))(params), jax.grad(jax.jit(loss))(params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
