"""Speech to recognise: a corpus with its texts as tokens, and tasks that are speakers, languages or other columns."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from metajax.core import KeyArray, Sampler, Transcripts, Utterances
from metajax.data.audio import check_wave
from metajax.data.augment import augment, normalize, scaled
from metajax.data.buckets import bucket_of
from metajax.data.corpus import Corpus, Recordings, load
from metajax.data.features import FeatureSettings
from metajax.data.text import Unit, Vocabulary, encode, vocabulary
from metajax.errors import InputError
from metajax.parallel import hoisted
from metajax.tasks.episodes import with_inputs
from metajax.tasks.groups import groups
from metajax.tasks.splits import random_parts

_SETTINGS = FeatureSettings()


class Speech(NamedTuple):
    """A corpus of utterances whose texts are known.

    Fields:
        corpus: whole utterances; its `skipped` lists all that are left out.
        vocabulary: what tokens stand for.
        transcripts: what was said in each, as tokens.
    """

    corpus: Corpus
    vocabulary: Vocabulary
    transcripts: Transcripts


def load_speech(
    recordings: Recordings,
    known: Vocabulary | None = None,
    *,
    normalizer: str = "nfc",
    unit: Unit = "character",
    longest: float = 20.0,
    stride: int = 4,
    settings: FeatureSettings = _SETTINGS,
    cache: Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Speech:
    """Read utterances whole, and their texts as tokens.

    Args:
        recordings: with texts, from a reader of `metajax.data.corpora`.
        known: the vocabulary of a recogniser; None for all that occurs in the texts.
        normalizer: of a new vocabulary.
        unit: of a new vocabulary.
        longest: seconds, of an utterance.
        stride: frames to one of the recogniser's output.
        settings: of the features.
        cache: folder of cached features, None for no cache.
        on_error: "skip" leaves out what cannot be used, counted in a warning and listed in `corpus.skipped`.
        progress: whether to show a progress bar.

    Raises:
        InputError: there are no texts, or as `load` and `encode`.
    """
    if recordings.texts is None:
        raise InputError(f"{recordings.name} has no texts, expected what was said in each recording.")
    corpus = load(recordings, settings, cache=cache, longest=longest, on_error=on_error, progress=progress)
    known = vocabulary(corpus.texts or (), normalizer, unit) if known is None else known
    frames = -(-np.asarray(corpus.lengths) // stride)
    return _spoken(corpus, known, frames, on_error)


def load_encoded(
    recordings: Recordings,
    encoder: Callable[[Utterances], Utterances],
    known: Vocabulary | None = None,
    *,
    normalizer: str = "nfc",
    unit: Unit = "character",
    longest: float = 20.0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Speech:
    """Read utterances whole, as a frozen encoder gives them, and their texts as tokens.

    Args:
        recordings: with texts, from a reader of `metajax.data.corpora`.
        encoder: samples at 16 kHz within -1..1, `Utterances` of `[1, samples]`, to frames; one that padding does not
            change, such as the lower part of `models.pretrained.split`. The recogniser's output has as many frames.
        known, normalizer, unit, longest, on_error, progress: as in `load_speech`.

    Returns:
        The utterances, whose features are frames. `by_column(..., normalization="none")` leaves them as they are.

    Raises:
        InputError: as `load_speech`.
    """
    if recordings.texts is None:
        raise InputError(f"{recordings.name} has no texts, expected what was said in each recording.")
    rate, run = _SETTINGS.sample_rate, hoisted(encoder)
    kept, frames, skipped = [], [], []
    waves = recordings.read(range(len(recordings.clip_names)), rate)
    for clip, wave in enumerate(tqdm(waves, recordings.name, len(recordings.clip_names), disable=not progress)):
        try:
            frames.append(_heard(run, wave, recordings.clip_names[clip], longest, rate))
            kept.append(clip)
        except InputError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
    if skipped:
        told = f"{len(skipped)} of {len(recordings.clip_names)} clips are left out; the first: {skipped[0]}"
        if not kept:
            raise InputError(f"{recordings.name}: {told}")
        warnings.warn(f"{recordings.name}: {told}", stacklevel=2)
    lengths = np.array([len(one) for one in frames], np.int32)
    features = np.zeros((len(kept), lengths.max(), frames[0].shape[1]), frames[0].dtype)
    for row, one in zip(features, frames, strict=True):
        row[: len(one)] = one
    columns = {name: column[np.array(kept)] for name, column in recordings.columns.items()}
    texts, names = (tuple(every[clip] for clip in kept) for every in (recordings.texts, recordings.clip_names))
    known = vocabulary(texts, normalizer, unit) if known is None else known
    corpus = Corpus(recordings.name, jnp.asarray(features), jnp.asarray(lengths), columns, dict(recordings.names),
                    texts, _SETTINGS, tuple(skipped), names)  # fmt: skip
    return _spoken(corpus, known, lengths, on_error)


def _heard(
    run: Callable[[Utterances], Utterances], wave: np.ndarray | InputError, name: str, longest: float, rate: int
) -> np.ndarray:
    """The frames of a wave, padded to whole seconds, so that few shapes are compiled."""
    if isinstance(wave, InputError):
        raise wave
    check_wave(wave, name, _SETTINGS.window, rate)
    if len(wave) > longest * rate:
        raise InputError(f"{name} lasts {len(wave) / rate:.2f} s, expected at most {longest:g} s.")
    frames, lengths = run(Utterances(jnp.asarray(np.pad(wave, (0, -len(wave) % rate))[None]), jnp.array([len(wave)])))
    return np.asarray(frames[0, : int(lengths[0])])


def _spoken(corpus: Corpus, known: Vocabulary, frames: np.ndarray, on_error: Literal["raise", "skip"]) -> Speech:
    """What is said in a corpus, in so many frames of a recogniser's output."""
    encoded = encode(known, corpus.texts or (), corpus.clip_names, frames=frames, on_error=on_error)
    kept = _chosen(corpus, encoded.kept)._replace(skipped=corpus.skipped + encoded.skipped)
    return Speech(kept, known, encoded.transcripts)


