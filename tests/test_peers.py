"""Meta-gradients against PyTorch, written as its libraries write them: same network, weights and episodes, float64."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import Transcripts
from metajax.losses import classify, ctc
from metajax.models import bilstm, conv4, crnn, mlp, tcresnet8

torch = pytest.importorskip("torch", reason="torch is the oracle")
sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "speed"))
import torch_gradients as gradients  # noqa: E402
import torch_peers as peers  # noqa: E402

pytestmark = pytest.mark.peers

WAYS, SHOTS, QUERIES, STEPS, RATE = 3, 2, 2, 2, 0.1
NETWORKS = {
    "mlp": (mlp(WAYS, hidden=(7, 6)), peers.mlp, (5,)),
    "tcresnet8": (tcresnet8(WAYS, width=0.25), peers.tcresnet8, (21, 6)),
    "conv4": (conv4(WAYS, width=3), peers.conv4, (17, 18)),
    "crnn": (crnn(WAYS, width=3), peers.crnn, (33, 18)),
    "bilstm": (bilstm(WAYS + 1, width=6), peers.bilstm, (21, 6)),  # with CTC
}

# of other networks than the first, which has all: one in second order
METHODS = {"tcresnet8": ("meta_sgd",), "conv4": ("maml",), "crnn": ("maml",), "bilstm": ("meta_sgd",)}


def episode(seed, shape, transcribed=False):
    """Classes with means of their own, so that gradients differ from task to task; a class is said once or twice."""
    n, draw = WAYS * (SHOTS + QUERIES), np.random.default_rng(seed)
    label = np.arange(n) % WAYS
    x = draw.normal(size=(WAYS, *shape))[label] + draw.normal(size=(n, *shape))
    transcripts = Transcripts(np.stack([label + 1] * 2, 1), 1 + label % 2)
    transcripts.tokens[0, 0] = WAYS
    both = mj.Batch(x, transcripts if transcribed else mj.Labels(label, label))
    cut = WAYS * SHOTS
    return mj.Episode(jax.tree.map(lambda a: a[:cut], both), jax.tree.map(lambda a: a[cut:], both))


def tensors(batch):
    x, *y = (torch.tensor(np.asarray(a)) for a in (batch.x, *batch.y))
    return x, tuple(a.long() for a in y) if isinstance(batch.y, Transcripts) else y[0].long()


def stacked(leaves):
    return tuple(map(stacked, zip(*leaves, strict=True))) if isinstance(leaves[0], tuple) else torch.stack(leaves)


def compare(grads, wanted):
    assert jax.tree.structure(grads) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[] if name == "mlp" else pytest.mark.slow)
        for name in NETWORKS
        for method in METHODS.get(name, ("maml", "fomaml", "anil", "meta_sgd"))
    ],
)
def test_meta_gradient_is_that_of_pytorch(x64, name, method):
    model, peer, shape = NETWORKS[name]
    episodes = [episode(seed, shape, name == "bilstm") for seed in range(2)]
    params = jax.jit(model.init)(jax.random.key(0), episodes[0].support.x)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    algorithm = getattr(mj, method)(model.apply, ctc if name == "bilstm" else classify, optax.sgd(RATE), STEPS)
    theta = algorithm.learner.init(params, jax.random.key(3))
    if method == "meta_sgd":  # rates that differ from weight to weight
        draw = np.random.default_rng(2)
        theta |= {"rates": jax.tree.map(lambda a: jnp.asarray(draw.uniform(0.5, 1.5, a.shape)), params)}
    both = jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *episodes)

    def mean(theta):
        return jax.lax.map(lambda one: algorithm.objective(theta, one, jax.random.key(0))[0], both).mean()

    value, grads = jax.jit(jax.value_and_grad(mean))(theta)
    start = peers.to_torch(params)
    scales = peers.to_torch(theta["rates"]) if method == "meta_sgd" else None
    names = [path for path in start if method != "anil" or path.startswith("head/")]

    def loss(params, x, y, fused=True):
        return (peers.ctc if name == "bilstm" else torch.nn.functional.cross_entropy)(peer(params, x, fused), y)

    pairs = [(tensors(one.support), tensors(one.query)) for one in episodes]
    options = {"names": names, "scales": scales}
    peer_results = [
        gradients.meta_gradient_loop(loss, start, pairs, RATE, STEPS, first_order=method == "fomaml", **options)
    ]
    if method != "fomaml":
        unfused = partial(loss, fused=False)
        peer_results.append(gradients.meta_gradient_func(unfused, start, stacked(pairs), RATE, STEPS, **options))
    for wanted, by_params, by_scales in peer_results:
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-9)
        compare(grads["params"], peers.from_torch(by_params))
        if scales:
            compare(grads["rates"], peers.from_torch(by_scales))


def test_ctc_peer_is_the_loss_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[1, 1, 2], [3, 4, 0], [2, 0, 0], [0, 0, 0]])
    lengths = torch.tensor([3, 2, 1, 0])
    frames = torch.full((4,), 5)
    wanted = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), tokens, frames, lengths, reduction="sum"
    )
    values = peers.ctc(logits, (tokens, lengths)), wanted / 6
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))
    assert torch.autograd.gradgradcheck(lambda a: peers.ctc(a, (tokens, lengths)), logits)
