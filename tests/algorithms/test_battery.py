"""One battery over one table of all methods, `metajax/methods.py`, and over all parts: a new row is tested there."""

import itertools
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.core import adapt
from metajax.inner import plain
from metajax.losses import classify, entropy, squared_error
from metajax.methods import METHODS, Setting, build, curves, graft, scorer
from metajax.models import mlp
from metajax.models.model import Model
from metajax.names import named
from metajax.tasks.probes import blobs, sinusoids
from tests.algorithms.test_gradient import network, parameters, shaken, task
from tests.conftest import OPTIMIZED

KEY = jax.random.key(0)
WAYS, TASKS, STEPS = 5, 8, 2
CLASSES = 32
GRADIENT = [name for name, method in METHODS.items() if method.kind == "gradient"]
# rates for a perceptron on the probe, where those of the table, for speech, do not suit
RATES = {"cavia": 0.5, "reptile": 0.2, "boil": 0.3, "imaml": 0.3}
SLOWER = {"imaml": 5}  # steps: near the inner optimum; 2 for the others
# with the head fixed, one hidden layer cannot say well which class is which number
LEAST = {"boil": 0.3}
BLOCKS = {"in_context": 3, "logistic": 3}  # of 100 outer steps, which take long; 10 for the others
PARTS = {
    "everything": mj.everything(),
    "only": mj.only("head"),
    "without": mj.without("head"),
    "context": mj.context(3),
    "lora": mj.lora(2),
    "film": mj.film(),
    "lhuc": mj.lhuc(),
    "adapters": mj.adapters(2, "head"),
    "norms_by_step": mj.norms_by_step(STEPS),
    "warped": mj.warped(mj.only("dense0", "norm0.bias")),
}
RULES = {"plain": plain(), "rates": mj.rates(), "rates_by_step": mj.rates_by_step(STEPS), "curvature": mj.curvature()}
# MAML++ keeps copies of the normalisation layers for itself, T-Net warps already
NOT_TOGETHER = {
    *itertools.product(["mamlpp"], ["everything", "without", "norms_by_step", "warped"]),
    ("tnet", "warped"),
}
PAIRS = [
    (name, part)
    for name, part in itertools.product(GRADIENT, PARTS)
    if "part" in METHODS[name].takes and (name, part) not in NOT_TOGETHER
]


def on_probe(name, **options):
    """A method on a small perceptron, and episodes to train and to test it on."""
    method = METHODS[name]
    ways = {"gradient": WAYS, "metric": WAYS, "joint": CLASSES}[method.kind]
    sample = blobs(ways, 1, 1 if method.kind == "joint" else 5, classes=CLASSES)
    test = blobs(WAYS, 1, 5, classes=CLASSES)
    options = {
        "ways": WAYS,
        "train_ways": WAYS,
        "classes": CLASSES,
        "num_steps": SLOWER.get(name, STEPS),
        "rate": RATES.get(name),
    } | options
    x = jax.eval_shape(test, KEY).support.x
    return build(method, lambda outputs: mlp(outputs, hidden=(32,)), x, **options), sample, test


def theta_of(built, test, dtype=jnp.float32):
    def init():
        params = built.model.init(jax.random.key(1), test(KEY).support.x)
        return built.algorithm.learner.init(jax.tree.map(lambda a: a.astype(dtype), params), jax.random.key(2))

    return jax.jit(init)()


