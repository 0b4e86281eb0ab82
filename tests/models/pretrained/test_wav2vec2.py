"""wav2vec 2.0, HuBERT and WavLM as models of metajax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError, Utterances
from metajax.losses import classify
from metajax.models import pretrained
from metajax.parallel import hoist
from tests.conftest import normal
from tests.models.pretrained.tiny import write

KINDS = {
    "stable": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "group": {},
    "batch": {"model_type": "hubert", "conv_pos_batch_norm": True},
    "wavlm": {"model_type": "wavlm", "feat_extract_norm": "layer"},
}


def waves(time=500):
    return normal(3, time)


def loaded(folder, **changes):
    """As small as can be: every program here is compiled anew."""
    small = {"num_hidden_layers": 1, "conv_dim": [6, 6], "conv_stride": [10, 4], "conv_kernel": [20, 8]}
    return pretrained.load(write(folder, **small | changes), normalize=True)[:2]


def vectors(folder, **changes):
    encoder, params = loaded(folder, architectures=["Wav2Vec2Model"], **changes)
    return pretrained.averaged(encoder), params


@pytest.mark.parametrize("kind", [k if k == "stable" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_padding_changes_nothing(tmp_path, kind):
    """Nor does what lies in it, or an utterance of no samples beside; of one program, so of inputs of one shape."""
    model, params = loaded(tmp_path, **KINDS[kind])
    apply = jax.jit(model.apply)
    scores = apply(params, Utterances(waves().at[0, 330:].set(jnp.nan), jnp.array([330, 0, 500])))
    assert scores.shape == (3, 11, 11) and jnp.isfinite(scores[0, :7]).all() and jnp.isfinite(scores[2]).all()
    for i, count in ((0, 7), (1, 0)):
        assert (scores[i, count:, 0] == 0).all() and (scores[i, count:, 1:] == -jnp.inf).all()
    model, params = pretrained.load(tmp_path, normalize=True)[:2]
    alone = jax.jit(model.apply)(params, waves()[:1, :330])
    np.testing.assert_allclose(scores[0, :7], alone[0], atol=1e-5)


@pytest.mark.slow
def test_slopes_are_finite_where_an_utterance_has_no_frame(tmp_path):
    model, params = loaded(tmp_path)
    x = Utterances(waves().at[1].set(0), jnp.array([330, 500, 0]))
    slopes = jax.jit(jax.grad(lambda params: model.encode(params, x).output.sum()))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_a_frame_needs_as_many_samples_as_the_convolutions_reach(tmp_path, unchecked):
    model, params = loaded(tmp_path)
    assert jax.eval_shape(model.apply, params, waves(90)).shape == (3, 1, 11)
    with pytest.raises(InputError, match=r"\(3, 89\), expected \[n, samples\] with 90 or more of samples"):
        model.apply(params, waves(89))
    with pytest.raises(InputError, match=r"x has shape \(500,\)"):
        model.apply(params, waves()[0])
    with pytest.raises(InputError, match="x is int32, expected samples of floating point"):
        model.apply(params, waves().astype(int))
    with pytest.raises(InputError, match="x: utterance 1 has 89 samples, expected 90 or more for a frame"):
        model.apply(params, Utterances(waves(), jnp.array([500, 89, 0])))
    with pytest.raises(InputError, match=r"x has shape \(0, 500\), expected one utterance or more"):
        model.apply(params, waves()[:0])


def test_mean_over_the_frames_that_count():
    frames = normal(2, 3, 5, 4)
    encoded = pretrained.Encoded(frames[0], (frames[1], frames[0]), jnp.array([2, 0, 5]))
    encoder = pretrained.Pretrained(None, None, None, lambda params, x: encoded)
    for layer, wanted in ((None, frames[0]), (-2, frames[1]), (0, frames[1])):
        mean = pretrained.averaged(encoder, layer).apply({}, ())
        np.testing.assert_allclose(mean[0], wanted[0, :2].mean(0), atol=1e-6)
        assert not mean[1].any()
    with pytest.raises(InputError, match=r"layer is 2, expected -2..1"):
        pretrained.averaged(encoder, 2).apply({}, ())


@pytest.mark.slow
def test_half_precision(tmp_path):
    model, params = vectors(tmp_path)
    _, rounded, _ = pretrained.load(tmp_path, dtype=jnp.bfloat16)
    output = jax.jit(model.apply)(rounded, waves())
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(output), jax.jit(model.apply)(params, waves()), atol=0.1)


PARTS = {
    "only": mj.only("encoder.layers.*.attention.*"),
    "lora": mj.lora(2, "encoder.layers.*.kernel"),
    "film": mj.film("*layer_norm*"),
    "bitfit": mj.only("*.bias"),
    "lhuc": mj.lhuc("encoder.layers.*.kernel"),
    "adapters": mj.adapters(2, "encoder.layers.*.feed_forward.*.kernel"),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_name_its_layers(tmp_path, part):
    """Traced alone; what they learn is tested below."""
    model, params = vectors(tmp_path)
    learner = mj.descent(model.apply, classify, optax.sgd(0.1), part=PARTS[part])
    batch = mj.Batch(waves(), mj.Labels(jnp.arange(3), jnp.arange(3)))
    theta = learner.init(params, jax.random.key(0))
    phi = jax.eval_shape(lambda key: mj.adapt(learner, theta, batch, key, 1)[0], jax.random.key(0))
    assert len(phi.own) == {"only": 8, "lora": 6, "film": 10, "bitfit": 13, "lhuc": 6, "adapters": 2}[part]
    assert all(name.startswith(("encoder.", "feature_")) for name in phi.own)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora", "film", "bitfit", "lhuc"])  # whole layers: test_split.py
def test_slopes_run_through_adaptation_of_its_parts(tmp_path, part):
    model, params = vectors(tmp_path)
    learner, objective = mj.maml(model.apply, classify, optax.sgd(0.1), 1, part=PARTS[part])
    batch = mj.Batch(waves(), mj.Labels(jnp.arange(3), jnp.arange(3)))
    theta = learner.init(params, jax.random.key(0))

    @jax.jit
    def both(theta):
        run = jax.value_and_grad(lambda theta: objective(theta, mj.Episode(batch, batch), jax.random.key(0))[0])
        return classify(model.apply(theta["params"], waves()), batch.y)[0], *run(theta)

    before, after, slopes = both(theta)
    assert after < before - (0.01 if part in ("lora", "film") else 0.005)
    assert np.isfinite(norm := float(optax.tree.norm(slopes))) and norm > 0


def test_frozen_and_closed_over_it_is_no_constant_of_the_program(tmp_path):
    model, params = vectors(tmp_path, intermediate_size=4000)

    def frozen(x):
        return model.apply(params, x)

    consts, opened, _ = hoist(frozen, waves())
    assert sum(leaf.size for leaf in consts) > 100_000
    assert len(jax.jit(opened).lower(consts, waves()).as_text()) < 100_000
