"""Weightings of a joint loss against independent solutions."""

from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from metajax import InputError, init_state, weighted_step
from metajax.losses import weighting as weightings
from metajax.losses.weighting import equal, fixed, gradnorm, gram_matrix, uncertainty

KEY = jax.random.key(0)
# one function for one setting, so that it is compiled once
pcgrad, mgda, cagrad, nash = (cache(getattr(weightings, name)) for name in ("pcgrad", "mgda", "cagrad", "nash"))
ALL = {
    "equal": equal(),
    "fixed": fixed([0.5, 2.0, 1.0]),
    "uncertainty": uncertainty(optax.sgd(0.1)),
    "gradnorm": gradnorm(),
    "pcgrad": pcgrad(),
    "mgda": mgda(),
    "cagrad": cagrad(),
    "nash": nash(),
}


def random_gradients(tasks, seed, size=6):
    """Gradients of which some conflict, some are ten times larger, and no positive combination is 0."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(tasks, size)) + 0.3) * 10.0 ** draw.uniform(-0.5, 0.5, size=(tasks, 1))


@cache
def compiled(weighting):
    """The weighting by gradients, products of theirs and all in one program."""

    def weigh(state, losses, present, g, key):
        return weighting.weigh(state, losses, present, gram_matrix(g) if weighting.by_gradient else None, key)

    return jax.jit(weigh)


def weigh(weighting, g, losses=None, present=None, state=None, key=KEY):
    """The weights for gradients `g`, and the new state."""
    g = np.asarray(g)
    losses = np.ones(len(g), g.dtype) if losses is None else np.asarray(losses, g.dtype)
    present = np.ones(len(g), bool) if present is None else np.asarray(present)
    state = weighting.init(len(g)) if state is None else state
    return compiled(weighting)(state, losses, present, g, key)


def direction(weighting, g, **options):
    return np.asarray(weigh(weighting, g, **options)[0]) @ np.asarray(g)


# PCGrad


def projected(g, orders):
    """Gradient surgery on the vectors themselves."""
    total = np.zeros(g.shape[1])
    for i, order in enumerate(orders):
        mine = g[i].copy()
        for j in order:
            if j != i and mine @ g[j] < 0:
                mine -= mine @ g[j] / (g[j] @ g[j]) * g[j]
        total += mine
    return total


def test_pcgrad_of_two_tasks_is_the_sum_of_their_mutual_projections(x64):
    a, b = np.array([1.0, 0.0, 2.0]), np.array([-3.0, 1.0, 0.5])
    assert a @ b < 0
    expected = (a - a @ b / (b @ b) * b) + (b - a @ b / (a @ a) * a)
    np.testing.assert_allclose(direction(pcgrad(), [a, b]), expected, atol=1e-14)
    np.testing.assert_allclose(direction(pcgrad(), [a, -b]), a - b, atol=1e-14)  # no conflict, no surgery


def test_pcgrad_of_more_tasks_in_a_drawn_order(x64):
    orders = {(i, j, k) for i, j, k in np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3) if len({i, j, k}) == 3}
    for seed in range(5):
        g = np.random.default_rng(seed).normal(size=(3, 4))
        possible = [projected(g, (a, b, c)) for a in orders for b in orders for c in orders]
        drawn = [direction(pcgrad(), g, key=jax.random.key(k)) for k in range(5)]
        assert all(min(np.abs(d - p).max() for p in possible) < 1e-13 for d in drawn)
    g = np.array([[1.0, 0, 0], [-1, 1, 0.2], [-1, -0.8, 0.1]])  # order matters here
    assert np.ptp([direction(pcgrad(), g, key=jax.random.key(k)) for k in range(10)], axis=0).max() > 1e-3


# MGDA


def test_mgda_of_two_tasks_is_the_nearest_point_of_their_segment(x64):
    for seed in range(20):
        a, b = random_gradients(2, seed, size=2)
        share = np.clip(b @ (b - a) / ((a - b) @ (a - b)), 0, 1)
        np.testing.assert_allclose(weigh(mgda(), [a, b])[0], [share, 1 - share], atol=1e-7)
        np.testing.assert_allclose(direction(mgda(), [a, b]), share * a + (1 - share) * b, atol=1e-7)


def minimum(value, tasks):
    """A convex function's minimum over the simplex, the best over the supports of its solution."""
    best = np.inf
    for size in range(1, tasks + 1):
        for support in map(list, combinations(range(tasks), size)):

            def restricted(x, support=support):
                return value(np.bincount(support, x, tasks))

            start = np.full(size, 1 / size)
            result = minimize(
                restricted,
                start,
                method="SLSQP",
                bounds=[(0, 1)] * size,
                constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
                options={"ftol": 1e-15, "maxiter": 500},
            )
            if abs(result.x.sum() - 1) < 1e-12:
                best = min(best, restricted(result.x))
    return best


