"""The gradient-based methods against closed forms, finite differences, plain loops and each other, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import (
    Batch,
    Episode,
    InputError,
    Rule,
    adapt,
    anil,
    boil,
    cavia,
    closed_form,
    descent,
    fomaml,
    imaml,
    maml,
    mamlpp,
    meta_curvature,
    meta_sgd,
    multi_step_loss,
    multi_step_phases,
    multi_step_weights,
    only,
    rates,
    reptile,
    tnet,
)
from metajax.losses import squared_error
from metajax.models.pretrained.layers import linear
from metajax.names import named
from tests.conftest import as_it_is, assert_close, differs

KEY = jax.random.key(0)
RATE = 0.3
STEPS = 3


def network(params, x, key=None):
    """A smooth network with the names of real ones, whose linear layers read adapters."""
    hidden = linear(params["dense0"], x)
    return linear(params["head"], jnp.tanh(hidden * params["norm0"]["scale"] + params["norm0"]["bias"]))


def loss(params, batch):
    return squared_error(network(params, batch.x), batch.y)[0]


def parameters(seed=0):
    draw = np.random.default_rng(seed).normal
    shapes = {
        "dense0": {"kernel": (3, 5)},
        "norm0": {"scale": (5,), "bias": (5,)},
        "head": {"kernel": (5, 2), "bias": (2,)},
    }
    params = jax.tree.map(lambda s: jnp.asarray(0.5 * draw(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))
    params["norm0"]["scale"] = jnp.asarray(1 + np.asarray(params["norm0"]["scale"]))
    return params


def task(seed=1):
    draw = np.random.default_rng(seed).normal
    return Episode(*(Batch(jnp.asarray(draw(size=(n, 3))), jnp.asarray(draw(size=(n, 2)))) for n in (4, 6)))


def shaken(theta, seed=2):
    """theta a little off, so that nothing is still an identity or a one."""
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 0.1 * draw(size=a.shape)), theta)


def made(factory, params=None, inner=None, num_steps=STEPS, **options):
    """A method and its theta."""
    algorithm = factory(network, squared_error, optax.sgd(RATE) if inner is None else inner, num_steps, **options)
    return algorithm, algorithm.learner.init(parameters() if params is None else params, KEY)


def value_and_grad(algorithm, theta, episode=None):
    return jax.jit(gradient(algorithm))(theta, task() if episode is None else episode)


def gradient(algorithm):
    return jax.value_and_grad(lambda theta, episode: algorithm.objective(theta, episode, KEY)[0])


def slope(params, batch):
    return jax.grad(loss)(params, batch)


def descend(params, grads, rate=RATE):
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def anil_loop(theta, support):
    theta = params = theta["params"]
    for _ in range(STEPS):
        params = theta | {"head": descend(params, slope(params, support))["head"]}
    return params


def boil_loop(theta, support):
    theta = params = theta["params"]
    for _ in range(STEPS):
        params = descend(params, slope(params, support)) | {"head": theta["head"]}
    return params


def meta_sgd_loop(theta, support):
    params = theta["params"]
    for _ in range(STEPS):
        params = jax.tree.map(lambda p, s, g: p - RATE * s * g, params, theta["rates"], slope(params, support))
    return params


def tnet_loop(theta, support):
    def warped(params):
        return {
            name: layer | {"kernel": layer["kernel"] @ theta["warp"][f"{name}.kernel"]} if "kernel" in layer else layer
            for name, layer in params.items()
        }

    params = theta["params"]
    for _ in range(STEPS):
        grads = jax.grad(lambda params: loss(warped(params), support))(params)
        params = descend(params, grads)
    return warped(params)


def cavia_loop(theta, support):
    def modulated(context):
        params = {name: dict(layer) for name, layer in theta["params"].items()}
        for name, matrix in theta["context"].items():
            layer, leaf = name.split(".")
            params[layer][leaf] = params[layer][leaf] + matrix.T @ context
        return params

    assert set(theta["context"]) == {"norm0.scale", "norm0.bias", "head.bias"}
    context = jnp.zeros(32)
    for _ in range(STEPS):
        context = context - RATE * jax.grad(lambda context: loss(modulated(context), support))(context)
    return modulated(context)


def mamlpp_loop(theta, support):
    assert set(theta["rates"]) == {"dense0.kernel", "head.kernel", "head.bias"}
    assert set(theta["norms"]) == {"norm0.scale", "norm0.bias"}
    params = theta["params"]
    for step in range(STEPS + 1):
        norms = {name.split(".")[1]: a[step] for name, a in theta["norms"].items()}
        params = params | {"norm0": norms}
        if step == STEPS:
            return params
        grads = slope(params, support)
        params = params | {
            layer: {
                name: w - RATE * theta["rates"][f"{layer}.{name}"][step] * grads[layer][name]
                for name, w in params[layer].items()
            }
            for layer in ("dense0", "head")
        }
    raise AssertionError


LOOPS = {
    anil: anil_loop,
    boil: boil_loop,
    meta_sgd: meta_sgd_loop,
    tnet: tnet_loop,
    cavia: cavia_loop,
    mamlpp: mamlpp_loop,
}


@pytest.mark.parametrize("factory", LOOPS)
def test_the_method_is_its_plain_loop(x64, factory):
    algorithm, theta = made(factory, **({"weights": (0.0, 0.0, 1.0)} if factory is mamlpp else {}))
    theta, episode = shaken(theta), task()
    value, _ = jax.jit(algorithm.objective)(theta, episode, KEY)
    wanted = jax.jit(lambda theta: loss(LOOPS[factory](theta, episode.support), episode.query))(theta)
    assert_close(value, wanted, 1e-12)
    plain = jax.jit(made(maml)[0].objective)({"params": parameters()}, episode, KEY)[0]
    assert differs(value, plain, 1e-4)


def test_meta_curvature_is_a_kronecker_product(x64):
    """On a linear loss the gradient is constant: one step is M_taps (x) M_in (x) M_out times it."""
    draw = np.random.default_rng(4).normal
    shapes = {"kernel": (2, 3, 4, 5), "dense": (4, 5), "bias": (5,), "gain": ()}
    gradient, params = ({name: jnp.asarray(draw(size=shape)) for name, shape in shapes.items()} for _ in range(2))

    def linear(params, x, key):
        return sum((params[name] * gradient[name]).sum() for name in shapes)

    learner = meta_curvature(linear, as_it_is, optax.sgd(RATE), 1).learner
    theta = shaken(learner.init(params, KEY))
    sizes = {name: {axis: len(m) for axis, m in matrices.items()} for name, matrices in theta["curvature"].items()}
    assert sizes == {
        "kernel": {"taps": 6, "in": 4, "out": 5},
        "dense": {"in": 4, "out": 5},
        "bias": {"out": 5},
        "gain": {"out": 1},
    }
    phi, _ = adapt(learner, theta, task().support, KEY, 1)
    for name, matrices in theta["curvature"].items():
        product = np.eye(1)
        for axis in ("taps", "in", "out"):
            product = np.kron(product, matrices.get(axis, np.eye(1)))
        wanted = theta["params"][name] - RATE * (product @ gradient[name].reshape(-1)).reshape(shapes[name])
        np.testing.assert_allclose(phi.own[name], wanted, rtol=1e-12)


def test_neutral_extra_parameters_give_maml(x64):
    """Meta-SGD with constant rates, identity Meta-Curvature and T-Net, MAML++ with equal rates and the last loss."""
    value, grads = value_and_grad(*made(maml))
    wanted = value, grads["params"]
    sgd, start = made(meta_sgd, inner=optax.sgd(2 * RATE))
    constant = start | {"rates": jax.tree.map(lambda a: 0.5 * a, start["rates"])}
    plusplus, start = made(mamlpp, inner=optax.sgd(2 * RATE), weights=(0.0, 0.0, 1.0), norms=())
    rates = jax.tree.map(lambda a: 0.5 * a, start["rates"])
    assert "norms" not in start
    for algorithm, theta in (
        (sgd, constant),
        made(meta_curvature),
        made(tnet),
        (plusplus, start | {"rates": rates}),
    ):
        value, grads = value_and_grad(algorithm, theta)
        assert_close((value, grads["params"]), wanted, 1e-12)


def test_mamlpp_is_the_weighted_sum_of_maml_after_every_step(x64):
    weights = (0.1, 0.4, 0.3, 0.2)
    value, grads = value_and_grad(*made(mamlpp, weights=weights, norms=()))
    terms = [value_and_grad(*made(maml, num_steps=steps)) for steps in range(STEPS + 1)]
    wanted = jax.tree.map(lambda *a: sum(w * b for w, b in zip(weights, a, strict=True)), *terms)
    assert_close((value, {"params": grads["params"]}), wanted, 1e-12)
    # without a weight for step 0 the weights are those of steps 1..K, and the metrics those of the last
    algorithm, theta = made(mamlpp, norms=())
    value, metrics = jax.jit(algorithm.objective)(theta, task(), KEY)
    assert_close(value, sum(term[0] for term in terms[1:]) / STEPS, 1e-12)
    assert_close(metrics["loss"], terms[-1][0], 1e-12)


def test_the_multi_step_loss_is_for_any_learner(x64):
    """Here one whose phi is 0 before its step and the support's mean after it."""
    learner = closed_form(
        lambda theta, support, key: support.y.mean(0), lambda theta, phi, x, key: phi - theta["params"]
    )

    def error(outputs, y):
        return ((outputs - y) ** 2).mean(), {"loss": outputs.sum()}

    theta, episode = {"params": jnp.asarray(0.3)}, task()
    value, metrics = multi_step_loss(learner, error, 1, (0.25, 0.75))(theta, episode, KEY)
    mean = episode.support.y.mean(0)
    wanted = [((phi - 0.3 - episode.query.y) ** 2).mean() for phi in (0 * mean, mean)]
    np.testing.assert_allclose(value, 0.25 * wanted[0] + 0.75 * wanted[1], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], (mean - 0.3).sum(), rtol=1e-12)