def narrowed(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def keeps_the_contract(algorithm, learner, theta, episode, outputs, training=None):
    """Shapes alone: `predict` gives outputs before and after a step, gradients are as theta is. `adapt` tells by itself
    where a step changes the structure of phi."""

    def everything(theta):
        _, trace = adapt(
            learner, theta, episode.support, KEY, 1, lambda phi: learner.predict(theta, phi, episode.query.x, None)
        )
        slope = jax.value_and_grad(lambda t: algorithm.objective(t, training or episode, KEY), has_aux=True)
        return trace, *slope(theta)

    trace, (loss, metrics), grads = jax.eval_shape(everything, theta)
    assert (trace.shape, trace.dtype) == ((2, *outputs[0]), outputs[1])
    assert loss.shape == () and "loss" in metrics and all(a.shape == () for a in metrics.values())
    assert jax.tree.structure(grads) == jax.tree.structure(theta)
    assert [g.dtype for g in jax.tree.leaves(grads)] == [t.dtype for t in jax.tree.leaves(theta)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name):
    built, sample, test = on_probe(name)
    for dtype in (jnp.float32, jnp.bfloat16)[: 1 + (name not in GRADIENT)]:  # those: below, with a part
        theta = jax.eval_shape(lambda: theta_of(built, test, dtype))  # noqa: B023
        assert isinstance(theta, dict) and "params" in theta  # and the network's parameters by layer
        assert "dense0" in theta["params"] and theta["params"]["dense0"].keys() == {"kernel", "bias"}
        assert all(a.dtype == dtype for a in jax.tree.leaves(theta))
        episode, training = (narrowed(sampler(KEY), dtype) for sampler in (test, sample))
        outputs = (WAYS * 5, CLASSES if name == "joint" else WAYS), dtype
        keeps_the_contract(built.algorithm, built.tested, theta, episode, outputs, training)


def made(name, part=None, rule=None, inner=None, **how):
    """A gradient-based method on a smooth network of single steps, and its theta, nothing of it still at its start."""
    takes = METHODS[name].takes
    how |= {} if part is None else {"part": part}
    how |= {"rule": rule} if rule is not None and "rule" in takes else {}
    inner = optax.sgd(0.2, momentum=0.9) if inner is None else inner
    setting = Setting(network, network, squared_error, inner, STEPS, 2, 2, 2, ("*norm*",), how)
    if name != "proto_maml":
        return METHODS[name].make(setting), task()
    # two classes of the same inputs
    labels = (jnp.arange(n) % 2 for n in (4, 6))
    episode = mj.Episode(*(batch._replace(y=y) for batch, y in zip(task(), labels, strict=True)))
    return METHODS[name].make(setting._replace(error=classify)), episode


def goes_with(name, parts):
    """Shapes; in bfloat16 with one of them."""
    assert parts
    for part in parts:
        for dtype in (jnp.float32, jnp.bfloat16)[: 1 + (part in ("lora", None))]:
            algorithm, episode = made(name, PARTS.get(part))
            theta = jax.eval_shape(algorithm.learner.init, narrowed(parameters(), dtype), KEY)
            assert all(a.dtype == dtype for a in jax.tree.leaves(theta)), part
            keeps_the_contract(algorithm, algorithm.learner, theta, narrowed(episode, dtype), ((6, 2), dtype))


EVERYDAY = ("lora", "warped")  # factors of some leaves, and all that there is; others are in the slow test below


@pytest.mark.parametrize(
    "name", [name if name == "maml" else pytest.param(name, marks=pytest.mark.slow) for name in GRADIENT]
)
def test_a_method_goes_with_every_part(name):
    parts = [part for other, part in PAIRS if other == name]
    goes_with(name, [part for part in parts if name == "maml" or part in EVERYDAY] or [None])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _ in PAIRS} - {"maml"}))
def test_a_method_goes_with_the_other_parts_too(name):
    goes_with(name, [part for other, part in PAIRS if other == name and part not in EVERYDAY])


@pytest.mark.parametrize("part", ["everything", "without", "norms_by_step"])
def test_parts_that_change_what_mamlpp_keeps_for_every_step_are_refused(part):
    algorithm, _ = made("mamlpp", PARTS[part])
    with pytest.raises(mj.InputError, match=r"part lets a task change norm0\.|Two parts or rules add 'norms' to theta"):
        algorithm.learner.init(parameters(), KEY)


