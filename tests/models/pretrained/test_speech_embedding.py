"""Google's speech embedding: equal to the original, and its layers as fast weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError, Utterances
from metajax.data.audio import read_audio
from metajax.losses import classify
from metajax.models import pretrained
from metajax.models.pretrained.speech_embedding import log_mel
from tests.shared import shared_data

pytest.importorskip("pyopen_wakeword", reason="pyopen-wakeword holds the weights")
pytest.importorskip("tflite", reason="tflite reads them")
pytestmark = pytest.mark.peers  # the package is not for every system


def test_equals_the_original_on_real_clips():
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
    path = shared_data("speech_embedding") / "speech-embedding.onnx"
    runs = runtime.InferenceSession(str(path))
    model, params = pretrained.speech_embedding()
    apply = jax.jit(model.apply)
    clips = sorted(shared_data("librispeech_small").rglob("*.flac"))[::30]
    clips += sorted(shared_data("arabic_speech_commands").rglob("*.flac"))[::800]
    assert len(clips) > 6
    for clip in clips:
        wave = read_audio(clip, 16000)[:32000]
        wave = np.pad(wave, (0, 32000 - len(wave)))  # one shape, one program
        theirs = runs.run(None, {"samples:0": wave[None]})[0][0, :, 0]
        assert theirs.shape == (16, 96) and np.abs(theirs).max() > 10
        # both are in single precision, and differ from double as much as from each other
        np.testing.assert_allclose(apply(params, wave[None])[0], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_value_sees_775_ms_and_no_padding(unchecked):
    model, params = pretrained.speech_embedding()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 328_224
    wave = 0.1 * np.random.default_rng(0).normal(size=14960).astype(np.float32)
    parts = np.stack([np.pad(wave[1280 * i :][:12400], (0, 2560), constant_values=np.nan) for i in range(3)])
    x = Utterances(jnp.asarray(np.stack([wave, *parts])), jnp.array([14960, 12400, 12400, 12400]))
    encoded = jax.jit(model.encode)(params, x)
    assert encoded.output.shape == (4, 3, 96) and encoded.lengths.tolist() == [3, 1, 1, 1]
    np.testing.assert_allclose(encoded.output[0], encoded.output[1:, 0], atol=1e-3)  # of values that are up to 60
    with pytest.raises(InputError, match=r"with 12400 or more of samples"):
        model.apply(params, wave[None, :12399])


def test_has_slopes_on_silence():
    slope = jax.jit(jax.grad(lambda wave: log_mel(wave).sum()))(jnp.zeros((1, 560)))
    assert slope.shape == (1, 560) and jnp.isfinite(slope).all()


@pytest.mark.slow
@pytest.mark.parametrize("part", [mj.only("conv18", "conv19"), mj.lora(2, "conv1?.kernel"), mj.film("*.bias")])
def test_its_layers_are_fast_weights(part):
    """For several tasks at once, as the outer step has it."""
    encoder, params = pretrained.speech_embedding()
    model = pretrained.averaged(encoder)
    waves = 0.1 * jax.random.normal(jax.random.key(0), (2, 3, 12400))
    batch = mj.Batch(waves, mj.Labels(*jnp.tile(jnp.arange(3), (2, 2, 1))))
    learner, objective = mj.maml(lambda p, x, key: model.apply(p, x) / 10, classify, optax.sgd(0.01), 1, part=part)
    theta = learner.init(params, jax.random.key(0))

    def first(b):
        return classify(model.apply(params, b.x) / 10, b.y)[0]

    def last(theta, b):
        return objective(theta, mj.Episode(b, b), jax.random.key(0))[0]

    @jax.jit
    def both(theta):
        mean = jax.value_and_grad(lambda theta: jax.vmap(lambda b: last(theta, b))(batch).mean())
        return jax.vmap(first)(batch).mean(), *mean(theta)

    before, after, slopes = both(theta)
    assert after < before - 0.01
    assert np.isfinite(norm := float(optax.tree.norm(slopes))) and norm > 0
