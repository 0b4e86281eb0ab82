"""What is told of embeddings, on embeddings made for it."""

import jax
import numpy as np
import pytest

from metajax import embedded

RNG = np.random.default_rng(0)
LABEL, SPEAKER = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
COLUMNS = {"label": LABEL, "speaker": SPEAKER}
MEANS = np.linalg.qr(RNG.normal(size=(16, 12)))[0].T
CLEAR = (MEANS[LABEL] + 0.05 * RNG.normal(size=(96, 16))).astype(np.float32)
VAGUE = (MEANS[LABEL] + 0.35 * RNG.normal(size=(96, 16))).astype(np.float32)
NUMBERS = {"scale": 20.0, "bias": 10.0, "growth": 0.0}
SIZES = {"ways": 3, "shots": 2, "queries": 2, "across": "speaker"}


def test_clips_are_embedded_in_batches_of_one_size():
    x, shapes = np.arange(7, dtype=np.float16)[:, None], []

    def embed(batch):
        shapes.append(batch.shape)
        return batch + 0.5

    np.testing.assert_array_equal(embedded.vectors(embed, x, 3), x + 0.5)
    assert shapes == [(3, 1)] * 3


def test_episodes_teach_half_of_their_words_and_count_fewer_clips_where_asked():
    sample = jax.jit(embedded.open_episodes(CLEAR, COLUMNS, **SIZES, fewer=True))
    support, query = jax.jit(embedded.open_episodes(CLEAR, COLUMNS, **SIZES))(jax.random.key(0))
    assert support.y.tolist() == [0, 0, 1, 1, 2, 2] and query.y.tolist() == [0, 0, 1, 1, 2, 2] + [3] * 6
    nearest = (np.asarray(query.x) @ np.asarray(support.x).T).argmax(1)
    assert (support.y[nearest[:6]] == query.y[:6]).all()
    counts = {tuple((sample(jax.random.key(i))[0].y >= 0).tolist()) for i in range(20)}
    assert len(counts) == 8 and all(y[0] and y[2] and y[4] for y in counts)  # the first clip of a word always counts


def test_rejection_is_told_as_counting_pairs_tells_it():
    sample = embedded.open_episodes(VAGUE, COLUMNS, **SIZES)
    drawn = jax.jit(sample)
    found = embedded.rejection(sample, 3, NUMBERS, 40, seed=3)
    known, other = [], []  # the best cosine orders queries as the probability of "unknown" does, but for other classes
    right = 0
    for key in jax.random.split(jax.random.key(3), 40):
        support, query = drawn(key)
        means = np.stack([np.asarray(support.x)[2 * c : 2 * c + 2].mean(0) for c in range(3)])
        x = np.asarray(query.x)
        cosine = (x @ means.T) / np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(means, axis=1)
        logits = np.concatenate([20 * cosine, np.full((len(x), 1), 10.0)], 1)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        y = np.asarray(query.y)
        known += list(p[y < 3, 3])
        other += list(p[y == 3, 3])
        right += (p.argmax(1) == y)[y < 3].sum()
    pairs = np.subtract.outer(other, known)
    assert found["area under the curve"] == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2, abs=1e-4)
    assert found["taught word right"] == pytest.approx(right / len(known), abs=1e-6)
    assert 0.02 < found["equal error rate"] < 0.4
    threshold = np.quantile(other, found["equal error rate"])
    assert np.mean(np.array(known) > threshold) == pytest.approx(found["equal error rate"], abs=0.02)


@pytest.mark.slow
def test_accuracy_and_calibration_know_clear_words_from_vague_ones():
    sizes = SIZES | {"queries": 1}
    closed = [embedded.episodes(z, LABEL, SPEAKER, **sizes) for z in (CLEAR, VAGUE)]
    clear, vague = (embedded.accuracy(sample, 3, 64) for sample in closed)
    assert clear == {"mean": 1.0, "ci95": 0.0} and 0.5 < vague["mean"] < 1.0 and 0 < vague["ci95"] < 0.2
    opened = embedded.open_episodes(CLEAR, COLUMNS, **sizes, fewer=True)
    numbers = embedded.calibrated(opened, 3, 60)
    assert embedded.rejection(opened, 3, numbers, 20)["taught word right"] == 1.0


def test_shares_on_drawn_clips_are_the_accuracy_of_class_means():
    z = VAGUE / np.linalg.norm(VAGUE, axis=1, keepdims=True)
    sizes = {"ways": 3, "shots": 2, "queries": 2}
    drawn = embedded.draws(COLUMNS, 200, 3, **sizes)
    assert drawn.support.shape == (200, 3, 2) and drawn.query.shape == (200, 3, 2)
    for part in drawn:
        assert (LABEL[part] == LABEL[drawn.support[..., :1]]).all()
    assert not any(set(SPEAKER[a].flat) & set(SPEAKER[b].flat) for a, b in zip(*drawn, strict=True))
    found = embedded.shares(z, z, [drawn, drawn])
    expected = embedded.accuracy(embedded.episodes(z, LABEL, SPEAKER, **sizes, across="speaker"), 3, 200, 4)
    assert found.shape == (2, 200) and (found[0] == found[1]).all()
    assert found.mean() == pytest.approx(expected["mean"], abs=0.06)
    other = z[::-1].copy()  # queries that are heard otherwise
    assert embedded.shares(other, z, [drawn]).mean() < 0.5


def test_an_alignment_costs_what_the_best_path_costs():
    query, support = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in RNG.normal(size=(2, 3, 4, 5)))

    def paths(i, j):
        if i == j == 0:
            yield ((0, 0, 2),)
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i >= di and j >= dj:
                yield from ((*path, (i, j, di + dj)) for path in paths(i - di, j - dj))

    every = list(paths(3, 3))
    assert len(every) == 63  # a Delannoy number
    for a in range(3):
        for b in range(3):
            costs = [sum(n * (1 - query[a, i] @ support[b, j]) for i, j, n in path) for path in every]
            assert embedded._costs(query, support)[a, b] == pytest.approx(min(costs))
    drawn = embedded.Draws(np.array([[[0], [1], [2]]]), np.array([[[0], [1], [2]]]))
    assert embedded.shares(support, support, [drawn]).tolist() == [[1.0]]  # what is alike costs nothing


@pytest.mark.slow
def test_a_corpus_is_told_by_1_and_5_clips_and_rejection_by_the_last_embedding_of_arabic_alone():
    label, speaker = np.repeat(np.arange(12), 40), np.tile(np.repeat(np.arange(10), 4), 12)
    clear, vague = ((MEANS[label] + s * RNG.normal(size=(480, 16))).astype(np.float32) for s in (0.05, 0.35))
    by, columns = {"vague": vague, "clear": clear}, {"label": label, "speaker": speaker}
    found = embedded.tested("arabic", by, columns, NUMBERS, 20)
    assert list(found) == ["arabic, 1-shot", "arabic, 5-shot"]
    for row in found.values():
        assert row["vague"]["mean"] < row["clear"]["mean"] == 1.0 and row["area under the curve"] == 1.0
    assert list(embedded.tested("fsdd", by, columns, NUMBERS, 2)["fsdd, 5-shot"]) == ["vague", "clear"]
