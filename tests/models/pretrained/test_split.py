"""What lies below the layers that adapt is computed once a task."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError, Transcripts, Utterances
from metajax.losses import ctc
from metajax.models import pretrained
from metajax.models.pretrained import last_layers, split
from metajax.names import named
from metajax.parallel import hoisted
from tests.conftest import equations, normal
from tests.models.pretrained.tiny import config

KEY = jax.random.key(0)
SMALL = {"conv_dim": [6, 6], "conv_stride": [10, 4], "conv_kernel": [20, 8]}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
KINDS = {"stable": STABLE, "group": {}, "wavlm": {"model_type": "wavlm", "architectures": ["WavLMForCTC"]}}


def made(**changes):
    model = pretrained.random(config(**SMALL | changes), dtype=jnp.float64)
    return model, model.init(KEY, ())


def speech(seed=0):
    draw = np.random.default_rng(seed)
    x = Utterances(jnp.asarray(draw.normal(size=(3, 500))), jnp.array([330, 500, 420]))
    return mj.Batch(x, Transcripts(jnp.array([[1, 2], [3, 4], [5, 1]]), jnp.array([2, 1, 2])))


def learners(model, params, layer, error, *learned):
    """The head and what is learned of the encoder, all of it in theta and computed at every step, or neither."""
    encode, upper = split(model, params, layer)
    part = mj.only(*learned)
    plain = mj.descent(model.apply, error, optax.sgd(0.1), part=part)
    cached = mj.cached(mj.descent(upper.apply, error, optax.sgd(0.1), part=mj.frozen(part, params)), encode)
    return plain, cached, {"params": params}, cached.init({"lm_head": params["lm_head"]}, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cached_below_a_layer_is_the_same_learner(x64, kind):
    model, params = made(**KINDS[kind])
    plain, cached, whole, theta = learners(model, params, 1, ctc, *last_layers(params, 1), "lm_head")
    assert set(named(theta)) == {"params.lm_head.kernel", "params.lm_head.bias"}
    support, query = speech(), speech(1)

    def value(learner, theta):
        return mj.query_loss(learner, ctc, 2)(theta, mj.Episode(support, query), KEY)[0]

    def outputs(learner, theta):
        phi, _ = mj.adapt(learner, theta, support, KEY, 2)
        return learner.predict(theta, phi, query.x, None), jax.value_and_grad(lambda t: value(learner, t))(theta)

    scores, (loss, slopes) = jax.jit(lambda t: outputs(cached, t))(theta)
    wanted, (wanted_loss, wanted_slopes) = jax.jit(lambda t: outputs(plain, t))(whole)
    before = jax.jit(model.apply)(params, query.x)
    inside = np.isfinite(np.asarray(before))
    assert np.abs(wanted - before)[inside].max() > 1e-2
    np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-12)
    for name, slope in slopes["params"]["lm_head"].items():
        np.testing.assert_allclose(slope, wanted_slopes["params"]["lm_head"][name], rtol=1e-10, atol=1e-12)


def products(f, *args):
    return sum(e.primitive.name in ("dot_general", "conv_general_dilated") for e in equations(f, *args))


@pytest.mark.slow
def test_a_step_of_a_head_costs_a_head(x64):
    """Two products: the scores and the kernel's slope."""
    model, params = made(**STABLE)

    def error(scores, y):
        return jnp.square(jnp.where(jnp.isfinite(scores), scores, 0)).sum(), {}

    plain, cached, whole, theta = learners(model, params, 2, error, "lm_head")
    counts = []
    for learner, t in ((plain, whole), (cached, theta)):
        phi = jax.eval_shape(learner.start, t, speech(), KEY)
        counts.append(products(lambda t, phi, a=learner: a.step(t, phi, speech(), KEY), t, phi))
    assert counts[0] > 20 and counts[1] == 2


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_two_halves_are_the_whole(x64, whole):
    model, params = made(**STABLE)
    encode, upper = split(model, params, 1)
    x = speech().x.frames if whole else speech().x
    assert isinstance(jax.eval_shape(encode, x), jax.ShapeDtypeStruct if whole else Utterances)
    wanted, found = jax.jit(lambda x: (model.apply(params, x), upper.apply(params, encode(x))))(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert np.isfinite(wanted[1]).all()


@pytest.mark.slow
def test_low_rank_changes_beside_kernels_are_those_of_kernels(x64):
    """In MAML's loss and slopes."""
    model, params = made(**STABLE)
    names, found = ("encoder.layers.*.q_proj.kernel", "*.output_dense.kernel"), []
    episode = mj.Episode(speech(), speech(1))
    encode, upper = split(model, params, 0)
    for beside in (False, True):
        part = mj.frozen(mj.lora(2, *names, beside=beside), params)
        learner = mj.cached(mj.descent(upper.apply, ctc, optax.sgd(0.5), part=part), encode)
        theta = learner.init({"lm_head": params["lm_head"]}, KEY)
        objective = mj.query_loss(learner, ctc, 2)
        run = hoisted(jax.value_and_grad(lambda theta, a=objective: a(theta, episode, KEY)[0]))
        found.append(run(theta))
    (wanted, slopes), (loss, others) = found
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    assert set(named(slopes)) == set(named(others))
    for name, slope in named(slopes).items():
        assert np.abs(slope).max() > 1e-6
        np.testing.assert_allclose(named(others)[name], slope, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_whisper_is_split_too():
    config = {"model_type": "whisper", "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2}
    config |= {"encoder_ffn_dim": 10, "num_mel_bins": 80, "max_source_positions": 10}
    model = pretrained.random(config)
    params, x = model.init(KEY, ()), normal(2, 3000)
    wanted = jax.jit(model.apply)(params, x)
    for layer in (0, 1):
        encode, upper = split(model, params, layer)
        np.testing.assert_allclose(jax.jit(lambda p, a=upper, e=encode: a.apply(p, e(x)))(params), wanted, atol=1e-6)


def test_bad_input(x64):
    model, params = made()
    with pytest.raises(InputError, match=r"layer is 3, expected 0\.\.2"):
        split(model, params, 3)
    with pytest.raises(InputError, match="has no layers to be split at"):
        split(model._replace(above=None), params, 0)
    with pytest.raises(InputError, match=r"count is 3, expected 1\.\.2 layers"):
        last_layers(params, 3)
    with pytest.raises(InputError, match=r"config\.json names 'Wav2Vec2ForXVector'"):
        pretrained.random(json.loads(json.dumps(config(architectures=["Wav2Vec2ForXVector"]))))
