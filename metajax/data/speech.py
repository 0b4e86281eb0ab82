"""Speech to recognise: a corpus with its texts as tokens, and tasks that are speakers, languages or other columns."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from metajax.core import KeyArray, Sampler, Transcripts, Utterances
from metajax.data.audio import at_silences, read_audio
from metajax.data.augment import augment, normalize, scaled
from metajax.data.buckets import bucket_of
from metajax.data.corpus import Corpus, Recordings, load
from metajax.data.features import FeatureSettings
from metajax.data.text import Unit, Vocabulary, encode, vocabulary
from metajax.errors import InputError
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
    texts, names = corpus.texts or (), corpus.clip_names
    known = vocabulary(texts, normalizer, unit) if known is None else known
    frames = -(-np.asarray(corpus.lengths) // stride)
    encoded = encode(known, texts, names, frames=frames, on_error=on_error)
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
    change = augment(scaled(augmentation)) if augmentation else None

    def prepare(x: PyTree, key: KeyArray) -> PyTree:
        return normalized(x if change is None else change(x, key))

    return with_inputs(sample, prepare)


# tasks of one speaker, and of one language
speakers = partial(by_column, column="speaker")
languages = partial(by_column, column="language")


def normalized(x: PyTree) -> PyTree:
    """`Utterances`, each normalised by its own mean and variance, as what `by_column` draws."""
    return jax.vmap(lambda one: normalize(one, "mean_variance"))(x)


class Pieces(NamedTuple):
    """One recording, cut at silences."""

    x: Utterances  # frames padded to the longest piece; not normalised
    starts: tuple[float, ...]  # seconds into the recording, of each
    seconds: float  # of the recording


def read_pieces(path: Path, longest: float, settings: FeatureSettings = _SETTINGS) -> Pieces:
    """Read a recording that may be longer than any utterance; a warning tells if it is cut.

    Args:
        path: of the audio file.
        longest: seconds of a piece.
        settings: of the features.

    Raises:
        InputError: it cannot be read, is shorter than one window or silent; a piece that is silent is left out, which
            a warning tells.

    Example:
        ``x, starts, seconds = read_pieces(Path("lecture.flac"), 20.0)``
    """
    rate, name = settings.sample_rate, str(path)
    wave = read_audio(path, rate)
    cuts, seconds = at_silences(wave, rate, longest), len(wave) / rate
    names = tuple(name if len(cuts) == 1 else f"{name}, {a / rate:.2f} to {b / rate:.2f} s" for a, b in cuts)
    if len(cuts) > 1:
        told = f"{name} lasts {seconds:.1f} s and is split at silences into {len(cuts)} pieces"
        warnings.warn(f"{told} of at most {longest:.1f} s.", stacklevel=2)
    unknown = np.full(len(cuts), -1, np.int32)
    columns = {"label": unknown, "speaker": unknown, "piece": np.arange(len(cuts), dtype=np.int32)}

    def read(pieces: Sequence[int], sample_rate: int) -> list[np.ndarray]:
        return [wave[slice(*cuts[piece])] for piece in pieces]

    recordings = Recordings(name, names, columns, {"label": (), "speaker": (), "piece": names}, None, str, read)
    how: Literal["raise", "skip"] = "skip" if len(cuts) > 1 else "raise"
    corpus = load(recordings, settings, cache=None, longest=longest, on_error=how, progress=False)
    starts = tuple(cuts[piece][0] / rate for piece in corpus.columns["piece"])
    return Pieces(Utterances(corpus.features, corpus.lengths), starts, seconds)


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
