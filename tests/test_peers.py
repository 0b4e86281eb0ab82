"""Meta-gradients against PyTorch, written as its libraries write them: same network, weights and episodes, float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.losses import cross_entropy
from metajax.models import conv4, mlp, tcresnet8

torch = pytest.importorskip("torch", reason="torch is the oracle")
import torch_peers as peers  # noqa: E402

pytestmark = pytest.mark.peers

WAYS, SHOTS, QUERIES, STEPS, RATE = 3, 2, 2, 2, 0.1
NETWORKS = {
    "mlp": (mlp(WAYS, hidden=(7, 6)), peers.mlp, (5,)),
    "tcresnet8": (tcresnet8(WAYS, width=0.25), peers.tcresnet8, (21, 6)),
    "conv4": (conv4(WAYS, width=3), peers.conv4, (17, 18)),
}


def episode(key, shape):
    """Classes with means of their own, so that gradients differ from task to task."""
    n = WAYS * (SHOTS + QUERIES)
    label = jnp.arange(n) % WAYS
    mean_key, x_key = jax.random.split(key)
    x = jax.random.normal(mean_key, (WAYS, *shape))[label] + jax.random.normal(x_key, (n, *shape))
    both = mj.Batch(x, mj.Labels(label, label))
    cut = WAYS * SHOTS
    return mj.Episode(jax.tree.map(lambda a: a[:cut], both), jax.tree.map(lambda a: a[cut:], both))


def tensors(batch):
    return torch.tensor(np.asarray(batch.x)), torch.tensor(np.asarray(batch.y.episode), dtype=torch.int64)


def compare(grads, wanted):
    assert jax.tree.structure(grads) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ("maml", "fomaml", "anil", "meta_sgd"))
@pytest.mark.parametrize("name", ("mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tcresnet8", "conv4"))))
def test_meta_gradient_is_that_of_pytorch(x64, name, method):
    model, peer, shape = NETWORKS[name]
    episodes = [episode(key, shape) for key in jax.random.split(jax.random.key(1), 2)]
    params = model.init(jax.random.key(0), episodes[0].support.x)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    algorithm = getattr(mj, method)(cross_entropy(model.apply), optax.sgd(RATE), STEPS)
    theta = algorithm.learner.init(params)
    if method == "meta_sgd":  # rates that differ from weight to weight
        keys = iter(jax.random.split(jax.random.key(2), 100))
        theta |= {"scale": jax.tree.map(lambda a: jax.random.uniform(next(keys), a.shape) + 0.5, params)}

    @jax.jit
    def mean(theta):
        return sum(algorithm.objective(theta, one, jax.random.key(0))[0] for one in episodes) / len(episodes)

    value, grads = jax.value_and_grad(mean)(theta)
    start = peers.to_torch(params)
    scales = peers.to_torch(theta["scale"]) if method == "meta_sgd" else None
    names = [path for path in start if method != "anil" or path.startswith("head/")]

    def loss(params, x, y, fused=True):
        return torch.nn.functional.cross_entropy(peer(params, x, fused), y)

    pairs = [(tensors(one.support), tensors(one.query)) for one in episodes]
    options = {"names": names, "scales": scales}
    peer_results = [
        peers.meta_gradient_loop(loss, start, pairs, RATE, STEPS, first_order=method == "fomaml", **options)
    ]
    if method != "fomaml":
        sides = zip(*pairs, strict=True)
        stacked = tuple(tuple(map(torch.stack, zip(*side, strict=True))) for side in sides)
        peer_results.append(
            peers.meta_gradient_func(partial(loss, fused=False), start, stacked, RATE, STEPS, **options)
        )
    for wanted, by_params, by_scales in peer_results:
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-9)
        compare(grads["params"] if scales else grads, peers.from_torch(by_params))
        if scales:
            compare(grads["scale"], peers.from_torch(by_scales))
