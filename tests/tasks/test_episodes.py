"""Episodes: who is in them, who may not be, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Batch, Episode, InputError, Labels, Transcripts, Utterances
from metajax.tasks.episodes import ACROSS, episodes, index_tables, mixture, with_inputs
from tests.conftest import words

WAYS, SHOTS, QUERIES, DRAWS = 3, 2, 2, 600


def draw(label, speaker, across, ways=WAYS, shots=SHOTS, queries=QUERIES, draws=DRAWS):
    """Many episodes whose inputs are the clips' own numbers: clips and labels as arrays, tasks first."""
    features = jnp.arange(len(label), dtype=jnp.float32)[:, None]
    sample = episodes(features, label, speaker, ways=ways, shots=shots, queries=queries, across=across)
    support, query = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), draws))
    return [(np.asarray(b.x[..., 0], int), *map(np.asarray, b.y)) for b in (support, query)]


def renumbered(label):
    """Labels as 0..classes - 1 in order, -1 left alone."""
    return np.searchsorted(np.unique(label[label >= 0]), label)


def check(label, speaker, across, support, query, ways=WAYS, shots=SHOTS, queries=QUERIES):
    """All that must hold of every episode."""
    corpus = renumbered(label)
    for (clips, episode, column), count in ((support, shots), (query, queries)):
        assert clips.shape == episode.shape == column.shape == (len(clips), ways * count)
        assert (episode == np.repeat(np.arange(ways), count)).all()
        np.testing.assert_array_equal(column, corpus[clips])
        assert (label[clips] >= 0).all()
        classes = column.reshape(-1, ways, count)
        assert (classes == classes[..., :1]).all()  # an episode label stands for one class
        assert (np.diff(np.sort(classes[..., 0], 1), axis=1) > 0).all()  # distinct classes
    np.testing.assert_array_equal(
        support[2].reshape(-1, ways, shots)[..., 0], query[2].reshape(-1, ways, queries)[..., 0]
    )
    both = np.sort(np.concatenate([support[0], query[0]], 1), 1)
    assert (np.diff(both, axis=1) > 0).all()  # distinct clips, none in both sets
    for a, b in zip(speaker[support[0]], speaker[query[0]], strict=True):
        if across == "speaker":
            assert not np.intersect1d(a, b).size
        if across == "same":
            assert len({*a, *b}) == 1


@pytest.mark.parametrize("across", ACROSS)
def test_episodes_hold_what_they_promise_and_draw_everything_evenly(across):
    label, speaker = words(classes=5, speakers=4, takes=4)
    label, speaker = 10 * label + 3, 2 * speaker + 5  # numbers with gaps
    support, query = draw(label, speaker, across)
    check(label, speaker, across, support, query)
    # each clip is as likely as any other, as support and as query: within 5 standard deviations of the mean
    for (clips, _, corpus), count in ((support, SHOTS), (query, QUERIES)):
        chance = WAYS * count / len(label)
        times = np.bincount(clips.ravel(), minlength=len(label))
        slack = 5 * np.sqrt(
            DRAWS * chance * (1 - chance) * (2 if across != "none" else 1)
        )  # halves draw clips together
        assert np.abs(times - DRAWS * chance).max() < slack
        assert np.abs(np.bincount(corpus.ravel()) / count - DRAWS * WAYS / 5).max() < 5 * np.sqrt(DRAWS * 0.24)
    # each class is each episode label equally often: the numbering of an episode tells nothing about the class
    table = np.zeros((WAYS, 5))
    np.add.at(table, (support[1].ravel(), support[2].ravel()), 1 / SHOTS)
    assert np.abs(table - DRAWS / 5).max() < 5 * np.sqrt(DRAWS * 0.16)


@pytest.mark.parametrize("across", ACROSS)
def test_ragged_corpora(across):
    """Classes of 4 to 11 clips, speakers who lack words, clips without a label; the class too small is told of."""
    generator = np.random.default_rng(0)
    label, speaker = words(classes=6, speakers=5, takes=5)
    keep = generator.random(len(label)) < np.array([0.95, 0.8, 0.7, 0.6, 0.9, 0])[label]
    keep &= ~((speaker == 2) & (label == 1))
    keep |= (label == 5) & (np.arange(len(label)) % 25 == 0)  # one clip
    label, speaker = label[keep], speaker[keep]
    label = np.where(generator.random(len(label)) < 0.05, -1, label)
    label[np.flatnonzero(label == 5)] = 5
    with pytest.warns(UserWarning, match=r"^corpus: \d of 6 classes have too few clips for 3-way 2-shot"):
        support, query = draw(label, speaker, across, draws=200)
    # the classes drawn are those kept, renumbered: a class left out counts as one without a label
    kept = np.isin(label, label[support[0]])
    assert not kept[label == 5].any()
    assert len(np.unique(label[kept])) >= (3 if across == "same" else 5)
    check(np.where(kept, label, -1), speaker, across, support, query)


