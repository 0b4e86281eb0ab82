"""Metric, closed-form and forward methods, each against a plain computation of the same thing in double precision."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import Batch, Episode, InputError, Labels, adapt
from metajax.algorithms.heads import logistic_weights, prototypes, ridge_weights
from metajax.losses import classify, classify_corpus
from tests.conftest import assert_close, differs

pytestmark = pytest.mark.usefixtures("x64")
WAYS, SHOTS, QUERIES, CLASSES, FEATURES = 3, 2, 3, 5, 4


def embed(params, x, key=None):
    """A smooth network with a FiLM-able layer; ignores a head."""
    x = jnp.tanh(x @ params["dense0"]["kernel"] + params["dense0"]["bias"])
    return (x * params["norm0"]["scale"] + params["norm0"]["bias"]) @ params["dense1"]["kernel"]


def wide(params, x, key=None):
    return embed(params, x) @ params["head"]["kernel"]


METHODS = {
    "protonet": mj.protonet(embed, classify, WAYS, temperature=2.0),
    "protonet cosine": mj.protonet(embed, classify, WAYS, metric="cosine", temperature=0.5),
    "matching": mj.matching(embed, classify, WAYS, temperature=0.5),
    "relation": mj.relation(embed, classify, WAYS, features=FEATURES, hidden=6),
    "ridge": mj.ridge(embed, classify, WAYS, strength=0.5, scale=3.0),
    "logistic": mj.logistic(embed, classify, WAYS, strength=0.5, scale=2.0),
    "proto_maml": mj.proto_maml(embed, classify, optax.sgd(0.1), 2, WAYS),
    "simpleshot": mj.simpleshot(embed, classify_corpus, WAYS, wide, FEATURES),
    "baselinepp": mj.baselinepp(embed, classify, WAYS, optax.sgd(0.5), CLASSES, FEATURES, temperature=0.5),
    "hypernetwork": mj.hypernetwork(embed, classify, WAYS, features=FEATURES, hidden=6),
    "in_context": mj.in_context(embed, classify, WAYS, features=FEATURES, layers=1, heads=2, width=8, max_classes=WAYS),
    "task_encoder": mj.task_encoder(embed, classify, WAYS, features=FEATURES, size=3),
}
PROTONET = mj.protonet(embed, classify, WAYS).objective
EXTRAS = {
    "relation": ["relation"],
    "ridge": ["log_scale", "log_strength"],
    "logistic": ["log_scale", "log_strength"],
    "simpleshot": ["statistics"],
    "baselinepp": ["head"],
    "hypernetwork": ["hypernetwork"],
    "in_context": ["reader"],
    "task_encoder": ["context", "encoder"],
}


def model_params():
    generator = np.random.default_rng(0)
    shapes = {
        "dense0": {"kernel": (3, 5), "bias": (5,)},
        "norm0": {"scale": (5,), "bias": (5,)},
        "dense1": {"kernel": (5, FEATURES)},
        "head": {"kernel": (FEATURES, CLASSES)},
    }
    return jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))


def theta_of(name, seed=1):
    """theta with noise added, so that nothing sits at a special start."""
    generator = np.random.default_rng(seed)
    theta = jax.jit(METHODS[name].learner.init)(model_params(), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 0.3 * generator.normal(size=a.shape)), theta)


def episode(seed):
    generator = np.random.default_rng(seed)

    def batch(count):
        y = generator.permutation(np.tile(np.arange(WAYS), count))
        x = generator.normal(size=(WAYS * count, 3))
        return Batch(jnp.asarray(x), Labels(jnp.asarray(y), jnp.asarray(generator.integers(0, CLASSES, len(y)))))

    return Episode(batch(SHOTS), batch(QUERIES))


@cache
def compiled(objective, batched=True):
    """theta, episode -> ((loss, metrics), gradient); of tasks side by side, one program for all that is asked here."""

    def one(theta, task):
        return jax.value_and_grad(objective, has_aux=True)(theta, task, jax.random.key(0))

    return jax.jit(jax.vmap(one, (None, 0)) if batched else one)


def side_by_side(objective, theta, *tasks):
    """What `compiled` gives for each of three tasks."""
    found = compiled(objective)(theta, jax.tree.map(lambda *a: np.stack(a), *tasks))
    return [jax.tree.map(lambda a, i=i: np.asarray(a)[i], found) for i in range(3)]


def gradient(objective):
    return lambda theta, task: side_by_side(objective, theta, task, task, task)[0][1]


def losses(objective):
    return lambda theta, task: side_by_side(objective, theta, task, task, task)[0][0]


def arrays(task):
    """Embedded support and query, and their episode labels, as numpy arrays."""
    params = model_params()
    z, q = (np.asarray(embed(params, b.x)) for b in task)
    return z, np.asarray(task.support.y.episode), q, np.asarray(task.query.y.episode)


EVERYDAY = ("protonet", "matching", "ridge")


def nats(scores, labels):
    return np.mean([np.log(np.exp(s).sum()) - s[label] for s, label in zip(scores, labels, strict=True)])


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "name", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_meta_gradient_is_its_finite_difference(name):
    objective, task, theta = METHODS[name].objective, episode(0), theta_of(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {np.dtype("float64")}
    then = np.asarray(embed(theta["params"], task.query.x)).mean(0)

    def value(direction, size):
        moved = jax.tree.map(lambda a, d: np.asarray(a) + size * d, theta, direction)
        loss = losses(objective)(moved, task)[0]
        if name == "simpleshot":  # its mean follows that of the embeddings, which counts as a constant
            loss += np.square(moved["statistics"]["mean"] - then).sum() / 2
        return float(loss)

    grads, draw = gradient(objective)(theta, task), np.random.default_rng(1).normal
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 1e-3
    for _ in range(4):
        direction = jax.tree.map(lambda a: draw(size=a.shape), theta)
        along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True))
        np.testing.assert_allclose(
            along, (value(direction, 1e-6) - value(direction, -1e-6)) / 2e-6, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("name", METHODS)
def test_tasks_side_by_side_do_not_meet_and_theta_is_what_it_says(name):
    """The gradient of a task among others is that among copies of itself; of one method, that of the task alone."""
    theta, objective = theta_of(name), METHODS[name].objective
    tasks = [episode(seed) for seed in range(3)]
    grads = [gradient(objective)(theta, task) for task in tasks]
    assert differs(grads[0], grads[1], 1e-4)
    for (_, among), own in zip(side_by_side(objective, theta, *tasks), grads, strict=True):
        assert_close(among, own, 1e-9)
    if name == "relation":
        assert_close(compiled(objective, batched=False)(theta, tasks[0])[1], grads[0], 1e-9)
    if name in EXTRAS:
        assert sorted(theta) == sorted(["params", *EXTRAS[name]])
        # every extra parameter is learned
        extras = {key: value for key, value in grads[0].items() if key != "params"}
        assert all(max(np.abs(g).max() for g in jax.tree.leaves(v)) > 0 for v in extras.values())
    else:
        assert_close(METHODS[name].learner.init(model_params(), jax.random.key(0)), {"params": model_params()}, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_support_set_without_a_class_is_refused(name):
    learner, theta, support = METHODS[name].learner, theta_of(name), episode(0).support
    labels = support.y._replace(episode=jnp.array([0, 0, 2, 2, 2, 0]))
    with pytest.raises(InputError, match=r"support set has classes \[0, 2\], expected every one of 0..2"):
        adapt(learner, theta, support._replace(y=labels), jax.random.key(0), 1)
    few = jax.tree.map(lambda a: a[:2], support)
    with pytest.raises(InputError, match="support set has 2 examples, expected one or more of 3 classes"):
        jax.jit(lambda support: adapt(learner, theta, support, jax.random.key(0), 1)[0])(few)


def test_protonet_and_matching_are_loops():
    task, theta = episode(3), {"params": model_params()}
    z, label, q, wanted = arrays(task)
    centres = [np.mean([a for a, c in zip(z, label, strict=True) if c == k], axis=0) for k in range(WAYS)]
    np.testing.assert_allclose(prototypes(jnp.asarray(z), jnp.asarray(label), WAYS), centres, rtol=1e-12)
    euclidean = [np.array([-((row - p) ** 2).sum() / 2.0 for p in centres]) for row in q]
    cosine = [np.array([unit(row) @ unit(p) / 0.5 for p in centres]) for row in q]
    attention = []
    for row in q:
        a = np.exp([unit(row) @ unit(s) / 0.5 for s in z])
        attention.append(np.log([sum(a[i] for i in range(len(z)) if label[i] == k) / a.sum() for k in range(WAYS)]))
    for name, scores in (("protonet", euclidean), ("protonet cosine", cosine), ("matching", attention)):
        loss, metrics = losses(METHODS[name].objective)(theta, task)
        np.testing.assert_allclose(loss, nats(scores, wanted), rtol=1e-7)
        np.testing.assert_allclose(metrics["accuracy"], np.mean(np.argmax(scores, 1) == wanted))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ("euclidean", "cosine"))
def test_soft_kmeans_is_a_loop_over_examples(metric):
    """Two refinements by the examples without a label; without such examples exactly ProtoNet, gradient too."""
    refined = mj.protonet(embed, classify, WAYS, metric=metric, temperature=0.5, refinements=2).objective
    plain = mj.protonet(embed, classify, WAYS, metric=metric, temperature=0.5).objective
    task, theta = episode(3), {"params": model_params()}
    assert_close(*(side_by_side(objective, theta, task, task, task) for objective in (refined, plain)), 0)
    further = episode(6).query  # as many examples without a label
    support, labels = (
        jax.tree.map(lambda a, b: jnp.asarray(np.concatenate([a, b])), task.support, further),
        np.concatenate([task.support.y.episode, np.full(len(further.x), -1)]),
    )
    support = support._replace(y=support.y._replace(episode=jnp.asarray(labels)))
    z, q = (np.asarray(embed(theta["params"], x)) for x in (support.x, task.query.x))

    def scores(row, centres):
        if metric == "cosine":
            return np.array([unit(row) @ unit(p) / 0.5 for p in centres])
        return np.array([-((row - p) ** 2).sum() / 0.5 for p in centres])

    centres = [z[labels == k].mean(0) for k in range(WAYS)]
    for _ in range(2):
        shares = np.zeros((len(z), WAYS))
        for i, label in enumerate(labels):
            odds = np.exp(scores(z[i], centres))
            shares[i] = odds / odds.sum() if label == -1 else np.arange(WAYS) == label
        centres = [sum(shares[i, k] * z[i] for i in range(len(z))) / shares[:, k].sum() for k in range(WAYS)]
    wanted = nats([scores(row, centres) for row in q], np.asarray(task.query.y.episode))
    few = Episode(support, task.query)
    np.testing.assert_allclose(losses(refined)(theta, few)[0], wanted, rtol=1e-6)
    # they do not count where nothing is refined
    np.testing.assert_allclose(losses(plain)(theta, few)[0], losses(plain)(theta, task)[0], rtol=1e-12)


def test_relation_scores_each_pair_by_its_perceptron():
    task, theta = episode(4), theta_of("relation")
    z, q = (np.asarray(embed(theta["params"], b.x)) for b in task)
    label, first, last = np.asarray(task.support.y.episode), *theta["relation"].values()
    scores = np.zeros((len(q), WAYS))
    for i, k in np.ndindex(scores.shape):
        pair = np.concatenate([q[i], z[label == k].mean(0)])
        scores[i, k] = (np.maximum(pair @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"])[0]
    loss, _ = losses(METHODS["relation"].objective)(theta, task)
    np.testing.assert_allclose(loss, nats(scores, np.asarray(task.query.y.episode)), rtol=1e-10)


@pytest.mark.parametrize(("n", "features", "strength"), [(6, 10, 1.0), (12, 3, 0.3), (9, 20, 0.05)])
def test_linear_heads_are_those_of_scikit_learn(n, features, strength):
    from sklearn.linear_model import LogisticRegression, Ridge

    z, label = np.random.default_rng(n).normal(size=(n, features)), np.arange(n) % WAYS
    y = np.eye(WAYS)[label]
    args = jnp.asarray(z), jnp.asarray(y), jnp.asarray(strength)
    wanted = Ridge(alpha=strength, fit_intercept=False).fit(z, y).coef_.T
    np.testing.assert_allclose(jax.jit(ridge_weights)(*args), wanted, rtol=1e-9, atol=1e-12)
    peer = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(z, label)
    weights = np.asarray(jax.jit(logistic_weights)(*args))
    np.testing.assert_allclose(weights, peer.coef_.T, rtol=0, atol=1e-6)
    # to rounding, where scikit-learn stops earlier: the slope of its objective at our weights
    p = np.exp(z @ weights) / np.exp(z @ weights).sum(1, keepdims=True)
    np.testing.assert_allclose(z.T @ (p - y) + strength * weights, 0, atol=1e-11)


def test_implicit_gradient_of_the_logistic_head():
    """Against differences of scikit-learn's own optimum, in embeddings and strength."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(5)
    z, out = generator.normal(size=(6, 4)), generator.normal(size=(4, WAYS))
    label, direction = np.arange(6) % WAYS, generator.normal(size=(6, 4))

    def peer(t):
        strength = 0.5 + t
        model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-13, max_iter=10_000)
        return (model.fit(z + t * direction, label).coef_.T * out).sum()

    def ours(z, strength):
        return (logistic_weights(z, jax.nn.one_hot(label, WAYS, dtype=z.dtype), strength) * out).sum()

    slopes = jax.jit(jax.grad(ours, (0, 1)))(jnp.asarray(z), jnp.asarray(0.5))
    np.testing.assert_allclose((slopes[0] * direction).sum() + slopes[1], (peer(1e-3) - peer(-1e-3)) / 2e-3, rtol=1e-4)


