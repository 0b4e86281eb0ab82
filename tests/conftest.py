"""What all tests share. metajax is not imported here: the type-checking import hook starts after this file is read."""

import contextlib
import gc
import getpass
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from jax.extend.core import jaxprs_in_params
from jaxtyping import config

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))  # plain scripts, which import each other
# most programs here run once, so that work on them takes longer than it saves; nothing here is timed
FAST_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    " --xla_llvm_disable_expensive_passes=true"
)
OPTIMIZED = {"xla_backend_optimization_level": 1}  # for what runs for seconds
os.environ["XLA_FLAGS"] = f"{FAST_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
# before the backend starts: two devices, so that sharding is tested everywhere, and compiled code kept for the next run
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / f"metajax-tests-{getpass.getuser()}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects and little garbage

# making what a program is written in takes longer than writing most: one serves all but those written within another
with contextlib.suppress(ImportError, AttributeError):  # not JAX's interface: where it has changed, tests are slower
    from jax._src.interpreters import mlir

    fresh, shared = mlir.make_ir_context, mlir.make_ir_context()
    mlir.make_ir_context = lambda: fresh() if mlir.ir.Context.current is shared else shared

# what checks a function is made where it is first called, as most never are, and serves every closure of its line
made, make = {}, beartype.beartype


def checker(stub):
    """`beartype.beartype`, as the import hook calls it: on an empty function with the annotations to check."""
    key = stub.__module__, stub.__qualname__, tuple(stub.__annotations__.items())

    def check(*args, **kwargs):
        if key not in made:
            made[key] = make(stub)
        return made[key](*args, **kwargs)

    return check


beartype.beartype = checker


def pytest_collection_modifyitems(items):
    """Runs of whole scripts come first, so that at the end no worker waits long for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None or item.path.parent != Path(__file__).parent)


@pytest.fixture(autouse=True, scope="session")
def few_clips_at_once():
    """Corpora here are small: a batch of clips costs as much as a full one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metajax.data.corpus._BATCH", 32)
        yield


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """As many cores as devices made above, whatever this process may use: scripts ask for a device on each."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.fixture
def x64():
    """Double precision within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """No type checks of annotations within a test, as for a user: the library's own checks must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


# sounds below any word, by time in seconds, some louder than it
LOW = {
    "nothing": lambda t: 0 * t,
    "an offset that settles after the microphone is switched on": lambda t: 0.3 * np.exp(-t / 0.3),
    "a rumble of 10 Hz": lambda t: np.where(t < 1, 0.3 * np.sin(2 * np.pi * 10 * t), 0),
    "mains hum": lambda t: np.where(t < 1, 0.1 * np.sin(2 * np.pi * 50 * t), 0),
    "a thump": lambda t: 0.8 * np.exp(-t / 0.05) * np.sin(2 * np.pi * 45 * t),
}


def normal(*shape, seed=0, scale=1.0, mean=0.0):
    """Normal numbers in the precision of the test, without a program that draws them."""
    return jnp.asarray(np.random.default_rng(seed).normal(mean, scale, shape))


def mlp_params(seed=0, sizes=(3, 5, 4)):
    """A small tanh network; weights `w0`, `b0`, `w1`, ..."""
    params = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        params |= {
            f"w{i}": normal(a, b, seed=(seed, i, 0), scale=a**-0.5),
            f"b{i}": normal(b, seed=(seed, i, 1), scale=0.1),
        }
    return params


def mlp(params, x, key=None):
    """The network's outputs; smooth, so that finite differences hold."""
    for i in range(len(params) // 2):
        x = jnp.tanh(x) if i else x
        x = x @ params[f"w{i}"] + params[f"b{i}"]
    return x


def quadratic(params, x, key=None):
    """(params - c)' A (params - c) / 2 for `x = (A, c)`; an error of its own, with `as_it_is`."""
    a, c = x
    return (params - c) @ a @ (params - c) / 2


def as_it_is(outputs, y):
    """The error of a model whose output is a loss."""
    return outputs, {"loss": outputs}


def assert_close(a, b, tolerance):
    """Assert that two trees have the same structure and leaves that agree, relative to the largest element of all."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    scale = max([1e-30, *(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(b))])
    for (path, left), right in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        assert left.shape == right.shape, (path, left.shape, right.shape)
        np.testing.assert_allclose(left / scale, right / scale, rtol=0, atol=tolerance, err_msg=str(path))


def differs(a, b, tolerance):
    """Whether some leaf of two trees differs by more than `tolerance`."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(np.abs(np.asarray(x) - np.asarray(y)).max() > tolerance for x, y in leaves)


def assert_refused(main, capsys, *cases):
    """Assert that a script called with each `(arguments, sentence)` ends with code 2 and one line that says so."""
    for argv, told in cases:
        assert main(*argv) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and told in error


def equations(f, *args):
    """Every primitive that `f(*args)` calls, as an equation of its jaxpr or of one within it."""

    def within(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jaxprs_in_params(eqn.params):
                yield from within(inner)

    return within(jax.make_jaxpr(f)(*args).jaxpr)


def words(classes, speakers, takes):
    """Labels and speakers of a corpus in which each speaker says each class `takes` times."""
    label, speaker, _ = (a.reshape(-1) for a in np.mgrid[:classes, :speakers, :takes])
    return label, speaker


def write_tones(folder, words, speakers, takes, spacing=200, further=("", "")):
    """A manifest of words that are tones `spacing` Hz apart, half a second long, by speakers that differ in pitch.

    `further`: the end of the header and of every row.
    """
    rate, draw = 16000, np.random.default_rng(0)
    time = np.arange(rate // 2) / rate
    lines = ["path,label,speaker" + further[0]]
    for word, speaker, take in np.ndindex(words, speakers, takes):
        pitch = (300 + spacing * word) * (1 + 0.02 * speaker)
        wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * draw.normal(size=time.size)
        soundfile.write(folder / f"{word}_{speaker}_{take}.wav", wave.astype(np.float32), rate)
        lines.append(f"{word}_{speaker}_{take}.wav,w{word},s{speaker}{further[1]}")
    (folder / "tones.csv").write_text("\n".join(lines) + "\n")
    return folder / "tones.csv"
