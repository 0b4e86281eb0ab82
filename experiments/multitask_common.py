"""What the multi-task experiments share: how data are held out, probes, intervals."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student

import metajax as mj
from metajax.data.augment import augment, normalize, scaled
from metajax.data.corpora import espeak
from metajax.data.corpus import Corpus
from metajax.tasks.episodes import index_tables
from metajax.tasks.splits import random_parts

MOST_HELD = 2000  # clips that a head for words is tested on


def people(corpus: Corpus) -> np.ndarray:
    """The person of each clip: its speaker, of the embedded corpus the voice, which speaks at several pitches."""
    if unknown := int((corpus.columns["speaker"] < 0).sum()):
        raise mj.InputError(f"{unknown} clips of {corpus.name} have no speaker, expected one for each.")
    names = corpus.names["speaker"]
    if corpus.name == "espeak":
        names = tuple(espeak.family(name.partition("-p")[0]) for name in names)
    return np.unique(names, return_inverse=True)[1][corpus.columns["speaker"]]


def divide(group: np.ndarray, label: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Indices of train (0.6), validation (0.15) and test (0.25): whole groups, or within each class where unknown."""
    parts: list[list[int]] = [[], [], []]
    known = (group >= 0).all()
    for values in [np.unique(group)] if known else [np.flatnonzero(label == c) for c in np.unique(label)]:
        test, validation = (max(1, round(share * len(values))) for share in (0.25, 0.15))
        if len(values) < 3:
            what = "speakers or drawers" if known else "examples of a class"
            raise mj.InputError(f"There are {len(values)} {what}, expected at least 3: to train, validate and test on.")
        dealt = random_parts(values, (len(values) - test - validation, validation, test), seed)
        for part, chosen in zip(parts, dealt, strict=True):
            part.extend(np.flatnonzero(np.isin(group, chosen)) if known else chosen)
    split = {name: np.array(sorted(part)) for name, part in zip(("train", "validation", "test"), parts, strict=True)}
    if unseen := len(np.setdiff1d(label, label[split["train"]])):
        raise mj.InputError(f"{unseen} classes have no training example, expected some of each.")
    return split


class Data(NamedTuple):
    """One task's examples, all of them; which are trained on is told apart, so that all seeds share compiled code."""

    x: jax.Array  # [n, time, mel] log-mel or [n, height, width] pixels
    y: jax.Array  # [n]
    train: jax.Array  # [n], the training examples first
    num_train: jax.Array  # their number


def clean(task: str, x: jax.Array) -> jax.Array:
    """Inputs of a task as the model gets them."""
    return jax.vmap(lambda clip: normalize(clip, "mean_variance"))(x) if task == "speech" else x


def dealt(tasks: dict[str, Any], seed: int) -> tuple[dict[str, Data], dict[str, dict[str, np.ndarray]]]:
    """The data as one seed divides it."""
    splits = {task: divide(group, y, seed) for task, (_, y, group) in tasks.items()}
    data = {}
    for task, (x, y, _) in tasks.items():
        train = splits[task]["train"]
        padded = np.pad(train, (0, len(y) - len(train)))
        data[task] = Data(x, jnp.asarray(y, jnp.int32), jnp.asarray(padded, jnp.int32), jnp.asarray(len(train)))
    return data, splits


def batches_of(size: int, count: int, strength: float) -> Callable[..., dict[str, mj.Batch]]:
    """Compiled `(key, data) -> batches [count, size, ...]`, speech augmented by `strength`."""

    def draw(data: dict[str, Data], key: jax.Array) -> dict[str, mj.Batch]:
        batch = {}
        for task, task_key in zip(data, jax.random.split(key, len(data)), strict=True):
            index_key, augment_key = jax.random.split(task_key)
            x, y, train, num_train = data[task]
            chosen = train[jax.random.randint(index_key, (size,), 0, num_train)]
            drawn = x[chosen]
            if task == "speech" and strength:
                drawn = augment(scaled(strength))(drawn, augment_key)
            batch[task] = mj.Batch(clean(task, drawn), y[chosen])
        return batch

    return jax.jit(lambda key, data: jax.lax.map(partial(draw, data), jax.random.split(key, count)))


def logistic(x: np.ndarray, y: np.ndarray, split: dict[str, np.ndarray]) -> dict[str, float]:
    """Accuracies of logistic regression on standardised features, its regularisation chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    train, validation, test = (split[name] for name in ("train", "validation", "test"))
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x[train], y[train]) for c in (0.01, 0.1, 1.0)]
    best = max(fits, key=lambda fit: fit.score(x[validation], y[validation]))
    return {"validation": best.score(x[validation], y[validation]), "test": best.score(x[test], y[test])}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and half the width of its 95 % t interval, None for a single seed."""
    if len(values) < 2:
        return float(np.mean(values)), None
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def hold_out(
    corpus: Corpus, train: np.ndarray, args: argparse.Namespace, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips to train on, of words that have enough for episodes; clips of these by other people; the words."""
    label, speaker = (corpus.columns[name] for name in ("label", "speaker"))
    person = people(corpus)

    def others(train: np.ndarray) -> np.ndarray:
        return np.isin(label, label[train]) & ~np.isin(person, person[train])

    if not others(train).any():  # as in the embedded corpus: an eighth of the people go without training
        known = np.unique(person[train])
        away = random_parts(known, (len(known) - len(known) // 8, 0, len(known) // 8), seed)[2]
        train = train & ~np.isin(person, away)
    masked = np.where(train, label, -1)
    tables = index_tables(masked, speaker, args.ways, args.shots, args.queries, "speaker", f"{corpus.name} (train)")
    words = np.sort(label[np.asarray(tables.clips)[:, 0]])  # those with clips enough for MAML's episodes
    train = train & np.isin(label, words)
    held = np.flatnonzero(others(train) & np.isin(label, words))
    held = np.random.default_rng(seed).permutation(held)[:MOST_HELD]
    return train, held, words
