"""Low-rank changes of a tiny random encoder against peft's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.losses import ctc
from metajax.models import pretrained

torch = pytest.importorskip("torch", reason="torch is the oracle")
peft = pytest.importorskip("peft", reason="peft is the oracle")

from tests.models.pretrained.test_peers import NUM, close, peer, waves  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("name", ["large ctc", "hubert large ctc"])
def test_learn_from_the_same_start_as_those_of_peft(tmp_path, x64, name, beside):
    """Scores, slopes of the CTC loss, and A and B after five steps of SGD; A and B of all layers start at random."""
    theirs, draw = peer(name, tmp_path).double(), np.random.default_rng(1)
    model, params, _ = pretrained.load(tmp_path, dtype=jnp.float64)
    part = mj.lora(3, "*.q_proj", "*.v_proj", beside=beside)
    theta = {"params": params} | part.init(params, jax.random.key(0))
    options = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj"])
    changed = peft.get_peft_model(theirs, options).eval()
    factors = {}
    for place, pair in theta["lora"].items():
        pair["b"] = jnp.asarray(0.3 * draw.normal(size=pair["b"].shape))
        layer = theirs.get_submodule(f"{theirs.base_model_prefix}.{place.removesuffix('.kernel')}")
        for which, theirs_of in (("a", layer.lora_A), ("b", layer.lora_B)):
            factors[place, which] = theirs_of.default.weight
            factors[place, which].data.copy_(torch.tensor(np.array(pair[which]).T))
    assert {id(p) for p in factors.values()} == {id(p) for p in changed.parameters() if p.requires_grad}
    x, tokens = waves().astype(np.float64), draw.integers(1, 11, (NUM, 4))
    optimizer = torch.optim.SGD(factors.values(), 0.1)

    def descend():
        optimizer.zero_grad()
        scores = changed(torch.tensor(x)).logits
        logs, lengths = scores.log_softmax(-1).transpose(0, 1), torch.full((NUM,), 4)
        frames = torch.full((NUM,), len(logs))
        loss = torch.nn.functional.ctc_loss(logs, torch.tensor(tokens), frames, lengths, reduction="sum")
        (loss / tokens.size).backward()
        optimizer.step()
        return scores

    batch = mj.Batch(jnp.asarray(x), mj.Transcripts(jnp.asarray(tokens), jnp.full(NUM, 4)))
    learner = mj.descent(model.apply, ctc, optax.sgd(0.1), part=part)

    @jax.jit
    def ours(theta):
        def error(own):
            scores = model.apply(part.join(theta, own, jnp.array(0)), batch.x)
            return ctc(scores, batch.y)[0], scores

        slopes, scores = jax.grad(error, has_aux=True)(theta["lora"])
        return scores, slopes, mj.adapt(learner, theta, batch, jax.random.key(0), 5)[0].own

    scores, slopes, after = ours(theta)
    close(scores, descend(), 1e-10)
    for (place, which), factor in factors.items():
        assert factor.grad.abs().max() > 1e-3
        close(slopes[place][which].T, factor.grad, 1e-10)
    for _ in range(4):
        descend()
    for (place, which), factor in factors.items():
        close(after[place][which].T, factor, 1e-10)
