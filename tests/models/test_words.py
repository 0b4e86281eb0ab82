"""The embedding of words that comes with metajax."""

import importlib
import json
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax import InputError
from metajax.data import speech_embedding as data
from metajax.models import Model, whitened
from metajax.models.pretrained import windowed
from metajax.models.wordnet import on_waves, word_net
from tests.conftest import normal

ROOT = Path(mj.__file__).parent
words = importlib.import_module("metajax.models.words")  # whose name is also the function's


def test_a_window_is_the_frames_that_follow_one_another():
    def apply(params, x, key=None):
        return x[..., None] * params

    model = windowed(Model(None, apply, None), 3)
    found = model.apply(jnp.array([1.0, -2.0]), jnp.array([[0.0, 3.0, 6.0, 1.0]]))
    assert found.tolist() == [[[0, 0, 3, -6, 6, -12], [3, -6, 6, -12, 1, -2]]]


def test_frames_may_keep_their_length():
    white = {"mean": jnp.array([1.0, 0.0]), "kernel": jnp.array([[2.0, 0.0], [0.0, 1.0]])}
    model = Model(None, lambda params, x, key=None: x, None)
    params, x = {"encoder": {}, "whitening": white}, jnp.array([[3.0, 3.0]])
    assert whitened(model, length=True).apply(params, x).tolist() == [[4.0, 3.0]]
    np.testing.assert_allclose(whitened(model).apply(params, x), [[0.8, 0.6]], atol=1e-6)


TOLD = {"what", "heard", "command", "commit", "date", "licence", "results", "limits"}


def test_what_is_shipped_is_whole_and_told():
    pytest.importorskip("safetensors", reason="safetensors reads the file")
    tensors, card = data.read_words()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected = {"mean": (192,), "kernel": (192, 192), "frame_mean": (96,), "frame_kernel": (96, 96)}
    numbers = ("scale", "bias", "growth")
    assert shapes == expected | {prefix + name: () for prefix in ("", "frame_") for name in numbers}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    for prefix, rank in (("", 192), ("frame_", 96)):
        kernel = tensors[f"{prefix}kernel"].astype(np.float32)
        assert np.linalg.matrix_rank(kernel) == rank and tensors[f"{prefix}scale"] > 0
    assert set(card) == TOLD | {"seed"} and "whiten_words.py" in card["command"] and "/" not in card["command"][30:]
    results = json.loads(card["results"])
    for corpus in ("arabic", "fsdd", "speech_commands"):  # whitening is worth it, and so is the network
        row = {how: results[f"{corpus}, 1-shot"][how]["mean"] for how in ("encoder alone", "encoder", "all")}
        assert row["encoder alone"] < row["encoder"] and row["encoder alone"] < row["all"]
    net, net_card = data.read_words("word_net")
    assert all(np.isfinite(tensor).all() for tensor in net.values())
    assert set(net_card) == TOLD | {"settings", "calibrated", "trained"}
    assert {name.split("/")[0] for name in net} > {"conv0", "conv4b", "attention", "map", "unknown"}
    shipped = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = {"data/words.safetensors", "data/word_net.safetensors", "data/phrases.txt", "web.html"}
    assert {package: {*names} for package, names in shipped.items()} == {"metajax": files}
    sizes = [(ROOT / name).stat().st_size for name in shipped["metajax"]]
    assert sum(sizes[:2]) < 1_000_000


