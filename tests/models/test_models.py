"""Models: shapes, sizes, the head, what an example may know of the others, and that all lower for every platform."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from jax import export

from metajax import InputError
from metajax.conv import max_pool
from metajax.core import Utterances
from metajax.models import (
    NORMALIZATIONS,
    bilstm,
    conv4,
    crnn,
    embedding_heads,
    from_linen,
    image_encoder,
    in_bfloat16,
    mlp,
    multitask,
    tcresnet8,
)
from metajax.models.conv4 import conv_blocks
from metajax.models.layers import Conv, Norm
from metajax.names import merged
from tests.conftest import assert_close, differs, normal

KEY = jax.random.key(0)
# maker, smallest options, input [time, mel], size of the embedding
MODELS = {"conv4": (conv4, {"width": 8}, (17, 33), 16), "tcresnet8": (tcresnet8, {}, (9, 5), 48)}
CASES = [(name, normalization) for name in MODELS for normalization in NORMALIZATIONS]

SLOW = pytest.mark.slow


def some_params(model, x):
    """Random parameters without `init`, which takes seconds to compile."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.3), s.dtype), shapes)


def inputs(name, n, seed=1):
    return normal(n, *MODELS[name][2], seed=seed)


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
    apply, statistics = jax.jit(model.apply), jax.jit(model.statistics)
    other = query.at[1:].set(5 * inputs(name, 2, 3))

    def given(support, query):
        return apply(merged(params, statistics(params, support)), query)

    first, changed = given(support, query), given(support, other)
    assert first.shape == (3, 3)
    if normalization == "transductive":
        assert np.abs(first[0] - changed[0]).max() > 1e-3
    else:
        np.testing.assert_allclose(first[0], changed[0], atol=1e-6)
    assert np.abs(first[1:] - changed[1:]).max() > 1e-3
    shifted = given(3 * support + 1, query)
    if normalization == "support":
        assert np.abs(shifted - first).max() > 1e-3
    else:
        np.testing.assert_array_equal(shifted, first)


@SLOW
@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_one_pass_normalised_by_itself(name):
    """Known by their names; with them, the support set's outputs are those it has by itself, as one batch."""
    make, options, _, _ = MODELS[name]
    model, x = make(3, normalization="support", **options), inputs(name, 4)
    params = some_params(model, x)
    statistics = jax.jit(model.statistics)
    found = statistics(params, x)
    wanted = {f"{layer}.{field}" for layer in params if layer.startswith("norm") for field in ("mean", "variance")}
    assert set(found) == wanted and len(wanted) >= 8
    assert all(value.shape == params[key.split(".")[0]]["scale"].shape for key, value in found.items())
    y = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(jax.jit(model.apply)(merged(params, found), x), y, atol=1e-5)
    # one batch by itself is a transductive one; statistics that are there already have no part in new ones
    transductive = make(3, normalization="transductive", **options)
    np.testing.assert_allclose(jax.jit(transductive.apply)(params, x), y, atol=1e-6)
    assert transductive.statistics(params, x) == {}
    assert_close(statistics(merged(params, {key: value + 1 for key, value in found.items()}), x), found, 1e-6)