def test_an_episode_is_a_function_of_its_key():
    label, speaker = words(5, 4, 4)
    features = jnp.arange(len(label), dtype=jnp.float32)[:, None]
    sample = episodes(features, label, speaker, ways=3, shots=1, queries=1)
    keys = jax.random.key(0), jax.random.key(1)
    alone = [jax.jit(sample)(key) for key in (*keys, keys[0])]
    together = jax.jit(jax.vmap(sample))(jnp.stack(keys))
    for leaf, first, second, again in zip(*map(jax.tree.leaves, (together, *alone)), strict=True):
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(leaf, np.stack([first, second]))
    assert (alone[0].support.x != alone[1].support.x).any()


def test_clips_without_a_class_bring_no_speakers():
    """A masked split, label -1 outside it, has the speakers of its own clips and no other."""
    label, speaker = words(4, 6, 4)
    label = np.where(speaker < 3, -1, label)
    tables = index_tables(label, speaker, 2, 1, 1, "speaker", "corpus")
    assert tables.members.shape == (3,)
    assert set(np.unique(tables.speakers)) == {0, 1, 2}
    whole = index_tables(label[speaker >= 3], speaker[speaker >= 3], 2, 1, 1, "speaker", "corpus")
    np.testing.assert_array_equal(tables.speakers, whole.speakers)


def tables(classes=4, speakers=3, takes=2, *, ways=2, shots=1, queries=1, across="speaker", change=lambda a, b: (a, b)):
    return index_tables(*change(*words(classes, speakers, takes)), ways, shots, queries, across, "train split")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways is 1, expected at least 2"),
        ({"shots": 0}, "shots is 0, expected at least 1"),
        ({"queries": 0}, "queries is 0, expected at least 1"),
        ({"across": "accent"}, "across is 'accent', expected one of speaker, none, same"),
        ({"ways": 5}, "train split: 4 of 4 classes have clips enough for 5-way 1-shot episodes with 1 queries"),
        ({"speakers": 1}, "train split: 1 speaker, .* need at least 2"),
        ({"shots": 4, "queries": 4}, "train split: 0 of 4 classes .* largest class has 6 clips, there are 3 speakers"),
        ({"shots": 4, "queries": 4, "across": "none"}, "train split: 0 of 4 classes .* largest class has 6 clips"),
        ({"shots": 1, "queries": 5}, "train split: .*only 0 of 200 random splits of the 3 speakers"),
        ({"shots": 2, "across": "same"}, "train split: no speaker has 3 clips of 2 classes each"),
        ({"change": lambda a, b: (a, np.where(a == 0, -1, b))}, "train split: 6 clips have no speaker"),
        ({"change": lambda a, b: (a, np.where(a == 0, -1, b)), "across": "same"}, "6 clips have no speaker"),
        ({"change": lambda a, b: (0 * a - 1, b), "across": "none"}, "train split: 0 of 0 classes"),
        ({"change": lambda a, b: (0 * a - 1, b)}, "train split: "),
        ({"change": lambda a, b: (0 * a - 1, b), "across": "same"}, "train split: "),
    ],
)
def test_what_cannot_be_drawn_is_refused(unchecked, options, message):
    with pytest.raises(InputError, match=message):
        tables(**options)


def test_speakers_may_be_unknown_where_they_do_not_matter():
    assert tables(across="none", change=lambda a, b: (a, np.full_like(b, -1))).clips.shape == (4, 6)


@pytest.fixture
def plain():
    label, speaker = words(3, 4, 3)
    features = jnp.arange(len(label), dtype=jnp.float32)[:, None] * jnp.ones(4)
    return episodes(features, label, speaker, ways=2, shots=1, queries=2)


