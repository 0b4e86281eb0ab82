"""Streams: what is read is what was written, which items a step takes, and what is told of a damaged one."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax.core import Batch, Transcripts, Utterances
from metajax.data import stream

SIZES, FRAMES = (5, 8, 7), 6
DRAWN = {"shots": 2, "queries": 1, "num_tasks": 3}


def part(number, frames=FRAMES):
    """Items whose every value is told by their number; groups 0, 1, 2 by turns, and one that is unknown."""
    items = np.arange(SIZES[number]) + sum(SIZES[:number])
    x = Utterances(np.broadcast_to(items[:, None, None], (len(items), frames, 2)).astype(np.float32), items % 4 + 1)
    group = np.where(items == 3, -1, items % 3)
    return Batch(x, Transcripts(np.stack([items, -items], 1).astype(np.int32), items % 2)), group


LIKE = part(0)[0]


@pytest.fixture
def folder(tmp_path):
    stream.write(tmp_path / "items", map(part, range(3)))
    return tmp_path / "items"


def test_items_are_those_that_were_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["00000.npy", "00001.npy", "00002.npy", "stream.json"]
    opened = stream.open(folder, LIKE)
    whole = jax.tree.map(lambda *a: np.concatenate(a), *(part(number) for number in range(3)))
    np.testing.assert_array_equal(opened.group, whole[1])
    asked = np.array([[19, 0], [4, 5], [12, 13]])  # of all shards, over their borders, in any order and shape
    taken = opened.take(asked)
    assert jax.tree.structure(taken) == jax.tree.structure(whole[0])
    for found, wanted in zip(jax.tree.leaves(taken), jax.tree.leaves(whole[0]), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted[asked])


def test_the_items_of_a_step_depend_on_the_seed_and_its_number_alone(folder):
    at = stream.episodes(stream.open(folder, LIKE), **DRAWN, seed=3)
    numbers = [at(step).support.y.tokens[..., 0] for step in range(40)]
    again = stream.episodes(stream.open(folder, LIKE), **DRAWN, seed=3)
    np.testing.assert_array_equal(again(39).support.y.tokens[..., 0], numbers[39])
    other = stream.episodes(stream.open(folder, LIKE), **DRAWN, seed=4)
    assert (other(0).support.y.tokens[..., 0] != numbers[0]).any()
    episode = at(7)
    items = np.concatenate([episode.support.y.tokens[..., 0], episode.query.y.tokens[..., 0]], 1)
    assert items.shape == (3, 3) and episode.query.x.frames.shape == (3, 1, FRAMES, 2)
    assert all(len({*task}) == 3 and len({*(task % 3)}) == 1 for task in items)  # of one group, none twice
    seen = {int(item) for step in range(40) for item in numbers[step].flat}
    assert seen == {*range(20)} - {3}  # every item of a group, none of no group


def apply(params, x, key=None):
    return x.frames.mean((1, 2)) * params["w"] / 20 + x.lengths * params["b"]


def error(outputs, y):
    loss = jnp.square(outputs - y.tokens[:, 1]).mean()
    return loss, {"loss": loss}


def trained(episodes, steps, folder=None, **options):
    learner = mj.maml(apply, error, optax.sgd(0.01), 1)
    theta = learner.learner.init({"w": jnp.ones(()), "b": jnp.zeros(())}, jax.random.key(0))
    optimizer = optax.adam(0.1)
    state = mj.init_state(theta, optimizer, steps)
    options = {"block": 1, "validate_every": 2, "progress": False, "folder": folder} | options
    return mj.fit(mj.outer_step(learner.objective, optimizer), state, jax.random.key(1), episodes=episodes, **options)


@pytest.mark.parametrize(
    "together", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)]
)  # outer steps in one call
def test_a_killed_run_goes_on_to_the_same_losses_and_reads_no_step_again(folder, tmp_path, monkeypatch, together):
    monkeypatch.setattr("metajax.train._TOGETHER", together)
    at, asked = stream.episodes(stream.open(folder, LIKE), **DRAWN), []

    def watched(step):
        asked.append(step)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return at(step)

    block = 1 if together == 1 else 4
    train = partial(trained, block=block)
    whole = train(at, 8, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(watched, 8, tmp_path / "parts")
    resumed = train(watched, 8, tmp_path / "parts", resume=True)
    assert asked == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    lines = [mj.checkpoint.read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    np.testing.assert_allclose(*([line["loss"] for line in of] for of in lines), rtol=0 if block == 1 else 1e-6)
    assert [line["step"] for line in lines[1]] == [*range(block, 9, block)]
    as_iterator = train(map(at, range(8)), 8)
    jax.tree.map(np.testing.assert_array_equal, as_iterator.state, whole.state)


KILLED = """
import os, signal, sys
from pathlib import Path
from metajax.data import stream
from tests.data.test_stream import DRAWN, LIKE, trained