def test_statistics_of_a_layer_against_numpy(x64):
    """A chain of two normalisations with scales, biases and a map between them, by hand."""

    class Chain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Norm("support", name="second")(jnp.square(Norm("support", name="first")(x)))

    generator = np.random.default_rng(0)
    model, x, query = from_linen(Chain()), *(generator.normal(2.0, size=(2, 6, 5, 4)))
    params = {
        layer: {name: jnp.asarray(generator.normal(size=4)) for name in ("scale", "bias")}
        for layer in ("first", "second")
    }
    found = model.statistics(params, jnp.asarray(x))

    def norm(z, layer, source):
        mean, variance = source.mean((0, 1)), source.var((0, 1))
        np.testing.assert_allclose(found[f"{layer}.mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(found[f"{layer}.variance"], variance, rtol=1e-12)
        return (z - mean) / np.sqrt(variance + 1e-5) * params[layer]["scale"] + params[layer]["bias"]

    inner = [np.square(norm(z, "first", x)) for z in (x, query)]
    wanted = norm(inner[1], "second", inner[0])
    np.testing.assert_allclose(model.apply(merged(params, found), jnp.asarray(query)), wanted, rtol=1e-11)


def test_a_model_begins_without_statistics():
    model, x = conv4(3, width=2, normalization="support"), jnp.zeros((1, 16, 16))
    shapes = jax.eval_shape(model.init, KEY, x)
    assert {name: set(layer) for name, layer in shapes.items() if name.startswith("norm")} == {
        f"norm{i}": {"scale", "bias"} for i in range(4)
    }


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("space", [(5,), (3, 4)])
def test_norm_against_its_definition(normalization, space):
    x = 100 + np.random.default_rng(0).normal(size=(6, *space, 16)).astype(np.float32)
    scale, bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)), np.float32)
    params = {"scale": scale, "bias": bias}
    v = x.astype(np.float64)
    if normalization == "support":
        axes = tuple(range(x.ndim - 1))
        params |= {
            "mean": jnp.asarray(v[:4].mean(axes), np.float32),
            "variance": jnp.asarray(v[:4].var(axes), np.float32),
        }
    y = jax.jit(lambda x: Norm(normalization).apply({"params": params}, x))(x)
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


@pytest.mark.parametrize(
    ("normalization", "placed"),
    [
        pytest.param("transductive", False, marks=SLOW),
        pytest.param("layer", False, marks=SLOW),
        pytest.param("support", True, marks=SLOW),
        pytest.param("group", False, marks=SLOW),
    ],
)
def test_blocks_of_conv4_are_convolution_norm_relu_and_pooling_in_turn(x64, normalization, placed):
    """Value, gradient and second derivative, for scales of both signs; a remainder is part of the statistics."""

    class Fast(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv_blocks(x, 4, normalization)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x[..., None]
            for i in range(4):
                y = Norm(normalization, name=f"norm{i}")(Conv(4, (3, 3), name=f"conv{i}")(x))
                x = max_pool(jax.nn.relu(y))
            return x

    x, direction = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 17, 34)))
    fast, plain = from_linen(Fast()), from_linen(Plain())
    params = jax.tree.map(lambda a: a.astype(jnp.float64), some_params(plain, x))
    assert all((params[f"norm{i}"]["scale"] < 0).any() for i in range(4))
    if placed:  # those of other examples
        params = merged(params, jax.jit(plain.statistics)(params, x + 1))
    assert_close(*(jax.jit(model.statistics)(params, x) for model in (fast, plain)), 1e-12)

    def derivatives(model):
        def loss(params, x):
            return jnp.sin(model.apply(params, x)).sum()

        grad = jax.grad(loss, (0, 1))
        tangents = (jax.tree.map(np.cos, params), direction)
        return jax.jit(lambda params, x: (model.apply(params, x), jax.jvp(grad, (params, x), tangents)))(params, x)

    got, wanted = derivatives(fast), derivatives(plain)
    assert got[0].shape == (3, 1, 2, 4)
    assert_close(got, wanted, 1e-10)


def test_default_normalization_is_transductive():
    for name, (make, options, _, _) in MODELS.items():
        x = inputs(name, 3)
        params = some_params(make(2, **options), x)
        default, transductive, layer = (
            str(jax.make_jaxpr(make(2, **options, **more).apply)(params, x))
            for more in ({}, {"normalization": "transductive"}, {"normalization": "layer"})
        )
        assert default == transductive != layer


@pytest.mark.parametrize("make", [conv4, crnn, tcresnet8, image_encoder])
def test_an_unknown_normalization_is_refused_with_those_known(unchecked, make):
    with pytest.raises(InputError, match=r"batch.*transductive.*support.*group.*layer"):
        jax.eval_shape(make(3, normalization="batch").init, KEY, jnp.zeros((1, 16, 16)))


def test_group_normalization_takes_the_most_groups_that_divide_the_width():
    x = normal(2, 5, 12)
    norm = Norm("group")
    y = np.asarray(jax.jit(lambda x: norm.apply(norm.init(KEY, x), x))(x)).reshape(2, 5, 6, 2)
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