@pytest.mark.slow
def test_mamlpp_anneals_by_phases(x64):
    np.testing.assert_allclose(multi_step_weights(0.0, 4), [0.25] * 4)
    np.testing.assert_allclose(multi_step_weights(0.5, 4), [0.125, 0.125, 0.125, 0.625])
    assert multi_step_weights(1.0, 4) == (0, 0, 0, 1)
    phases = multi_step_phases(partial(mamlpp, network, squared_error, optax.sgd(RATE), STEPS), STEPS)
    assert sum(share for share, _ in phases) == 1
    algorithm, theta = made(mamlpp)
    value, grads = value_and_grad(algorithm, theta)
    first_value, first_grads = value_and_grad(algorithm._replace(objective=phases[0][1]), theta)
    assert_close(first_value, value, 1e-12)
    assert differs(first_grads, grads, 1e-3)
    last, _ = made(mamlpp, weights=(0.0, 0.0, 1.0))
    assert_close(*(jax.jit(f)(theta, task(), KEY) for f in (phases[-1][1], last.objective)), 0)


@pytest.mark.parametrize(
    ("factory", "inner"),
    [
        (maml, optax.sgd(RATE)),
        pytest.param(maml, optax.sgd(0.1, momentum=0.9), marks=pytest.mark.slow),
        pytest.param(maml, optax.adam(0.05, eps_root=1e-8), marks=pytest.mark.slow),
        pytest.param(tnet, optax.sgd(RATE), marks=pytest.mark.slow),
        (cavia, optax.sgd(RATE)),
    ],
    ids=["sgd", "momentum", "adam", "tnet", "cavia"],
)
def test_mixed_mode_is_reverse_mode(x64, factory, inner):
    results = []
    for mode in ("reverse", "mixed"):
        algorithm, theta = made(factory, inner=inner, mode=mode)
        results.append(value_and_grad(algorithm, shaken(theta)))
    assert_close(*results, 1e-10)


