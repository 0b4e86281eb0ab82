"""PyTorch's side of `pretrained.py`, free of JAX, and what both sides agree on."""

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(zip(KEYS, (64, 2, 4, 128), strict=True)) | {"conv_dim": [32] * 7},
    "small": dict(zip(KEYS, (384, 6, 6, 1536), strict=True)),
    "base": dict(zip(KEYS, (768, 12, 12, 3072), strict=True)),
    "large": dict(zip(KEYS, (1024, 24, 16, 4096), strict=True)) | STABLE,
    "1B": dict(zip(KEYS, (1280, 48, 16, 5120), strict=True)) | STABLE,
}
CONVOLUTIONS = {"conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
COMMON = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "conv_dim": [512] * 7} | CONVOLUTIONS
COMMON |= {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16, "vocab_size": 32}
RANK, RATE, HEAD_RATE, TOKENS = 8, 0.05, 0.001, 20


def cases(s: dict[str, Any]) -> dict[str, int]:
    """The first layer that adapts."""
    layers = SIZES[s["size"]]["num_hidden_layers"]
    return {"all layers": 0, "the upper half": layers // 2, "the last 2 layers": layers - 2, "the head": layers}


def data(s: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Callable[[int, int], np.ndarray]]:
    """Samples, tokens, and the first low-rank factor of a layer's q_proj (0) and v_proj (1)."""
    draw, width = np.random.default_rng(0), SIZES[s["size"]]["hidden_size"]
    wave = draw.normal(size=(s["batch"], round(16000 * s["seconds"]))).astype(np.float32)
    tokens = draw.integers(1, COMMON["vocab_size"], (s["batch"], TOKENS))

    def factor(layer: int, which: int) -> np.ndarray:
        drawn = np.random.default_rng((9, layer, which)).normal(size=(width, RANK)) / width**0.5
        return drawn.astype(np.float32)

    return wave, tokens, factor


def median(job: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Milliseconds, the first call left out, and what the last one gave."""
    found, times = job(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = job()
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times)), found


def run(s: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and losses, by case; saves the weights first."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    off = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    config = COMMON | SIZES[s["size"]] | off | {"layerdrop": 0.0, "final_dropout": 0.0, "apply_spec_augment": False}
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**config)).eval().requires_grad_(False)
    model.save_pretrained(s["folder"])
    wave, tokens, factor = data(s)
    x, y, core = torch.tensor(wave), torch.tensor(tokens), model.wav2vec2

    class LowRank(torch.nn.Module):
        def __init__(self, base: Any, a: np.ndarray) -> None:
            super().__init__()
            self.base, self.a = base, torch.nn.Parameter(torch.tensor(a))
            self.b = torch.nn.Parameter(torch.zeros(RANK, base.out_features))

        def forward(self, x: Any) -> Any:
            return self.base(x) + (x @ self.a) @ self.b

    plain = [(layer.attention.q_proj, layer.attention.v_proj) for layer in core.encoder.layers]

    def loss(scores: Any) -> Any:
        logs, n = scores.log_softmax(-1).transpose(0, 1), s["batch"]
        ends = (torch.full((n,), logs.shape[0]), torch.full((n,), TOKENS))
        return torch.nn.functional.ctc_loss(logs, y, *ends, reduction="sum") / (n * TOKENS)

    def below() -> Any:
        """What goes into the first layer."""
        hidden = core.feature_projection(core.feature_extractor(x).transpose(1, 2))[0]
        return core.encoder.layer_norm(hidden + core.encoder.pos_conv_embed(hidden))

    def descend(forward: Callable[[], Any], optimizer: Any) -> float:
        """The loss after the steps."""
        for _ in range(s["steps"][1]):
            optimizer.zero_grad()
            loss(forward()).backward()
            optimizer.step()
        with torch.no_grad():
            return float(loss(forward()))

    def adapt(first: int, hold: bool) -> float:
        parameters = [] if first < len(plain) else list(model.lm_head.parameters())
        start = [p.detach().clone() for p in parameters]
        for i, (layer, pair) in enumerate(zip(core.encoder.layers, plain, strict=True)):
            both = [LowRank(base, factor(i, j)) for j, base in enumerate(pair)] if i >= first else pair
            layer.attention.q_proj, layer.attention.v_proj = both
            parameters += [p for one in both if i >= first for p in (one.a, one.b)]
        for p in parameters:
            p.requires_grad_(True)
        optimizer = torch.optim.SGD(parameters, RATE if first < len(plain) else HEAD_RATE)
        with torch.no_grad():
            held = below() if hold else None

        def forward() -> Any:
            if held is None:
                return model(x).logits
            hidden = held
            for layer in core.encoder.layers:
                hidden = layer(hidden)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            return model.lm_head(hidden)

        value = descend(forward, optimizer)
        with torch.no_grad():
            for p, before in zip(parameters, start, strict=False):
                p.copy_(before)
            model.requires_grad_(False)
        return value

    def by_peft() -> float:
        """peft's own low-rank layers in all layers, those of this call."""
        options = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"])
        changed = peft.get_peft_model(model, options)
        with torch.no_grad():
            for i, layer in enumerate(core.encoder.layers):
                for j, one in enumerate((layer.attention.q_proj, layer.attention.v_proj)):
                    one.lora_A.default.weight.copy_(torch.tensor(factor(i, j).T))
        optimizer = torch.optim.SGD([p for p in changed.parameters() if p.requires_grad], RATE)
        value = descend(lambda: changed(x).logits, optimizer)
        changed.unload()
        return value

    with torch.no_grad():
        found = {"forward": (median(lambda: model(x).logits, s["repeats"])[0], 0.0)}
    found |= {name: median(lambda k=first: adapt(k, False), s["repeats"]) for name, first in cases(s).items()}
    found |= {"all layers, held": median(lambda: adapt(0, True), s["repeats"])}
    if importlib.util.find_spec("peft") is None:
        return found
    import peft

    for pair, layer in zip(plain, core.encoder.layers, strict=True):
        layer.attention.q_proj, layer.attention.v_proj = pair
    return found | {"all layers, by peft": median(by_peft, s["repeats"])}


def answer(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Print what a process found, and the most memory that it took, in MiB."""
    found = run(json.loads(sys.argv[-1]))
    print(json.dumps({"found": found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    answer(run)
