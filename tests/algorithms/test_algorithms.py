"""The methods, each against a plain computation of the same thing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import Batch, Episode, Labels, adapt, fomaml, joint, maml, only, protonet
from metajax.algorithms.heads import prototypes
from metajax.losses import classify
from tests.conftest import assert_close, differs, mlp, mlp_params

WAYS = 3
KEY = jax.random.key(0)
PARAMS = mlp_params()
THETA = {"params": PARAMS}


def episode(key, shots=2, queries=3):
    """Random inputs; labels in an order that is no class-by-class order."""
    x = jax.random.normal(key, (WAYS * (shots + queries), 3))
    y = jax.random.permutation(key, jnp.tile(jnp.arange(WAYS), queries))
    support = Batch(x[: WAYS * shots], Labels(jnp.tile(jnp.arange(WAYS), shots), jnp.zeros(WAYS * shots, int)))
    return Episode(support, Batch(x[WAYS * shots :], Labels(y, jnp.zeros(WAYS * queries, int))))


STACKED = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(1), 4))
EPISODES = [jax.tree.map(lambda a, i=i: a[i], STACKED) for i in range(4)]
METHODS = {
    "maml": maml(mlp, classify, optax.sgd(0.5), 2),
    "maml with adam": maml(mlp, classify, optax.adam(0.05, eps_root=1e-8), 2),
    "fomaml": fomaml(mlp, classify, optax.sgd(0.5), 2),
    "joint": joint(mlp, classify),
    "protonet": protonet(mlp, classify, WAYS),
}


def query_loss(params, batch):
    return classify(mlp(params, batch.x), batch.y)[0]


def gradient(objective):
    return jax.jit(jax.grad(lambda theta, episode, key: objective(theta, episode, key)[0]))


def test_vmap_over_tasks_is_a_loop_over_tasks():
    keys = jax.random.split(jax.random.key(2), len(EPISODES))
    for name in ("maml with adam", "fomaml"):  # metric and closed-form methods: in test_metric
        one = gradient(METHODS[name].objective)
        batched = jax.jit(jax.vmap(one, (None, 0, 0)))(THETA, STACKED, keys)
        grads = [one(THETA, task, key) for task, key in zip(EPISODES, keys, strict=True)]
        assert differs(grads[0], grads[1], 1e-4), name
        assert_close(batched, jax.tree.map(lambda *a: np.stack(a), *grads), 1e-5)


def test_maml_without_steps_is_joint_training():
    plain = METHODS["joint"].objective
    value, grads = jax.jit(plain)(THETA, EPISODES[0], KEY), gradient(plain)(THETA, EPISODES[0], KEY)
    for factory in (maml, fomaml):
        objective = factory(mlp, classify, optax.sgd(0.5), 0).objective
        assert_close(jax.jit(objective)(THETA, EPISODES[0], KEY), value, 1e-6)
        assert_close(gradient(objective)(THETA, EPISODES[0], KEY), grads, 1e-6)


def test_fomaml_gradient_is_the_query_gradient_at_phi():
    learner = METHODS["fomaml"].learner
    phi, _ = jax.jit(lambda theta: adapt(learner, theta, EPISODES[0].support, KEY, 2))(THETA)
    wanted = jax.jit(jax.grad(query_loss))(phi.own, EPISODES[0].query)
    grads = gradient(METHODS["fomaml"].objective)(THETA, EPISODES[0], KEY)
    assert_close(grads, {"params": wanted}, 1e-5)
    assert differs(grads, gradient(METHODS["maml"].objective)(THETA, EPISODES[0], KEY), 1e-3)


def test_options_of_maml_reach_descent():
    """ANIL by hand: only the last layer adapts, all of theta gets a gradient."""
    algorithm = maml(mlp, classify, optax.sgd(0.5), 1, part=only("w1", "b1"))

    def by_hand(theta):
        def loss(head, batch):
            return query_loss(theta["params"] | head, batch)

        head = {name: theta["params"][name] for name in ("w1", "b1")}
        grads = jax.grad(loss)(head, EPISODES[0].support)
        return loss(jax.tree.map(lambda p, g: p - 0.5 * g, head, grads), EPISODES[0].query)

    assert_close(gradient(algorithm.objective)(THETA, EPISODES[0], KEY), jax.jit(jax.grad(by_hand))(THETA), 1e-5)


def test_joint_learns_nothing_from_the_support_set():
    learner = METHODS["joint"].learner
    phi, _ = adapt(learner, THETA, EPISODES[0].support, KEY, 3)
    assert jax.tree.leaves(phi.own) == []
    losses = []
    for support, steps in ((EPISODES[0].support, 0), (EPISODES[0].support, 3), (EPISODES[1].support, 1)):
        phi, _ = adapt(learner, THETA, support, KEY, steps)
        losses.append(learner.predict(THETA, phi, EPISODES[0].query.x, None).sum())
    assert len({float(loss) for loss in losses}) == 1


def test_protonet_is_a_loop_over_classes():
    support, query = (Batch(np.asarray(b.x), b.y) for b in EPISODES[2])
    z, z_query = np.asarray(mlp(PARAMS, support.x)), np.asarray(mlp(PARAMS, query.x))
    label, wanted_label = np.asarray(support.y.episode), np.asarray(query.y.episode)
    centres = [np.mean([z[i] for i in range(len(z)) if label[i] == c], axis=0) for c in range(WAYS)]
    np.testing.assert_allclose(prototypes(jnp.asarray(z), jnp.asarray(label), WAYS), centres, rtol=1e-5, atol=1e-6)
    for temperature in (1.0, 4.0):
        nats, right = [], []
        for i, row in enumerate(z_query):
            scores = np.array([-((row - centre) ** 2).sum() / temperature for centre in centres])
            nats.append(np.log(np.exp(scores).sum()) - scores[wanted_label[i]])
            right.append(scores.argmax() == wanted_label[i])
        objective = jax.jit(protonet(mlp, classify, WAYS, temperature=temperature).objective)
        loss, metrics = objective(THETA, EPISODES[2], KEY)
        np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_protonet_is_at_chance_before_its_step_and_done_after_one():
    learner = METHODS["protonet"].learner
    _, trace = adapt(
        learner, THETA, EPISODES[0].support, KEY, 2,
        lambda phi: classify(learner.predict(THETA, phi, EPISODES[0].query.x, None), EPISODES[0].query.y)[0],
    )  # fmt: skip
    np.testing.assert_allclose(trace[0], np.log(WAYS), rtol=1e-6)
    np.testing.assert_array_equal(trace[1], trace[2])


def test_protonet_does_not_care_for_the_order_of_examples_or_classes():
    support, query = EPISODES[0]
    objective = jax.jit(METHODS["protonet"].objective)
    wanted = objective(THETA, EPISODES[0], KEY)
    order = jax.random.permutation(jax.random.key(3), len(support.x))
    shuffled = jax.tree.map(lambda a: a[order], support)
    assert_close(objective(THETA, Episode(shuffled, query), KEY), wanted, 1e-5)
    rename = jnp.array([2, 0, 1])
    renamed = [b._replace(y=b.y._replace(episode=rename[b.y.episode])) for b in (support, query)]
    assert_close(objective(THETA, Episode(*renamed), KEY), wanted, 1e-5)
