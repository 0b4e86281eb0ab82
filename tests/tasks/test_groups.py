"""Tasks that are values of a column."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError, Transcripts, Utterances
from metajax.tasks.groups import groups, of_amounts, of_each

GROUP = np.random.default_rng(0).permutation(np.repeat([-1, 2, 3, 7, 9], [4, 5, 3, 9, 6]))  # 3: too few of them
ROWS = np.arange(len(GROUP))


@pytest.fixture(scope="module")
def drawn():
    """2,000 tasks of 3 support and 2 query clips, whose inputs and targets are the clips' own numbers."""
    x = {"audio": Utterances(jnp.ones((len(ROWS), 4, 2)) * ROWS[:, None, None], ROWS), "image": ROWS[:, None] + 0.5}
    y = Transcripts(ROWS[:, None] + [100, 200], ROWS)
    with pytest.warns(UserWarning, match=r"train: 1 of 4 groups have fewer than 5 clips and are left out: g3\.$"):
        sample = groups(x, y, GROUP, shots=3, queries=2, name="train", names=[f"g{i}" for i in range(10)])
    return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 2000))


def test_a_task_is_of_one_group_without_a_clip_twice(drawn):
    rows = np.concatenate([batch.x["audio"].lengths for batch in drawn], 1)
    assert rows.shape == (2000, 5)
    assert (np.diff(np.sort(rows, 1), axis=1) > 0).all()
    task = GROUP[rows]
    assert (task == task[:, :1]).all()
    assert set(task.ravel()) == {2, 7, 9}


def test_every_leaf_is_of_the_same_clip(drawn):
    for batch, count in zip(drawn, (3, 2), strict=True):
        row = np.asarray(batch.x["audio"].lengths)
        assert row.shape == (2000, count)
        np.testing.assert_array_equal(batch.x["audio"].frames[..., 0, 0], row)
        np.testing.assert_array_equal(batch.x["image"][..., 0], row + 0.5)
        np.testing.assert_array_equal(batch.y.tokens, row[..., None] + [100, 200])
        np.testing.assert_array_equal(batch.y.lengths, row)


def test_groups_are_drawn_evenly_and_so_are_their_clips(drawn):
    support, query = (np.asarray(batch.x["audio"].lengths) for batch in drawn)
    tasks = np.bincount(GROUP[support[:, 0]], minlength=10)[[2, 7, 9]]
    assert np.abs(tasks - 2000 / 3).max() < 5 * np.sqrt(2000 * 2 / 9)
    for rows, count in ((support, 3), (query, 2)):
        for group, times in zip((2, 7, 9), tasks, strict=True):
            share = count / (group == GROUP).sum()
            seen = np.bincount(rows.ravel(), minlength=len(ROWS))[group == GROUP]
            assert np.abs(seen - times * share).max() < 5 * np.sqrt(times * share * (1 - share)) + 1