def in_buckets(speech: Speech, bounds: Sequence[int]) -> tuple[Speech, ...]:
    """The utterances of each bucket, padded to its bound: a sampler of each has shapes of its own.

    Args:
        speech: the utterances.
        bounds: frames, increasing; see `bucket_bounds`.

    Raises:
        InputError: an utterance is longer than the largest, or a bucket is empty.
    """
    bucket = bucket_of(np.asarray(speech.corpus.lengths), bounds)
    parts = []
    for place, bound in enumerate(bounds):
        if not (rows := np.flatnonzero(bucket == place)).size:
            raise InputError(f"{speech.corpus.name}: no utterance is in the bucket of {bound} frames.")
        corpus = _chosen(speech.corpus, rows)
        tokens, lengths = (a[rows] for a in speech.transcripts)
        corpus = corpus._replace(features=corpus.features[:, :bound])
        parts.append(Speech(corpus, speech.vocabulary, Transcripts(tokens[:, : int(lengths.max())], lengths)))
    return tuple(parts)


def held_out(
    speech: Speech, column: str, sizes: tuple[int, int], seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The values of a column, such as speakers, to train on, to validate on and to test on, at random.

    Args:
        speech: the utterances.
        column: "speaker", "language" or another.
        sizes: values to validate on and to test on.
        seed: of the choice.

    Raises:
        InputError: there is no such column, or no value is left to train on.
    """
    values, names = np.unique(_column(speech, column)), speech.corpus.names[column]
    values = values[values >= 0]
    if min(sizes) < 0 or (left := len(values) - sum(sizes)) < 1:
        raise InputError(f"{speech.corpus.name} has {len(values)} of {column}, too few to hold out {sizes}.")
    train, validation, test = (tuple(names[i] for i in p) for p in random_parts(values, (left, *sizes), seed))
    return train, validation, test


def by_column(
    speech: Speech,
    column: str,
    *,
    shots: int,
    queries: int,
    values: Sequence[str] | None = None,
    apart: str | None = None,
    augmentation: float = 0.0,
    normalization: Literal["mean_variance", "none"] = "mean_variance",
) -> Sampler:
    """Tasks that are values of a column: utterances of one speaker, language or accent, with what was said in them.

    Utterances are augmented, then each is normalised by its own mean and variance.

    Args:
        speech: the utterances.
        column: "speaker", "language" or another.
        shots: support utterances of a task.
        queries: query utterances of a task.
        values: those to draw from, such as one part of `held_out`; None for all that have utterances enough.
        apart: a column of which support and query have different values, such as the `half` of `joined`.
        augmentation: its strength (1 for the defaults of `Augmentation`), 0 for none.
        normalization: "none" for features that are no log-mel: neither augmented nor normalised.

    Returns:
        `sample(key) -> Episode` with x as `Utterances` and y as `Transcripts`.

    Raises:
        InputError: there is no such column or value, or one of `values` has too few utterances.
    """
    group, names = _column(speech, column), speech.corpus.names[column]
    for value in values or ():
        if value not in names:
            raise InputError(f"{speech.corpus.name} has no {column} {value!r}, expected one such as {names[0]!r}.")
        if (found := int((group == names.index(value)).sum())) < shots + queries:
            asked = f"{shots} shots and {queries} queries"
            raise InputError(f"{column} {value!r} has {found} utterances, expected {shots + queries} for {asked}.")
    if values is not None:
        group = np.where(np.isin(group, [names.index(value) for value in values]), group, -1)
    x = Utterances(speech.corpus.features, speech.corpus.lengths)
    sides = None if apart is None else _column(speech, apart)
    sizes = {"shots": shots, "queries": queries}
    sample = groups(x, speech.transcripts, group, **sizes, apart=sides, name=speech.corpus.name)
    if normalization == "none":
        if augmentation:
            raise InputError(f"augmentation is {augmentation}, expected 0 where normalization is 'none'.")
        return sample
    change = augment(scaled(augmentation)) if augmentation else None

    def prepare(x: PyTree, key: KeyArray) -> PyTree:
        x = x if change is None else change(x, key)
        return jax.vmap(lambda one: normalize(one, "mean_variance"))(x)

    return with_inputs(sample, prepare)


# tasks of one speaker, and of one language
speakers = partial(by_column, column="speaker")
languages = partial(by_column, column="language")


def _column(speech: Speech, column: str) -> np.ndarray:
    if column not in speech.corpus.columns:
        found = ", ".join(speech.corpus.columns)
        raise InputError(f"{speech.corpus.name} has no column {column!r}, expected one of {found}.")
    return speech.corpus.columns[column]


def _chosen(corpus: Corpus, rows: np.ndarray) -> Corpus:
    """Some of the clips."""
    return corpus._replace(
        features=corpus.features[rows],
        lengths=corpus.lengths[rows],
        columns={name: column[rows] for name, column in corpus.columns.items()},
        texts=corpus.texts and tuple(corpus.texts[row] for row in rows),
        clip_names=tuple(corpus.clip_names[row] for row in rows),
    )