@pytest.mark.parametrize("tasks", [3, 4])
def test_mgda_of_more_tasks_has_the_minimum_norm(x64, tasks):
    for seed in range(4):
        g = random_gradients(tasks, seed)
        w, d = np.asarray(weigh(mgda(), g)[0]), direction(mgda(), g)
        assert w.min() >= 0
        np.testing.assert_allclose(w.sum(), 1, rtol=1e-13)
        scale = (g * g).sum(1).max()
        assert d @ d <= minimum(lambda w, g=g: (w @ g) @ (w @ g), tasks) + 1e-9 * scale
        assert (g @ d).min() >= d @ d - 1e-12 * scale  # optimality: the nearest point of the hull


# CAGrad


@pytest.mark.parametrize(("tasks", "c"), [(2, 0.5), (3, 0.9), (4, 0.2), (3, 0.0)])
def test_cagrad_lifts_the_worst_task_within_its_ball(x64, tasks, c):
    compared = 0
    for seed in range(4):
        g = random_gradients(tasks, seed)
        mean, d = g.mean(0), direction(cagrad(c), g)
        radius, scale = c * np.linalg.norm(mean), (g * g).sum(1).max()
        assert np.linalg.norm(d - mean) <= radius * (1 + 1e-12) + 1e-15

        def dual(w, g=g, mean=mean, radius=radius):
            return w @ g @ mean + radius * np.linalg.norm(w @ g)

        assert (g @ d).min() >= minimum(dual, tasks) - 1e-9 * scale
        # no direction of the ball does better, by a search that knows nothing of duality
        start = np.append(mean, (g @ mean).min())
        found = minimize(
            lambda x, s=scale: -x[-1] / s,
            start,
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda x, g=g, s=scale: (g @ x[:-1] - x[-1]) / s},
                {"type": "ineq", "fun": lambda x, m=mean, r=radius: r**2 - (x[:-1] - m) @ (x[:-1] - m)},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        if np.linalg.norm(found[:-1] - mean) <= radius + 1e-9:
            compared += 1
            assert (g @ d).min() >= (g @ found[:-1]).min() - 1e-6 * scale
    assert compared or not c


# gradients of very different sizes


def shortest(g):
    """The point of the convex hull that is nearest to 0, in closed form for each face of it, by the sizes of g."""
    sizes, best = np.linalg.norm(g, axis=1), None
    for count in range(1, len(g) + 1):
        for face in map(list, combinations(range(len(g)), count)):
            unit = g[face] / sizes[face, None]
            w = np.linalg.solve(unit @ unit.T, sizes.min() / sizes[face]) / sizes[face]
            d = w @ g[face] / w.sum()
            if (w >= 0).all() and (best is None or d @ d < best @ best):
                best = d
    return best