@pytest.mark.slow
def test_logistic_weights_stay_sane_in_single_precision_where_classes_are_far_apart():
    z, y = 10 * np.random.default_rng(0).normal(size=(25, 48)), np.eye(5)[np.arange(25) % 5]
    wide, narrow = (
        jax.jit(logistic_weights)(*(jnp.asarray(a, dtype) for a in (z, y, 1e-4))) for dtype in (jnp.float64, np.float32)
    )
    assert jnp.abs(narrow).max() < 1.5 * jnp.abs(wide).max()


@pytest.mark.slow
def test_proto_maml_without_steps_is_protonet_and_every_part_adapts():
    task, theta = episode(1), {"params": model_params()}
    protonet = PROTONET
    assert_close(
        gradient(mj.proto_maml(embed, classify, optax.sgd(0.1), 0, WAYS).objective)(theta, task),
        gradient(protonet)(theta, task),
        1e-12,
    )
    learner = METHODS["proto_maml"].learner
    start, _ = adapt(learner, theta, task.support, jax.random.key(0), 0)
    z, label, q, _ = arrays(task)
    logits = q @ start.own["kernel"] + start.own["bias"]
    shifted = [[-((row - z[label == k].mean(0)) ** 2).sum() for k in range(WAYS)] for row in q]
    shift = logits - np.array(shifted)
    np.testing.assert_allclose(shift, shift[:, :1] * np.ones(WAYS), rtol=1e-10)
    phi, _ = adapt(learner, theta, task.support, jax.random.key(0), 2)
    for part in ("dense0", "dense1"):
        assert differs(phi.own["body"][part], theta["params"][part], 1e-4)
    assert differs([phi.own[n] for n in ("kernel", "bias")], [start.own[n] for n in ("kernel", "bias")], 1e-4)


