"""PyTorch's side of the benchmarks: the same workloads, as fast as they can fairly be made."""

import time
from collections.abc import Callable
from functools import cache as kept
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_gradients as gradients
import torch_peers as peers
import workloads as wl
from torch.nn import functional as F
from workloads import Side, Workload, timed


def torch_side(w: Workload, device: str, cache: Path | None) -> Side:
    """PyTorch with all cores and a fused Adam, as one of these peers.

    "torch": a loop over tasks, as learn2learn writes it; "torch_func": `torch.func`, vmap and grad; "torch_compiled":
    that by `torch.compile`; on a GPU each also with "_graph" behind its name: the outer step as one CUDA graph, which
    takes no time to launch.
    """
    ready, baseline = time.perf_counter(), wl.resident_mib(peak=False)
    cores = wl.num_cores()
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    place = {"cpu": "cpu", "gpu": "cuda"}[device]
    if place == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no GPU.")
    torch.set_float32_matmul_precision("high" if w.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = w.precision == "tf32"
    network = getattr(peers, w.model)
    theta: peers.Params = {}
    optimizer: Any = None
    clips, tokens = (torch.tensor(a, device=place) for a in wl.corpus(w)) if w.model != "mlp" else (None, None)
    cut, num = w.ways * w.shots, w.ways * (w.shots + w.queries)

    def wait() -> None:
        if place == "cuda":
            torch.cuda.synchronize()

    def loss(params: peers.Params, x: torch.Tensor, y: Any, fused: bool = True) -> torch.Tensor:
        outputs = network(params, x, fused)
        return {"mlp": F.mse_loss, "bilstm": peers.ctc}.get(w.model, F.cross_entropy)(outputs, y)

    def unfused(params: peers.Params, x: torch.Tensor, y: Any) -> torch.Tensor:
        return loss(params, x, y, fused=False)

    def start(params: Any) -> None:
        nonlocal theta, optimizer
        theta = {k: v.detach().to(place).requires_grad_() for k, v in peers.to_torch(params).items()}
        optimizer = torch.optim.Adam(list(theta.values()), wl.RATE, fused=True, capturable=place == "cuda")

    def sample(tasks: int) -> tuple[Any, Any]:
        """Fresh episodes, all tasks in one go."""
        if w.model == "mlp":
            a, p = 0.1 + 4.9 * torch.rand(tasks, 1, 1, device=place), torch.pi * torch.rand(tasks, 1, 1, device=place)
            x = 10 * torch.rand(tasks, num, 1, device=place) - 5
            y = a * torch.sin(x - p)
            return (x[:, :cut], y[:, :cut]), (x[:, cut:], y[:, cut:])
        who = torch.rand(tasks, wl.CLASSES, device=place).topk(w.ways).indices
        which = torch.rand(tasks, w.ways, wl.CLIPS, device=place).topk(w.shots + w.queries).indices
        which = which + wl.CLIPS * who[..., None]
        which = torch.cat([which[..., : w.shots].flatten(1), which[..., w.shots :].flatten(1)], 1)
        x = clips[which.flatten()]
        draws = torch.rand(13, len(x), device=place)
        bits = torch.randint(-(2**31), 2**31, x.shape, dtype=torch.int32, device=place)
        x = torch_augment(x, draws, bits).unflatten(0, (tasks, num))
        if w.model == "bilstm":
            y, lengths = tokens[which], torch.full((tasks, num), wl.TOKENS, device=place)
            return (x[:, :cut], (y[:, :cut], lengths[:, :cut])), (x[:, cut:], (y[:, cut:], lengths[:, cut:]))
        ways = torch.arange(w.ways, device=place)
        label = [ways.repeat_interleave(n).expand(tasks, -1) for n in (w.shots, w.queries)]
        return (x[:, :cut], label[0]), (x[:, cut:], label[1])

    def unbound(side: Any) -> list[Any]:
        x, y = side
        targets = zip(*(a.unbind() for a in y), strict=True) if isinstance(y, tuple) else y.unbind()
        return list(zip(x.unbind(), targets, strict=True))

    def by_func(params: peers.Params, sides: tuple[Any, Any]) -> tuple[torch.Tensor, peers.Params]:
        return gradients.meta_gradient_func(unfused, params, sides, w.rate, w.steps)[:2]

    compiled = kept(lambda: torch.compile(by_func, dynamic=False))

    def meta_gradient(peer: str, sides: tuple[Any, Any]) -> tuple[torch.Tensor, peers.Params]:
        if peer.startswith(("torch_func", "torch_compiled")):
            run = compiled() if peer.startswith("torch_compiled") else by_func
            return run({name: leaf.detach() for name, leaf in theta.items()}, sides)
        pairs = list(zip(*map(unbound, sides), strict=True))
        return gradients.meta_gradient_loop(loss, theta, pairs, w.rate, w.steps)[:2]

    threads: dict[Any, int] = {}

    def tuned(what: Any, run: Callable[[], Any]) -> None:
        """All cores, unless one is faster, as it is for small operations."""
        if place == "cpu" and what not in threads:
            repeats, best = 3 if timed(run, 1)[0] < 0.5 else 1, {}
            for n in (1, cores):
                torch.set_num_threads(n)
                best[n] = min(timed(run, repeats))
            threads[what] = min(best, key=lambda n: best[n])
        torch.set_num_threads(threads.get(what, cores))

    def step(peer: str) -> None:
        for leaf, grad in zip(theta.values(), meta_gradient(peer, sample(w.tasks))[1].values(), strict=True):
            leaf.grad = grad
        optimizer.step()

    @kept
    def captured(peer: str) -> Callable[[], None]:
        """The outer step as a CUDA graph."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # a graph may hold no first call of anything
                step(peer)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            step(peer)
        return graph.replay

    def outer(count: int, peer: str, tune: bool = True) -> float:
        once = captured(peer) if peer.endswith("_graph") else lambda: step(peer)

        def run(count: int = count) -> None:
            for _ in range(count):
                once()
            wait()

        if tune:
            tuned(("outer", peer), lambda: run(1))
        return timed(run, 1)[0]

    def check(params: Any, peer: str) -> Any:
        start(params)
        tensors = [torch_tree(side, place) for side in wl.check_episodes(w)]
        value, grads = meta_gradient(peer, (tensors[0], tensors[1]))
        return params, float(value), peers.from_torch(grads)

    def learned(support: Any, num_steps: int, peer: str) -> peers.Params:
        if peer == "torch_func":
            params = {name: leaf.detach() for name, leaf in theta.items()}
            return gradients.learn(unfused, params, support, w.rate, num_steps, functional=True)
        return gradients.learn(loss, theta, support, w.rate, num_steps, create_graph=False)

    def adapt(num_steps: int, repeats: int, peer: str) -> list[float]:
        """Seconds of single adaptations, one after the other."""
        support = unbound(sample(1)[0])[0]

        def run() -> None:
            learned(support, num_steps, peer)
            wait()

        tuned(("adapt", num_steps, peer), run)
        return timed(run, repeats)

    def users(count: int, repeats: int, peer: str) -> list[float]:
        """Seconds until `count` users, who arrive at once, are all served."""
        if peer == "torch":  # one after the other, so each is as it is alone
            return [sum(adapt(w.steps, count, peer)) for _ in range(repeats)]
        support = sample(count)[0]

        def run() -> None:
            torch.func.vmap(lambda *one: learned(one, w.steps, peer))(*support)
            wait()

        tuned(("users", peer), run)
        return timed(run, repeats)

    def memory() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if place == "cuda" else wl.resident_mib() - baseline

    return {
        "check": check, "start": start, "outer": outer, "adapt": adapt, "users": users, "begun": lambda: ready,
        "memory": memory,
    }  # fmt: skip


def torch_tree(tree: Any, place: str) -> Any:
    if isinstance(tree, tuple):
        return tuple(torch_tree(leaf, place) for leaf in tree)
    return torch.tensor(np.ascontiguousarray(tree), device=place)


def torch_augment(x: Any, draws: Any, bits: Any) -> Any:
    """`metajax.data.augment` by AUGMENTATION and its normalisation, on `[n, time, mel]`; `draws`, `bits` as there."""
    s, neper = wl.AUGMENTATION, np.log(10) / 10
    _, _, shift, level, chance, ratio, tilt, hump, _, *masks = draws[:, :, None, None]
    frames, bands = x.shape[1:]
    place = torch.arange(frames, device=x.device)
    source = place - (torch.floor(shift[:, 0] * (2 * s["shift"] + 1)).long() - s["shift"])
    inside = (source >= 0) & (source < frames)
    moved = x.gather(1, source.clamp(0, frames - 1)[..., None].expand(-1, -1, bands))
    x = torch.where(inside[..., None], moved, x.amin(1, keepdim=True))
    x = x + neper * s["gain"] * (2 * level - 1)
    band = torch.linspace(-0.5, 0.5, bands, device=x.device)
    first, second = (((half & 65535).float() + 0.5) / 65536 for half in (bits >> 16, bits))
    colour = (8 * tilt - 6) * band + (2 * hump - 1) * torch.cos(2 * torch.pi * band)
    noise = colour + torch.log(-torch.log(first * second))
    power, noise_power = (a.logsumexp((1, 2), keepdim=True) for a in (x, noise))
    wanted = neper * (s["noise_low"] + (s["noise_high"] - s["noise_low"]) * ratio)
    x = torch.where(chance < s["noise"], torch.logaddexp(x, noise + (power - noise_power - wanted)), x)
    for width, begin, size, most, shape in (
        (*masks[:2], frames, s["time_mask"], (1, frames, 1)), (*masks[2:], bands, s["frequency_mask"], (1, 1, bands)),
    ):  # fmt: skip
        cells = torch.floor(width * (most + 1))
        start, cell = torch.floor(begin * (size - cells + 1)), torch.arange(size, device=x.device).view(shape)
        x = torch.where((cell >= start) & (cell < start + cells), x.mean((1, 2), keepdim=True), x)
    x = torch.maximum(x, x.amax((1, 2), keepdim=True) - neper * 60.0)
    x = x - x.mean(1, keepdim=True)
    return x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + 1e-6)
