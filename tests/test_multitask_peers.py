"""The reference joint model against the same program in PyTorch: equal weights, data and batches, 100 epochs."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax.models.multitask import embedding_heads

torch = pytest.importorskip("torch", reason="torch is the oracle")
pytest.importorskip("sklearn", reason="the script quantises by scikit-learn")
import multitask_embedding as ours  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "peers"))
import torch_multitask as theirs  # noqa: E402

pytestmark = pytest.mark.peers

EPOCHS = 100
SIZES = {"speech": (16, 7, 30), "image": (8, 5, 10)}  # examples, tokens, classes


def problem(dtype):
    """Random tokens and labels, parameters as the model starts, and the rows that every step sees."""
    draw = np.random.default_rng(0)
    data = {
        task: mj.Batch(
            jnp.asarray(draw.integers(0, 1000, (n, length)), jnp.int32),
            jnp.asarray(draw.integers(0, classes, n), jnp.int32),
        )
        for task, (n, length, classes) in SIZES.items()
    }
    model = embedding_heads()
    params = jax.jit(model.init)(jax.random.key(0), {task: batch.x for task, batch in data.items()})
    params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), params)
    order = ours.orders(jax.random.key(1), {task: n for task, (n, _, _) in SIZES.items()}, EPOCHS, 8)
    return model, params, data, order


def both(dtype):
    """Losses by epoch of the two programs, and the parameters after them."""
    model, params, data, order = problem(dtype)
    trained, history = ours.train(model, params, data, order, 1e-3)

    def tensor(a):
        return torch.tensor(np.asarray(a), dtype=torch.int64)

    peer = theirs.load(theirs.TwoHeads(), params)
    tokens = {task: (tensor(batch.x), tensor(batch.y)) for task, batch in data.items()}
    losses = theirs.train(peer, tokens, {task: tensor(rows) for task, rows in order.items()})
    return trained, [epoch["loss"] for epoch in history], peer, losses


def test_losses_of_100_epochs_are_those_of_pytorch(x64):
    trained, history, peer, losses = both(jnp.float64)
    assert len(history) == len(losses) == EPOCHS
    assert losses[-1] < 0.5 * losses[0]  # they have something to follow
    np.testing.assert_allclose(history, losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(history, losses, rtol=1e-9)  # in double precision nothing drifts
    np.testing.assert_allclose(trained["shared"]["embedding"], peer.embedding.weight.detach(), atol=1e-9)
    for task in SIZES:
        head = getattr(peer, task)
        np.testing.assert_allclose(trained["heads"][task]["kernel"], head.weight.detach().T, atol=1e-9)
        np.testing.assert_allclose(trained["heads"][task]["bias"], head.bias.detach(), atol=1e-9)


@pytest.mark.slow
def test_losses_of_100_epochs_stay_close_in_single_precision():
    # optax takes Adam's 1 - 0.999^t in single precision, PyTorch in double: our steps are 6e-6 shorter from the start
    _, history, _, losses = both(jnp.float32)
    np.testing.assert_allclose(history, losses, rtol=5e-5)