def test_simpleshot_follows_the_mean_and_classifies_by_cl2n():
    task, algorithm = episode(2), METHODS["simpleshot"]
    theta = algorithm.learner.init(model_params(), jax.random.key(0))
    z, label, q, wanted = arrays(task)
    slope = gradient(algorithm.objective)
    joint = mj.joint(wide, classify_corpus).objective
    assert_close(slope(theta, task)["params"], gradient(joint)({"params": theta["params"]}, task)["params"], 1e-12)
    np.testing.assert_allclose(slope(theta, task)["statistics"]["mean"], -q.mean(0), rtol=1e-8)
    theta = theta | {"statistics": {"mean": jnp.asarray(q.mean(0))}}
    moved, moved_q = unit(z - q.mean(0)), unit(q - q.mean(0))
    scores = [[-((row - moved[label == k].mean(0)) ** 2).sum() for k in range(WAYS)] for row in moved_q]
    phi, _ = adapt(algorithm.learner, theta, task.support, jax.random.key(0), 1)
    loss, metrics = classify(algorithm.learner.predict(theta, phi, task.query.x, None), task.query.y)
    np.testing.assert_allclose(loss, nats(scores, wanted), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(np.argmax(scores, 1) == wanted))


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1, weight_decay=0.5), optax.sgd(0.0, momentum=0.9)])
def test_the_mean_of_simpleshot_is_that_of_all_embeddings_seen_whatever_the_outer_optimiser(optimizer):
    """Here of a network that does not move, over fewer outer steps than the average remembers."""
    algorithm = mj.simpleshot(
        lambda p, x, key: x @ np.arange(12.0).reshape(3, 4), classify, WAYS, lambda p, x, key: x, 4
    )
    tasks = [episode(seed) for seed in range(5)]
    state = mj.init_state(algorithm.learner.init({"w": jnp.ones(1)}, jax.random.key(0)), optimizer, 5)
    step = jax.jit(mj.outer_step(algorithm.objective, optimizer))
    for task in tasks:
        state, _ = step(state, jax.tree.map(lambda a: a[None], task), jax.random.key(0))
    seen = np.mean([task.query.x.mean(0) @ np.arange(12.0).reshape(3, 4) for task in tasks], axis=0)
    np.testing.assert_allclose(state.theta["statistics"]["mean"], seen, rtol=1e-6)  # the rate is in single precision