@SLOW
@pytest.mark.parametrize("make", (conv4, tcresnet8))
def test_compiled_gradients_are_those_of_the_parts_compiled_one_by_one(x64, make):
    """XLA may compute an activation twice, rounded differently; a maximum found by equality then loses its gradient."""
    model = make(3, width=0.25 if make is tcresnet8 else 3)
    x = normal(6, 17, 18, seed=3)
    params = jax.tree.map(lambda a: a.astype(x.dtype), some_params(model, x))

    def loss(params):
        return jax.nn.log_softmax(model.apply(params, x))[:, 0].mean()

    whole, parts = jax.jit(jax.grad(loss))(params), jax.grad(jax.jit(loss))(params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


SIZES = {
    "conv4": (conv4, {"width": 4}, (16, 16)),
    "tcresnet8": (tcresnet8, {"width": 0.25}, (9, 5)),
    "crnn": (crnn, {"width": 4}, (16, 16)),
    "image_encoder": (image_encoder, {"width": 2}, (8, 8)),
    "mlp": (mlp, {"hidden": (5,)}, (4,)),
    "bilstm": (bilstm, {"width": 4, "num_layers": 1}, (9, 5)),
}


def small(name):
    make, options, shape = SIZES[name]
    return make(3, **options), normal(4, *shape)


def several():
    """A model of two tasks and inputs of both; other encoders are cases of their own."""
    encoders = {"speech": mlp(hidden=(5,)), "image": mlp(hidden=(6,))}
    model = multitask(encoders, {"speech": 3, "image": 2}, width=4, depth=1)
    return model, {"speech": normal(4, 9), "image": normal(3, 8)}


ALL = {
    **{name: lambda name=name: small(name) for name in SIZES},
    "utterances": lambda: (bilstm(3, width=4), Utterances(normal(4, 9, 5), jnp.array([9, 1, 0, 6]))),
    "in_bfloat16": lambda: (in_bfloat16(small("conv4")[0]), small("conv4")[1]),
    "support": lambda: (tcresnet8(3, width=0.25, normalization="support"), small("tcresnet8")[1]),
    "multitask": several,
    "embedding_heads": lambda: (
        embedding_heads({"a": 3}, num_tokens=7, width=4),
        {"a": jnp.array([[1, 6], [2, -1], [0, 3]])},
    ),
}


def everyday(*slow):
    """All cases; those whose code other cases run too are for the full check."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name in slow else ()) for name in ALL])


@everyday("tcresnet8", "conv4", "image_encoder", "bilstm", "in_bfloat16", "support", "utterances", "multitask", "crnn")
def test_an_outer_step_lowers_for_every_platform(name):
    """The gradient through an inner step of gradient descent, of two tasks at once."""
    model, x = ALL[name]()
    params = jax.eval_shape(model.init, KEY, x)

    def loss(params, x):
        return sum(jnp.square(y).mean() for y in jax.tree.leaves(model.apply(params, x)))

    def objective(params, tasks):
        def task(x):
            grads = jax.grad(loss)(params, x)
            return loss(jax.tree.map(lambda a, g: a - 0.1 * g, params, grads), x)

        return jax.vmap(task)(tasks).mean()

    tasks = jax.tree.map(lambda a: jnp.stack([a, a]), x)
    exported = export.export(jax.jit(jax.grad(objective)), platforms=["cpu", "cuda", "tpu"])(params, tasks)
    assert [aval.shape for aval in exported.out_avals] == [leaf.shape for leaf in jax.tree.leaves(params)]


@everyday("tcresnet8", "crnn", "image_encoder", "bilstm", "in_bfloat16", "support", "utterances")
def test_parameters_may_be_any_mapping_and_a_key_changes_nothing_here(name):
    model, x = ALL[name]()
    params = some_params(model, x)
    apply = jax.jit(model.apply)
    y = apply(params, x)
    for wrap in (FrozenDict, ordered):
        assert same(apply(wrap(params), x), y)
    assert same(apply(params, x, jax.random.key(3)), y)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def ordered(tree):
    """Nested dicts as ordered ones, back to front."""
    if isinstance(tree, jax.Array):
        return tree
    return OrderedDict((name, ordered(tree[name])) for name in reversed(tree))


def test_a_random_layer_follows_the_key():
    class Random(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(nn.Dense(8, name="dense")(x))

    model, x = from_linen(Random()), jnp.ones((2, 3))
    params, embedding, apply = jax.jit(model.init)(KEY, x), model, jax.jit(model.apply)
    y = apply(params, x)
    np.testing.assert_array_equal(y, apply(params, x))
    first, again, other = (apply(params, x, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not differs(first, again, 0) and differs(first, other, 1e-3) and differs(first, y, 1e-3)
    # through a model of several tasks, each its own
    tasks = multitask({"a": embedding, "b": embedding}, {"a": 2, "b": 2}, width=4)
    both, apply = some_params(tasks, {"a": x, "b": x}), jax.jit(tasks.apply)
    both["encoders"]["b"], both["heads"]["b"] = both["encoders"]["a"], both["heads"]["a"]
    y = apply(both, {"a": x, "b": x})
    assert not differs(y["a"], y["b"], 1e-6)
    y = apply(both, {"a": x, "b": x}, KEY)
    assert differs(y["a"], y["b"], 1e-3)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("conv4", (2, 15, 16), r"x has shape \(2, 15, 16\), expected \[n, time, mel\] with 16 or more of time and mel"),
        ("crnn", (2, 16, 15), "with 16 or more of time and mel"),
        ("tcresnet8", (9, 5), r"x has shape \(9, 5\), expected \[n, time, mel\]"),
        ("tcresnet8", (2, 0, 5), "with 1 or more of time and mel"),
        ("bilstm", (2, 9, 5, 1), r"expected \[n, time, mel\]"),
        ("image_encoder", (2, 8, 8, 1), r"expected \[n, height, width\]"),
        ("mlp", (4,), r"expected \[n, features\]"),
        ("mlp", (2, 3), r"x of shape \(2, 3\) and params do not fit each other: .*\(3, 5\).*\(4, 5\)"),
        ("tcresnet8", (2, 9, 4), r"params do not fit each other: .*/conv0"),
    ],
)
def test_inputs_a_model_cannot_take_get_one_sentence(unchecked, name, shape, wanted):
    model, x = small(name)
    params = jax.eval_shape(model.init, KEY, x)
    with pytest.raises(InputError, match=wanted) as told:
        jax.eval_shape(model.apply, params, jnp.zeros(shape))
    assert str(told.value).endswith(".") and "http" not in str(told.value)


def test_parameters_of_another_model_get_one_sentence(unchecked):
    model, x = small("mlp")
    params = {name: layer for name, layer in some_params(model, x).items() if name != "head"}
    with pytest.raises(InputError, match="do not fit each other: .*head"):
        model.apply(params, x)
    with pytest.raises(InputError, match=r"lengths has shape \(3,\), expected one for each of 2 utterances"):
        jax.eval_shape(bilstm(3).init, KEY, Utterances(jnp.zeros((2, 9, 5)), jnp.array([9, 9, 9])))
    for width in (0, 3):
        with pytest.raises(InputError, match=f"width is {width}, expected an even number"):
            bilstm(3, width=width)


@pytest.mark.slow
def test_dropout_takes_features_of_the_embedding_where_there_is_a_key():
    x, plain, dropped = normal(6, 20, 5), tcresnet8(width=0.5), tcresnet8(width=0.5, dropout=0.4)
    params = plain.init(KEY, x)
    assert_close(dropped.init(KEY, x), params, 0)
    whole, some = plain.apply(params, x, KEY), dropped.apply(params, x, KEY)
    assert_close(dropped.apply(params, x), whole, 0)
    gone = np.asarray((some == 0) & (whole != 0))
    assert_close(jnp.where(gone, 0, whole / 0.6), some, 1e-6)
    assert 0.25 < gone[np.asarray(whole) != 0].mean() < 0.55
    assert differs(some, dropped.apply(params, x, jax.random.key(1)), 1e-3)