def lifting(g, c):
    """CAGrad's direction from its dual in w_i |g_i|, by a search from several starts."""
    sizes, mean, best = np.linalg.norm(g, axis=1), g.mean(0), None
    unit, share, length = g / sizes[:, None], sizes.min() / sizes, np.linalg.norm(g.mean(0))
    for start in (np.ones(len(g)) / share.sum(), *(np.eye(len(g)) * 0.9 / share + 0.1 / share.sum())):
        found = minimize(
            lambda u: (u @ unit) @ mean / length + c * np.linalg.norm(u @ unit),
            start,
            jac=lambda u: unit @ (mean / length + c * (u @ unit) / np.linalg.norm(u @ unit)),
            method="SLSQP",
            bounds=[(0, None)] * len(g),
            constraints={"type": "eq", "fun": lambda u: u @ share - 1, "jac": lambda u: share},
            options={"ftol": 1e-16, "maxiter": 1000},
        )
        if abs(found.x @ share - 1) < 1e-9 and (best is None or found.fun < best.fun):
            best = found
    return mean + c * length * best.x @ unit / np.linalg.norm(best.x @ unit)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_two_orthogonal_gradients_of_very_different_sizes(precision):
    with jax.enable_x64(precision == "float64"):
        g, tolerance = np.array([[1, 0], [0, 1e4]], precision), {"float32": 2e-7, "float64": 1e-15}[precision]
        exact = np.array([1, 1e-4]) / (1 + 1e-8)
        np.testing.assert_allclose(direction(mgda(), g), exact, rtol=tolerance)
        # g_0 = (1 + 1e4) / 2 and, for the small one's sake, all the ball's radius along the first axis but a rounding
        np.testing.assert_allclose(direction(cagrad(), g), lifting(g.astype(float), 0.5), rtol=max(tolerance, 1e-7))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("tasks", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 6])
def test_directions_are_exact_whatever_the_sizes_of_the_gradients(tasks, precision):
    with jax.enable_x64(precision == "float64"):
        exact, searched = {"float32": (3e-6, 3e-6), "float64": (1e-13, 1e-7)}[precision]
        for seed, ratio in enumerate([1, 1e2, 1e4] * 3):
            draw = np.random.default_rng(seed)
            g = ((draw.normal(size=(tasks, 8)) + 0.3) * ratio ** draw.uniform(size=(tasks, 1))).astype(np.float32)
            wide = g.astype(np.float64)
            for weighting, wanted, tolerance in (
                (mgda(), shortest(wide), exact),
                (cagrad(0.5), lifting(wide, 0.5), searched),
            ):
                d = np.asarray(weigh(weighting, g.astype(precision))[0], np.float64) @ wide
                assert np.linalg.norm(d - wanted) <= tolerance * np.linalg.norm(wanted), (seed, ratio)


# Nash-MTL


def test_nash_of_two_tasks_is_the_bisector(x64):
    for seed in range(10):
        a, b = random_gradients(2, seed)
        a_unit, b_unit = a / np.linalg.norm(a), b / np.linalg.norm(b)
        expected = (a_unit + b_unit) / np.sqrt(1 + a_unit @ b_unit)
        np.testing.assert_allclose(direction(nash(), [a, b]), expected, atol=1e-12)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_nash_weights_solve_their_equation_whatever_the_scale_of_a_loss(x64, tasks):
    for seed in range(10):
        g = random_gradients(tasks, seed)
        w = np.asarray(weigh(nash(), g)[0])
        assert w.min() > 0
        np.testing.assert_allclose(g @ g.T @ w * w, 1, atol=1e-8)
        scales = np.array([1000.0, 1.0, 1.0, 1e-3])[:tasks]
        np.testing.assert_allclose(direction(nash(), scales[:, None] * g), w @ g, atol=1e-8)


# Kendall, GradNorm


