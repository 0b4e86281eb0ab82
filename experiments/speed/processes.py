"""A process for each library, which sleeps until it is asked: threads and memory of one never meet the other's.

`python processes.py SIDE` answers pickled requests on standard input.
"""

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from workloads import Side, Workload

BEGAN = time.perf_counter()
# what `use_all_cores` tells glibc's allocator
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
Ask = Callable[..., Any]  # (name, *, limit=seconds, **arguments) -> the answer


class Child(NamedTuple):
    """A process that was started."""

    ask: Ask
    stop: Callable[[], None]


def start(
    side: str, w: Workload, device: str, cache: Path | None = None, *, keep: bool = False, nice: int = 0
) -> Child:
    """Start a process of one library for one workload.

    Args:
      side: "metajax" or "torch".
      w: the workload.
      device: "cpu" or "gpu".
      cache: folder of compiled functions, metajax only.
      keep: freed memory stays with the process, as `use_all_cores` has it.
      nice: how far it stands back behind others.

    Returns:
      The child; `ask` raises an `InputError` with the reason where the process fails or takes longer than its limit.
    """
    from metajax.errors import InputError  # not at the top: PyTorch's process is to be free of JAX

    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | (MALLOC if keep else {})
    environment |= {"JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device]}
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if w.precision in ("float32", "float64") else {}
    environment |= {"JAX_ENABLE_X64": "1"} if w.precision == "float64" else {}
    command = [*(["nice", "-n", str(nice)] if nice else []), sys.executable, __file__, side]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin and process.stdout
    requests, results = process.stdin, process.stdout
    answers: queue.Queue[tuple[str, Any]] = queue.Queue()
    awaited: list[str] = []

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            while True:
                answers.put(pickle.load(results))
        answers.put(("ended", None))

    def send(name: str, arguments: dict[str, Any]) -> None:
        awaited.append(name)
        with contextlib.suppress(BrokenPipeError, ValueError):  # its end is among the answers
            pickle.dump((name, arguments), requests)
            requests.flush()

    def ask(name: str, *, limit: float | None = None, **arguments: Any) -> Any:
        until = None if limit is None else time.monotonic() + limit
        send(name, arguments)
        value = None
        while awaited:
            what = awaited.pop(0)
            try:
                kind, value = answers.get(timeout=None if until is None else max(until - time.monotonic(), 0.0))
            except queue.Empty:
                stop()
                raise InputError(f"The {side} process was not done with {what!r} in its {limit:.0f} s.") from None
            if kind == "ended":
                raise InputError(f"The {side} process ended with exit code {process.wait()} during {what!r}.")
            if kind == "error":
                raise InputError(f"The {side} process failed during {what!r}: {value}")
        return value

    def stop() -> None:
        process.kill()
        process.wait()

    threading.Thread(target=listen, daemon=True).start()
    send("make", {"w": w, "device": device, "cache": cache})
    return Child(ask, stop)


@contextlib.contextmanager
def child(side: str, w: Workload, device: str, cache: Path | None = None, *, keep: bool = False) -> Iterator[Ask]:
    """`start`, and stop at the end."""
    process = start(side, w, device, cache, keep=keep)
    try:
        yield process.ask
    finally:
        process.stop()


def first(side: Side, **arguments: Any) -> dict[str, float]:
    """A fresh process's time to its first outer step, and its peak memory after three."""
    side["outer"](1, **arguments)
    seconds = time.perf_counter() - side["begun"]()
    side["outer"](2, **arguments)
    return {"import_s": side["begun"]() - BEGAN, "first_step_s": seconds, "memory_mib": side["memory"]()}


def main() -> None:
    """Answer requests `(name, arguments)` with `("result", value)` or `("error", sentence)` until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between
    side: Side = {}
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            value = None
            if name == "make":
                side = getattr(importlib.import_module(f"{sys.argv[1]}_side"), f"{sys.argv[1]}_side")(**arguments)
            else:
                value = first(side, **arguments) if name == "first" else side[name](**arguments)
            answer = ("result", value)
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}")
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    main()
