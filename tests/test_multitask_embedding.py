"""The reference joint model on real inputs: its tokens, what it refuses, and one small run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax.models.multitask import embedding_heads
from tests.conftest import write_tones

pytest.importorskip("sklearn", reason="codebooks and handwritten digits are scikit-learn's")
import multitask_embedding as script
import multitask_tokens as tokens

WORDS, SPEAKERS, TAKES = 4, 4, 3


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), WORDS, SPEAKERS, TAKES, spacing=400)


@pytest.fixture
def refuse(capsys, tmp_path):
    """Runs the script, which must end with exit code 2 and one sentence, and write nothing; returns that sentence."""

    def call(*arguments: object) -> str:
        out = tmp_path / "out"
        argv = [*map(str, arguments), "--out", str(out), "--cache", str(tmp_path / "cache")]
        assert script.main(argv) == 2
        told = capsys.readouterr().err
        assert told.splitlines()[-1].startswith("error: ") and "Traceback" not in told
        assert not out.exists()
        return told.splitlines()[-1]

    return call


BAD = [
    (("--epochs", 0), "--epochs is 0, expected"),
    (("--seeds", 0), "--seeds is 0, expected"),
    (("--rate", "nan"), "--rate is nan, expected"),
    (("--place", -1), "--place is -1.0, expected"),
    (("--tokens", 501), "--tokens is 501, expected at most 500"),
    (("--held-out", 1), "--held-out is 1.0, expected"),
    (("--patch", 9), "--patch is 9, expected at most the image's 8 pixels"),
    (("--corpus", "fsdd"), "--root"),
    (("--corpus", "fsdd", "--root", "absent"), "absent"),
    (("--root", "here"), "reads no folder, found here"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(map(str, a)) for a, _ in BAD])
def test_bad_arguments_get_one_sentence(refuse, arguments, sentence):
    assert sentence in refuse(*arguments)


def test_data_that_do_not_suffice_get_one_sentence(refuse, tones):
    corpus = ("--corpus", "manifest", "--root", tones)
    assert "--stack is 99, expected at most the 98 frames" in refuse(*corpus, "--stack", 99)
    assert "--batch is 40, expected at most the 36 training examples of speech" in refuse(*corpus, "--batch", 40)
    few = "--tokens is 500, but the training data hold only"
    assert few in refuse(*corpus, "--stack", 46, "--batch", 8)  # a handful of tokens in each clip
    header, *rows = tones.read_text().splitlines()
    other = tones.with_name("other.csv")
    other.write_text("\n".join([header, *(row for row in rows if row.endswith(",s0"))]))
    assert "All clips are by one speaker" in refuse("--corpus", "manifest", "--root", other)
    other.write_text("\n".join([header, *(row for row in rows if ",w0," not in row or row.endswith(",s0"))]))
    refused = [refuse("--corpus", "manifest", "--root", other, "--held-out", 0.9, "--seed", seed) for seed in (0, 1)]
    assert any("1 words are said by held-out speakers alone (w0)" in sentence for sentence in refused)


def test_a_folder_with_something_in_it_is_not_written_into(capsys, tones, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    argv = ["--corpus", "manifest", "--root", str(tones), "--out", str(tmp_path)]
    assert script.main(argv) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def vectors(seed=0, n=20, length=7):
    """Random inputs with padding at their ends."""
    draw = np.random.default_rng(seed)
    mask = np.arange(length) < draw.integers(3, length + 1, (n, 1))
    place = np.broadcast_to(np.linspace(-1, 1, length)[:, None], (n, length, 1))
    return tokens.Vectors(draw.normal(size=(n, length, 4)).astype(np.float32), mask, place, draw.integers(0, 3, n))


def test_tokens_are_the_nearest_centre_and_padding_is_negative():
    inputs, train = vectors(), np.arange(20) < 15
    parts = tokens.tokenise(inputs, train, 6, 0.0, 0, "frames")
    ids = np.concatenate([np.asarray(part.x) for part in parts])
    np.testing.assert_array_equal(ids >= 0, inputs.mask)
    np.testing.assert_array_equal(np.unique(ids[inputs.mask]), range(6))
    np.testing.assert_array_equal(np.concatenate([part.y for part in parts]), inputs.label)
    # k-means has settled: each training vector is closest to the mean of those that share its token
    rows = inputs.mask & train[:, None]
    means = np.stack([inputs.vectors[rows & (ids == token)].mean(0) for token in range(6)])
    nearest = np.square(inputs.vectors[rows][:, None] - means).sum(-1).argmin(-1)
    assert (nearest == ids[rows]).mean() > 0.8
    high = tokens.moved(parts[0], 500).x
    np.testing.assert_array_equal(high, np.where(ids[:15] < 0, -1, ids[:15] + 500))


def test_the_codebook_sees_training_examples_alone():
    inputs, train = vectors(), np.arange(20) < 15
    other = inputs._replace(vectors=np.where(train[:, None, None], inputs.vectors, 9.0).astype(np.float32))
    for place in (0.0, 1.0):
        before, after = (tokens.tokenise(one, train, 6, place, 0, "frames") for one in (inputs, other))
        np.testing.assert_array_equal(before[0].x, after[0].x)
        assert (np.asarray(before[1].x) != np.asarray(after[1].x)).any()


def test_place_tells_equal_vectors_apart():
    inputs, train = vectors(), np.ones(20, bool)
    inputs = inputs._replace(vectors=inputs.vectors[:, :1].repeat(7, 1))  # the same at all times
    plain, placed = (tokens.tokenise(inputs, train, 6, place, 0, "frames")[0].x for place in (0.0, 3.0))
    constant = [len(set(row[row >= 0].tolist())) == 1 for row in np.asarray(plain)]
    assert all(constant)
    assert not any(len(set(row[row >= 0].tolist())) == 1 for row in np.asarray(placed))


def test_frames_of_short_clips_keep_to_the_recording():
    features = jax.random.normal(jax.random.key(0), (3, 10, 4))
    lengths = np.array([10, 5, 2])  # frames 0 to 9, 2 to 6, 4 to 5
    found = tokens.frames(features, lengths, 3, 1)
    wanted = [[1] * 8, [0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(found.mask, np.array(wanted, bool))
    np.testing.assert_allclose(found.place[1, 2:5, 0], [-1, 0, 1])
    sparse = tokens.frames(features, lengths, 3, 3)
    np.testing.assert_array_equal(sparse.vectors, found.vectors[:, ::3])
    np.testing.assert_array_equal(sparse.mask, np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0]], bool))


def test_patches_overlap_row_by_row():
    found = tokens.patches(np.arange(12.0).reshape(1, 3, 4), np.zeros(1, int), 2)
    assert found.vectors.shape == (1, 6, 4) and found.mask.all()
    np.testing.assert_array_equal(found.vectors[0, 1], [1, 2, 5, 6])
    np.testing.assert_allclose(found.place[0, 4], [1, 0])


def test_held_out_people_and_images_are_never_trained_on():
    draw = np.random.default_rng(0)
    inputs = vectors(n=200)._replace(label=np.arange(200) % 3)
    speech = script.Speech(inputs, draw.integers(0, 8, 200), ("a", "b", "c"), "")
    for seed in range(3):
        train = script.held_out_people(speech, 0.25, seed)
        assert not set(speech.person[train]) & set(speech.person[~train])
        assert len(set(speech.person[~train])) == 2
        images = script.held_out_images(inputs.label, 0.25, seed)
        np.testing.assert_array_equal(np.bincount(inputs.label[~images]), [17, 17, 16])


def test_every_epoch_passes_over_the_larger_task_and_no_task_moves_another():
    both = script.orders(jax.random.key(0), {"speech": 12, "image": 8}, 5, 4)
    assert both["speech"].shape == both["image"].shape == (5, 3, 4)
    for epoch in both["speech"].reshape(5, 12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert sorted(both["image"].reshape(-1)[:56].tolist()) == sorted(list(range(8)) * 7)


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
        _, joint = script.train(embedding_heads(heads, num_tokens=20, width=5), params, batches, order)
        gap = 0.0
        for task in heads:
            start = {"shared": params["shared"], "heads": {task: params["heads"][task]}}
            model = embedding_heads({task: heads[task]}, num_tokens=20, width=5)
            _, alone = script.train(model, start, {task: batches[task]}, {task: order[task]})
            gap = max(gap, *(abs(a[f"{task}_loss"] - b["loss"]) for a, b in zip(joint, alone, strict=True)))
        assert (gap < 1e-12) == same


@pytest.mark.slow
def test_a_small_run_leaves_its_results(capsys, tones, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture")
    out = tmp_path / "run"
    argv = ["--corpus", "manifest", "--root", str(tones), "--cache", str(tmp_path), "--out", str(out)]
    small = ["--epochs", "20", "--seeds", "2", "--tokens", "60", "--batch", "16"]
    assert script.main([*argv, *small]) == 0
    printed = capsys.readouterr().out
    assert "epoch  20: loss" in printed and "| chance" in printed
    results = json.loads((out / "results.json").read_text())
    assert [len(run["losses"]["joint, own ids"]) for run in results["runs"]] == [20, 20]
    assert results["chance"] == {"speech": 0.25, "image": 0.1}
    for name in script.MODELS:
        assert results["accuracy"][name]["image"]["mean"] > 0.3
    assert results["transfer"]["joint, own ids"]["image"]["mean"] == pytest.approx(0, abs=0.01)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert script.main([*argv, *small]) == 2  # nothing is overwritten
    assert "already holds a run" in capsys.readouterr().err