def test_uncertainty_ends_at_the_log_of_the_losses(x64):
    losses, weighting = jnp.array([0.1, 1.0, 30.0]), uncertainty(optax.sgd(0.3))

    def one(_, state):
        return weighting.weigh(state, losses, jnp.ones(3, bool), None, KEY)[1]

    start = weighting.init(3)
    s, _ = jax.jit(lambda state: jax.lax.fori_loop(0, 400, one, state))(start)
    np.testing.assert_allclose(s, np.log(losses), atol=1e-10)
    weights, _ = weighting.weigh((s, start[1]), losses, jnp.ones(3, bool), None, KEY)
    np.testing.assert_allclose(weights * losses, 1, atol=1e-10)
    # the direction of s is the gradient of the objective
    state = (jnp.array([0.3, -0.2, 1.0]), start[1])
    new = weighting.weigh(state, losses, jnp.ones(3, bool), None, KEY)[1][0]
    slope = jax.grad(lambda s: (jnp.exp(-s) * losses + s).sum())(state[0])
    np.testing.assert_allclose(new, state[0] - 0.3 * slope, rtol=1e-12)


def settled(weighting, norms, losses, steps=3000):
    """The weights after many steps on gradients of the given sizes, and losses after the first ones of 1."""
    gram, present = jnp.asarray(np.diag(np.square(norms))), jnp.asarray(np.ones(len(norms), bool))

    @jax.jit
    def run(losses):
        _, state = weighting.weigh(weighting.init(len(norms)), jnp.ones(len(norms)), present, gram, KEY)

        def one(_, state):
            return weighting.weigh(state, losses, present, gram, KEY)[1]

        state = jax.lax.fori_loop(0, steps, one, state)
        return weighting.weigh(state, losses, present, gram, KEY)[0]

    return np.asarray(run(jnp.asarray(losses)))


def test_gradnorm_balances(x64):
    rate = optax.exponential_decay(0.02, 100, 0.7)
    norms = np.array([1.0, 10.0, 0.5])
    w = settled(gradnorm(0.0, optax.sgd(rate)), norms, [1.0, 0.5, 0.25])
    np.testing.assert_allclose(w, 3 / norms / (1 / norms).sum(), rtol=1e-3)
    np.testing.assert_allclose(w.sum(), 3, rtol=1e-12)
    # a task that lags is pulled: w |g| in proportion to L / L(0); for other alpha the goals contradict each other
    losses = np.array([1.0, 0.5, 0.25])
    w = settled(gradnorm(1.0, optax.sgd(rate)), norms, losses)
    np.testing.assert_allclose(w * norms / (w * norms).sum(), losses / losses.sum(), rtol=1e-3)


def test_gradnorm_balances_two_quadratics(x64):
    """L_i = a_i |theta - c|^2 / 2: sizes w_i a_i |theta - c| are equal where w_i is in proportion to 1 / a_i."""
    scales = jnp.array([1.0, 50.0])

    def losses(params, batch):
        values = scales * jnp.square(params["shared"] - 1.0).sum() / 2
        return values, jnp.ones(2, bool), {"loss": values.sum()}

    weighting = gradnorm(0.0, optax.adam(optax.exponential_decay(0.05, 50, 0.7)))
    optimizer = optax.sgd(1e-5)
    step = jax.jit(weighted_step(losses, weighting, optimizer, lambda key: {}))
    state = init_state({"params": {"shared": jnp.zeros(3)}}, optimizer, 600, kept=weighting.init(2))
    for _ in range(600):
        state, metrics = step(state, KEY)
    w = np.array([metrics["weight_0"], metrics["weight_1"]])
    np.testing.assert_allclose(w, [100 / 51, 2 / 51], rtol=1e-2)
    np.testing.assert_allclose(w.sum(), 2, rtol=1e-12)


# where there is little to weigh


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_degenerate_gradients_give_finite_weights(name, precision):
    with jax.enable_x64(precision == "float64"):
        a, b, zero = np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [0.0, 0.0, 0.0]])
        # a zero gradient, equal ones, opposite ones, all zero, opposite and another, very different sizes
        for g in (
            [a, zero, b],
            [a, a, a],
            [a, -a, zero],
            [zero] * 3,
            [a, -a, b],
            [a, b, -a - b],
            [1e6 * a, 1e-6 * b, b],
        ):
            g = np.asarray(g, precision)
            w, state = weigh(ALL[name], g)
            assert w.dtype == g.dtype
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((w, state)))
            w = weigh(ALL[name], g, losses=np.zeros(3), state=state)[0]
            assert np.isfinite(w).all()


