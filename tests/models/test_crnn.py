"""The recurrent layer against a loop over frames, and the CRNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metajax import InputError
from metajax.models import NORMALIZATIONS, crnn
from metajax.models.recurrent import Recurrent, orthogonal
from metajax.names import merged
from tests.conftest import equations, normal

KEY = jax.random.key(0)


def some(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.5), s.dtype), shapes)


def layer(cell, both, features=3, width=2):
    module = Recurrent(width, cell, both)
    shapes = jax.eval_shape(module.init, KEY, jnp.zeros((1, 1, features)))["params"]
    return jax.jit(lambda params, x, mask=None: module.apply({"params": params}, x, mask)), some(shapes)


def test_recurrent_weights_are_orthogonal_and_no_batch_is_factorised_at_once():
    """jaxlib's batched QR may wait for ever where the devices are as many as the cores."""
    keys = jax.random.split(KEY, 2)
    make = jax.vmap(lambda key: orthogonal(key, (2, 3, 12)))  # as for two tasks, each from scratch
    ranks = {eqn.invars[0].aval.ndim for eqn in equations(make, keys) if eqn.primitive.name == "qr"}
    assert ranks == {2}
    blocks = make(keys).reshape(2, 2, 3, 4, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 3, 3)
    np.testing.assert_allclose(blocks.mT @ blocks, np.broadcast_to(np.eye(3), blocks.shape), atol=1e-5)
    assert len(np.unique(np.round(blocks[:, 0, 0], 4))) == len(blocks)


def loop(cell, params, x):
    """The textbook's recurrence, frame by frame, in NumPy."""

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    sides = []
    for i, bias in enumerate(params["bias"]):
        h = c = np.zeros((x.shape[0], params["recurrent"].shape[1]))
        frames = range(x.shape[1])[:: -1 if i else 1]
        outputs = [None] * x.shape[1]
        for t in frames:
            a = x[:, t] @ params["input"][i] + h @ params["recurrent"][i] + bias
            if cell == "rnn":
                h = np.tanh(a)
            else:
                gates = np.split(a, 4, -1)
                c = sigmoid(gates[1]) * c + sigmoid(gates[0]) * np.tanh(gates[2])
                h = sigmoid(gates[3]) * np.tanh(c)
            outputs[t] = h
        sides.append(np.stack(outputs, 1))
    return np.concatenate(sides, -1)


@pytest.mark.parametrize("cell", ("rnn", "lstm"))
@pytest.mark.parametrize("both", (False, True))
def test_recurrent_layer_against_a_loop(x64, cell, both):
    apply, params = layer(cell, both)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x = np.random.default_rng(1).normal(size=(4, 5, 3))
    wanted = loop(cell, jax.tree.map(np.asarray, params), x)
    assert wanted.shape == (4, 5, 4 if both else 2)
    np.testing.assert_allclose(apply(params, jnp.asarray(x)), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", (pytest.param("rnn", marks=pytest.mark.slow), "lstm"))
def test_derivatives_of_first_and_second_order_against_finite_differences(x64, cell):
    apply, params = layer(cell, both=True)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x, weights = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 4, size))) for i, size in enumerate((3, 4)))

    flat, unravel = ravel_pytree((params, x))
    direction, small = np.random.default_rng(2).normal(size=flat.shape), 1e-5

    @jax.jit
    def derivatives(flat):
        """The loss, its gradient, and the Hessian times the direction by reverse and by forward over reverse."""

        def loss(flat):
            mask = jnp.arange(4) < jnp.array([[3], [4]]) if cell == "lstm" else None
            params, x = unravel(flat)
            return jnp.vdot(weights, jnp.square(apply(params, x, mask)))

        gradient = jax.grad(loss)
        reverse = jax.grad(lambda flat: jnp.vdot(gradient(flat), direction))(flat)
        return loss(flat), gradient(flat), reverse, jax.jvp(gradient, (flat,), (direction,))[1]

    _, gradient, reverse, forward = derivatives(flat)
    (plus, plus_gradient, *_), (minus, minus_gradient, *_) = (
        derivatives(flat + e * direction) for e in (small, -small)
    )
    np.testing.assert_allclose(np.vdot(gradient, direction), (plus - minus) / (2 * small), rtol=1e-7)
    np.testing.assert_allclose(reverse, (plus_gradient - minus_gradient) / (2 * small), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-10)