def slopes(algorithm, episode):
    """The derivative of the objective along a random direction, by its gradient and by a difference."""
    value_and_grad = jax.jit(jax.value_and_grad(lambda theta: algorithm.objective(theta, episode, KEY)[0]))
    theta = jax.tree.map(np.asarray, shaken(algorithm.learner.init(parameters(), KEY)))
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {np.dtype("float64")}
    draw = np.random.default_rng(3).normal
    direction = jax.tree.map(lambda a: draw(size=a.shape), theta)
    grads = jax.tree.map(np.asarray, value_and_grad(theta)[1])
    # all of theta is learned, but for the normalisation layers that have a copy for every step in their place
    assert all(
        np.isfinite(leaf).all() and ((leaf != 0).any() or ("norms" in theta and name.startswith("params.norm0")))
        for name, leaf in named(grads).items()
    )
    up, down = (
        value_and_grad(jax.tree.map(lambda a, d: a + s * d, theta, direction))[0]  # noqa: B023
        for s in (1e-5, -1e-5)
    )
    along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True))
    return along, float(up - down) / 2e-5


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("maml", "meta_sgd") else pytest.param(name, marks=pytest.mark.slow)
        for name in GRADIENT
        if name not in ("fomaml", "reptile", "imaml")
    ],
)
def test_the_meta_gradient_of_a_method_is_its_finite_difference(x64, name):
    """The others are no derivatives of a value: each has an oracle of its own."""
    np.testing.assert_allclose(*slopes(*made(name)), rtol=1e-6, atol=1e-9)