def test_baselinepp_learns_a_fresh_head_on_frozen_embeddings():
    task, theta = episode(0), theta_of("baselinepp")
    learner = METHODS["baselinepp"].learner

    def probe(phi):
        return phi[1].own, classify(learner.predict(theta, phi, task.support.x, None), task.support.y)[0]

    def run(key):
        return adapt(learner, theta, task.support, key, 30, probe)

    run = jax.jit(run)
    (z, _), (heads, curve) = run(jax.random.key(0))
    assert_close(z, embed(theta["params"], task.support.x), 1e-12)
    assert heads[0].shape == (WAYS, FEATURES)
    assert curve[-1] < 0.7 * curve[0]
    assert differs(run(jax.random.key(1))[1][0][0], heads[0], 1e-2)

    def loss(head):
        scores = (z @ head.T) / jnp.linalg.norm(z, axis=1)[:, None] / jnp.linalg.norm(head, axis=1) / 0.5
        return -jax.nn.log_softmax(scores)[jnp.arange(len(z)), task.support.y.episode].mean()

    assert_close(heads[1], heads[0] - 0.5 * jax.jit(jax.grad(loss))(heads[0]), 1e-6)
    # joint training predicts corpus labels
    scores = np.asarray(
        unit(np.asarray(embed(theta["params"], task.query.x))) @ unit(np.asarray(theta["head"])).T / 0.5
    )
    value, _ = losses(METHODS["baselinepp"].objective)(theta, task)
    np.testing.assert_allclose(value, nats(scores, np.asarray(task.query.y.corpus)), rtol=1e-6)


