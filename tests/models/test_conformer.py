"""A Conformer that padding does not change, whose parameters parts can address."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import metajax as mj
from metajax import Batch, Episode, InputError, Transcripts, Utterances
from metajax.losses.ctc import ctc
from metajax.models import conformer, recogniser
from metajax.names import match, named
from tests.conftest import normal

KEY = jax.random.key(0)
SMALL = {"width": 8, "num_layers": 1, "heads": 2, "taps": 3}


def drawn(model, x):
    """Parameters without compiling any initialiser."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.5), s.dtype), shapes)


def test_attention_knows_the_order():
    """Two sounds in silence change places: without convolution over time, attention alone tells it at the end."""
    model = conformer(None, **SMALL | {"taps": 1})
    a, b = np.asarray(normal(2, 1, 8, 6))
    gap = np.zeros((1, 12, 6), np.float32)
    x = np.concatenate([np.concatenate([gap, one, gap, other, gap], 1) for one, other in ((a, b), (b, a))])
    y = np.asarray(jax.jit(model.apply)(drawn(model, x), x))
    assert np.abs(y[0, -1] - y[1, -1]).max() > 1e-3


def test_names_and_numbers_of_parameters():
    shapes = jax.eval_shape(conformer(32).init, KEY, jnp.zeros((1, 8, 40)))
    dense = lambda a, b: a * b + b  # noqa: E731
    feed = 2 * 128 + dense(128, 256) + dense(256, 128)
    attention = 2 * 128 + 4 * dense(128, 128)
    convolution = 4 * 128 + dense(128, 256) + 15 * 128 + dense(128, 128)
    front = 5 * 40 * 128 + 5 * 128 * 128 + 4 * 128 + dense(128, 128)
    body = front + 4 * (2 * feed + attention + convolution + 2 * 128)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == body + dense(128, 32)
    assert len(match(shapes, ["encoder.layers.*.attention.query.kernel"])) == 4
    assert len(match(shapes, ["encoder.layers.2"])) == len(match(shapes, ["encoder.layers.*"])) // 4
    assert {"head.kernel", "encoder.conv0.kernel", "encoder.layers.3.convolution.norm1.scale"} <= set(named(shapes))
    embed = conformer(**SMALL)
    alone = jax.eval_shape(embed.init, KEY, jnp.zeros((2, 9, 4)))
    assert "head" not in alone and jax.eval_shape(embed.apply, alone, jnp.zeros((2, 9, 4))).shape == (2, 3, 8)


def utterances(seed, n):
    y = Transcripts(jnp.asarray(np.tile([[1, 2, 2]], (n, 1))), jnp.asarray(np.arange(n) % 3 + 1))
    return Batch(Utterances(normal(n, 32, 6, seed=seed), jnp.asarray(32 - 4 * np.arange(n))), y)


PARTS = {
    "head": mj.only("head"),
    "lora": mj.lora(2, "encoder.layers.*.attention.*.kernel", "encoder.layers.*.feed*"),
    "film": mj.film("encoder.layers.*norm*"),
}
TINY = conformer(4, **SMALL)
EPISODE = Episode(utterances(0, 2), utterances(1, 2))


@pytest.mark.slow
def test_an_adaptation_step_by_ctc_lowers_the_support_error():
    learner, _ = mj.maml(TINY.apply, ctc, optax.sgd(0.05), 1, part=PARTS["head"])

    def run(params):
        theta = learner.init(params, KEY)
        support = lambda phi: ctc(learner.predict(theta, phi, EPISODE.support.x, None), EPISODE.support.y)[0]  # noqa: E731
        phi, errors = mj.adapt(learner, theta, EPISODE.support, KEY, 1, probe=support)
        return phi.own, errors

    own, errors = jax.jit(run)(drawn(TINY, EPISODE.support.x))
    assert errors[1] < errors[0] and set(own) == {"head.kernel", "head.bias"}


@pytest.mark.slow
def test_maml_by_ctc_lowers_for_every_platform():
    """The slope of the query error through an inner step, in second order."""
    learner, objective = mj.maml(TINY.apply, ctc, optax.sgd(0.05), 1, part=PARTS["lora"])
    theta = jax.jit(lambda params: learner.init(params, KEY))(drawn(TINY, EPISODE.support.x))
    slope = jax.jit(jax.grad(lambda theta: objective(theta, EPISODE, KEY)[0]))
    exported = export.export(slope, platforms=["cpu", "cuda", "tpu"])(theta)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    found = named(exported.call(theta))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    assert any(leaf.any() for name, leaf in found.items() if name.startswith("params.encoder."))


@pytest.mark.parametrize("part", ["lora", "film"])
def test_parts_address_the_encoder(part):
    """Names alone; slopes are taken by the slow test above."""
    learner, _ = mj.maml(TINY.apply, ctc, optax.sgd(0.05), 1, part=PARTS[part])

    def run(params):
        theta = learner.init(params, KEY)
        phi = learner.start(theta, EPISODE.support, KEY)
        return theta, phi.own, learner.predict(theta, phi, EPISODE.query.x, None)

    theta, own, logits = jax.eval_shape(run, drawn(TINY, EPISODE.support.x))
    assert theta[part].keys() == own.keys() and all(name.startswith("encoder.layers.0.") for name in own)
    assert logits.shape == (2, 8, 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    (
        ({"normalization": "transductive"}, "layer, group"),
        ({"width": 12}, "multiple of 8"),
        ({"taps": 4}, "odd"),
        ({"num_layers": 0}, "num_layers is 0"),
    ),
)
def test_options_that_do_not_fit_are_refused(unchecked, options, sentence):
    with pytest.raises(InputError, match=sentence):
        conformer(3, **options)
    with pytest.raises(InputError, match=r"lengths has shape \(3,\)"):
        jax.eval_shape(conformer(5, **SMALL).init, KEY, Utterances(jnp.zeros((2, 8, 6)), jnp.zeros(3, int)))


@pytest.mark.parametrize("name", ["conformer", "bilstm"])
def test_recognisers_by_name(name):
    make = recogniser(name, width=0.25, num_layers=1, precision="bfloat16")
    x = EPISODE.support.x
    shapes = jax.eval_shape(make(7).init, KEY, x)
    outputs = jax.eval_shape(make(7).apply, shapes, x)
    assert outputs.shape == (2, 8, 7) and outputs.dtype == jnp.float32
    assert jax.eval_shape(make(None).apply, shapes, x).shape == (2, 8, 32)