def test_with_inputs_transforms_support_and_query_by_keys_of_their_own(plain):
    def transform(x, key):
        return jax.random.uniform(key, x.shape) + 100 * x

    changed = jax.jit(with_inputs(plain, transform))
    episode, again, other = (changed(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(episode.query.x, again.query.x)
    noise = [np.asarray(b.x % 100) for b in episode]
    assert not np.isclose(noise[0][0], noise[1][0]).any()
    assert not np.isclose(noise[0], np.asarray(other.support.x % 100)).any()
    clips = np.concatenate([b.x // 100 for b in episode])[:, 0].astype(int)
    corpus = np.concatenate([b.y.corpus for b in episode])
    np.testing.assert_array_equal(words(3, 4, 3)[0][clips], corpus)


def test_inputs_and_targets_are_trees_with_one_row_a_clip():
    """Every leaf is that of the same clip, through the sampler, a transformation and a mixture."""
    label, speaker = words(3, 4, 3)
    rows = np.arange(len(label))
    x = {"audio": Utterances(rows[:, None, None] * np.ones((1, 5, 2)), rows), "image": rows[:, None] + 0.5}
    options = {"ways": 2, "shots": 1, "queries": 2}
    sample = episodes(x, label, speaker, y=Transcripts(rows[:, None] + [100, 200], rows), **options)
    change = with_inputs(sample, lambda x, key: x | {"image": -x["image"]})
    key = jax.random.key(0)
    support, query = jax.jit(mixture(change, change, 0.5))(key)
    for batch, size in ((support, 2), (query, 4)):
        row = np.asarray(batch.x["audio"].lengths)
        assert row.shape == (size,)
        np.testing.assert_array_equal(batch.x["audio"].frames, row[:, None, None] * np.ones((1, 5, 2)))
        np.testing.assert_array_equal(batch.x["image"][:, 0], -row - 0.5)
        np.testing.assert_array_equal(batch.y.tokens, row[:, None] + [100, 200])
        np.testing.assert_array_equal(batch.y.lengths, row)
    # the same clips as of a plain array, whose targets are labels
    plain = jax.jit(episodes(rows, label, speaker, **options))(jax.random.split(key)[0])
    assert isinstance(plain.support.y, Labels)
    np.testing.assert_array_equal(plain.query.y.corpus, label[plain.query.x])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((20, 2))}, "features 20, label 24, speaker 24"),
        ({"features": {"a": np.zeros(24), "b": np.zeros(23)}}, r"features\['a'\] 24, features\['b'\] 23"),
        ({"features": np.zeros(())}, "features no, label 24"),
        ({"label": np.zeros(25, int)}, "label 25"),
        ({"speaker": np.zeros(23, int)}, "speaker 23"),
        ({"y": np.zeros(12)}, "y 12"),
        ({"label": np.full(24, -2)}, "label holds -2, expected 0 or more, or -1 where unknown"),
        ({"label": np.full(24, np.nan)}, "label holds float64, expected whole numbers"),
        ({"speaker": np.full(24, -3)}, "speaker holds -3, expected 0 or more, or -1 where unknown"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(unchecked, change, message):
    label, speaker = words(3, 4, 2)
    arguments = {"features": np.zeros((24, 2)), "label": label, "speaker": speaker} | change
    with pytest.raises(InputError, match=message):
        episodes(**arguments, ways=2, shots=1, queries=1)


def test_the_query_half_of_three_speakers_is_two():
    # queries=2 needs both of two speakers with one clip each: a query half of one speaker would be drawn for ever
    label, speaker = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    sample = jax.jit(episodes(jnp.arange(12.0)[:, None], label, speaker, ways=3, shots=1, queries=2))
    episode = sample(jax.random.key(0))
    assert len(set(speaker[episode.query.x[:, 0].astype(int)])) == 2


def test_a_mixture_draws_from_both_by_share():
    def constant(value):
        batch = Batch(jnp.full((2, 3), value), Labels(jnp.arange(2), jnp.arange(2)))
        return lambda key: Episode(batch, batch)

    keys = jax.random.split(jax.random.key(0), 2000)
    for share in (0.0, 0.3, 1.0):
        drawn = jax.jit(jax.vmap(mixture(constant(0.0), constant(1.0), share)))(keys).query.x
        np.testing.assert_allclose(drawn[:, 0, 0].mean(), share, atol=0.03)
        assert (drawn == drawn[:, :1, :1]).all()
    with pytest.raises(InputError, match="share is 1.5"):
        mixture(constant(0.0), constant(1.0), 1.5)
    with pytest.raises(InputError, match="different shapes"):
        mixture(constant(0.0), lambda key: Episode(*[Batch(jnp.ones((1, 3)), Labels(*[jnp.arange(1)] * 2))] * 2), 0.5)(
            keys[0]
        )