@pytest.mark.slow
def test_rematerialisation_changes_nothing(x64):
    """Five steps: two segments of two, and one; each with a key of its own, the losses of all carried along."""

    def noisy(params, x, key):
        return network(params, x + jnp.sin(jax.random.key_data(key).astype(x.dtype)).sum())

    none, step, sqrt = (
        value_and_grad(algorithm, algorithm.learner.init(parameters(), KEY))
        for algorithm in (
            mamlpp(noisy, squared_error, optax.sgd(RATE), 5, remat=remat) for remat in ("none", "step", "sqrt")
        )
    )
    assert_close(step, none, 1e-12)
    assert_close(sqrt, none, 1e-12)


def test_what_adapts_and_what_does_not(x64):
    for factory, head, wanted in (
        (anil, "head", {"head.kernel", "head.bias"}),
        (anil, ("norm0", "*.kernel"), {"norm0.scale", "norm0.bias", "dense0.kernel", "head.kernel"}),
        (boil, "head", {"dense0.kernel", "norm0.scale", "norm0.bias"}),
        (boil, ("dense0", "head"), {"norm0.scale", "norm0.bias"}),
    ):
        algorithm, theta = made(factory, head=head)
        phi, _ = adapt(algorithm.learner, theta, task().support, KEY, 2)
        assert set(phi.own) == wanted
        params = named(theta["params"])
        assert all(differs(phi.own[name], params[name], 1e-3) for name in wanted)


