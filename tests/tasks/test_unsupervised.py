"""Tasks made without labels, and tasks with few of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unsupervised

import metajax as mj
from metajax import InputError, Labels
from metajax.data import words
from metajax.data.augment import Augmentation, augment
from metajax.data.clusters import partitions
from metajax.data.corpus import Corpus
from metajax.data.features import FeatureSettings
from metajax.losses import classify
from metajax.tasks.episodes import episodes
from metajax.tasks.splits import Splits
from metajax.tasks.unsupervised import cactus, partly_labelled, umtra
from tests.conftest import normal

pytest.importorskip("sklearn", reason="k-means is scikit-learn's")

CLIPS = 30
ROWS = np.arange(CLIPS)
KEYS = jax.random.split(jax.random.key(0), 300)


def numbered(x, key):
    """A change whose result tells the clip, and the draw."""
    return {"clip": x, "draw": jax.random.uniform(key, x.shape)}


def drawn(sample):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sample))(KEYS))


def test_every_class_of_umtra_is_one_clip_and_every_example_a_view_of_its_own():
    support, query = drawn(umtra(ROWS, numbered, ways=4, shots=2, queries=3))
    for batch, count in ((support, 2), (query, 3)):
        np.testing.assert_array_equal(
            batch.y.episode, np.broadcast_to(np.repeat(np.arange(4), count), (300, 4 * count))
        )
        np.testing.assert_array_equal(batch.x["clip"], batch.y.corpus)
        clips = batch.x["clip"].reshape(300, 4, count)
        assert (clips == clips[..., :1]).all()
    clips = support.x["clip"].reshape(300, 4, 2)[..., 0]
    np.testing.assert_array_equal(clips, query.x["clip"].reshape(300, 4, 3)[..., 0])
    assert (np.diff(np.sort(clips), axis=1) > 0).all()  # without replacement
    views = np.sort(np.concatenate([support.x["draw"], query.x["draw"]], 1))
    assert (np.diff(views, axis=1) > 0).all()
    seen = np.bincount(clips.ravel(), minlength=CLIPS)
    assert np.abs(seen - 40).max() < 5 * 40**0.5  # all clips alike
    assert (drawn(umtra(ROWS, numbered, ways=4, shots=2, queries=3)).support.x["clip"] == support.x["clip"]).all()


class Hidden(dict):
    """Columns that nobody may look into."""

    def __getitem__(self, name):
        raise AssertionError(f"{name} was read")

    get = items = keys = values = __iter__ = __contains__ = __getitem__


@pytest.fixture(scope="module")
def hidden():
    """A corpus of noise whose labels and speakers raise when touched."""
    x = normal(CLIPS, 98, 40, seed=1)
    corpus = Corpus("hidden", x, np.full(CLIPS, 98), Hidden(), Hidden(), None, FeatureSettings(), ())
    return words.Words(corpus, Splits(ROWS < 24, ROWS == 24, ROWS > 24), None, "")


def test_no_label_and_no_speaker_is_read(hidden):
    """By the script's own sampler of each source; `supervised` does read them, so that the columns would tell."""
    s = unsupervised.Settings(queries=1, many=2, clusters=3, partitions=2)
    cell = unsupervised.Cell("umtra", "protonet", 20, 0)
    for source in ("umtra", "contrastive", "cactus", "masked"):
        sample = unsupervised.training(s, cell._replace(source=source), hidden, 2)
        shape = jax.eval_shape(sample, KEYS[0]).support.x.shape
        assert shape == (2, 98, 40)
    with pytest.raises(AssertionError, match="label was read"):
        unsupervised.training(s, cell._replace(source="supervised"), hidden, 2)


def test_support_and_query_of_speech_are_never_the_same_view(hidden):
    x = hidden.corpus.features
    episode = jax.jit(umtra(x, words.prepared(hidden, 1.0), ways=5, shots=1, queries=2))(KEYS[0])
    views = np.concatenate([batch.x.reshape(len(batch.x), -1) for batch in episode])
    distances = np.square(views[:, None] - views).mean(2) + np.eye(len(views))
    assert distances.min() > 0.01


def test_many_ways_one_shot_and_one_query_with_cosines_are_infonce(x64):
    """Against a loop in numpy: the positive among all of the batch, in nats."""
    x = normal(CLIPS, 6, seed=2)
    sample = umtra(x, lambda x, key: x + 0.5 * jax.random.normal(key, x.shape), ways=12)
    objective = mj.protonet(lambda p, x, key: jnp.tanh(x @ p["w"]), classify, 12, metric="cosine", temperature=0.2)
    w, episode = normal(6, 4, seed=3), jax.jit(sample)(KEYS[0])
    loss, _ = jax.jit(objective.objective)({"params": {"w": w}}, episode, KEYS[1])
    s, q = (np.tanh(np.asarray(batch.x) @ np.asarray(w)) for batch in episode)
    s, q = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (s, q))
    nats = [np.log(sum(np.exp(q[i] @ s[j] / 0.2) for j in range(12))) - q[i] @ s[i] / 0.2 for i in range(12)]
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-6)


