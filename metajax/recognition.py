"""How well a recogniser that adapts recognises: error rates after each step, by greedy decoding, chosen and told."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rapidfuzz.distance.Levenshtein import distance

from metajax import report
from metajax.core import Episode, Error, KeyArray, Learner, Metrics, Phi, Sampler, Scalar, Theta, Transcripts
from metajax.data.text import Vocabulary, decode_all, error_rates, nearest_words
from metajax.evaluate import evaluate, mean_ci95, over_runs
from metajax.losses.ctc import greedy
from metajax.parallel import hoisted, over_tasks, replicate, task_mesh

Option = TypeVar("Option")
KINDS = ("word", "character", "empty")
Errors = dict[str, np.ndarray]  # by kind: [tasks, steps]


def heard(logits: Float[Array, "n time vocabulary"], y: Transcripts) -> tuple[Scalar, Metrics]:
    """An error for `evaluate`, whose metrics are what greedy decoding hears and what was said; its value means nothing.

    Args:
      logits: of a recogniser, `[n, time, vocabulary]`.
      y: what was said.
    """
    found = greedy(logits)
    told = {"heard": found.tokens, "heard_lengths": found.lengths, "said": y.tokens, "said_lengths": y.lengths}
    return jnp.zeros(()), told


def error_curves(vocabulary: Vocabulary, found: Mapping[str, Any], steps: Sequence[int]) -> Errors:
    """Word and character error of every task after some steps, by `error_rates` under the vocabulary's normaliser.

    Args:
      vocabulary: of the tokens.
      found: what `evaluate(learner, heard, ...)` returns.
      steps: adaptation steps.

    Returns:
      `word` and `character`, each `[tasks, steps]`: the edits of a task's queries over their words or characters; and
      `empty`, the share of queries in which nothing is heard, by which a recogniser that has collapsed is known.

    Example:
      ``errors = error_curves(vocabulary, evaluate(learner, heard, theta, sample, key, 50, 10), (0, 1, 10))``
    """
    arrays = {name: np.asarray(value) for name, value in found.items()}
    rates = []
    for task in range(len(arrays["said"])):
        said = decode_all(vocabulary, Transcripts(arrays["said"][task, 0], arrays["said_lengths"][task, 0]))
        for step in steps:
            tokens = Transcripts(arrays["heard"][task, step], arrays["heard_lengths"][task, step])
            one = error_rates(said, decode_all(vocabulary, tokens), vocabulary.normalizer)
            rates.append((one.word, one.character, float(np.mean(tokens.lengths == 0))))
    table = np.array(rates).reshape(len(arrays["said"]), len(steps), len(KINDS))
    return {kind: table[..., i] for i, kind in enumerate(KINDS)}


def adapted_errors(
    vocabulary: Vocabulary,
    learner: Callable[[Array], Learner],
    sampler: Callable[[Any], Sampler],
    key: KeyArray,
    num_tasks: int,
    steps: Sequence[int],
    error: Error = heard,
) -> Callable[[Theta, float, Any], Errors]:
    """(theta, rate, given) -> `error_curves` of what `heard_in` gives.

    Args:
      vocabulary: of the tokens.
      learner, sampler, key, num_tasks, error: as in `heard_in`.
      steps: adaptation steps to tell.
    """
    found = heard_in(learner, sampler, key, num_tasks, max(steps), error)
    return lambda theta, rate, given: error_curves(vocabulary, found(theta, rate, given), steps)


def heard_in(
    learner: Callable[[Array], Learner],
    sampler: Callable[[Any], Sampler],
    key: KeyArray,
    num_tasks: int,
    num_steps: int,
    error: Error = heard,
) -> Callable[[Theta, float, Any], Metrics]:
    """(theta, rate, given) -> what is heard in fresh tasks, the same at every call; one program for all calls.

    Args:
      learner: how a task is learned, for an inner rate.
      sampler: of tasks, for what is given, a tree of numbers such as `Scenarios`.
      key: fixes the tasks.
      num_tasks: number of tasks, spread over the devices.
      num_steps: adaptation steps; metrics are `[tasks, num_steps + 1, ...]`, on the device.
      error: `heard`, or it on other outputs, such as `of_logits(heard)`.
    """
    mesh = task_mesh(num_tasks)

    @hoisted
    def found(theta: Theta, rate: Array, given: Any) -> Metrics:
        return evaluate(learner(rate), error, theta, sampler(given), key, num_tasks, num_steps, mesh=mesh)

    return lambda theta, rate, given: found(replicate(theta, mesh), jnp.float32(rate), jax.tree.map(jnp.float32, given))


def heard_by_each(
    learner: Callable[[Array], Learner], key: KeyArray, num_tasks: int, steps: Sequence[int], error: Error = heard
) -> Callable[[Theta, float, Episode], dict[str, np.ndarray]]:
    """(theta, rate, episodes) -> what is heard in each of these tasks after each of some steps; one program for all.

    Args:
      learner, key, error: as in `heard_in`.
      num_tasks: at a time, spread over the devices; one program where the tasks are a multiple of it.
      steps: after which is told: metrics are `[tasks, steps, ...]`; `error_curves` numbers them from 0.
    """
    mesh, counts = task_mesh(num_tasks), jnp.diff(jnp.array(steps), prepend=0)

    def one(theta: Theta, rate: Array, episode: Episode) -> Metrics:
        (support, query), how = episode, learner(rate)

        def stage(phi: Phi, count: Array) -> tuple[Phi, Metrics]:
            phi = jax.lax.fori_loop(0, count, lambda _, phi: how.step(theta, phi, support, key), phi)
            return phi, error(how.predict(theta, phi, query.x, key), query.y)[1]

        return jax.lax.scan(stage, how.start(theta, support, key), counts)[1]

    each = over_tasks(lambda shared, on: jax.lax.map(lambda episode: one(shared[0], shared[1], episode), on), mesh)
    found = hoisted(lambda theta, rate, episodes: each((theta, rate), episodes))

    def all_heard(theta: Theta, rate: float, episodes: Episode) -> dict[str, np.ndarray]:
        shared, parts = replicate((theta, jnp.float32(rate)), mesh), []
        for i in range(0, len(jax.tree.leaves(episodes)[0]), num_tasks):
            part = jax.tree.map(lambda a, i=i: a[i : i + num_tasks], episodes)
            parts.append(jax.device_get(found(*shared, part)))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return all_heard


def of_few(episodes: Episode, num: int, least: int = 1) -> Episode:
    """Stacked episodes with the first of their support examples, which are repeated in turn where they are too few.

    Args:
      episodes: leaves `[tasks, examples, ...]`.
      num: how many of the support examples.
      least: how many there are in all, so that one program serves; the mean of an error over them stays the same where
        this is a multiple of `num`.
    """
    places = np.arange(max(num, least)) % num
    return episodes._replace(support=jax.tree.map(lambda a: a[:, places], episodes.support))


def chosen(
    validation: Mapping[Option, Errors],
    test: Callable[[Option], Errors],
    steps: Sequence[int],
    kind: Literal["word", "character"] = "character",
) -> dict[str, Any]:
    """Errors on test tasks under the option with the least error on validation tasks, for every step alone.

    Args:
      validation: errors by option, such as a part and an inner rate; the first of equals is taken.
      test: errors under an option.
      steps: of the columns, the first without adaptation.
      kind: of the error that chooses.

    Returns:
      As JSON has it: every kind of error, `[tasks, steps]`; by step the `option` and its `validation` error; and
      `step`, that of least validation error after the first.
    """
    means = {option: errors[kind].mean(0) for option, errors in validation.items()}
    best = [min(means, key=lambda option: means[option][i]) for i in range(len(steps))]
    lowest = [float(means[option][i]) for i, option in enumerate(best)]
    after = {option: test(option) for option in dict.fromkeys(best)}
    kinds = {}
    for name in after[best[0]]:
        kinds[name] = np.stack([after[option][name][:, i] for i, option in enumerate(best)], 1).round(5).tolist()
    return kinds | {"option": best, "validation": lowest, "step": steps[1 + int(np.argmin(lowest[1:]))]}


def decoded(
    vocabulary: Vocabulary, found: Mapping[str, Any], task: int, place: int
) -> tuple[list[str], list[str], list[str]]:
    """Of a task's queries what was said, what was heard at first, and at a place among the steps.

    Args:
      vocabulary: of the tokens.
      found: as `heard_by_each` or `heard_in` gives it.
      task: number of the task.
      place: of the step.
    """

    def texts(of: str, at: int) -> list[str]:
        return decode_all(vocabulary, Transcripts(found[of][task, at], found[f"{of}_lengths"][task, at]))

    return texts("said", 0), texts("heard", 0), texts("heard", place)


def examples(vocabulary: Vocabulary, found: Mapping[str, Any], place: int, count: int = 3) -> list[tuple[Any, ...]]:
    """Some queries: what was said, heard at first, and at a place among the steps; those misheard at first come first.

    Args:
      vocabulary, found, place: as in `decoded`.
      count: of the queries.
    """
    tasks = (decoded(vocabulary, found, task, place) for task in range(len(found["said"])))
    lines = [line for task in tasks for line in zip(*task, strict=True)]
    return sorted(lines, key=lambda line: line[0] == line[1])[:count]


def summary(
    cells: Sequence[dict[str, Any]],
    never: Sequence[dict[str, Any]],
    steps: Sequence[int],
    kind: Literal["word", "character"] = "character",
) -> dict[str, Any]:
    """Of one arm: curves over the tasks of all seeds, and the errors after the step that validation chose.

    Args:
      cells: results of `chosen`, one a seed.
      never: those whose first column is the error without adaptation, on the same tasks.
      steps: of the columns.
      kind: of the error whose reduction is told.

    Returns:
      A curve of each kind of error, such as `word`; as `word_at_step` what it is there; `gain`, how much less error
      there is, with an interval over tasks; `less`, the relative reduction, with an interval over seeds by Student's t,
      or over tasks where there is one seed; and lists by seed of `option`, `validation` and `step`.
    """
    row: dict[str, Any] = {name: [cell[name] for cell in cells] for name in ("option", "validation", "step")}
    places = [list(steps).index(step) for step in row["step"]]
    picked: dict[str, list[np.ndarray]] = {}
    for name in (kind for kind in KINDS if kind in cells[0]):
        errors = [np.array(cell[name]) for cell in cells]
        picked[name] = [table[:, place] for table, place in zip(errors, places, strict=True)]
        row[name] = report.curve(*mean_ci95(np.concatenate(errors)), steps)
        row[f"{name}_at_step"] = over_runs([np.concatenate(picked[name])])
    before = [np.array(cell[kind])[:, 0] for cell in never]
    row["gain"] = over_runs([np.concatenate(before) - np.concatenate(picked[kind])])
    return row | {"less": over_runs([(a - b) / max(a.mean(), 1e-9) for a, b in zip(before, picked[kind], strict=True)])}


def across(
    found: Mapping[str, Sequence[Mapping[str, dict[str, Any]]]], steps: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By arm and condition, such as a scenario, the `summary` of the word error.

    Args:
      found: by arm, for every seed, results of `chosen` by condition; without adaptation the first arm's error counts.
      steps: by arm, of the columns.
    """

    def of(arm: str, name: str) -> list[dict[str, Any]]:
        return [cell[name] for cell in found[arm]]

    first, names = next(iter(found)), list(next(iter(found.values()))[0])
    return {arm: {name: summary(of(arm, name), of(first, name), steps[arm], "word") for name in names} for arm in found}