# every rule and every kind of part once; the slow test takes all pairs
CHECKED = {"everything": "rates_by_step", "context": "rates", "lora": "curvature", "norms_by_step": "plain"}


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.slow if part in ("lora", "context") else ()) for part in CHECKED]
)
def test_the_meta_gradient_of_a_part_under_a_rule_is_its_finite_difference(x64, part):
    np.testing.assert_allclose(*slopes(*made("maml", PARTS[part], RULES[CHECKED[part]])), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_meta_gradient_of_every_part_under_every_rule_is_its_finite_difference(x64, part):
    for name in RULES.keys() - {CHECKED.get(part)}:
        np.testing.assert_allclose(*slopes(*made("maml", PARTS[part], RULES[name])), rtol=1e-6, atol=1e-9)


def test_an_unlabelled_support_set_trains_through_an_error_without_labels(x64):
    """The entropy of what a task predicts moves its low-rank matrices, and labels on the query alone train them."""
    algorithm, episode = made("proto_maml")  # for the episode
    algorithm = mj.maml(
        network, classify, optax.sgd(0.2), STEPS, support_error=entropy, part=mj.lora(2), rule=mj.rates()
    )
    np.testing.assert_allclose(
        *slopes(algorithm, episode._replace(support=episode.support._replace(y=()))), rtol=1e-6, atol=1e-9
    )


@pytest.mark.slow
def test_scores_are_those_of_evaluate_and_a_graft_has_a_head_of_zeros():
    built, _, test = on_probe("maml")
    theta = theta_of(built, test)
    learner = lambda rate: mj.descent(built.model.apply, classify, optax.sgd(rate))  # noqa: E731
    score = scorer(curves(learner, 1), test, 3, seed=7)
    found = jax.jit(lambda t: mj.evaluate(learner(0.3), classify, t, test, jax.random.key(7), 3, 1)["accuracy"])(theta)
    np.testing.assert_allclose(score(theta, 0.3), found, rtol=1e-6)
    assert score(theta, 0.0).shape == (3, 2) and (score(theta, 0.0)[:, 0] == score(theta, 0.0)[:, 1]).all()
    grafted = graft(theta, theta["params"])["params"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(grafted["head"]))
    assert grafted["dense0"] is theta["params"]["dense0"]
    assert (score({"params": grafted})[:, 0] == 1 / WAYS).all()  # all classes alike: the first is right


def test_a_part_and_a_rule_that_add_the_same_name_are_refused():
    """As a part that holds rates of its own would."""
    part = mj.everything()._replace(init=lambda params, key: {"rates": params})
    with pytest.raises(mj.InputError, match="Two parts or rules add 'rates' to theta"):
        made("maml", part, mj.rates())[0].learner.init(parameters(), KEY)


def test_theta_of_another_part_or_method_is_refused():
    theta = made("maml", mj.only("head"), mj.rates())[0].learner.init(parameters(), KEY)
    for part, rule, told in (
        (mj.without("head"), mj.rates(), r"theta\['rates'\] was made for other parameters than those that adapt"),
        (mj.lora(2), None, "theta holds params, rates but no 'lora': it is not what this learner.s init gives"),
        (mj.only("head"), mj.curvature(), "theta holds params, rates but no 'curvature'"),
    ):
        learner = made("maml", part, rule)[0].learner
        with pytest.raises(mj.InputError, match=told):
            adapt(learner, theta, task().support, KEY, 1)


def test_a_choice_that_a_method_does_not_leave_is_refused():
    for name, options, told in (
        ("anil", {"part": mj.lora(2)}, "part is given, but anil leaves no choice of it; it takes: rule, support_error"),
        ("meta_sgd", {"rule": mj.curvature()}, "rule is given, but meta_sgd leaves no choice of it; it takes: part"),
        ("protonet", {"support_error": entropy}, "support_error is given, but protonet leaves no choice of it"),
    ):
        with pytest.raises(mj.InputError, match=told):
            on_probe(name, **options)


@pytest.mark.slow
def test_normalisation_by_the_support_set_reaches_what_the_model_sees():
    """The statistics are those of the warped network, and the objective takes them; others are refused."""

    def network_of(outputs):
        model = mlp(outputs, hidden=(4,))

        def statistics(params, x):
            return {"dense0.mean": (x @ params["dense0"]["kernel"]).mean(0)}

        def apply(params, x, key=None):
            hidden = x @ params["dense0"]["kernel"]
            hidden = jnp.tanh(hidden - params["dense0"].get("mean", hidden.mean(0)))
            return hidden if outputs is None else hidden @ params["head"]["kernel"] + params["head"]["bias"]

        return Model(model.init, apply, statistics)

    sample = blobs(2, 2, 1, classes=4, signal=2, nuisance=1)
    episode = jax.jit(sample)(KEY)
    options = {"ways": 2, "train_ways": 2, "classes": 4, "num_steps": 1, "rate": 0.1}
    for name in ("tnet", "protonet"):
        built = build(METHODS[name], network_of, episode.support.x, **options)

        @jax.jit
        def results(theta):
            phi, _ = adapt(built.tested, theta, episode.support, KEY, 1)  # noqa: B023
            outputs, alone = (built.tested.predict(theta, phi, x, None) for x in (episode.query.x, episode.query.x[:1]))  # noqa: B023
            value = built.algorithm.objective(theta, episode, KEY)[0]  # noqa: B023
            return phi.statistics, outputs, alone, value, classify(outputs, episode.query.y)[0]

        theta = shaken(theta_of(built, lambda _: episode))
        statistics, outputs, alone, value, wanted = results(theta)
        support, kernel = np.asarray(episode.support.x), np.asarray(theta["params"]["dense0"]["kernel"])
        seen = kernel @ theta["warp"]["dense0.kernel"] if name == "tnet" else kernel
        np.testing.assert_allclose(statistics["dense0.mean"], (support @ seen).mean(0), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(outputs)[:1], alone, rtol=1e-5)  # a query stands alone
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for name in ("reptile", "imaml", "mamlpp", "simpleshot", "baselinepp"):
        with pytest.raises(mj.InputError, match=f"normalization is 'support', but {name} has no part in it"):
            build(METHODS[name], network_of, episode.support.x, **options)


KINDS = ("maml",)


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_an_outer_step_lowers_for_every_platform(name):
    """What cannot be run here can be lowered here: it finds code that only a CPU can run."""
    built, sample, test = on_probe(name)
    optimizer = optax.adam(1e-3)
    step = mj.meta_step(built.phases[-1][1], optimizer, sample, 2)
    state = jax.eval_shape(lambda: mj.init_state(theta_of(built, test), optimizer, 10))
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(state, jax.eval_shape(lambda: KEY))
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_what_tasks_share(name):
    built, sample, test = on_probe(name)
    optimizer = optax.adam(3e-3)
    step = mj.meta_step(built.algorithm.objective, optimizer, sample, TASKS)
    state = mj.init_state(theta_of(built, test), optimizer, 1000)

    @partial(jax.jit, compiler_options=OPTIMIZED if name == "in_context" else None)
    def block(state, key):
        return jax.lax.scan(step, state, jax.random.split(key, 100))

    @jax.jit
    def accuracy(theta, key):
        steps = built.num_steps
        metrics = mj.evaluate(built.tested, built.error, theta, test, key, 200, steps, chunk=200)
        return metrics["accuracy"][:, -1].mean()

    before = accuracy(state.theta, jax.random.key(5))
    for i in range(BLOCKS.get(name, 10)):
        state, metrics = block(state, jax.random.key(i))
        assert jnp.isfinite(metrics["loss"]).all(), i
        if name == "joint":  # no adaptation: its corpus labels are learned, episode labels cannot be
            found, least = metrics["accuracy"].mean(), 3 / CLASSES
        else:
            found, least = accuracy(state.theta, jax.random.key(5)), max(before + 0.08, LEAST.get(name, 0.4))
        if i and found > least:  # far above what chance would give
            break
    assert block._cache_size() == 1  # the same program for any data
    assert found > least, (before, found)


def trained(step, state, key, steps, enough):
    """After as many blocks of 100 steps as it takes until `enough(state, metrics)`, at most `steps`; whether it was."""
    run = jax.jit(lambda s, key: jax.lax.scan(step, s, jax.random.split(key, 100)))
    for one in jax.random.split(key, steps // 100):
        state, metrics = run(state, one)
        assert jnp.isfinite(metrics["loss"]).all()
        if enough(state, metrics):
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "rate"), [(mj.context(16), 0.5), (mj.lora(4), 0.3), (mj.film(), 5.0)], ids=["context", "lora", "film"]
)
def test_maml_learns_what_tasks_share_with_every_part(part, rate):
    """`without` is BOIL, above; vectors alone want a larger rate than kernels."""
    built, sample, test = on_probe("maml", part=part, rate=rate)
    optimizer = optax.adam(3e-3)
    step = mj.meta_step(built.algorithm.objective, optimizer, sample, TASKS)
    state = mj.init_state(theta_of(built, test), optimizer, 1000)
    found = []

    def enough(_, metrics):
        found.append(metrics["accuracy"].mean())
        return found[-1] > found[0] + 0.08

    assert trained(step, state, KEY, 1000, enough), found