@pytest.mark.parametrize(("name", "part"), [("hypernetwork", "hypernetwork"), ("task_encoder", "context")])
def test_without_its_network_it_is_protonet(name, part):
    task, theta, objective = episode(0), theta_of(name), METHODS[name].objective
    protonet = PROTONET
    wanted = losses(protonet)({"params": theta["params"]}, task)
    silent = theta | {part: jax.tree.map(jnp.zeros_like, theta[part])}
    assert_close(losses(objective)(silent, task), wanted, 1e-12)
    assert differs(losses(objective)(theta, task)[0], wanted[0], 1e-3)
    fresh = METHODS[name].learner.init(theta["params"], jax.random.key(0))
    assert_close(losses(objective)(fresh, task), wanted, 1e-12)


def test_task_encoder_shifts_what_its_context_says():
    task, theta = episode(0), theta_of("task_encoder")
    phi, _ = adapt(METHODS["task_encoder"].learner, theta, task.support, jax.random.key(0), 1)
    norm = {k: v + phi[0] @ theta["context"][f"norm0.{k}"] for k, v in theta["params"]["norm0"].items()}
    assert differs(norm, theta["params"]["norm0"], 1e-3)
    film = theta["context"].keys()
    bias = theta["params"]["dense0"]["bias"] + phi[0] @ theta["context"]["dense0.bias"]
    assert set(film) == {"norm0.scale", "norm0.bias", "dense0.bias"}
    dense = theta["params"]["dense0"] | {"bias": bias}
    moved = theta["params"] | {"norm0": norm, "dense0": dense}
    wanted = losses(PROTONET)({"params": moved}, task)
    assert_close(losses(METHODS["task_encoder"].objective)(theta, task), wanted, 1e-12)


