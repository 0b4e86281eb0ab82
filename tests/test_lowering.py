"""Outer steps lower for CPU, GPU and TPU, for models and steps that `tests/models` and the battery do not cover.

What cannot be run here can be lowered here: it finds code that only a CPU can run.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
import train_words
from jax import export

import metajax as mj
from metajax.core import Episode, Utterances
from metajax.data.checkpoints import write_files
from metajax.losses.weighting import fixed
from metajax.models import fusion, pretrained
from metajax.models.fusion import MODALITIES
from metajax.models.wordnet import on_waves, word_net
from tests.algorithms.test_masked import BANDS, encode, episode
from tests.conftest import normal
from tests.losses.test_weighting import ALL as WEIGHTINGS
from tests.models.pretrained.test_wav2vec2 import KINDS, loaded
from tests.models.pretrained.tiny import whisper_files
from tests.test_weighted_step import hand_made, sample, started

PLATFORMS = ("cpu", "cuda", "tpu")
KEY = jax.random.key(0)
pytestmark = pytest.mark.slow


def lowered(step, *args):
    """The program of a function, for every platform, from the shapes of its arguments."""
    program = export.export(jax.jit(step), platforms=PLATFORMS)(*jax.eval_shape(lambda *a: a, *args))
    assert program.platforms == PLATFORMS
    return program


def of_encoder(tmp_path, kind):
    model, params = loaded(tmp_path, **KINDS[kind])
    return model, params, Utterances(normal(3, 500), jnp.array([330, 0, 500]))


def of_whisper(tmp_path):
    write_files(tmp_path, whisper_files(head=False))
    model, params, _ = pretrained.load(tmp_path)
    return model, params, normal(2, 3000)


def of_speech_embedding(tmp_path):
    pytest.importorskip("pyopen_wakeword", reason="pyopen-wakeword holds the weights")
    pytest.importorskip("tflite", reason="tflite reads them")
    model, params = pretrained.speech_embedding()
    return model, params, normal(2, 13000)


def of_fusion(kind, *names):
    def made(tmp_path):
        model = fusion(None, kind=kind, modalities=names, width=8, symbols=9)
        given = {"audio": normal(2, 16, 5), "image": normal(2, 8, 8), "text": jnp.zeros((2, 5), int)}
        here = jnp.array([[True, True, False], [True, True, True]])[:, : len(names)]
        x = {name: given[name] for name in names} | {"present": here}
        return model, jax.eval_shape(model.init, KEY, x), x

    return made


MODELS = {
    **{kind: lambda folder, kind=kind: of_encoder(folder, kind) for kind in KINDS},
    "gated": of_fusion("gated", *MODALITIES),
    **{kind: of_fusion(kind, *MODALITIES[1:]) for kind in ("apart", "concat", "bottleneck", "experts")},
    "whisper": of_whisper,
    "speech_embedding": pytest.param(of_speech_embedding, marks=pytest.mark.peers),
}


@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_the_gradient_through_an_inner_step_of_a_model(tmp_path, made):
    model, params, x = made(tmp_path)

    def loss(params, x):
        return sum(jnp.square(jnp.maximum(y, -9)).mean() for y in jax.tree.leaves(model.apply(params, x)))

    def outer(params, x):
        slope = jax.grad(loss)(params, x)
        return loss(jax.tree.map(lambda a, g: a - 0.1 * g, params, slope), x)

    program = lowered(jax.grad(outer), params, x)
    assert [leaf.shape for leaf in program.out_avals] == [leaf.shape for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_of_a_weighting(name):
    weighting, optimizer = WEIGHTINGS[name], optax.adam(1e-2)
    if name == "fixed":  # of two tasks here
        weighting = fixed([0.5, 2.0])
    state = started(optimizer, weighting)
    program = lowered(mj.weighted_step(hand_made, weighting, optimizer, sample), state, KEY)
    assert len(program.out_avals) > len(jax.tree.leaves(state))


def outer_step(objective, theta, episode):
    """The program of one of one task."""
    optimizer = optax.adam(1e-2)
    state = jax.eval_shape(lambda theta: mj.init_state(theta, optimizer, 10), theta)
    return lowered(mj.outer_step(objective, optimizer), state, jax.tree.map(lambda a: a[None], episode), KEY)


def test_a_step_of_masked_prediction():
    how = mj.masked_prediction(encode, features=6, bands=BANDS, stride=4, span=5)
    theta = how.learner.init({"w": jnp.ones((BANDS, 6))}, KEY)
    program = outer_step(how.objective, theta, episode(normal(5, 22, BANDS)))
    assert theta["params"]["w"].shape in [leaf.shape for leaf in program.out_avals]


def test_the_network_of_words_on_waves_and_a_step_of_its_training():
    model, pairs = word_net(6, width=8, heads=2), mj.Batch(normal(4, 48, 40), jnp.arange(4))
    theta = {"params": jax.eval_shape(model.init, KEY, pairs.x), "scale": jnp.zeros(())}
    program = outer_step(train_words.matched(model.apply), theta, Episode(pairs, pairs))
    assert theta["params"]["map"]["kernel"].shape in [leaf.shape for leaf in program.out_avals]
    heard, waves = on_waves(model), normal(3, 8000)
    program = lowered(heard.apply, jax.eval_shape(heard.init, KEY, waves), waves)
    assert [leaf.shape[0] for leaf in program.out_avals] == [3]