def test_without_the_extra_the_network_is_alone_or_the_extra_is_named(monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors reads the file")
    for module in (data, words):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'metajax\[encoder\]'"):
        mj.models.words(encoder=True)
    alone, running = mj.models.words(), mj.models.words(spotting=True)
    assert "word_net" in alone.card["what"] and {"scale", "bias", "growth"} == set(alone.unknown)
    wave = np.asarray(normal(2, 20000 + 2 * 1280, scale=0.1))
    apply = jax.jit(running.model.apply)
    found = np.asarray(apply(running.params, wave))
    clips = np.concatenate([wave[:, 1280 * i :][:, :20000] for i in range(3)])
    network = on_waves(word_net(128, width=96), tempos=False)  # one tempo: three would take too long
    one = np.asarray(jax.jit(network.apply)(alone.params, clips[:, words.EDGE : -words.EDGE]))
    assert found.shape == (2, 3, 512)
    second, half = found[..., :128], found[..., 128:].reshape(2, 3, 3, 128)
    np.testing.assert_allclose(second.transpose(1, 0, 2).reshape(6, 128), one / 2**0.5, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 6**-0.5, atol=1e-4)
    # the half second in the middle hears nothing else; the next begins 240 ms later, where the fourth window's would
    changed = wave * ((np.arange(wave.shape[1]) >= 6000) & (np.arange(wave.shape[1]) < 14000))
    np.testing.assert_allclose(np.asarray(apply(running.params, changed))[:, 0, 256:384], half[:, 0, 1], atol=1e-4)
    later = np.pad(wave[:, 3840:], ((0, 0), (0, 3840)))
    np.testing.assert_allclose(np.asarray(apply(running.params, later))[:, 0, 256:384], half[:, 0, 2], atol=1e-4)
    assert running.unknown["bias"] / running.unknown["scale"] > alone.unknown["bias"] / alone.unknown["scale"]


@pytest.mark.slow
def test_a_window_of_running_audio_is_a_clip():
    pytest.importorskip("pyopen_wakeword", reason="pyopen-wakeword holds the weights")
    pytest.importorskip("tflite", reason="tflite reads them")
    trained, running = mj.models.words(), mj.models.words(spotting=True)
    wave = normal(1, 20000 + 3 * 1280, scale=0.1)
    apply = jax.jit(running.model.apply)
    found = apply(running.params, wave)
    clips = jnp.stack([wave[0, 1280 * i :][:20000] for i in range(4)])
    assert found.shape == (1, 4, 576 + 512)
    np.testing.assert_allclose(found[0], apply(running.params, clips)[:, 0], atol=1e-3)
    order, rest = found[0, :, :576], found[0, :, 576:]
    np.testing.assert_allclose(
        jnp.linalg.norm(rest, axis=-1), words.RUNNING**0.5 * jnp.linalg.norm(order, axis=-1), rtol=1e-4
    )
    # a clip is the three largest and smallest of what its frames give, and of frames before and after them, and a mean
    frames, params = mj.models.pretrained.speech_embedding()
    ends, mean = jax.jit(words.extremes)(params, clips)
    six = np.asarray(jax.jit(frames.apply)(params, clips))
    own = running.params["whitening"]
    np.testing.assert_allclose(order.reshape(4, 6, 96), (six - own["mean"]) @ own["kernel"], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(mean, six.mean(1), rtol=1e-4, atol=1e-3)
    mels = np.asarray(jax.jit(words.log_mel)(clips))
    low, last = mels.min(1, keepdims=True), mels.shape[1] - 1
    at = last / 2 + 1.45 * (np.arange(last + 1) - last / 2)  # of what is heard faster, with silence around it
    fast = np.stack([np.stack([np.interp(at, np.arange(last + 1), band) for band in clip.T], 1) for clip in mels])
    fast = np.where(((at >= 0) & (at <= last))[:, None], fast, low).astype(np.float32)
    ways = np.concatenate([low.repeat(24, 1), mels, low.repeat(24, 1)], 1), fast
    seen = jax.jit(lambda x: words.convolved(params, x[..., None], range(words.CONVOLUTIONS))[:, :, 0])
    ordered = np.sort(np.concatenate([seen(way) for way in ways], 1), 1)
    assert ordered.shape == (4, 18, 96)
    expected = np.concatenate([ordered[:, -3:].mean(1), ordered[:, :3].mean(1)], 1)
    np.testing.assert_allclose(ends, expected, rtol=1e-3, atol=1e-2)
    both, network = jax.jit(trained.model.apply)(trained.params, clips), mj.models.words(encoder=False)
    start = 0
    for kind, z, share in (("extremes", ends, 1.0), ("middle", mean, words.MIDDLE)):
        white = trained.params[kind]
        expected = (z - white["mean"]) @ white["kernel"]
        expected *= share**0.5 / jnp.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(both[:, start : start + expected.shape[1]], expected, atol=1e-4)
        start += expected.shape[1]
    made = trained.model.init(jax.random.key(0), clips)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, trained.params)
    known = jax.jit(network.model.apply)(network.params, clips)
    np.testing.assert_allclose(both[:, start:], words.NETWORK**0.5 * known, atol=1e-4)
    assert [z.shape for z in jax.jit(words.extremes)(params, wave[:, :12400])] == [(1, 192), (1, 96)]
    with pytest.raises(InputError, match=r"12399.*12400|12400.*12399"):
        words.extremes(params, wave[:, :12399])
    # what is faint is told apart, and the threshold is a cosine's
    assert running.faint > 0 == trained.faint
    assert running.unknown["bias"] / running.unknown["scale"] > trained.unknown["bias"] / trained.unknown["scale"]
