"""Parts for large encoders against what they say they compute, in float64; their slopes are tested in the battery."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError
from metajax.losses import squared_error
from metajax.models import mlp
from metajax.names import named
from tests.algorithms.test_gradient import KEY, network, parameters, shaken, task
from tests.conftest import assert_close, equations

X = np.random.default_rng(5).normal(size=(4, 3))


def joined(part, learned, theta=None):
    """What the model sees of a theta that is a little off, and this theta."""
    theta = shaken({"params": learned} | part.init(learned, KEY)) if theta is None else theta
    return part.join(theta, part.split(theta), jnp.zeros((), jnp.int32)), theta


def outputs(params):
    return network(params, jnp.asarray(X))


def hidden(params):
    return np.tanh(X @ params["dense0"]["kernel"] * params["norm0"]["scale"] + params["norm0"]["bias"])


def test_lhuc_scales_what_a_kernel_reads(x64):
    params, theta = joined(mj.lhuc("head"), parameters())
    own, head = theta["params"], theta["params"]["head"]
    amplitude = 2 / (1 + np.exp(-theta["lhuc"]["head.kernel"]))
    assert amplitude.shape == (5,) and np.abs(amplitude - 1).max() > 1e-2
    wanted = (amplitude * hidden(own)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs(params), wanted, rtol=1e-12)


def test_lhuc_scales_the_inputs_of_a_convolution(x64):
    kernel, x = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(3, 2, 4), (1, 6, 2)]))
    params, theta = joined(mj.lhuc(), {"conv": {"kernel": jnp.asarray(kernel)}})
    amplitude = 2 / (1 + np.exp(-theta["lhuc"]["conv.kernel"]))
    run = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))  # noqa: E731
    seen, unscaled = params["conv"]["kernel"], theta["params"]["conv"]["kernel"]
    np.testing.assert_allclose(run(x, seen), run(x * amplitude, unscaled), rtol=1e-10)


def test_adapters_follow_a_layer(x64):
    params, theta = joined(mj.adapters(2, "head"), parameters())
    (name,), head = theta["adapters"], theta["params"]["head"]
    assert name == "head.adapter"
    down, up = theta["adapters"][name]["down"], theta["adapters"][name]["up"]
    assert down["kernel"].shape == (2, 2) and up["bias"].shape == (2,)
    y = hidden(theta["params"]) @ head["kernel"] + head["bias"]
    wanted = y + jax.nn.gelu(y @ down["kernel"] + down["bias"]) @ up["kernel"] + up["bias"]
    np.testing.assert_allclose(outputs(params), wanted, rtol=1e-12)


@pytest.mark.parametrize("part", [mj.lhuc(), mj.adapters(3)], ids=["lhuc", "adapters"])
def test_at_first_a_part_changes_nothing(x64, part):
    theta = {"params": parameters()} | part.init(parameters(), KEY)
    assert np.array_equal(outputs(joined(part, None, theta)[0]), outputs(parameters()))


def test_what_is_frozen_is_no_part_of_theta_and_the_rest_learns_alike(x64):
    """MAML over low-rank matrices and the head; the outer gradient of what is left is the same."""
    part, whole, learned = mj.lora(2, "dense0"), parameters(), {"head": parameters()["head"]}
    results = []
    for one, params in ((part, whole), (mj.frozen(part, whole), learned)):
        method = mj.maml(network, squared_error, optax.sgd(0.3), 2, part=one)
        theta = shaken(method.learner.init(params, KEY) | {"params": params})
        theta["params"] |= {"head": whole["head"]}
        theta["lora"] = shaken(part.init(whole, KEY))["lora"]
        if one is part:
            theta["params"] |= {name: whole[name] for name in ("dense0", "norm0")}
        value, grads = jax.jit(jax.value_and_grad(lambda t, m=method: m.objective(t, task(), KEY)[0]))(theta)
        results.append((value, named(grads)))
    (value, every), (frozen_value, some) = results
    np.testing.assert_allclose(frozen_value, value, rtol=1e-12)
    assert set(some) == {"params.head.kernel", "params.head.bias", "lora.dense0.kernel.a", "lora.dense0.kernel.b"}
    for name, slope in some.items():
        np.testing.assert_allclose(slope, every[name], rtol=1e-10)
        assert np.abs(slope).max() > 1e-4


def test_a_cached_encoder_runs_once_a_task_and_changes_nothing(x64):
    params, runs, episode = parameters(), [], task()

    def encode(x):
        runs.append(x)
        return jnp.tanh(x @ params["dense0"]["kernel"])

    def head(p, z, key=None):
        return z @ p["kernel"] + p["bias"]

    plain = mj.maml(lambda p, x, key: head(p, encode(x)), squared_error, optax.sgd(0.3), 3)
    above = mj.descent(head, squared_error, optax.sgd(0.3))
    objective = mj.query_loss(mj.cached(above, encode), squared_error, 3)
    results = [
        jax.jit(jax.value_and_grad(lambda t, f=f: f(t, episode, KEY)[0]))({"params": params["head"]})
        for f in (plain.objective, objective)
    ]
    assert_close(results[1], results[0], 1e-12)
    learner, theta = mj.cached(above, encode), {"params": params["head"]}
    runs.clear()
    phi = learner.start(theta, episode.support, KEY)
    assert len(runs) == 1
    phi = learner.step(theta, learner.step(theta, phi, episode.support, KEY), episode.support, KEY)
    assert len(runs) == 1 and phi.phi.count == 2
    learner.predict(theta, phi, episode.query.x, None)
    assert runs[1] is episode.query.x


@pytest.mark.parametrize("remat", ["step", "sqrt"])
def test_a_gradient_through_many_steps_keeps_the_features_once(remat):
    def head(p, z, key=None):
        return jnp.tanh(z @ p["kernel"])

    learner = mj.cached(mj.descent(head, squared_error, optax.sgd(0.3)), jnp.sin)
    objective = mj.query_loss(learner, squared_error, 9, remat=remat)
    slope = jax.grad(lambda t, episode: objective(t, episode, KEY)[0])
    made = equations(slope, {"params": {"kernel": jnp.ones((3, 2))}}, task())
    shapes = {v.aval.shape for e in made for v in e.outvars if hasattr(v.aval, "shape")}
    assert (4, 3) in shapes and not {s for s in shapes if s[1:] == (4, 3) or s[2:] == (4, 3)}


def test_bad_input():
    for part, told in (
        (mj.lhuc("norm0"), "lhuc changes matrices, but the patterns match vectors alone: norm0"),
        (mj.adapters(2, "*.bias"), "adapters changes matrices, but"),
        (mj.lora(2, "norm0"), "lora changes matrices, but"),
        (mj.lhuc("body"), "'body' matches no parameter"),
    ):
        with pytest.raises(InputError, match=told):
            part.init(parameters(), KEY)
    with pytest.raises(
        InputError, match=r"adapters goes with linear layers, but the patterns match none: conv\.kernel"
    ):
        mj.adapters(2).init({"conv": {"kernel": jnp.zeros((3, 2, 4))}}, KEY)
    with pytest.raises(InputError, match="size is 0, expected 1 or more"):
        mj.adapters(0)
    with pytest.raises(InputError, match=r"lora goes with linear layers, but the patterns match none: conv\.kernel"):
        mj.lora(2, beside=True).init({"conv": {"kernel": jnp.zeros((3, 2, 4))}}, KEY)
    model = mlp(2)
    params = model.init(KEY, jnp.zeros((1, 3)))
    for name, part in (("adapter", mj.adapters(2, "head")), ("lora", mj.lora(2, "head", beside=True))):
        theta = {"params": params} | part.init(params, KEY)
        with pytest.raises(InputError, match=rf"params hold head\.{name}\..*this model does not read"):
            model.apply(joined(part, None, theta)[0], jnp.zeros((1, 3)))
