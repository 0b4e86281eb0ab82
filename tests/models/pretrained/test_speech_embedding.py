"""Google's speech embedding: equal to the original, and its layers as fast weights."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError, Utterances, runs
from metajax.data.audio import read_audio
from metajax.losses import classify
from metajax.models import pretrained
from metajax.models.pretrained.speech_embedding import convolved, log_mel
from tests.conftest import write_tones
from tests.shared import shared_data

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
import pretrained_maml as script

pytest.importorskip("pyopen_wakeword", reason="pyopen-wakeword holds the weights")
pytest.importorskip("tflite", reason="tflite reads them")
pytestmark = pytest.mark.peers  # the package is not for every system


def test_equals_the_original_on_real_clips():
    """To 1e-4 in root mean square; both are in single precision, which by clip is up to 1.4e-4 off double at worst."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
    path = shared_data("speech_embedding") / "speech-embedding.onnx"
    runs = runtime.InferenceSession(str(path))
    model, params = pretrained.speech_embedding()
    apply, errors = jax.jit(model.apply), []
    with jax.enable_x64(True):
        _, wide = pretrained.speech_embedding(dtype=jnp.float64)
    clips = sorted(shared_data("librispeech_small").rglob("*.flac"))[::30]
    clips += sorted(shared_data("arabic_speech_commands").rglob("*.flac"))[::800]
    assert len(clips) > 6
    for clip in clips:
        wave = read_audio(clip, 16000)[:32000]
        wave = np.pad(wave, (0, 32000 - len(wave)))  # one shape, one program
        theirs = runs.run(None, {"samples:0": wave[None]})[0][0, :, 0]
        assert theirs.shape == (16, 96) and np.abs(theirs).max() > 10
        ours = np.asarray(apply(params, wave[None])[0])
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())
        assert np.sqrt(np.square(ours - theirs).mean()) < 1e-4
        with jax.enable_x64(True):
            double = np.asarray(apply(wide, wave[None].astype(np.float64))[0])
        errors.append([np.abs(found - double).max() for found in (ours, theirs)])
    ours, theirs = np.max(errors, 0)
    assert ours < 1.5 * theirs < 3e-4


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
    """For several tasks at once, as the outer step has it, on what the first ten layers make of noise."""
    params = pretrained.speech_embedding()[1]
    waves = np.random.default_rng(0).normal(scale=0.1, size=(6, 12400))
    heard = jax.jit(lambda x: convolved(params, log_mel(x)[..., None], range(10)))(jnp.asarray(waves))
    batch = mj.Batch(heard.reshape(2, 3, *heard.shape[1:]), mj.Labels(*jnp.tile(jnp.arange(3), (2, 2, 1))))
    upper = {name: params[name] for name in (f"conv{i}" for i in range(10, 20))}

    def apply(params, x, key=None):
        return convolved(params, x, range(10, 20)).mean((1, 2)) / 10

    learner, objective = mj.maml(apply, classify, optax.sgd(0.01), 1, part=part)
    theta = learner.init(upper, jax.random.key(0))

    def first(b):
        return classify(apply(upper, b.x), b.y)[0]

    def last(theta, b):
        return objective(theta, mj.Episode(b, b), jax.random.key(0))[0]

    @jax.jit
    def both(theta):
        mean = jax.value_and_grad(lambda theta: jax.vmap(lambda b: last(theta, b))(batch).mean())
        return jax.vmap(first)(batch).mean(), *mean(theta)

    before, after, slopes = both(theta)
    assert after < before - 0.01
    assert np.isfinite(norm := float(optax.tree.norm(slopes))) and norm > 0


def test_the_convolutions_in_two_parts_are_the_encoder():
    model, params = pretrained.speech_embedding()
    wave = 0.1 * jax.random.normal(jax.random.key(0), (2, 14960))
    hidden = convolved(params, log_mel(wave)[..., None], range(14))
    upper = {name: params[name] for name in (f"conv{i}" for i in range(14, 20))}
    np.testing.assert_allclose(convolved(upper, hidden, range(14, 20))[:, :, 0], model.apply(params, wave), atol=1e-3)


def test_every_part_of_the_script_finds_what_it_changes():
    """Whatever the script changes but for the head, of which a task has its own."""
    params = {"encoder": {"conv18": pretrained.speech_embedding()[1]["conv18"]}}
    for name, part in script.PARTS.items():
        theta = {"params": params} | part().init(params, jax.random.key(0))
        assert bool(jax.tree.leaves(part().split(theta))) == (name != "head"), name


@pytest.mark.slow
def test_maml_over_parts_of_the_upper_convolutions(tmp_path, capsys):
    tones = write_tones(tmp_path, 6, 6, 3)
    argv = ["--corpus", "manifest", "--root", str(tones), "--synthetic", "0", "--first", "18", "--ways", "2"]
    argv += ["--outer-steps", "2", "--num-steps", "1", "--shots", "1", "--queries", "2", "--episodes", "20"]
    argv += ["--parts", "head", "LoRA"]  # for the others see above
    out = tmp_path / "out"
    assert runs.main(script.Settings, script.run, script.__doc__, [*argv, "--out", str(out)]) == 0
    scores = json.loads((out / "results.json").read_text())["scores"]
    assert {"MAML over head", "MAML over LoRA"} < set(scores)
    for row in scores.values():
        assert all(0.5 < point["mean"] <= 1 for point in row["1"][1:])  # tones are told apart
    assert "MAML over LoRA" in capsys.readouterr().out
    assert runs.main(script.Settings, script.run, script.__doc__, [*argv, "--out", str(out)]) == 0  # goes on
    assert json.loads((out / "results.json").read_text())["scores"] == scores
    refused = ["--corpus", "espeak", "--no-own", "--out", str(tmp_path / "other")]
    assert runs.main(script.Settings, script.run, script.__doc__, refused) == 2
    assert "Neither words of the corpus nor synthetic ones" in capsys.readouterr().err