def test_tasks_of_cactus_are_clusters_of_one_partition():
    clusters = np.stack([ROWS // 10, ROWS % 5, np.where(ROWS < 2, -1, ROWS % 3)])
    with pytest.warns(UserWarning, match="1 of 15 classes have too few clips"):
        odd = np.concatenate([clusters, [np.where(ROWS == 7, 3, ROWS % 3)]])
        cactus(ROWS, odd, ways=2, shots=1, queries=4)
    support, query = drawn(cactus({"clip": ROWS}, clusters, ways=3, shots=1, queries=4))
    rows = np.concatenate([support.x["clip"], query.x["clip"]], 1)
    labels = np.concatenate([support.y.episode, query.y.episode], 1)
    assert (np.diff(np.sort(rows), axis=1) > 0).all()
    found = np.zeros(3, int)
    for task, label in zip(rows, labels, strict=True):
        # in some partition equal labels are equal clusters, and other labels other ones
        fits = [(p[task][:, None] == p[task]) == (label[:, None] == label) for p in clusters]
        fits = [fit.all() and (p[task] >= 0).all() for fit, p in zip(fits, clusters, strict=True)]
        assert sum(fits) == 1
        found += fits
    assert (np.abs(found - 100) < 5 * (300 * 2 / 9) ** 0.5).all()


def test_partitions_find_what_is_apart_in_whatever_units():
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 20)
    vectors = draw.normal(size=(3, 8))[truth] + 0.01 * draw.normal(size=(60, 8))
    vectors = np.concatenate([vectors, 1e6 * draw.normal(size=(60, 1))], 1)  # a feature of noise in small units
    for row in partitions(vectors, 3, 3, seed=0):
        assert len({*zip(row, truth, strict=True)}) == 3


def test_by_cosine_only_directions_count_and_partitions_begin_apart():
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 20)
    vectors = np.eye(3)[truth] + 0.01 * draw.normal(size=(60, 3))
    rows = partitions(vectors * draw.uniform(1, 99, size=(60, 1)), 3, 3, seed=0, metric="cosine")
    assert all(len({*zip(row, truth, strict=True)}) == 3 for row in rows)
    assert len(np.unique(partitions(draw.normal(size=(60, 3)), 9, 3, seed=0, metric="cosine"), axis=0)) == 3


def test_every_partition_looks_at_features_of_its_own():
    """One feature against two that say another thing: as they are, the two win; scaled at random, it does at times."""
    one, two = np.arange(40) % 2, np.arange(40) // 20
    vectors = np.stack([one, two, two], 1) + 0.01 * np.random.default_rng(0).normal(size=(40, 3))
    rows = partitions(vectors, 2, 16, seed=0)
    by_one, by_two = (np.array([len({*zip(row, by, strict=True)}) == 2 for row in rows]) for by in (one, two))
    assert (by_one ^ by_two).all() and by_one.sum() >= 3 and by_two.sum() >= 8
    np.testing.assert_array_equal(partitions(vectors, 2, 16, seed=0), rows)
    assert (partitions(vectors, 2, 16, seed=1) != rows).any()


def test_the_first_of_each_class_keep_their_labels():
    sample = episodes(ROWS, ROWS // 10, ROWS * 0, ways=3, shots=4, queries=2, across="none")
    whole, partly = sample(KEYS[0]), partly_labelled(sample, 3, 1)(KEYS[0])
    np.testing.assert_array_equal(partly.support.x, whole.support.x)
    jax.tree.map(np.testing.assert_array_equal, partly.query, whole.query)
    assert partly.support.y.episode.tolist() == [0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1]
    kept = np.asarray(partly.support.y.corpus).reshape(3, 4)
    np.testing.assert_array_equal(kept[:, 0], whole.support.y.corpus[::4])
    assert (kept[:, 1:] == -1).all()
    assert isinstance(partly.support.y, Labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: umtra(ROWS, numbered, ways=31, queries=1), "corpus has 30 clips, expected at least 31"),
        (lambda: umtra(ROWS, numbered, ways=1, queries=1), "ways is 1, expected at least 2"),
        (lambda: umtra(ROWS, numbered, ways=2, queries=0), "queries is 0"),
        (lambda: umtra({"a": ROWS, "b": ROWS[1:]}, numbered, ways=2), r"x\['a'\] 30, x\['b'\] 29"),
        (lambda: umtra(ROWS, augment(Augmentation(gain=-1.0)), ways=2), "gain is -1.0, expected a finite number"),
        (lambda: cactus(ROWS, ROWS[None, :9] % 2, ways=2, shots=1, queries=1), "x 30, clusters 9"),
        (lambda: cactus(ROWS, ROWS % 2, ways=2, shots=1, queries=1), r"clusters have shape \(30,\), expected \[part"),
        (lambda: cactus(ROWS, np.zeros((0, 30), int), ways=2, shots=1, queries=1), r"clusters have shape \(0, 30\)"),
        (lambda: partitions(np.zeros((9, 2, 3)), 2, 1, seed=0), r"vectors have shape \(9, 2, 3\), expected finite"),
        (
            lambda: cactus(ROWS, ROWS[None] // 4, ways=5, shots=1, queries=4, name="train"),
            "train: partition 0 has 0 clusters of 5 clips or more, as 1 shots and 4 queries .*; its largest has 4",
        ),
        (lambda: partitions(np.ones((9, 2)), 2, 1, seed=0), "num_clusters is 2, but there are 1 different vectors"),
        (lambda: partitions(np.full((9, 2), np.nan), 2, 1, seed=0), "vectors hold a number that is not finite"),
        (lambda: partitions(np.eye(3), 2, 0, seed=0), "num_partitions is 0"),
        (lambda: partitions(np.eye(3), 2, 1, seed=0, metric="angle"), 'metric is .angle., expected "scaled"'),
        (lambda: partly_labelled(umtra(ROWS, numbered, ways=3), 3, 2)(KEYS[0]), "has 3 examples, expected 2 or more"),
        (lambda: partly_labelled(umtra(ROWS, numbered, ways=3), 3, 0), "shots is 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(unchecked, make, message):
    with pytest.raises(InputError, match=message):
        make()
