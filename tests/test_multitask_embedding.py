"""The reference joint model on real inputs: its tokens, what it refuses, and one small run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax import runs
from metajax.models.multitask import embedding_heads
from tests.conftest import write_tones

pytest.importorskip("sklearn", reason="codebooks and handwritten digits are scikit-learn's")
import multitask_embedding as script

WORDS, SPEAKERS, TAKES = 4, 4, 3


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), WORDS, SPEAKERS, TAKES, spacing=400)


@pytest.fixture
def call(capsys, tmp_path):
    """Runs the script: its exit code, what it printed, and the last line of what it told."""

    def run(*arguments: object) -> tuple[int, str, str]:
        argv = [*map(str, arguments), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        code = runs.main(script.Settings, script.run, script.__doc__, argv)
        told = capsys.readouterr()
        return code, told.out, told.err.splitlines()[-1] if told.err else ""

    return run


BAD = [
    (("--epochs", 0), "epochs is 0, expected"),
    (("--rate", "nan"), "rate is nan, expected"),
    (("--tokens", 501), "tokens is 501"),
    (("--corpus", "fsdd"), "needs a root"),
    (("--corpus", "fsdd", "--root", "absent"), "absent"),
    (("--corpus", "nonsense"), "expected one of espeak"),
    (("--root", "here"), "reads no folder"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(map(str, a)) for a, _ in BAD])
def test_bad_arguments_get_one_sentence(call, tmp_path, arguments, sentence):
    code, _, told = call(*arguments)
    assert code == 2 and told.startswith("error: ") and sentence in told
    assert not (tmp_path / "out").exists()


def test_data_that_do_not_suffice_get_one_sentence(call, tones, tmp_path):
    corpus = ("--corpus", "manifest", "--root", tones)
    for arguments, sentence in (
        (("--held-out", 1), "shares to validate and to test on are (0.0, 1.0)"),
        (("--stack", 99), "stack is 99, expected 1 to the 98 frames"),
        (("--patch", 9), "size is 9, expected 1 to the 8 pixels"),
        (("--batch", 40, "--tokens", 8), "batch is 40, expected at most the 36 training examples of speech"),
        (("--stack", 46, "--batch", 8), "num_tokens is 500, but the training examples have"),
    ):
        code, _, told = call(*corpus, *arguments)
        assert code == 2 and sentence in told and not (tmp_path / "out").exists()
    header, *rows = tones.read_text().splitlines()
    other = tones.with_name("other.csv")
    other.write_text("\n".join([header, *(row for row in rows if row.endswith(",s0"))]))
    assert "speech has 1 groups" in call("--corpus", "manifest", "--root", other)[2]


def test_a_folder_with_something_in_it_is_not_written_into(call, tones, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    small = ("--tokens", 8, "--batch", 8)
    assert "not an empty folder" in call("--corpus", "manifest", "--root", tones, *small)[2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_small_run_leaves_its_results_and_goes_on(call, tones, tmp_path):
    arguments = ("--corpus", "manifest", "--root", tones, "--epochs", 4, "--tokens", 60, "--batch", 32, "--rate", 0.03)
    code, printed, _ = call(*arguments, "--seeds", 0)
    assert code == 0 and "| chance | 25.0 | 10.0 |" in printed
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())["accuracy"]
    assert results.pop("chance")["speech"]["mean"] == 0.25
    assert all(results[name]["image"]["mean"] > 0.3 for name in results)
    # with ids of their own the joint loss is two single trainings
    assert results["joint, own ids"]["image gain"]["mean"] == pytest.approx(0, abs=0.01)
    cells = {path.stem: json.loads(path.read_text()) for path in (out / "cells").iterdir()}
    joint, alone = (cells[name]["losses"]["image"] for name in ("joint_own_ids-0", "image_alone-0"))
    assert len(joint) == 4 and joint[-1] < joint[0]
    np.testing.assert_allclose(joint, alone, rtol=1e-3)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "4 cells, 4 of them finished before." in call(*arguments, "--seeds", 0)[1]
    code, _, told = call(*arguments[:-1], 0.02)
    assert code == 2 and "rate is 0.02 now but 0.03 in" in told


def test_every_epoch_passes_over_the_larger_task_and_no_task_moves_another():
    both = script.orders(jax.random.key(0), {"speech": 12, "image": 8}, 5, 4)
    assert both["speech"].shape == both["image"].shape == (5, 3, 4)
    for epoch in both["speech"].reshape(5, 12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert sorted(both["image"].reshape(-1)[:56].tolist()) == sorted(list(range(8)) * 7)


@pytest.mark.slow
def test_with_ids_of_their_own_the_joint_loss_is_two_single_trainings(x64):
    """The tasks touch no common row, and Adam works entry by entry: nothing can pass from one to the other."""
    heads, draw = {"speech": 3, "image": 2}, np.random.default_rng(0)

    def data(first):
        return {
            task: mj.Batch(
                jnp.asarray(draw.integers(i * first, i * first + 10, (12, 6)), jnp.int32),
                jnp.asarray(draw.integers(0, classes, 12), jnp.int32),
            )
            for i, (task, classes) in enumerate(heads.items())
        }

    order = script.orders(jax.random.key(0), dict.fromkeys(heads, 12), 4, 4)
    for first, same in ((10, True), (0, False)):
        batches = data(first)
        params = embedding_heads(heads, num_tokens=20, width=5).init(
            jax.random.key(1), {task: batch.x for task, batch in batches.items()}
        )
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        _, joint = script.train(embedding_heads(heads, num_tokens=20, width=5), params, batches, order, 1e-3)
        gap = 0.0
        for task in heads:
            start = {"shared": params["shared"], "heads": {task: params["heads"][task]}}
            model = embedding_heads({task: heads[task]}, num_tokens=20, width=5)
            _, alone = script.train(model, start, {task: batches[task]}, {task: order[task]}, 1e-3)
            gap = max(gap, *(abs(a[f"{task}_loss"] - b["loss"]) for a, b in zip(joint, alone, strict=True)))
        assert (gap < 1e-12) == same