@jax.custom_vjp
def doubled(x):
    """A linear function whose derivative is itself, as that of a convolution may be."""
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, cotangent: (doubled(cotangent),))


@pytest.mark.slow
def test_a_loss_with_a_custom_vjp_needs_reverse_mode(x64):
    def custom(params, x, key):
        return network(params | {"head": jax.tree.map(doubled, params["head"])}, x)

    def plain(params, x, key):
        return network(params | {"head": jax.tree.map(lambda a: 2 * a, params["head"])}, x)

    theta = {"params": parameters()}
    with pytest.raises(InputError, match=r'custom_vjp.*mode="reverse"'):
        value_and_grad(maml(custom, squared_error, optax.sgd(RATE), STEPS, mode="mixed"), theta)
    for factory in (maml, imaml):
        made = (factory(apply, squared_error, optax.sgd(RATE), 1) for apply in (custom, plain))
        results = [value_and_grad(algorithm, theta) for algorithm in made]
        assert_close(*results, 1e-10)


def test_adam_without_eps_root_is_refused_only_where_it_is_differentiated(x64):
    adam = optax.adam(0.05)
    algorithm, theta = made(maml, inner=adam)
    with pytest.raises(InputError, match="eps_root"):
        value_and_grad(algorithm, theta)
    with pytest.raises(InputError, match="eps_root"):
        value_and_grad(*made(mamlpp, inner=adam))
    phi, _ = jax.jit(lambda theta: adapt(algorithm.learner, theta, task().support, KEY, 2))(theta)
    assert differs(phi.own, theta["params"], 1e-2)
    for factory in (fomaml, reptile, imaml):
        _, grads = value_and_grad(*made(factory, inner=adam))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("inner", [optax.adamw(0.05, weight_decay=0.3), optax.sgd(RATE), optax.lion(0.05)])
def test_the_gradient_of_fomaml_is_that_of_the_query_at_phi_whatever_the_inner_optimiser(x64, inner):
    """The decay of AdamW and Lion counts as a constant too, and so does the pull of `proximal`."""
    for options in ({}, {"proximal": 0.5}):
        algorithm, theta = made(fomaml, inner=inner, **options)
        phi, _ = jax.jit(lambda theta, a=algorithm: adapt(a.learner, theta, task().support, KEY, STEPS))(theta)
        assert_close(value_and_grad(algorithm, theta)[1]["params"], jax.jit(slope)(phi.own, task().query), 1e-12)