def test_both_directions_are_alike():
    """Reversed in time, with the directions' weights exchanged, the same numbers come out reversed and exchanged."""
    apply, params = layer("lstm", both=True)
    x = np.asarray(normal(2, 6, 3))
    y = np.asarray(apply(params, x))
    other = np.asarray(apply(jax.tree.map(lambda a: np.asarray(a)[::-1], params), x[:, ::-1]))
    np.testing.assert_allclose(np.roll(other[:, ::-1], 2, -1), y, rtol=1e-6)
    assert np.abs(other - y).max() > 1e-2


def test_a_masked_end_is_as_if_it_were_not_there():
    apply, params = layer("lstm", both=True)
    x, lengths = np.array(normal(2, 6, 3)), np.array([4, 6])
    x[0] *= 100
    y = np.asarray(apply(params, x, np.arange(6) < lengths[:, None]))
    np.testing.assert_allclose(y[0, :4], apply(params, x[:1, :4])[0], rtol=1e-6)
    np.testing.assert_allclose(y[1], apply(params, x[1:])[0], rtol=1e-6)
    np.testing.assert_array_equal(y[0, 4:], 0)


def test_the_recurrence_begins_orthogonal_and_remembering():
    params = jax.jit(Recurrent(8, "lstm", both=True).init)(KEY, np.zeros((1, 2, 5), np.float32))["params"]
    params = jax.tree.map(np.asarray, params)
    for side in params["recurrent"]:
        for square in np.split(side, 4, -1):
            np.testing.assert_allclose(square @ square.T, np.eye(8), atol=1e-5)
    assert np.abs(params["recurrent"][0] - params["recurrent"][1]).max() > 0.1
    np.testing.assert_array_equal(params["bias"], np.repeat([[0, 1, 0, 0]] * 2, 8, 1))
    assert 0.8 < params["input"].std() * 5**0.5 < 1.2


def test_an_unknown_cell_is_refused_with_those_known(unchecked):
    with pytest.raises(InputError, match=r"gru.*rnn, lstm"):
        jax.eval_shape(crnn(3, cell="gru").init, KEY, jnp.zeros((1, 16, 16)))


@pytest.mark.parametrize(
    "normalization",  # the others are those of conv4, everyday
    [n if n == "support" else pytest.param(n, marks=pytest.mark.slow) for n in NORMALIZATIONS],
)
def test_crnn(normalization):
    model, embed = crnn(3, normalization=normalization, width=4), crnn(normalization=normalization, width=4)
    x, support = np.asarray(normal(3, 33, 18)), normal(4, 33, 18, seed=1)
    params = some(jax.eval_shape(model.init, KEY, x))
    body = {name: value for name, value in params.items() if name != "head"}
    assert jax.tree.structure(body) == jax.tree.structure(jax.eval_shape(embed.init, KEY, x))
    statistics = jax.jit(model.statistics)(params, support)
    assert ("norm4.mean" in statistics) == (normalization == "support")
    params, body = merged(params, statistics), merged(body, statistics)
    apply = jax.jit(model.apply)
    y, z = (np.asarray(a) for a in (apply(params, x), jax.jit(embed.apply)(body, x)))
    assert z.shape == (3, 4) and y.shape == (3, 3)
    head = jax.tree.map(np.asarray, params["head"])
    np.testing.assert_allclose(y, z @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    changed = np.asarray(apply(params, x * np.float32([[[1]], [[3]], [[3]]])))
    if normalization == "transductive":
        assert np.abs(changed[0] - y[0]).max() > 1e-3
    else:
        np.testing.assert_allclose(changed[0], y[0], atol=1e-5)


def test_crnn_number_of_parameters_and_the_past_matters():
    shapes = jax.eval_shape(crnn(5).init, KEY, jnp.zeros((1, 100, 40)))
    convolutions = 64 * 9 + 3 * 64 * 64 * 9 + 5 * 2 * 64
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == convolutions + 2 * 64 * 64 + 64 + 64 * 5 + 5
    model = crnn(3, normalization="layer", width=4)
    x = normal(1, 160, 16)
    params, apply = some(jax.eval_shape(model.init, KEY, x)), jax.jit(model.apply)
    params["recurrent"]["recurrent"] = 2 * np.asarray(params["recurrent"]["recurrent"])
    far = {**params, "recurrent": {**params["recurrent"], "recurrent": np.zeros((1, 4, 4), np.float32)}}
    assert np.abs(apply(params, x) - apply(far, x)).max() > 1e-3
