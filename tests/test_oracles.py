"""Meta-gradients against closed forms, finite differences and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, Episode, adapt, anil, ascribe, fomaml, maml, mix
from metajax.losses import squared_error
from tests.conftest import as_it_is, assert_close, differs, mlp, mlp_params, quadratic

RATE = 0.1


def quadratic_task(seed, size=4):
    """Two positive-definite quadratics as numpy arrays: support (a, c) and query (b, q), and a theta."""
    generator = np.random.default_rng(seed)
    a, b = (m @ m.T / size + np.eye(size) for m in generator.normal(size=(2, size, size)))
    c, q, theta = generator.normal(size=(3, size))
    return a, c, b, q, theta


def as_episode(a, c, b, q):
    pairs = ((jnp.asarray(m), jnp.asarray(v)) for m, v in ((a, c), (b, q)))
    return Episode(*(Batch(pair, jnp.zeros(1)) for pair in pairs))


def value_and_grad(objective, episode):
    """Of the objective in the model's parameters."""
    return jax.jit(jax.value_and_grad(lambda p: objective({"params": p}, episode, jax.random.key(0))[0]))


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("factory", [maml, fomaml])
def test_meta_gradient_of_quadratics_is_the_closed_form(x64, factory, steps):
    """phi_K = c + M (theta - c), M = (I - rate A)^K; FOMAML: B (phi_K - q); MAML: M' of that."""
    a, c, b, q, theta = quadratic_task(0)
    contraction = np.linalg.matrix_power(np.eye(len(a)) - RATE * a, steps)
    phi = c + contraction @ (theta - c)
    first_order = b @ (phi - q)
    wanted = first_order if factory is fomaml else contraction.T @ first_order

    objective = factory(quadratic, as_it_is, optax.sgd(RATE), steps).objective
    value, grads = value_and_grad(objective, as_episode(a, c, b, q))(jnp.asarray(theta))
    np.testing.assert_allclose(value, (phi - q) @ b @ (phi - q) / 2, rtol=1e-12)
    np.testing.assert_allclose(grads, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_fomaml_without_the_support_gradients_that_some_code_bases_keep(x64):
    """Those accumulate sum_k A (phi_k - c) into the meta-gradient, which is (theta - phi_K) / rate, Reptile's, on top.

    Where phi_K is the query's optimum theta is as good as can be: FOMAML stays there, the other leaves it.
    """
    a, c, b, q, theta = quadratic_task(0)
    contraction = np.linalg.matrix_power(np.eye(len(a)) - RATE * a, 3)
    algorithm = fomaml(quadratic, as_it_is, optax.sgd(RATE), 3)
    episode = as_episode(a, c, b, q)

    def kept(theta, episode, key):
        """The sum of the support gradients on the way, as an objective."""
        phi = adapt(algorithm.learner, jax.lax.stop_gradient(theta), episode.support, key, 3)[0].own
        return ascribe(theta["params"], (theta["params"] - phi) / RATE), {}

    own, wrong = (value_and_grad(f, episode) for f in (algorithm.objective, mix(algorithm.objective, kept, 1.0)))
    best = c + np.linalg.solve(contraction, q - c)  # from there phi_3 is q
    for start in (theta, best):
        path = [start]
        for _ in range(3):
            path.append(path[-1] - RATE * a @ (path[-1] - c))
        support = sum(a @ (phi - c) for phi in path[:3])
        np.testing.assert_allclose(own(start)[1], b @ (path[3] - q), rtol=0, atol=1e-12)
        np.testing.assert_allclose(wrong(start)[1], b @ (path[3] - q) + support, rtol=0, atol=1e-11)
    assert np.abs(own(best)[1]).max() < 1e-12 and np.abs(wrong(best)[1]).max() > 1


def test_meta_gradient_with_momentum_is_the_linear_recurrence(x64):
    """v_{k+1} = mu v_k + A (phi_k - c), phi_{k+1} = phi_k - rate v_{k+1}: d phi_K / d theta by the same recurrence."""
    a, c, b, q, theta = quadratic_task(1)
    phi, v = theta, np.zeros_like(theta)
    jacobian, v_jacobian = np.eye(len(a)), np.zeros_like(a)
    for _ in range(4):
        v, v_jacobian = 0.9 * v + a @ (phi - c), 0.9 * v_jacobian + a @ jacobian
        phi, jacobian = phi - RATE * v, jacobian - RATE * v_jacobian
    objective = maml(quadratic, as_it_is, optax.sgd(RATE, momentum=0.9), 4).objective
    _, grads = value_and_grad(objective, as_episode(a, c, b, q))(jnp.asarray(theta))
    np.testing.assert_allclose(grads, jacobian.T @ b @ (phi - q), rtol=1e-11)


def network_episode(seed):
    generator = np.random.default_rng(seed)
    xs, ys = generator.normal(size=(2, 6, 3)), generator.normal(size=(2, 6, 4))
    return Episode(*(Batch(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(xs, ys, strict=True)))


@pytest.mark.parametrize(
    "inner",
    [optax.sgd(0.3), optax.sgd(0.1, momentum=0.9), optax.adam(0.05, eps_root=1e-8)],
    ids=["sgd", "momentum", "adam"],
)
def test_meta_gradient_of_a_network_is_its_finite_difference(x64, inner):
    objective = maml(mlp, squared_error, inner, 3).objective
    episode = network_episode(0)
    theta = mlp_params()
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    assert flat.dtype == jnp.float64
    value = jax.jit(lambda flat: objective({"params": unravel(flat)}, episode, jax.random.key(0))[0])
    grads = jax.jit(jax.grad(value))(flat)
    step = 1e-5
    for direction in np.random.default_rng(1).normal(size=(4, len(flat))):
        difference = (value(flat + step * direction) - value(flat - step * direction)) / (2 * step)
        np.testing.assert_allclose(grads @ direction, difference, rtol=1e-5, atol=1e-8)


def torch_meta_gradient(torch, theta, episode, rate, steps, first_order):
    """MAML as PyTorch code does it, with `create_graph`."""
    start = {name: torch.tensor(np.asarray(a), requires_grad=True) for name, a in theta.items()}

    def loss(params, batch):
        x, y = (torch.tensor(np.asarray(a)) for a in batch)
        hidden = torch.tanh(x @ params["w0"] + params["b0"])
        return ((hidden @ params["w1"] + params["b1"] - y) ** 2).mean()

    params = start
    for _ in range(steps):
        grads = torch.autograd.grad(loss(params, episode.support), list(params.values()), create_graph=not first_order)
        params = {name: p - rate * g for (name, p), g in zip(params.items(), grads, strict=True)}
    value = loss(params, episode.query)
    grads = torch.autograd.grad(value, list(start.values()))
    return value.item(), dict(zip(start, (g.numpy() for g in grads), strict=True))


@pytest.mark.peers
def test_meta_gradients_are_those_of_pytorch(x64):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    theta, episode = mlp_params(2), network_episode(3)
    results = []
    for factory in (maml, fomaml):
        objective = factory(mlp, squared_error, optax.sgd(0.3), 3).objective
        value, grads = value_and_grad(objective, episode)(theta)
        wanted_value, wanted = torch_meta_gradient(torch, theta, episode, 0.3, 3, factory is fomaml)
        np.testing.assert_allclose(value, wanted_value, rtol=1e-12)
        assert_close(grads, wanted, 1e-12)
        results.append(grads)
    assert differs(*results, 1e-2)


def test_anil_with_a_linear_head_is_the_closed_form(x64):
    """h_K = h* + M^K (h - h*), M = I - 2 rate Z'Z / (n o), Z = X W; the body's gradient by finite differences of it."""
    draw = np.random.default_rng(5).normal
    (x, y), (x_query, y_query) = ((draw(size=(n, 3)), draw(size=(n, 2))) for n in (6, 4))
    body, head = draw(size=(3, 3)), draw(size=(3, 2))
    episode = Episode(*(Batch(jnp.asarray(a), jnp.asarray(b)) for a, b in ((x, y), (x_query, y_query))))

    def linear(params, x, key):
        return x @ params["body"] @ params["head"]

    def closed(body):
        z, z_query = x @ body, x_query @ body
        best = np.linalg.lstsq(z, y, rcond=None)[0]
        power = np.linalg.matrix_power(np.eye(3) - 2 * RATE * z.T @ z / y.size, 3)
        learned = best + power @ (head - best)
        error = z_query @ learned - y_query
        return np.square(error).mean(), power.T @ z_query.T @ error * 2 / error.size

    objective = anil(linear, squared_error, optax.sgd(RATE), 3).objective
    theta = {"body": jnp.asarray(body), "head": jnp.asarray(head)}
    value, grads = value_and_grad(objective, episode)(theta)
    np.testing.assert_allclose(value, closed(body)[0], rtol=1e-12)
    np.testing.assert_allclose(grads["head"], closed(body)[1], rtol=1e-10)
    for i in np.ndindex(body.shape):
        shift = np.zeros_like(body)
        shift[i] = 1e-5
        difference = (closed(body + shift)[0] - closed(body - shift)[0]) / 2e-5
        np.testing.assert_allclose(grads["body"][i], difference, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_the_inner_rate_can_itself_be_learned(x64):
    """The check of the inner optimiser leaves a traced rate alone; its gradient is the finite difference."""
    theta, episode = {"params": mlp_params(2)}, network_episode(3)

    def value(rate):
        return maml(mlp, squared_error, optax.sgd(rate), 2).objective(theta, episode, jax.random.key(0))[0]

    def meta_gradient_norm(rate):
        grads = jax.grad(
            lambda t: maml(mlp, squared_error, optax.sgd(rate), 2).objective(t, episode, jax.random.key(0))[0]
        )
        return optax.tree.norm(grads(theta))

    np.testing.assert_allclose(jax.grad(value)(0.3), jax.jit(jax.grad(value))(0.3), rtol=1e-12)
    for f in (value, meta_gradient_norm):
        compiled = jax.jit(f)
        wanted = (compiled(0.3 + 1e-5) - compiled(0.3 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(f)))(jnp.array([0.3]))[0], wanted, rtol=1e-6)