@pytest.mark.parametrize(
    ("norm", "finite"),
    [
        (optax.clip_by_global_norm(1.0), True),
        (optax.clip_by_block_rms(1.0), False),
        (optax.adaptive_grad_clip(0.1), False),
        (optax.scale_by_trust_ratio(), False),
        (optax.scale_by_novograd(), False),
        (optax.clip(0.1), True),
        (optax.centralize(), True),
    ],
    ids=["global norm", "block rms", "adaptive", "lars", "novograd", "clip", "centralize"],
)
def test_inner_optimisers_that_divide_by_a_norm_are_refused_or_finite_with_a_dead_layer(norm, finite):
    """Their slope where a layer's whole gradient is zero, as with dead units, is 0 / 0."""

    def relus(params, x, key=None):
        hidden = jax.nn.relu(x @ params["dense0"]["kernel"] + params["dense0"]["bias"])
        return jax.nn.relu(hidden @ params["dense1"]["kernel"] - 50) @ params["head"]["kernel"] + params["head"]["bias"]

    draw = np.random.default_rng(0).normal
    shapes = {"dense0": {"kernel": (3, 4), "bias": (4,)}, "dense1": {"kernel": (4, 4)}, "head": {"bias": (2,)}}
    shapes["head"]["kernel"] = (4, 2)
    params = jax.tree.map(lambda s: jnp.float32(draw(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))
    episode = jax.tree.map(jnp.float32, task())
    algorithm = maml(relus, squared_error, optax.chain(norm, optax.sgd(0.1)), 1)
    if finite:
        _, grads = value_and_grad(algorithm, {"params": params}, episode)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    else:
        with pytest.raises(InputError, match=r"no finite derivative where a gradient is zero, .* of a whole layer"):
            value_and_grad(algorithm, {"params": params}, episode)


def test_an_optimiser_of_theta_is_learned_with_it(x64):
    """A momentum in theta: its slope is the finite difference over methods of fixed momentum."""
    rule = Rule(lambda own: {"momentum": jnp.float64(0.3)}, lambda theta, updates, count: updates)
    learned = maml(network, squared_error, lambda theta: optax.sgd(RATE, theta["momentum"]), STEPS, rule=rule)
    theta = learned.learner.init(parameters(), KEY)
    value, grads = value_and_grad(learned, theta)

    def fixed(momentum):
        algorithm = maml(network, squared_error, optax.sgd(RATE, momentum), STEPS)
        return algorithm.objective({"params": theta["params"]}, task(), KEY)[0]

    np.testing.assert_allclose(value, fixed(0.3), rtol=1e-12)
    np.testing.assert_allclose(grads["momentum"], (fixed(0.3 + 1e-5) - fixed(0.3 - 1e-5)) / 2e-5, rtol=1e-6)


def test_a_part_or_a_rule_that_was_not_called(unchecked):
    with pytest.raises(InputError, match=r"part is only, expected a Part"):
        descent(network, squared_error, optax.sgd(RATE), part=only)
    with pytest.raises(InputError, match=r"rule is rates, expected a Rule"):
        descent(network, squared_error, optax.sgd(RATE), rule=rates)


@pytest.mark.parametrize(("factory", "given"), [(anil, {"part": only("body")}), (meta_sgd, {"rule": rates()})])
def test_what_a_method_chooses_itself_is_not_given(factory, given):
    told = rf"{next(iter(given))} is given, but {factory.__name__} has one of its own: give another to maml\."
    with pytest.raises(InputError, match=told):
        factory(network, squared_error, optax.sgd(RATE), 1, **given)


def test_bad_input(x64):
    support = task().support
    for factory in (anil, boil):
        with pytest.raises(InputError, match=r"'output'.*dense0\.kernel, head\.bias"):
            made(factory, head=("head", "output"))
    with pytest.raises(InputError, match=r"gain.*dense0\.kernel"):
        made(cavia, patterns=("gain",))
    algorithm, theta = made(mamlpp)
    with pytest.raises(InputError, match=r"num_steps is 4.*3 steps"):
        adapt(algorithm.learner, theta, support, KEY, STEPS + 1)
    with pytest.raises(InputError, match=r"num_steps is 0"):
        made(mamlpp, num_steps=0)
    with pytest.raises(InputError, match=r"weights has 5 entries.*3.*4"):
        made(mamlpp, weights=[0.2] * 5)
    with pytest.raises(InputError, match=r"progress is 1.5"):
        multi_step_weights(1.5, 3)
    learner = closed_form(lambda *_: jnp.zeros(3), lambda theta, phi, x, key: phi)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        multi_step_loss(learner, lambda outputs, y: (outputs, {}), 1, (0.5, 0.5))(theta, task(), KEY)
    odd = Rule(lambda own: {}, lambda theta, updates, count: (updates, count))
    learner = descent(network, squared_error, optax.sgd(RATE), rule=odd)
    with pytest.raises(InputError, match=r"rule's updates are of another structure"):
        adapt(learner, learner.init(parameters(), KEY), support, KEY, 1)
    algorithm, theta = made(meta_sgd, num_steps=-1)
    with pytest.raises(InputError, match=r"num_steps is -1"):
        value_and_grad(algorithm, theta)
