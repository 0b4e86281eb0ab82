"""Checkpoints and JSON lines: whole or not at all."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import InputError, init_state
from metajax import checkpoint as ck

TREE = {"w": jnp.arange(6.0).reshape(2, 3) / 7, "n": (jnp.int32(3), jnp.array([True, False]))}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


ADAM = optax.adam(optax.constant_schedule(0.1))


@pytest.mark.parametrize(
    "tree", [TREE, init_state({"params": TREE}, ADAM, 10, average=0.5, kept=(TREE["w"],))], ids=["dict", "state"]
)
def test_round_trip(tmp_path, tree):
    ck.save(tmp_path / "folder" / "last", tree)
    assert_same(ck.restore(tmp_path / "folder" / "last", jax.tree.map(jnp.zeros_like, tree)), tree)


def test_typed_keys_of_any_kind_survive_and_draw_what_they_drew(tmp_path):
    tree = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2), "w": TREE["w"]}
    ck.save(tmp_path / "last", tree)
    like = {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(0, impl="rbg"), 2), "w": 0 * TREE["w"]}
    by_shape = ck.restore(tmp_path / "last", jax.eval_shape(lambda: like))
    np.testing.assert_array_equal(jax.random.key_data(by_shape["keys"]), jax.random.key_data(tree["keys"]))
    restored = ck.restore(tmp_path / "last", like)
    for name in ("key", "keys"):
        assert restored[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(jax.random.key_data(restored[name]), jax.random.key_data(tree[name]))
    np.testing.assert_array_equal(jax.random.normal(restored["key"]), jax.random.normal(jax.random.key(3)))
    assert_same(restored["w"], tree["w"])


def test_a_second_save_replaces_the_first(tmp_path):
    for scale in (1, 2):
        ck.save(tmp_path / "last", {"w": scale * TREE["w"]})
    assert_same(ck.restore(tmp_path / "last", {"w": TREE["w"]}), {"w": 2 * TREE["w"]})
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ck.save(Path("last"), TREE)
    assert_same(ck.restore(Path("last"), TREE), TREE)


@pytest.mark.parametrize(
    "like",
    [
        {"w": TREE["w"]},
        TREE | {"more": jnp.zeros(1)},
        TREE | {"w": jnp.zeros((3, 3))},
        TREE | {"w": jnp.zeros((2, 3), jnp.int32)},
        TREE | {"w": jnp.zeros((2, 3), jnp.float16)},
    ],
    ids=["a leaf less", "a leaf more", "another shape", "another kind of dtype", "another width of dtype"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, like):
    ck.save(tmp_path / "last", TREE)
    with pytest.raises(InputError, match=str(tmp_path / "last")):
        ck.restore(tmp_path / "last", like)


def test_an_absent_or_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"last: no checkpoint there"):
        ck.restore(tmp_path / "last", TREE)
    ck.save(tmp_path / "last", TREE)
    (tmp_path / "last" / "manifest.ocdbt").unlink()
    with pytest.raises(InputError, match=r"last: the checkpoint is damaged"):
        ck.restore(tmp_path / "last", TREE)


def crash(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("crash_at", "factor"), [(2, 3.0), (3, 3.0), (4, 3.0), (5, 1.0)])
def test_a_crash_between_the_renames_loses_nothing(crash_at, factor, tmp_path, monkeypatch):
    # a save renames what is whole, then moves the old folder, if any, away, then the new one into its place
    rename, calls = Path.rename, []

    def failing(path, target):
        calls.append(path)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", failing)
        with pytest.raises(KeyboardInterrupt):
            ck.save(tmp_path / "last", {"w": 3.0 * TREE["w"]})
            ck.save(tmp_path / "last", {"w": 1.0 * TREE["w"]})
    assert ck.exists(tmp_path / "last")
    restored = ck.restore(tmp_path / "last", {"w": TREE["w"]})
    assert_same(restored, {"w": factor * TREE["w"]})
    ck.save(tmp_path / "last", TREE)
    assert_same(ck.restore(tmp_path / "last", TREE), TREE)


def test_what_a_crash_left_half_written_is_never_taken_for_whole(tmp_path):
    def half(folder):
        folder.mkdir()
        (folder / "a").write_text("")
        raise KeyboardInterrupt

    def whole(folder):
        folder.mkdir()
        (folder / "b").write_text("")

    for _ in range(2):  # the second one meets what the first one left
        with pytest.raises(KeyboardInterrupt):
            ck.replace_folder(tmp_path / "last", half)
        assert not ck.exists(tmp_path / "last")
    ck.replace_folder(tmp_path / "last", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["b"]


def test_a_crash_while_writing_keeps_the_older_one(tmp_path, monkeypatch):
    ck.save(tmp_path / "last", TREE)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            ck.save(tmp_path / "last", {"w": 3 * TREE["w"]})
    assert_same(ck.restore(tmp_path / "last", TREE), TREE)


def test_lines_round_trip_and_a_cut_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert ck.read_lines(path) == []
    lines = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-30}]
    for line in lines:
        ck.append_line(path, line)
    assert ck.read_lines(path) == lines
    ck.append_line(path, {"step": 3})
    path.write_text(path.read_text()[:-4])
    assert ck.read_lines(path) == lines
    ck.write_lines(path, lines[:1])
    assert ck.read_lines(path) == lines[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    ck.write_json(path, {"a": [1, 2.5]})
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            ck.write_json(path, bad)
    assert json.loads(path.read_text()) == {"a": [1, 2.5]}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    for name in ("taken", "x" * 300):
        with pytest.raises(InputError, match="cannot be written"):
            ck.write_bytes(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
