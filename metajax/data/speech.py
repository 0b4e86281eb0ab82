"""Speech to recognise: a corpus with its texts as tokens, and tasks that are speakers, languages or other columns."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, PyTree
from tqdm import tqdm

from metajax.core import Batch, Episode, KeyArray, Sampler, Transcripts, Utterances
from metajax.data.acoustics import babble
from metajax.data.audio import at_silences, read_audio
from metajax.data.augment import augment, normalized, scaled
from metajax.data.buckets import bucket_of
from metajax.data.corpus import Corpus, Recordings, load
from metajax.data.features import FeatureSettings, frames_of, log_mels
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
    waves: bool = False,
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
        waves: keep the waves themselves, for scenarios.
        cache: folder of cached features, None for no cache.
        on_error: "skip" leaves out what cannot be used, counted in a warning and listed in `corpus.skipped`.
        progress: whether to show a progress bar.

    Raises:
        InputError: there are no texts, or as `load` and `encode`.
    """
    if recordings.texts is None:
        raise InputError(f"{recordings.name} has no texts, expected what was said in each recording.")
    how: dict[str, Any] = {"cache": cache, "longest": longest, "waves": waves}
    corpus = load(recordings, settings, **how, on_error=on_error, progress=progress)
    known = vocabulary(corpus.texts or (), normalizer, unit) if known is None else known
    lengths = np.asarray(corpus.lengths)
    return _spoken(corpus, known, -(-(frames_of(lengths, settings) if waves else lengths) // stride), on_error)


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
    corpus = load(recordings, _SETTINGS, cache=None, longest=longest, waves=True, on_error=on_error, progress=progress)
    rate, run, found = _SETTINGS.sample_rate, hoisted(encoder), []
    pairs = zip(corpus.features, np.asarray(corpus.lengths), strict=True)
    for wave, length in tqdm(pairs, f"{recordings.name}, encoded", len(corpus.lengths), disable=not progress):
        # padded to whole seconds, so that few shapes are compiled
        padded = np.pad(np.asarray(wave)[:length], (0, -length % rate))
        frames, lengths = run(Utterances(jnp.asarray(padded[None]), jnp.asarray([length])))
        found.append(np.asarray(frames[0, : int(lengths[0])]))
    counts = np.array([len(one) for one in found], np.int32)
    features = np.zeros((len(found), counts.max(), found[0].shape[1]), found[0].dtype)
    for row, one in zip(features, found, strict=True):
        row[: len(one)] = one
    corpus = corpus._replace(features=jnp.asarray(features), lengths=jnp.asarray(counts))
    known = vocabulary(corpus.texts or (), normalizer, unit) if known is None else known
    return _spoken(corpus, known, counts, on_error)


def _spoken(corpus: Corpus, known: Vocabulary, frames: np.ndarray, on_error: Literal["raise", "skip"]) -> Speech:
    """What is said in a corpus, in so many frames of a recogniser's output."""
    encoded = encode(known, corpus.texts or (), corpus.clip_names, frames=frames, on_error=on_error)
    kept = _chosen(corpus, encoded.kept)._replace(skipped=corpus.skipped + encoded.skipped)
    return Speech(kept, known, encoded.transcripts)


def crowd(
    speech: Speech, speakers: Sequence[str], *, voices: int = 6, seconds: float = 30.0, seed: int = 0
) -> Float32[np.ndarray, " samples"]:
    """`babble` of some speakers of a corpus of waves, a noise to add to others.

    Args:
        speech: loaded with `waves=True`.
        speakers: by name; none who is to be recognised.
        voices: at a time.
        seconds: of the noise.
        seed: of the draw.
    """
    names = speech.corpus.names["speaker"]
    rows = np.isin(speech.corpus.columns["speaker"], [names.index(name) for name in speakers])
    spoken = Utterances(speech.corpus.features[rows], speech.corpus.lengths[rows])
    return babble(spoken, voices, round(seconds * speech.corpus.settings.sample_rate), seed)


def subset(speech: Speech, rows: Bool[np.ndarray, " n"] | Int[np.ndarray, " some"]) -> Speech:
    """Some of the utterances, by number or by whether they are of them."""
    rows = np.arange(len(speech.corpus.lengths))[rows]
    return Speech(_chosen(speech.corpus, rows), speech.vocabulary, jax.tree.map(lambda a: a[rows], speech.transcripts))


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
        corpus, vocabulary, (tokens, lengths) = subset(speech, rows)
        corpus = corpus._replace(features=corpus.features[:, :bound])
        parts.append(Speech(corpus, vocabulary, Transcripts(tokens[:, : int(lengths.max())], lengths)))
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
    scenario: Callable[[PyTree, KeyArray], PyTree] | None = None,
    augmentation: float = 0.0,
    normalization: Literal["mean_variance", "none"] = "mean_variance",
) -> Sampler:
    """Tasks that are values of a column: utterances of one speaker, language or accent, with what was said in them.

    Utterances are heard in a scenario, augmented, then each is normalised by its own mean and variance.

    Args:
        speech: the utterances.
        column: "speaker", "language" or another.
        shots: support utterances of a task; 0 where it adapts to the very utterances that it recognises, whose text the
            support set then lacks.
        queries: query utterances of a task.
        values: those to draw from, such as one part of `held_out`; None for all that have utterances enough.
        apart: a column of which support and query have different values, such as the `half` of `joined`.
        scenario: of waves to log-mel, one for a task, from `metajax.tasks.scenarios.scenarios`; None for none.
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
            asked = f"{shots + queries} for {shots} shots and {queries} queries"
            raise InputError(f"{column} {value!r} has {found} utterance{'s' * (found != 1)}, expected {asked}.")
    if values is not None:
        group = np.where(np.isin(group, [names.index(value) for value in values]), group, -1)
    x = Utterances(speech.corpus.features, speech.corpus.lengths)
    sides = None if apart is None else _column(speech, apart)
    sizes = {"shots": shots, "queries": queries}
    sample = groups(x, speech.transcripts, group, **sizes, apart=sides, name=speech.corpus.name, names=names)
    if normalization == "none" and (augmentation or scenario is not None):
        told = f"augmentation is {augmentation}, expected 0" if augmentation else "there is a scenario, expected none"
        raise InputError(f"{told} where normalization is 'none'.")
    change = augment(scaled(augmentation)) if augmentation else None

    def prepare(x: PyTree, key: KeyArray) -> PyTree:
        scenario_key, key = jax.random.split(key)
        if scenario is not None:
            x = scenario(x, scenario_key)
        elif x.frames.ndim == 2:
            x = log_mels(x, speech.corpus.settings)
        return normalized(x if change is None else change(x, key))

    def itself(key: KeyArray) -> Episode:
        query = prepared(key).query
        return Episode(Batch(query.x, ()), query)

    prepared = sample if normalization == "none" else with_inputs(sample, prepare)
    return prepared if shots else itself


# tasks of one speaker, and of one language
speakers = partial(by_column, column="speaker")
languages = partial(by_column, column="language")


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