def test_a_task_is_a_function_of_its_key_and_needs_no_targets():
    sample = jax.jit(groups(ROWS, (), np.zeros(len(ROWS), int), shots=2, queries=2))
    first, again, other = (sample(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.support.y == ()
    np.testing.assert_array_equal(first.query.x, again.query.x)
    assert (first.support.x != other.support.x).any()


def test_support_and_query_are_apart_where_asked():
    """Of a second column too: of three sessions one is the support's, any of them, and the others are the query's."""
    session = np.random.default_rng(1).integers(0, 3, len(ROWS))
    session[GROUP == 9] = np.arange((GROUP == 9).sum()) % 3  # two clips of each
    session[GROUP == 7] = np.arange((GROUP == 7).sum()) % 2  # two sessions
    session[unknown := np.flatnonzero(GROUP == 7)[0]] = -1
    with pytest.warns(UserWarning, match="too few clips of a value or of the others"):
        sample = groups(ROWS, (), GROUP, shots=2, queries=4, apart=session)
    support, query = (np.asarray(b.x) for b in jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 500)))
    assert set(GROUP[support].ravel()) == {7, 9}
    rows = np.concatenate([support, query], 1)
    assert (GROUP[rows] == GROUP[rows[:, :1]]).all() and (np.diff(np.sort(rows, 1), axis=1) > 0).all()
    assert (session[support] == session[support[:, :1]]).all()
    assert (session[query] != session[support[:, :1]]).all()
    assert {*zip(GROUP[support[:, 0]], session[support[:, 0]], strict=True)} == {(7, 0), (7, 1), (9, 0), (9, 1), (9, 2)}
    assert unknown not in rows
    with pytest.raises(InputError, match="no group has 5 shots of each value and 4 queries of the others"):
        groups(ROWS, (), GROUP, shots=5, queries=4, apart=session)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": -1}, "shots is -1, expected at least 0"),
        ({"queries": 0}, "queries is 0, expected at least 1"),
        ({"x": ROWS[:9]}, "x 9, group 27"),
        ({"y": ROWS[:9]}, "y 9"),
        ({"group": GROUP[:9]}, "group 9"),
        ({"group": GROUP - 1}, "group holds -2, expected 0 or more, or -1 where unknown"),
        ({"group": GROUP * 1.0}, "group holds float64, expected whole numbers"),
        ({"shots": 5, "queries": 5}, "corpus: none of 4 groups has 10 clips, as 5 shots and 5 queries need; .* has 9"),
        ({"group": np.full_like(GROUP, -1)}, "none of 0 groups .* largest has 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(unchecked, change, message):
    arguments = {"x": ROWS, "y": (), "group": GROUP, "shots": 3, "queries": 2} | change
    with pytest.raises(InputError, match=message):
        groups(**arguments)


def test_one_task_of_each_group_is_of_its_clips_none_twice():
    group = np.array([0, 1, 2, 1, 0, 1, 2, 2, 0, 1, -1])
    x = np.arange(len(group))
    drawn = partial(of_each, x, (), group, seed=1)
    episode = drawn([2, 0], shots=1, queries=2)
    assert isinstance(episode.support.x, jax.Array) and episode.support.y == ()
    clips = np.concatenate([episode.support.x, episode.query.x], 1)
    assert [{*group[task]} for task in clips] == [{2}, {0}] and [len({*task}) for task in clips] == [3, 3]
    fewer = drawn([2, 0], shots=1, queries=1)
    np.testing.assert_array_equal(fewer.query.x, episode.query.x[:, :1])
    orders = {tuple(np.ravel(of_each(x, (), group, [1], shots=2, queries=2, seed=seed).support.x)) for seed in range(9)}
    assert len(orders) > 3
    with pytest.raises(InputError, match="corpus: group 2 has 3 clips, expected 4"):
        drawn([1, 2], shots=2, queries=2)
    with pytest.raises(InputError, match="values is empty"):
        drawn([], shots=2, queries=2)


@pytest.mark.parametrize("apart", [None, np.arange(40) % 2])
def test_support_is_of_so_much_and_the_query_the_same_whatever_that_is(apart):
    group, amount = np.arange(40) // 2 % 3 - (np.arange(40) == 7), np.linspace(1, 4, 40)
    x = 1 + np.arange(40)  # 0 fills up
    drawn = of_amounts(x, (), group, amount, (5.0, 12.0), queries=6, seed=0, apart=apart)
    (short, less), (long, more) = drawn
    np.testing.assert_array_equal(short.query.x, long.query.x)
    for task, value in enumerate(np.unique(group[group >= 0])):
        few, many, query = (
            {*row.tolist()} - {0} for row in (short.support.x[task], long.support.x[task], long.query.x[task])
        )
        assert few < many and not many & query and len(query) == 6
        rows = np.array([*many, *query]) - 1
        assert (group[rows] == value).all()
        if apart is not None:
            assert len({*apart[np.array([*many]) - 1]}) == 1 and not {*apart[np.array([*many]) - 1]} & {
                *apart[np.array([*query]) - 1]
            }
        for clips, told, most in ((few, less, 5), (many, more, 12)):
            assert amount[np.array([*clips]) - 1].sum() == pytest.approx(told[task]) and most - 4 < told[task] <= most
    with pytest.raises(InputError, match="group 0 has 0 clips to adapt to and"):
        of_amounts(x, (), group, amount, (0.5,), queries=6, seed=0)


def test_a_clip_is_left_to_recognise_where_all_would_be_short_enough():
    ((task, seconds),) = of_amounts(1 + np.arange(3), (), np.zeros(3, int), np.ones(3), (5.0,), queries=6, seed=0)
    assert seconds == [2.0] and sorted([*task.support.x[0].tolist(), *task.query.x[0].tolist()]) == [1, 2, 3]