@pytest.mark.slow
def test_joint_training_on_labels_that_change_stays_at_chance():
    built, _, test = on_probe("maml")
    algorithm = mj.joint(built.model.apply, classify)
    optimizer = optax.adam(3e-3)
    step = mj.meta_step(algorithm.objective, optimizer, blobs(WAYS, 1, 5), TASKS)
    state = mj.init_state(theta_of(built, test), optimizer, 500)
    found = []
    trained(step, state, KEY, 500, lambda _, metrics: found.append(metrics["accuracy"].mean()))
    assert abs(found[-1] - 1 / WAYS) < 0.03


# proto_maml classifies; imaml's few steps do not reach the optimum of so ill-conditioned an inner problem
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GRADIENT if name not in ("proto_maml", "imaml")])
def test_a_gradient_method_learns_sinusoids(name):
    model, sample = mlp(1), sinusoids(10, 10)
    setting = Setting(model.apply, model.apply, squared_error, optax.sgd(0.01), 3, 1, 1, 40)
    algorithm = METHODS[name].make(setting)
    theta = algorithm.learner.init(model.init(KEY, jnp.zeros((1, 1))), KEY)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(2e-3))
    state = mj.init_state(theta, optimizer, 1000)
    step = mj.meta_step(algorithm.objective, optimizer, sample, 10)

    @jax.jit
    def curve(theta):
        key = jax.random.key(2)
        return mj.evaluate(algorithm.learner, squared_error, theta, sample, key, 300, 3, chunk=300)["loss"].mean(0)

    def enough(state, _):
        found = curve(state.theta)
        return found[-1] < 0.7 * found[0] and found[-1] < 2.5

    assert trained(step, state, jax.random.key(1), 1000, enough), curve(state.theta)
