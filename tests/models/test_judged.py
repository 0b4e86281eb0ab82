"""An objective without labels that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError, Transcripts, Utterances
from metajax.losses import ctc, of_logits, verdict
from metajax.models import conformer, judged
from tests.conftest import normal
from tests.models.test_conformer import SMALL, drawn

KEY = jax.random.key(0)
MODEL = judged(conformer(None, **SMALL), 5, hidden=4)
X = Utterances(normal(3, 23, 6), jnp.array([23, 9, 14]))


@pytest.mark.slow
def test_padding_changes_nothing_of_the_verdict_and_the_logits_are_the_recognisers():
    params = drawn(MODEL, X)
    apply = jax.jit(MODEL.apply)
    outputs = apply(params, X)
    padded = Utterances(jnp.pad(X.frames, ((0, 0), (0, 9), (0, 0)), constant_values=3.0), X.lengths)
    np.testing.assert_allclose(apply(params, padded).verdict, outputs.verdict, atol=1e-5)
    plain = {name: params[name] for name in ("encoder", "head")}
    expected = jax.jit(conformer(5, **SMALL).apply)(plain, X)
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
    z = jax.jit(conformer(None, **SMALL).apply)({"encoder": params["encoder"]}, X)[1, :3]  # 9 frames are 3
    seen = np.concatenate([z, jax.nn.softmax(outputs.logits[1, :3])], -1)
    objective = params["objective"]
    said = np.tanh(seen @ objective["kernel"] + objective["bias"]) @ objective["out"]
    np.testing.assert_allclose(outputs.verdict[1], said.mean(), atol=1e-5)


@pytest.mark.slow
def test_the_transcripts_loss_teaches_the_verdict():
    """At first it says nothing, so that no step moves; its gradient from the query's loss is not 0."""
    y = Transcripts(jnp.array([[1, 2], [3, 4], [2, 1]]), jnp.array([2, 1, 2]))
    method = mj.maml(MODEL.apply, of_logits(ctc), optax.sgd(0.5), 1, support_error=verdict, part=mj.film("*norm*"))
    params = drawn(MODEL, X)
    theta = method.learner.init(params | {"objective": jax.jit(MODEL.init)(KEY, X)["objective"]}, KEY)
    episode = mj.Episode(mj.Batch(X, ()), mj.Batch(X, y))
    slopes = jax.jit(jax.grad(lambda theta: method.objective(theta, episode, KEY)[0]))(theta)
    objective = slopes["params"]["objective"]
    assert np.abs(objective["out"]).max() > 1e-6
    moved = mj.core.adapt(method.learner, theta, episode.support, KEY, 1)[0].own
    assert all(not leaf.any() for leaf in jax.tree.leaves(moved))
    theta["params"]["objective"]["out"] -= 0.1 * objective["out"]
    moved = mj.core.adapt(method.learner, theta, episode.support, KEY, 1)[0].own
    assert any(leaf.any() for leaf in jax.tree.leaves(moved))
    with pytest.raises(InputError, match="hidden is 0, expected 1 or more"):
        judged(conformer(None, **SMALL), 5, hidden=0)
