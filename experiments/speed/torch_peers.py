"""The peer to measure against: the same networks and MAML in PyTorch, as its libraries write them (extra `peers`).

Parameters are flat dicts `"layer/name" -> tensor`; convolution kernels lie as PyTorch wants them.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]
LOG_ZERO = -1e5


def to_torch(params: Any, dtype: torch.dtype | None = None) -> Params:
    """metajax parameters (nested dicts) as flat tensors that require gradients."""
    flat = {}
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            array = np.asarray(leaf)
            if name == "kernel" and array.ndim > 2:  # [*taps, in, out] -> [out, in, *taps]
                array = np.moveaxis(array, (-1, -2), (0, 1))
            flat[f"{layer}/{name}"] = torch.tensor(np.ascontiguousarray(array), dtype=dtype, requires_grad=True)
    return flat


def from_torch(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `to_torch`, for parameters or gradients."""
    nested: dict[str, dict[str, np.ndarray]] = {}
    for path, tensor in params.items():
        layer, name = path.split("/")
        array = tensor.detach().cpu().numpy()
        turned = name == "kernel" and array.ndim > 2
        nested.setdefault(layer, {})[name] = np.moveaxis(array, (0, 1), (-1, -2)) if turned else array
    return nested


def conv(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Convolution over `[n, features, *space]` with SAME padding."""
    pads: list[int] = []
    for size, tap in zip(reversed(x.shape[2:]), reversed(kernel.shape[2:]), strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + tap - size, 0)
        pads += [total // 2, total - total // 2]
    if any(pads):
        x = F.pad(x, pads)
    return (F.conv1d if x.ndim == 3 else F.conv2d)(x, kernel, stride=stride)


def norm(params: Params, name: str, x: Tensor, fused: bool) -> Tensor:
    """Transductive batch normalisation; by PyTorch's own operation if `fused`.

    Under `torch.func.vmap` that operation's second derivative is wrong (PyTorch 2.13, float64: 1.6e-2 off on
    TC-ResNet8, without `vmap` 3e-16), so there it is written out.
    """
    scale, bias = params[f"{name}/scale"], params[f"{name}/bias"]
    if fused:
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + 1e-5)
    return normal * scale.view(shape) + bias.view(shape)


def head(params: Params, x: Tensor) -> Tensor:
    return x @ params["head/kernel"] + params["head/bias"]


def mlp(params: Params, x: Tensor, fused: bool = True) -> Tensor:
    """`metajax.models.mlp`."""
    depth = sum(name.startswith("dense") for name in params) // 2
    for i in range(depth):
        x = torch.relu(x @ params[f"dense{i}/kernel"] + params[f"dense{i}/bias"])
    return head(params, x)


def tcresnet8(params: Params, x: Tensor, fused: bool = True) -> Tensor:
    """`metajax.models.tcresnet8` with transductive normalisation, on `[n, time, mel]`."""
    x = conv(x.transpose(1, 2), params["conv0/kernel"])
    for i in (1, 2, 3):
        y = torch.relu(norm(params, f"norm{i}a", conv(x, params[f"conv{i}a/kernel"], 2), fused))
        y = norm(params, f"norm{i}b", conv(y, params[f"conv{i}b/kernel"]), fused)
        x = torch.relu(y + torch.relu(norm(params, f"norm{i}s", conv(x, params[f"short{i}/kernel"], 2), fused)))
    return head(params, x.mean(2))


def conv_blocks(params: Params, x: Tensor, fused: bool) -> Tensor:
    """`metajax.models.conv4.conv_blocks`, `[n, features, time, mel]` of `[n, time, mel]`."""
    x = x[:, None]
    for i in range(4):
        x = F.max_pool2d(torch.relu(norm(params, f"norm{i}", conv(x, params[f"conv{i}/kernel"]), fused)), 2)
    return x


def conv4(params: Params, x: Tensor, fused: bool = True) -> Tensor:
    """`metajax.models.conv4` with transductive normalisation, on `[n, time, mel]`."""
    return head(params, conv_blocks(params, x, fused).mean(2).transpose(1, 2).flatten(1))


def recurrent(params: Params, name: str, x: Tensor) -> Tensor:
    """`metajax.models.recurrent.Recurrent` on `[n, time, features]`: an LSTM if there are four gates, else tanh.

    A loop over frames, both directions at once. PyTorch's own LSTM (`torch._VF.lstm`) takes 1.3 times as long in second
    order on CPU, 1.6 times with oneDNN, and fails under `torch.func.vmap`.
    """
    kernel, square, bias = (params[f"{name}/{part}"] for part in ("input", "recurrent", "bias"))
    (n, time, features), (directions, width, size) = x.shape, square.shape
    gates = x.reshape(n * time, features) @ kernel.transpose(0, 1).reshape(features, -1) + bias.reshape(-1)
    gates = gates.view(n, time, directions, size).permute(1, 2, 0, 3)
    if directions == 2:
        gates = torch.stack([gates[:, 0], gates[:, 1].flip(0)], 1)
    h = c = x.new_zeros(directions, n, width)
    outputs = []
    for a in gates.unbind(0):
        a = torch.baddbmm(a, h, square)
        if size == width:
            h = a.tanh()
        else:
            i, f, _, o = a.sigmoid().chunk(4, -1)
            c = torch.addcmul(f * c, i, a[..., 2 * width : 3 * width].tanh())
            h = o * c.tanh()
        outputs.append(h)
    y = torch.stack(outputs)
    y = torch.cat([y[:, 0], y[:, 1].flip(0)], -1) if directions == 2 else y[:, 0]
    return y.transpose(0, 1)


def crnn(params: Params, x: Tensor, fused: bool = True) -> Tensor:
    """`metajax.models.crnn` with transductive normalisation, on `[n, time, mel]`."""
    x = conv_blocks(params, x, fused).mean(3).transpose(1, 2)
    return head(params, norm(params, "norm4", (x + recurrent(params, "recurrent", x))[:, -1], fused))


def bilstm(params: Params, x: Tensor, fused: bool = True) -> Tensor:
    """`metajax.models.bilstm`, on `[n, time, mel]` without padding."""

    def layer_norm(x: Tensor, name: str) -> Tensor:
        scale, bias = params[f"{name}/scale"], params[f"{name}/bias"]
        if fused:
            return F.layer_norm(x, x.shape[-1:], scale, bias)
        centred = x - x.mean(-1, keepdim=True)  # as in `norm`
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * scale + bias

    for i in range(2):
        x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
        x = conv(x.transpose(1, 2), params[f"conv{i}/kernel"], 2).transpose(1, 2)
        x = torch.relu(layer_norm(x, f"norm{i}"))
    for i in range(sum(name.startswith("lstm") for name in params) // 3):
        x = x + recurrent(params, f"lstm{i}", layer_norm(x, f"norm{i + 2}"))
    return head(params, x)


def ctc(logits: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
    """`metajax.losses.ctc` of logits `[n, time, vocabulary]`; y: tokens `[n, length]`, 0 past the lengths, and lengths.

    `F.ctc_loss` has no second derivative: the same recursion, over the transcript with blanks between.
    """
    tokens, lengths = y
    logs = logits.log_softmax(-1)
    spaced = torch.stack([torch.zeros_like(tokens), tokens], -1).flatten(1)  # blank, token, blank, token, ...
    spaced = F.pad(spaced, (0, 1))
    # a blank may be left out between two different tokens
    skips = F.pad((spaced[:, 2:] != 0) & (spaced[:, 2:] != spaced[:, :-2]), (2, 0))
    barred = torch.where(skips, 0.0, LOG_ZERO).to(logs.dtype)
    emitted = logs.gather(2, spaced[:, None].expand(-1, logs.shape[1], -1)).unbind(1)
    alpha = torch.where(torch.arange(spaced.shape[1], device=logits.device) < 2, emitted[0], LOG_ZERO)
    for now in emitted[1:]:
        before = F.pad(alpha, (2, 0), value=LOG_ZERO)
        alpha = now + torch.stack([alpha, before[:, 1:-1], before[:, :-2] + barred]).logsumexp(0)
    ends = alpha.gather(1, torch.stack([2 * lengths, (2 * lengths - 1).clamp(min=0)], 1))
    ends = torch.where(torch.stack([lengths >= 0, lengths > 0], 1), ends, LOG_ZERO)
    return -ends.logsumexp(1).sum() / lengths.sum().clamp(min=1)
