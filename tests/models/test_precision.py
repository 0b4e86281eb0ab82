"""Models computed in bfloat16: which part is, how close it stays, and that they learn as well."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.losses import classify
from metajax.models import bilstm, conv4, crnn, in_bfloat16, mlp, tcresnet8
from metajax.models.layers import Norm
from metajax.names import merged
from metajax.tasks.probes import blobs
from tests.conftest import equations, normal

KEY = jax.random.key(0)
MODELS = {
    "conv4": (conv4(3, width=8), (16, 16)),
    "tcresnet8": (tcresnet8(3, width=0.5), (20, 5)),
    "crnn": (crnn(3, width=8), (16, 16)),
    "bilstm": (bilstm(3, width=8), (20, 5)),
}


def dtypes(names, f, *args):
    """Types of the operands of all primitives `names` that `f(*args)` calls."""
    found = (eqn for eqn in equations(f, *args) if eqn.primitive.name in names)
    return {str(variable.aval.dtype) for eqn in found for variable in eqn.invars}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("crnn", "bilstm", "conv4", "tcresnet8") else ()) for n in MODELS],
)
def test_layers_run_in_bfloat16_and_parameters_stay_in_single_precision(name):
    model, shape = MODELS[name]
    x = normal(6, *shape, seed=1)
    shapes = jax.eval_shape(model.init, KEY, x)
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.3), s.dtype), shapes)
    half = in_bfloat16(model)
    assert jax.tree.map(jnp.shape, jax.eval_shape(half.init, KEY, x)) == jax.tree.map(jnp.shape, shapes)

    def all_of(apply):
        def loss(params, x):
            return jnp.square(apply(params, x)).mean()

        return jax.jit(lambda params, x: (apply(params, x), jax.grad(loss)(params, x)))

    layers = {"metajax_conv", "metajax_conv_kernel_grad"} | ({"dot_general"} if name == "bilstm" else set())
    assert dtypes(layers, all_of(half.apply), params, x) == {"bfloat16"}
    got, wanted = (all_of(apply)(params, x) for apply in (half.apply, model.apply))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    for ours, exact in zip(got, wanted, strict=True):
        ours, exact = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, exact))
        distance = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
        assert 1e-5 < distance < 0.1  # eight bits, through some ten layers


@pytest.mark.parametrize("normalization", ["transductive", "group"])
@pytest.mark.parametrize(("make", "shape"), [(tcresnet8, (20, 5)), (conv4, (16, 16))])
def test_statistics_are_taken_in_single_precision(make, shape, normalization):
    model = in_bfloat16(make(normalization=normalization, width=1.0 if make is tcresnet8 else 8))
    x = jnp.zeros((4, *shape))
    params = jax.eval_shape(model.init, KEY, x)
    reduced = {"rsqrt", "square", "reduce_sum", "dot_general"}  # products: of a covariance
    assert dtypes(reduced, model.apply, params, x) == {"float32"}


@pytest.mark.slow
def test_statistics_of_a_support_set_keep_their_digits():
    """They lie among the parameters, but are not rounded with them: a mean of 100 would be by 0.25."""
    model = in_bfloat16(tcresnet8(3, normalization="support", width=0.5))
    x = normal(6, 20, 5)
    params = jax.jit(model.init)(KEY, x)
    statistics = jax.jit(model.statistics)(params, x)
    assert {a.dtype for a in statistics.values()} == {jnp.dtype("float32")}
    y = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(jax.jit(model.apply)(merged(params, statistics), x), y, atol=1e-5)


def test_a_mean_far_from_zero_leaves_the_variance_its_digits():
    x = normal(8, 50, 4, mean=100).astype(jnp.bfloat16)
    norm = Norm("transductive")

    @jax.jit
    def both(x):
        params = norm.init(KEY, x)
        half = norm.apply(jax.tree.map(lambda a: a.astype(jnp.bfloat16), params), x)
        return half, norm.apply(params, x.astype(jnp.float32))

    half, exact = both(x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), exact, atol=0.02)


@pytest.mark.slow
def test_maml_learns_as_well():
    """Second order through rounded layers: accuracies after training within their intervals of each other."""
    sample, found = blobs(5, 1, 5), {}
    for name, change in (("float32", lambda model: model), ("bfloat16", in_bfloat16)):
        model = change(mlp(5, hidden=(32,)))
        algorithm = mj.maml(model.apply, classify, optax.sgd(0.3), 3)
        theta, optimizer = algorithm.learner.init(model.init(KEY, jnp.zeros((1, 16))), KEY), optax.adam(5e-3)
        step = mj.meta_step(algorithm.objective, optimizer, sample, 8)
        fitted = mj.fit(step, mj.init_state(theta, optimizer, 300), KEY, num_tasks=8, progress=False)
        metrics = mj.evaluate(algorithm.learner, classify, fitted.theta, sample, jax.random.key(2), 600, 3)
        found[name] = [float(a[-1]) for a in mj.mean_ci95(metrics["accuracy"])]
    (mean, interval), (half_mean, half_interval) = found["float32"], found["bfloat16"]
    assert mean > 0.4  # chance is 0.2
    assert abs(mean - half_mean) < interval + half_interval
