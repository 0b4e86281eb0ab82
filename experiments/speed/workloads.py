"""The workloads of the benchmarks: numbers, of which both libraries make the same networks, data and MAML."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE = 1e-3  # of the outer Adam, on both sides
CLASSES, CLIPS = 20, 30  # of the corpus: words and recordings of each; for CTC speakers and their utterances
VOCABULARY, TOKENS = 32, 12  # of the transcripts
# metajax's default augmentation without its two resamplings
AUGMENTATION = {
    "warp": 0.0, "stretch": 0.0, "shift": 10, "gain": 6.0, "noise": 0.8, "noise_low": 5.0, "noise_high": 30.0,
    "time_mask": 12, "frequency_mask": 5,
}  # fmt: skip

Side = dict[str, Callable[..., Any]]  # what the process of a library answers to


class Workload(NamedTuple):
    """Second-order MAML on one network; support and query are `ways * shots` and `ways * queries` examples."""

    model: str
    time: int = 98  # frames of 40 mel bands; not for the perceptron
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 4
    steps: int = 5
    rate: float = 0.01  # inner
    chunk: int | None = 1  # tasks at a time on each device, metajax
    remat: str = "step"
    formulation: str = "auto"  # of metajax's convolutions, or "xla" for the compiler's own
    # float32: products in full precision; tf32: in the device's default; bfloat16: of metajax's layers; float64
    precision: str = "float32"


WORKLOADS = {
    "sinusoid": Workload("mlp", ways=1, shots=10, queries=10, tasks=25, chunk=None, remat="none"),
    "tcresnet8": Workload("tcresnet8"),
    "conv4": Workload("conv4", time=64),
    "crnn": Workload("crnn", time=64),
    "ctc": Workload("bilstm", time=200, ways=1, shots=5, queries=5, steps=3),
}


def corpus(w: Workload, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-mels `[CLASSES * CLIPS, time, 40]`, a random pattern of each class under noise, class by class, and random
    transcripts `[CLASSES * CLIPS, TOKENS]`. A pattern is of patches of 16 frames and 8 bands, which a shift leaves."""
    generator = np.random.default_rng(seed)
    patches = generator.standard_normal((CLASSES, -(-w.time // 16), 5), np.float32)
    pattern = np.repeat(patches.repeat(16, 1)[:, : w.time].repeat(8, 2), CLIPS, 0)
    clips = pattern + generator.standard_normal(pattern.shape, np.float32)
    return clips, generator.integers(1, VOCABULARY, (len(clips), TOKENS))


def check_episodes(w: Workload, seed: int = 1) -> tuple[Any, Any]:
    """Fixed episodes to compare losses on: (x, y) of support and query, each with a leading axis of tasks."""
    generator = np.random.default_rng(seed)
    pattern = generator.standard_normal((w.tasks, w.ways, w.time, 40), np.float32)
    sides = []
    for count in (w.shots, w.queries):
        shape = (w.tasks, w.ways * count)
        if w.model == "mlp":
            x = generator.uniform(-5, 5, (*shape, 1)).astype(np.float32)
            sides.append((x, np.sin(x)))
        else:
            x = np.repeat(pattern, count, 1) + generator.standard_normal((*shape, w.time, 40), np.float32)
            tokens = generator.integers(1, VOCABULARY, (*shape, TOKENS))
            label = np.broadcast_to(np.repeat(np.arange(w.ways), count), shape)
            sides.append((x, (tokens, np.full(shape, TOKENS)) if w.model == "bilstm" else label))
    return sides[0], sides[1]


def resident_mib(peak: bool = True) -> float:
    """Memory of this process, its peak or what it has now; `ru_maxrss` would start at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(f: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return times