def test_what_degenerate_gradients_mean(x64):
    a, zero = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(direction(mgda(), [a, zero]), zero, atol=1e-7)
    np.testing.assert_allclose(direction(mgda(), [a, a]), a, atol=1e-12)
    np.testing.assert_allclose(direction(mgda(), [a, -a]), zero, atol=1e-12)
    np.testing.assert_allclose(direction(nash(), [a, zero]), a / np.linalg.norm(a), atol=1e-12)
    np.testing.assert_allclose(direction(nash(), [a, a]), 2 * a / np.linalg.norm(a) / np.sqrt(2), atol=1e-12)
    np.testing.assert_allclose(direction(nash(), [a, -a]), zero, atol=1e-7)
    np.testing.assert_allclose(direction(nash(), [a, -a, zero]), zero, atol=1e-6)
    np.testing.assert_allclose(direction(pcgrad(), [a, -a]), zero, atol=1e-12)
    np.testing.assert_allclose(direction(cagrad(), [a, -a]), zero, atol=1e-12)
    # CAGrad: a task without gradient has nothing to lose, but counts in the mean
    d = direction(cagrad(0.5), [a, zero])
    np.testing.assert_allclose(d, a / 2 * 1.5, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_an_absent_task_takes_no_part(name, x64):
    """The present tasks get the weights that they would have without it."""
    g, losses = random_gradients(3, 1), np.array([0.5, 1.0, 2.0])
    weighting = ALL[name]
    two = fixed([0.5, 1.0]) if name == "fixed" else weighting
    present = np.array([True, False, True])
    w = np.asarray(weigh(weighting, g, losses, present)[0])
    assert w[1] == 0
    # GradNorm shares out the number of all tasks, so that a task keeps its share while it is away
    expected = np.asarray(weigh(two, g[present], losses[present])[0])
    np.testing.assert_allclose(w[present], expected, atol=1e-7)
    g[1] = 1e3  # whatever its gradient
    np.testing.assert_allclose(weigh(weighting, g, losses, present)[0], w, atol=1e-7)
    np.testing.assert_array_equal(weigh(weighting, g, losses, np.zeros(3, bool))[0], np.zeros(3))


def test_an_absent_task_keeps_its_state(x64):
    g, present = random_gradients(2, 0), np.array([True, False])
    (s, _) = weigh(uncertainty(optax.sgd(0.1)), g, [3.0, 5.0], present)[1]
    assert s[0] != 0
    assert s[1] == 0
    (_, first, _) = weigh(gradnorm(), g, [3.0, 5.0], present)[1]
    np.testing.assert_array_equal(first, [3.0, 0.0])


@pytest.mark.parametrize("name", ["equal", "pcgrad", "mgda", "gradnorm", "uncertainty", "cagrad"])
def test_one_task_is_itself(name, x64):
    g = random_gradients(1, 0)
    expected = {"cagrad": 1.5}.get(name, 1.0)
    np.testing.assert_allclose(weigh(ALL[name], g)[0], [expected], atol=1e-9)


def test_bad_weights_are_refused():
    with pytest.raises(InputError, match=r"weights\[1\] is -1.0, expected a finite number"):
        fixed([1.0, -1.0])
    with pytest.raises(InputError, match=r"weights\[0\] is nan"):
        fixed([float("nan")])
    with pytest.raises(InputError, match="3 weights for 2 tasks"):
        fixed([1.0, 1.0, 1.0]).init(2)
    for weighting in (fixed([1.0, 1.0, 1.0]), uncertainty(), gradnorm()):
        with pytest.raises(InputError, match="3 weights for 2 tasks"):
            weigh(weighting, random_gradients(2, 0), state=weighting.init(3))
    with pytest.raises(InputError, match="c is -0.5"):
        cagrad(-0.5)