at = stream.episodes(stream.open(Path(sys.argv[1]), LIKE), **DRAWN)
trained(lambda step: at(step) if step < 5 else os.kill(os.getpid(), signal.SIGKILL), 8, Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_run_killed_outright_goes_on_to_the_same_losses(folder, tmp_path):
    root, part = Path(__file__).parents[2], tmp_path / "parts"
    call = [sys.executable, "-c", KILLED, str(folder), str(part)]
    done = subprocess.run(call, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL and len(mj.checkpoint.read_lines(part / "metrics.jsonl")) < 8
    at = stream.episodes(stream.open(folder, LIKE), **DRAWN)
    whole, resumed = trained(at, 8, tmp_path / "whole"), trained(at, 8, part, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    lines = [mj.checkpoint.read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]] and len(lines[1]) == 8


def cut(folder):
    path = folder / "00001.npy"
    path.write_bytes(path.read_bytes()[:-30])


def replaced(source):
    def change(folder):
        (folder / "00001.npy").write_bytes((folder / source).read_bytes())

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cut, r"00001\.npy is damaged or cut short \(.*\)\.$"),
        (lambda folder: (folder / "00001.npy").write_bytes(b""), r"00001\.npy is damaged or cut short"),
        (lambda folder: (folder / "00002.npy").unlink(), r"00002\.npy is missing, a shard of 7 items\.$"),
        (replaced("00000.npy"), r"00001\.npy holds \(5,\) items, expected 8\.$"),
        (lambda folder: (folder / "stream.json").unlink(), r"no whole stream: stream\.json is missing"),
        (lambda folder: (folder / "stream.json").write_text("{"), r"stream\.json is damaged"),
    ],
)
def test_a_damaged_stream_is_told_in_one_sentence(folder, change, told):
    change(folder)
    with pytest.raises(mj.InputError, match=told):
        stream.open(folder, LIKE)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    other = LIKE._replace(y=())
    with pytest.raises(mj.InputError, match=r"items holds x\.frames, .*, expected x\.frames, x\.lengths, as like has"):
        stream.open(folder, other)
    with pytest.raises(mj.InputError, match="items exists and is not an empty folder"):
        stream.write(folder, [])
    with pytest.raises(mj.InputError, match="parts holds no item"):
        stream.write(tmp_path / "none", [])
    told = r"^part 1 holds \('<f4', \(9, 2\)\) in x\.frames, expected \('<f4', \(6, 2\)\), as the first\.$"
    with pytest.raises(mj.InputError, match=told):
        stream.write(tmp_path / "unlike", (part(0), part(1, 9)))
    with pytest.raises(mj.InputError, match="None of 3 groups has 30 items, as 10 shots and 20 queries need"):
        stream.episodes(stream.open(folder, LIKE), shots=10, queries=20, num_tasks=1)
    batch, group = part(0)
    with pytest.raises(mj.InputError, match=r"part 0 has 5 items in x\.frames, expected 4"):
        stream.write(tmp_path / "short", [(batch, group[:4])])


def test_writing_that_stops_leaves_no_half_a_shard_and_no_stream(tmp_path, monkeypatch):
    def parts():
        yield part(0)
        monkeypatch.setattr(np, "save", lambda file, *_, **__: file.write(b"half") and 1 / 0)
        yield part(1)

    with pytest.raises(ZeroDivisionError):
        stream.write(tmp_path / "items", parts())
    assert [path.name for path in (tmp_path / "items").iterdir()] == ["00000.npy"]
    with pytest.raises(mj.InputError, match="holds no whole stream"):
        stream.open(tmp_path / "items", LIKE)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from metajax.core import Batch, Transcripts, Utterances
from metajax.data import stream
from tests.data.test_stream import LIKE, trained

MB, ITEM = 2**20, 500 * 40 * 4
def part(number):  # 32 MB
    n = 32 * MB // ITEM
    draw = np.random.default_rng(number)
    x = Utterances(draw.random((n, 500, 40), np.float32), np.full(n, 500))
    return Batch(x, Transcripts(np.ones((n, 2), np.int32), np.full(n, 2))), draw.integers(8, size=n)

folder = Path(sys.argv[1])
stream.write(folder / "tiny", [part(0)])
sizes = {"shots": 8, "queries": 8, "num_tasks": 2}
run = lambda name, steps: trained(stream.episodes(stream.open(folder / name, LIKE), **sizes), steps)
run("tiny", 2)  # what compilation takes is not the corpus's
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
limit = 160 * MB
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
stream.write(folder / "large", map(part, range(15)))  # 480 MB
found = run("large", 60)
assert int(found.state.count) == 60 and np.isfinite(float(found.theta["params"]["w"]))
try:
    held = [part(number) for number in range(15)]
except MemoryError:
    print("three times the limit")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such limit")
def test_a_stream_three_times_as_large_as_the_memory_is_trained_on(tmp_path):
    root = Path(__file__).parents[2]
    call = [sys.executable, "-c", LIMITED, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(call, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "three times the limit", done.stderr[-2000:]