def crossed(
    vocabulary: Vocabulary,
    found: Mapping[Option, dict[str, Any]],
    steps: Sequence[int],
    words: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """How every second task is recognised under what is `chosen` on the others, and the other way round.

    Args:
      vocabulary: of the tokens.
      found: by option, what `heard_by_each` gives.
      steps: of it.
      words: tokens of each word, where it is known that nothing but these words is said.

    Returns:
      The `summary` of the word error, the two halves of the tasks being its seeds; `tasks`, their order; for each task
      `texts`, of its first query what was said, what was heard at first and at the end; and `words`, where they are
      given: the mean error over tasks, at first and at the end, of the `nearest_words`.
    """
    errors = {option: error_curves(vocabulary, one, range(len(steps))) for option, one in found.items()}
    num, halves, order, texts, rates = len(next(iter(found.values()))["said"]), [], list[int](), [], []

    def some(option: Option, first: int) -> Errors:
        return {name: table[first::2] for name, table in errors[option].items()}

    for first in (0, 1):
        others = {option: some(option, 1 - first) for option in errors}
        halves.append(half := chosen(others, partial(some, first=first), steps, "word"))
        place = list(steps).index(half["step"])
        for task in range(first, num, 2):
            lines = decoded(vocabulary, found[half["option"][place]], task, place)
            order.append(task)
            texts.append([of[0] for of in lines])
            said, *heard = ([nearest_words(line.split(), words) for line in of if words] for of in lines)
            rates.append([sum(map(distance, said, of)) / max(sum(map(len, said)), 1) for of in heard])
    row = summary(halves, halves, steps, "word") | {"tasks": order, "texts": texts}
    return row | ({"words": np.mean(rates, 0).tolist()} if words else {})