def test_in_context_queries_stand_alone_and_support_has_no_order():
    task, theta, algorithm = episode(0), theta_of("in_context"), METHODS["in_context"]

    @jax.jit
    def each(support, query):
        """The loss of each query by itself, then of all together."""
        phi, _ = adapt(algorithm.learner, theta, support, jax.random.key(0), 1)
        one = jax.tree.map(lambda a: a[:, None], query)

        def loss(batch):
            return classify(algorithm.learner.predict(theta, phi, batch.x, None), batch.y)[0]

        return jax.vmap(loss)(one), loss(query)

    alone, together = each(*task)
    np.testing.assert_allclose(together, alone.mean(), rtol=1e-12)
    order = np.random.default_rng(0).permutation(len(task.support.x))
    shuffled = jax.tree.map(lambda a: a[order], task.support)
    np.testing.assert_allclose(each(shuffled, task.query)[0], alone, rtol=1e-10)
    # but it reads both the labels and the inputs of the support set
    rolled = task.support._replace(x=task.support.x[order])
    assert differs(each(rolled, task.query)[0], alone, 1e-3)


def test_theta_serves_any_number_of_classes():
    """Training episodes may have more classes than those of the test; `in_context` has label embeddings to spare."""
    for make in (mj.in_context, mj.relation, mj.hypernetwork, mj.task_encoder):
        many, few = make(embed, classify, 10, features=FEATURES), make(embed, classify, WAYS, features=FEATURES)
        theta = [jax.eval_shape(algorithm.learner.init, model_params(), jax.random.key(0)) for algorithm in (many, few)]
        assert theta[0] == theta[1]
        assert jax.eval_shape(few.objective, theta[0], episode(0), jax.random.key(0))[0].shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mj.protonet(embed, classify, WAYS, metric="manhattan"),
            "metric is 'manhattan', expected one of euclidean, cosi",
        ),
        (lambda: mj.protonet(embed, classify, WAYS, refinements=-1), "refinements is -1, expected 0 or more"),
        (lambda: mj.in_context(embed, classify, 65, features=4), "num_classes is 65, expected at most max_classes, 64"),
        (
            lambda: mj.in_context(embed, classify, 5, features=4, heads=3),
            "width is 64, expected a multiple of heads, 3",
        ),
    ],
)
def test_bad_options_are_named(unchecked, make, message):
    with pytest.raises(InputError, match=message):
        make()
