"""Leaves by dotted name, in trees of any containers."""

from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from metajax import Batch, Episode, InputError, adapt, lora, maml, meta_sgd, only, without
from metajax.losses import squared_error
from metajax.names import match, merged, named, renewed, replaced

TREE = {"encoder": {"layers": [{"kernel": 1, "bias": 2}, {"kernel": 3, "bias": 4}]}, "head": {"kernel": 5}, "gain": 6}


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["head"], ["head.kernel"]),
        (["gain"], ["gain"]),
        (["encoder.layers.1"], ["encoder.layers.1.bias", "encoder.layers.1.kernel"]),
        (["*.bias"], ["encoder.layers.0.bias", "encoder.layers.1.bias"]),
        (["encoder.*.kernel", "head.*"], ["encoder.layers.0.kernel", "encoder.layers.1.kernel", "head.kernel"]),
        (["encoder.layers.[0]"], ["encoder.layers.0.bias", "encoder.layers.0.kernel"]),
        (["head", "head.kernel"], ["head.kernel"]),
        (["*"], [*named(TREE)]),
    ],
)
def test_patterns_find_names_and_layers(patterns, found):
    assert list(match(TREE, patterns)) == found


@pytest.mark.parametrize("pattern", ["hea", "kernel", "Head", "head.kernel.x", ""])
def test_a_pattern_that_matches_nothing_lists_the_names(pattern):
    with pytest.raises(InputError) as caught:
        match(TREE, ["head", pattern])
    assert f"pattern {pattern!r} matches no parameter; the parameters are " in str(caught.value)
    assert all(name in str(caught.value) for name in named(TREE))
    many = {f"w{i}": 0 for i in range(1000)}
    with pytest.raises(InputError, match=r"w0, w1, .* and 960 more\.$"):
        match(many, ["head"])


def test_leaves_are_replaced_and_merged_by_name():
    changed = replaced(TREE, {"encoder.layers.1.bias": 40, "gain": 60})
    assert named(changed) == named(TREE) | {"encoder.layers.1.bias": 40, "gain": 60}
    assert named(renewed(TREE, lambda name, leaf: (name, leaf)))["gain.0"] == "gain"
    assert merged({"norm": {"scale": 1}}, {"norm.mean": 2, "new.deep.leaf": 3, "norm.scale": 4}) == {
        "norm": {"scale": 4, "mean": 2}, "new": {"deep": {"leaf": 3}},
    }  # fmt: skip
    assert TREE["gain"] == 6
    with pytest.raises(InputError, match=r"no parameter 'bias0' to replace; the parameters are encoder"):
        replaced(TREE, {"gain": 60, "bias0": 40})


class Layers(NamedTuple):
    body: Any
    head: Any


def first(params):
    return params[0] if isinstance(params, list | tuple) else params["body"]


def last(params):
    return params[1] if isinstance(params, list | tuple) else params["head"]


def network(params, x, key=None):
    return jnp.tanh(x @ first(params)["kernel"]) @ last(params)["kernel"]


BODY, HEAD = ({"kernel": jnp.asarray(np.random.default_rng(i).normal(size=(3, 3)))} for i in (0, 1))
PLAIN = {"body": BODY, "head": HEAD}
CONTAINERS = {
    "FrozenDict": FrozenDict({"body": BODY, "head": HEAD}),
    "OrderedDict": OrderedDict(body=BODY, head=OrderedDict(HEAD)),
    "NamedTuple": Layers(BODY, HEAD),
    "list": [BODY, HEAD],
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_parameters_may_lie_in_containers_of_any_kind(kind):
    """They stay what they are, in theta and in what the model sees, and give what plain dicts give."""
    draw = np.random.default_rng(2).normal
    episode = Episode(*(Batch(jnp.asarray(draw(size=(4, 3))), jnp.asarray(draw(size=(4, 3)))) for _ in range(2)))
    head = "1" if kind == "list" else "head"

    def results(params, head):
        for part in (only(head), without(head), lora(2)):
            algorithm = maml(network, squared_error, optax.sgd(0.1), 1, part=part)
            theta = algorithm.learner.init(params, jax.random.key(0))
            yield theta, jax.grad(lambda t, a=algorithm: a.objective(t, episode, jax.random.key(0))[0])(theta)

    found, plain = jax.jit(lambda: (list(results(CONTAINERS[kind], head)), list(results(PLAIN, "head"))))()
    for (theta, grads), (_, wanted) in zip(found, plain, strict=True):
        assert jax.tree.structure(grads) == jax.tree.structure(theta)
        assert type(grads["params"]) is type(CONTAINERS[kind])
        for a, b in zip(*(jax.tree.leaves(g["params"]) for g in (grads, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_rules_take_containers_of_any_kind(kind):
    algorithm = meta_sgd(network, squared_error, optax.sgd(0.1), 2)
    theta = algorithm.learner.init(CONTAINERS[kind], jax.random.key(0))
    assert jax.tree.structure(theta["rates"]) == jax.tree.structure(CONTAINERS[kind])
    support = Batch(jnp.ones((4, 3)), jnp.zeros((4, 3)))
    phi, _ = adapt(algorithm.learner, theta, support, jax.random.key(0), 2)
    assert type(phi.own) is type(CONTAINERS[kind])
