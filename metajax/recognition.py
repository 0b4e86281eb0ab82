"""How well a recogniser that adapts recognises: error rates after each step, by greedy decoding, chosen and told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metajax import report
from metajax.core import Metrics, Scalar, Transcripts
from metajax.data.text import Vocabulary, decode_all, error_rates
from metajax.evaluate import mean_ci95, over_seeds
from metajax.losses.ctc import greedy

Option = TypeVar("Option")
Errors = dict[str, np.ndarray]  # "word" and "character": [tasks, steps]


def heard(logits: Float[Array, "n time vocabulary"], y: Transcripts) -> tuple[Scalar, Metrics]:
    """An error for `evaluate`, whose metrics are what greedy decoding hears and what was said; its value means nothing.

    Args:
      logits: of a recogniser, `[n, time, vocabulary]`.
      y: what was said.
    """
    found = greedy(logits)
    told = {"heard": found.tokens, "heard_lengths": found.lengths, "said": y.tokens, "said_lengths": y.lengths}
    return jnp.zeros(()), told


def error_curves(vocabulary: Vocabulary, found: Metrics, steps: Sequence[int]) -> Errors:
    """Word and character error of every task after some steps, by `error_rates` under the vocabulary's normaliser.

    Args:
      vocabulary: of the tokens.
      found: what `evaluate(learner, heard, ...)` returns.
      steps: adaptation steps.

    Returns:
      `word` and `character`, each `[tasks, steps]`: the edits of a task's queries over their words or characters.

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
            rates.append((one.word, one.character))
    table = np.array(rates).reshape(len(arrays["said"]), len(steps), 2)
    return {"word": table[..., 0], "character": table[..., 1]}


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
      As JSON has it: `word` and `character` `[tasks, steps]`; by step the `option` and its `validation` error; and
      `step`, that of least validation error after the first.
    """
    means = {option: errors[kind].mean(0) for option, errors in validation.items()}
    best = [min(means, key=lambda option: means[option][i]) for i in range(len(steps))]
    lowest = [float(means[option][i]) for i, option in enumerate(best)]
    after = {option: test(option) for option in dict.fromkeys(best)}
    kinds = {
        name: np.stack([after[option][name][:, i] for i, option in enumerate(best)], 1).round(5).tolist()
        for name in ("word", "character")
    }
    return kinds | {"option": best, "validation": lowest, "step": steps[1 + int(np.argmin(lowest[1:]))]}


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
      `word` and `character`, curves; `word_at_step` and `character_at_step`; `less`, the relative reduction of the
      error there, with an interval over seeds by Student's t, or over tasks where there is one seed; and
      lists by seed of `option`, `validation` and `step`.
    """
    row: dict[str, Any] = {name: [cell[name] for cell in cells] for name in ("option", "validation", "step")}
    places = [list(steps).index(step) for step in row["step"]]
    picked: dict[str, list[np.ndarray]] = {}
    for name in ("word", "character"):
        errors = [np.array(cell[name]) for cell in cells]
        picked[name] = [table[:, place] for table, place in zip(errors, places, strict=True)]
        row[name] = report.curve(*mean_ci95(np.concatenate(errors)), steps)
        row[f"{name}_at_step"] = report.curve(*mean_ci95(np.concatenate(picked[name])[:, None]))[0]
    before = [np.array(cell[kind])[:, 0] for cell in never]
    less = [(a - b) / max(a.mean(), 1e-9) for a, b in zip(before, picked[kind], strict=True)]
    one = report.curve(*mean_ci95(less[0][:, None]))[0]
    return row | {"less": over_seeds([float(gain.mean()) for gain in less]) if len(less) > 1 else one}
