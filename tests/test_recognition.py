"""What is told of a recogniser that adapts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax.data.text import error_rates, vocabulary
from metajax.recognition import (
    across,
    adapted_errors,
    chosen,
    crossed,
    decoded,
    error_curves,
    examples,
    heard,
    heard_by_each,
    of_few,
    summary,
)

KNOWN = vocabulary(["ab c"])  # blank, space, a, b, c


def spelled(texts, frames=8):
    """Logits of which greedy decoding gives the texts, a blank after every token."""
    tokens = np.zeros((len(texts), frames), int)
    for row, text in zip(tokens, texts, strict=True):
        row[: 2 * len(text) : 2] = [KNOWN.tokens.index("|" if c == " " else c) for c in text]
    return 9.0 * jax.nn.one_hot(tokens, len(KNOWN.tokens))


def transcripts(texts):
    tokens = np.zeros((len(texts), 5), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = [KNOWN.tokens.index("|" if c == " " else c) for c in text]
    return mj.Transcripts(jnp.asarray(tokens), jnp.asarray([len(text) for text in texts]))


@pytest.mark.slow
def test_curves_are_the_error_rates_of_what_is_heard_after_each_step():
    """A learner that hears something else after each step, on two tasks."""
    said = (["ab c", "b"], ["c a", "aa"])
    hears = {0: (["ab", "b"], ["c", "a"]), 1: (["", "c"], ["c a", "aa"]), 2: (["ab c", "b"], ["ca", "aa"])}
    outputs = jnp.stack([jnp.stack([spelled(task) for task in hears[step]]) for step in hears])
    keys = jax.random.split(jax.random.key(3), 2)

    def sample(key):
        task = jnp.where((key == jax.random.split(keys[0], 3)[0]).all(), 0, 1)
        y = jax.tree.map(lambda *leaves: jnp.stack(leaves)[task], *map(transcripts, said))
        return mj.Episode(mj.Batch(task, ()), mj.Batch(task, y))

    learner = mj.core.Learner(
        lambda params, key: {},
        lambda *_: jnp.int32(0),
        lambda t, phi, *_: phi + 1,
        lambda t, phi, x, k: outputs[phi, x],
    )
    found = mj.evaluate(learner, heard, {"w": jnp.ones(1)}, sample, jax.random.key(3), 2, 2)
    curves = error_curves(KNOWN, found, (0, 2))
    for kind in ("word", "character"):
        expected = [[getattr(error_rates(said[t], hears[k][t], "nfc"), kind) for k in (0, 2)] for t in (0, 1)]
        np.testing.assert_allclose(curves[kind], expected)
    assert curves["character"][0].tolist() == [2 / 5, 0]
    assert decoded(KNOWN, jax.tree.map(np.asarray, found), 1, 2) == (said[1], hears[0][1], hears[2][1])
    episodes = jax.vmap(sample)(jnp.stack([jax.random.split(key, 3)[0] for key in keys]))
    again = heard_by_each(lambda rate: learner, jax.random.key(3), 2, (0, 2))({"w": jnp.ones(1)}, 0.1, episodes)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, ::2]), again, found)
    by_one = heard_by_each(lambda rate: learner, jax.random.key(3), 1, (0, 2))({"w": jnp.ones(1)}, 0.1, episodes)
    jax.tree.map(np.testing.assert_array_equal, by_one, again)


def test_examples_begin_with_what_was_misheard():
    def told(texts):
        y = transcripts(texts)
        return np.asarray(y.tokens)[None, None], np.asarray(y.lengths)[None, None]

    said, before, after = told(["a", "b", "c"]), told(["a", "c", "a"]), told(["b", "b", "a"])
    both = (np.concatenate(of, 1) for of in zip(before, after, strict=True))
    found = dict(zip(("said", "said_lengths", "heard", "heard_lengths"), (*said, *both), strict=True))
    lines = [("b", "c", "b"), ("c", "a", "a"), ("a", "a", "b")]
    assert examples(KNOWN, found, 1) == lines and examples(KNOWN, found, 1, 2) == lines[:2]


@pytest.mark.parametrize(("num", "least", "places"), [(1, 3, [0, 0, 0]), (2, 1, [0, 1]), (2, 3, [0, 1, 0])])
def test_few_support_examples_are_repeated(num, least, places):
    support = mj.Batch(jnp.arange(8).reshape(2, 4), ())
    few = of_few(mj.Episode(support, support), num, least)
    np.testing.assert_array_equal(few.support.x, support.x[:, np.array(places)])
    np.testing.assert_array_equal(few.query.x, support.x)


def errors(*rows):
    return {"character": np.array(rows), "word": 2 * np.array(rows)}


def test_every_step_is_chosen_on_validation_alone():
    validation = {("all", 0.1): errors([0.4, 0.2, 0.9], [0.6, 0.2, 0.9]), ("film", 1.0): errors([0.5, 0.4, 0.3])}
    tests = {
        ("all", 0.1): errors([0.7, 0.1, 0.0], [0.5, 0.3, 0.0]),
        ("film", 1.0): errors([0.6, 0.0, 0.2], [0.6, 0, 0.4]),
    }
    asked = []
    found = chosen(validation, lambda option: asked.append(option) or tests[option], (0, 1, 10))
    assert found["option"] == [("all", 0.1), ("all", 0.1), ("film", 1.0)] and len(asked) == 2
    assert found["validation"] == pytest.approx([0.5, 0.2, 0.3]) and found["step"] == 1
    assert found["character"] == [[0.7, 0.1, 0.2], [0.5, 0.3, 0.4]]
    assert found["word"] == [[1.4, 0.2, 0.4], [1.0, 0.6, 0.8]]
    validation["film", 1.0]["word"] = np.zeros((1, 3))
    assert chosen(validation, tests.__getitem__, (0, 1, 10), "word")["option"] == [("film", 1.0)] * 3


def test_the_reduction_is_against_no_adaptation_at_the_chosen_step():
    cells = [
        {"character": [[0.4, 0.2, 0.9], [0.6, 0.4, 0.9]], "word": [[1.0, 0.5, 1.0]] * 2, "step": 1},
        {"character": [[0.2, 0.9, 0.1], [0.2, 0.9, 0.1]], "word": [[1.0, 1.0, 0.3]] * 2, "step": 10},
    ]
    cells = [cell | {"option": [], "validation": []} for cell in cells]
    never = [{"character": [[0.8, 0, 0], [0.8, 0, 0]]}, {"character": [[0.2, 0, 0], [0.2, 0, 0]]}]
    row = summary(cells, never, (0, 1, 10))
    assert [point["step"] for point in row["character"]] == [0, 1, 10]
    assert [point["mean"] for point in row["character"]] == pytest.approx([0.35, 0.6, 0.5])
    assert row["character_at_step"]["mean"] == pytest.approx(0.2)
    assert row["word_at_step"]["mean"] == pytest.approx(0.4)
    assert row["less"]["mean"] == pytest.approx((5 / 8 + 1 / 2) / 2)
    assert row["less"]["ci95"] == pytest.approx(12.706 * 0.0625, rel=1e-3)  # Student's t of two
    assert summary(cells, [{"word": [[1, 0, 0]] * 2}] * 2, (0, 1, 10), "word")["less"]["mean"] == pytest.approx(0.6)
    alone = summary(cells[:1], never[:1], (0, 1, 10))
    assert alone["less"]["mean"] == pytest.approx(5 / 8)
    assert alone["less"]["ci95"] == pytest.approx(1.96 * np.std([0.75, 0.5], ddof=1) / 2**0.5)


def test_one_program_tells_the_errors_of_every_rate_and_scenario():
    """A learner whose one step writes as many letters as the rate says, on tasks that say as many as they are given."""
    written, traced = jnp.stack([spelled([text]) for text in ("", "a", "ab")]), []

    def learner(rate):
        traced.append(rate)
        step = lambda t, phi, *_: rate.astype(int)  # noqa: E731
        predict = lambda t, phi, x, k: written[phi]  # noqa: E731
        return mj.core.Learner(lambda params, key: {}, lambda *_: jnp.int32(0), step, predict)

    def sampler(letters):
        y = transcripts(["ab"])._replace(lengths=letters.astype(int)[None])
        return lambda key: mj.Episode(mj.Batch(jnp.ones(1), ()), mj.Batch(jnp.ones(1), y))

    errors = adapted_errors(KNOWN, learner, sampler, jax.random.key(0), 2, (0, 1))
    theta = {"w": jnp.ones(1)}
    for rate, letters, expected in ((2.0, 2, 0.0), (1.0, 2, 0.5), (1.0, 1, 0.0), (0.0, 1, 1.0)):
        found = errors(theta, rate, letters)
        np.testing.assert_allclose(found["character"], [[1.0, expected]] * 2)
        np.testing.assert_array_equal(found["empty"], [[1.0, rate == 0]] * 2)
    assert len(traced) == 1


def test_arms_are_told_by_condition_against_the_first_before_any_step():
    def cell(word):
        return {"word": word, "character": word, "empty": [[0.0] * len(word[0])] * 2, "option": [], "validation": [],
                "step": 1}  # fmt: skip

    found = {
        "one": [{"loud": cell([[0.4, 0.2], [0.6, 0.4]]), "clean": cell([[0.1, 0.1]] * 2)}],
        "other": [{"loud": cell([[0.3, 0.1], [0.3, 0.2]]), "clean": cell([[0.3, 0.2]] * 2)}],
    }
    rows = across(found, {"one": (0, 1), "other": (0, 1)})
    assert list(rows) == ["one", "other"] and list(rows["other"]) == ["loud", "clean"]
    assert rows["other"]["loud"]["less"]["mean"] == pytest.approx(1 - 0.15 / 0.5)
    assert rows["other"]["clean"]["less"]["mean"] == pytest.approx(-1.0)
    assert rows["one"]["clean"]["empty_at_step"]["mean"] == 0


def test_each_half_of_the_tasks_is_told_under_what_the_other_half_chose():
    said = ["ab", "ab", "ab"]
    hears = {"a": (["ab", "cc", "ab"], ["a", "c", "ab"]), "b": (["c", "ab", "cc"], ["ab", "ab", "cc"])}

    def found(option):
        steps = [[transcripts([step[task]]) for step in hears[option]] for task in range(3)]
        told = jax.tree.map(lambda *a: np.stack(a), *[jax.tree.map(lambda *a: np.stack(a), *of) for of in steps])
        true = jax.tree.map(np.asarray, transcripts(said))
        true = [np.repeat(np.asarray(a)[:, None, None], 2, 1) for a in true]
        return {"heard": told[0], "heard_lengths": told[1], "said": true[0], "said_lengths": true[1]}

    row = crossed(KNOWN, {option: found(option) for option in hears}, (0, 5), [["ab"], ["c"]])
    # the second task chooses b, of which the first and third are told; they choose a, of which the second is
    assert row["tasks"] == [0, 2, 1] and row["option"] == [["b", "b"], ["a", "a"]] and row["step"] == [5, 5]
    assert [point["mean"] for point in row["word"]] == pytest.approx([1, 2 / 3])
    assert row["gain"]["mean"] == pytest.approx(1 / 3) and row["word_at_step"]["mean"] == pytest.approx(2 / 3)
    assert row["texts"][0] == ["ab", "c", "ab"] and row["texts"][2] == ["ab", "cc", "c"]
    assert row["words"] == pytest.approx([1, 2 / 3])
