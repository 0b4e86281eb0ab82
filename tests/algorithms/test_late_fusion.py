"""Late fusion: the product is what the formula says, and a modality learns what it would learn alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.losses import classify

KEY, WAYS = jax.random.key(0), 3
LABELS = np.array([0, 1, 2, 0, 1, 2])


def embed(params, x, key):
    return x * params["w"][:, None]


def made(dtype=jnp.float64, modalities=3, **how):
    algorithm = mj.late_fusion(embed, classify, WAYS, modalities=modalities, **how)
    theta = algorithm.learner.init({"w": jnp.linspace(0.5, 1.5, modalities, dtype=dtype)}, KEY)
    return algorithm, theta | {"trust": 0.01 * jax.random.normal(KEY, theta["trust"].shape, dtype)}


def drawn(missing=True):
    """Six examples to learn from and six to ask about, of three modalities of four features, some of them missing."""
    z = np.random.default_rng(0).normal(size=(2, 6, 3, 4)) + LABELS[:, None, None]
    if missing:
        z[0, 0, 1] = z[0, [1, 4], 2] = z[1, 0, 0] = z[1, 1, 1:] = 0  # no support example of class 1 has the last one
    return mj.Episode(*(mj.Batch(jnp.asarray(half), jnp.asarray(LABELS)) for half in z))


def test_the_fused_logits_are_what_the_formula_says(x64):
    """By loops over queries, modalities and classes; what is missing says nothing for or against."""
    (algorithm, theta), (support, query) = made(), drawn()
    phi = algorithm.learner.step(theta, None, support, KEY)
    found = jax.jit(algorithm.learner.predict)(theta, phi, query.x, None)
    scale, trust = np.exp(theta["scale"]), np.asarray(theta["trust"])
    seen, asked = (np.asarray(embed(theta["params"], batch.x, None)) for batch in (support, query))
    expected = np.zeros((6, WAYS))
    for n, m in np.ndindex(6, 3):
        if not asked[n, m].any():
            continue
        of = {c: [i for i in range(6) if LABELS[i] == c and seen[i, m].any()] for c in range(WAYS)}
        means = {c: seen[some, m].mean(0) for c, some in of.items() if some}
        far = {c: np.square(asked[n, m] - mean).sum() for c, mean in means.items()}
        total = sum(np.exp(-scale[m] * d) for d in far.values())
        p = {c: np.exp(-scale[m] * d) / total for c, d in far.items()}
        usual = np.mean([np.square(means[a] - means[b]).sum() for a in means for b in means if a != b])
        nearest = min(far.values())
        weight = np.log1p(np.exp(100 * trust[m] @ [1, np.log(nearest / (nearest + usual) + 0.01)]))
        for c in p:
            expected[n, c] += weight * np.log(p[c] * len(p))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
    assert len(means) == 2


@pytest.mark.slow
def test_a_modality_learns_what_it_would_learn_alone(x64):
    """Its slopes are those of ProtoNet on it alone, whatever the others are, and 0 where it is missing."""
    (algorithm, theta), episode = made(temperature=1.0), drawn(missing=False)
    slopes = jax.jit(jax.grad(lambda theta, episode: algorithm.objective(theta, episode, KEY)[0]))
    found = slopes(theta, episode)
    for m in range(3):
        alone = mj.protonet(lambda p, x, key, m=m: x[:, m] * p["w"][m], classify, WAYS).objective
        expected = jax.grad(lambda theta, alone=alone: alone(theta, episode, KEY)[0])({"params": theta["params"]})
        np.testing.assert_allclose(found["params"]["w"][m], expected["params"]["w"][m], rtol=1e-10)
    gone = jax.tree.map(lambda a: a.at[:, 1].set(0) if a.ndim == 3 else a, episode)
    less = slopes(theta, gone)
    for name, size in (("w", less["params"]["w"]), ("scale", less["scale"]), ("trust", jnp.abs(less["trust"]).sum(1))):
        assert size[1] == 0 and (size != 0).tolist() == [True, False, True], name
    np.testing.assert_array_equal(less["params"]["w"][::2], found["params"]["w"][::2])


def test_what_is_held_teaches_trust_and_nothing_else(x64):
    (algorithm, theta), episode = made(held=np.array([4, 5, 6])), drawn()
    of = lambda first: [batch._replace(y=mj.Labels(batch.y, batch.y + first)) for batch in episode]  # noqa: E731
    held, other = mj.Episode(*of(4)), mj.Episode(*of(1))
    slopes = jax.jit(jax.grad(lambda theta, episode: algorithm.objective(theta, episode, KEY)[0]))
    for one, learns in ((held, ["trust"]), (other, ["params", "scale"])):
        found = slopes(theta, one)
        assert [name for name in found if any(np.any(leaf) for leaf in jax.tree.leaves(found[name]))] == learns


@pytest.mark.slow
def test_noise_is_not_listened_to_and_two_that_err_apart_are_better_than_each():
    """A modality of noise, and two that are each right for the most part: what is learned of trust, on new tasks."""
    algorithm, theta = made(jnp.float32)
    theta |= {"trust": jnp.zeros_like(theta["trust"]).at[:, 0].set(0.005)}

    def task(key):
        centre, noise = (
            jax.random.normal(key, (WAYS, 3, 8)),
            jax.random.normal(jax.random.fold_in(key, 1), (2, 15, 3, 8)),
        )
        y = jnp.tile(jnp.arange(WAYS), 5)
        z = centre[y] * jnp.array([1, 1, 0])[:, None] + noise * jnp.array([1.0, 1.3, 1])[:, None]
        return mj.Episode(*(mj.Batch(half, y) for half in z))

    step = mj.meta_step(algorithm.objective, optax.adam(0.001), task, 8)
    state, _ = jax.lax.scan(step, mj.init_state(theta, optax.adam(0.001), 200), jax.random.split(KEY, 200))

    @jax.jit
    def accuracy(key, trust):
        support, query = task(key)
        phi = algorithm.learner.step(state.theta, None, support, key)
        logits = algorithm.learner.predict(state.theta | {"trust": trust}, phi, query.x, None)
        return (logits.argmax(1) == query.y).mean()

    only = [
        state.theta["trust"].at[:, 1:].set(0).at[:, 0].set(jnp.where(jnp.arange(3) == m, 1.0, -50.0)) for m in range(3)
    ]
    keys = jax.random.split(jax.random.key(1), 300)
    first, second, noise, fused = (
        float(jax.lax.map(lambda k, t=t: accuracy(k, t), keys).mean()) for t in (*only, state.theta["trust"])
    )
    assert noise == pytest.approx(1 / 3, abs=0.03) and fused > first + 0.03 > second
