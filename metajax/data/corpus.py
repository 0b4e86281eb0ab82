"""Corpora: recordings with their labels, and the same as one array of features on the device."""

import hashlib
import json
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from tqdm import tqdm

from metajax.data import cache as disk
from metajax.data.audio import check_wave, read_audio
from metajax.data.features import FLOOR, FeatureSettings, check_settings, frames_of, log_mel, loudest
from metajax.errors import InputError

# Part of every cache file's key: raise it whenever read_audio, resample, log_mel or `loudest` change their output.
FORMAT = 3
# Clips read by one thread at a time; those of one length are transformed by one call of one compiled function.
_BATCH = 256
# Of a longer clip, so many pieces of `settings.seconds` are transformed at a time.
_PIECES = 16
# Batches read ahead: bounds the waves held in memory at any time, whatever the size of the corpus.
_READ_AHEAD = 8


class Recordings(NamedTuple):
    """A corpus before its features: what a reader module returns.

    Fields:
        name: of the corpus.
        clip_names: one per clip, for messages.
        columns: always "label" and "speaker", and what else is known of each clip: indices into `names[column]`,
            -1 where unknown.
        names: what the indices of each column mean.
        texts: transcripts, one per clip, where known.
        digest: a hexadecimal digest of everything that determines the samples.
        read: (clip indices, sample rate in Hz) -> one mono wave per clip, or what is wrong with it; called from
            several threads at once. Where it is a generator, waves are held one by one.
    """

    name: str
    clip_names: tuple[str, ...]
    columns: dict[str, Int[np.ndarray, " clips"]]
    names: dict[str, tuple[str, ...]]
    texts: tuple[str, ...] | None
    digest: Callable[[], str]
    read: Callable[[Sequence[int], int], Iterable[np.ndarray | InputError]]


class Corpus(NamedTuple):
    """A corpus as one array of features.

    Fields:
        name: of the corpus.
        features: `[clips, time, mel]` float32 log-mel, on the device; or `[clips, samples]` the waves themselves.
        lengths: `[clips]` frames that touch the recording itself. The others see only zeros: those after it where
            whole clips were loaded, else those before and after it, as many on each side to within one. Of waves their
            samples.
        columns, names, texts: as in `Recordings`.
        settings: of the features.
        skipped: one sentence for each clip left out under `on_error="skip"`.
        clip_names: one per clip, for messages.
    """

    name: str
    features: Float[Array, "clips time *mel"]
    lengths: Int[Array, " clips"]
    columns: dict[str, Int[np.ndarray, " clips"]]
    names: dict[str, tuple[str, ...]]
    texts: tuple[str, ...] | None
    settings: FeatureSettings
    skipped: tuple[str, ...]
    clip_names: tuple[str, ...] = ()


def load(
    recordings: Recordings,
    settings: FeatureSettings,
    *,
    cache: Path | None,
    longest: float | None = None,
    waves: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Corpus:
    """Read all clips of `recordings` and compute their log-mel features, or take both from the cache.

    Words are brought to one length: a clip shorter than `settings.seconds` is centred in zeros; of a longer one the
    `loudest` part is kept, and a warning tells how many were so cropped. With `longest`, clips are kept whole, padded
    at the end to the longest of them: their x is `Utterances(corpus.features, corpus.lengths)`.

    Args:
        recordings: from a reader of `metajax.data.corpora`.
        settings: of the features.
        cache: folder of cached features, None for no cache. One file holds the features of one (contents of the
            recordings, settings, longest); a damaged one is told in a warning and computed again.
        longest: seconds; keeps whole clips, none of which may last longer.
        waves: keep the waves themselves in place of log-mel, for `tasks.scenarios`; needs `longest`.
        on_error: "raise" stops at the first clip that cannot be used; "skip" leaves such clips out, lists them in
            `Corpus.skipped` and tells their number in a warning.
        progress: whether to show a progress bar on stderr.

    Returns:
        The corpus, features and lengths on the default device.

    Raises:
        InputError: a clip cannot be used (under "raise"), no clip can, or an argument is not consistent in itself.
    """
    check_settings(settings)
    if longest is not None and not settings.window / settings.sample_rate <= longest < float("inf"):
        raise InputError(f"longest is {longest}, expected seconds, at least one window of {settings.window} samples.")
    if waves and longest is None:
        raise InputError("waves is True without longest, expected seconds: waves are kept whole.")
    _check(recordings, on_error)
    path = arrays = None
    if cache is not None:
        content = (FORMAT, recordings.digest(), tuple(settings), longest, *(["waves"] if waves else []))
        key = hashlib.blake2b(repr(content).encode()).hexdigest()[:40]
        path = Path(cache) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', recordings.name)[:80]}-{key}.features"
        arrays = _cached(path, key)
    if arrays is None:
        arrays = _compute(recordings, settings, longest, waves, on_error, progress)
        if path is not None:
            try:
                disk.write(path, {**arrays, "key": np.array(key)})
            except OSError as error:  # the features are there: not worth losing for a full disk
                warnings.warn(f"{recordings.name}: the features could not be cached in {path} ({error}).", stacklevel=2)

    skipped = tuple(json.loads(str(arrays["skipped"])))
    clips, cropped = len(recordings.clip_names), int(arrays["cropped"])
    if skipped and on_error == "raise":
        raise InputError(skipped[0])
    if skipped:
        message = f"{recordings.name}: {len(skipped)} of {clips} clips are left out; the first: {skipped[0]}"
        warnings.warn(message, stacklevel=2)
    if cropped:
        message = f"{recordings.name}: {cropped} of {clips} clips are longer than {settings.seconds} s and are cropped."
        warnings.warn(message, stacklevel=2)
    kept = arrays["kept"]
    return Corpus(
        name=recordings.name,
        features=jnp.asarray(arrays["features"]),
        lengths=jnp.asarray(arrays["lengths"]),
        columns={name: column[kept] for name, column in recordings.columns.items()},
        names=dict(recordings.names),
        texts=recordings.texts and tuple(recordings.texts[clip] for clip in kept),
        settings=settings,
        skipped=skipped,
        clip_names=tuple(recordings.clip_names[clip] for clip in kept),
    )


def summary(corpus: Recordings | Corpus) -> dict[str, Any]:
    """Count the clips, labels and speakers that occur in `corpus`; once loaded also its hours and skipped clips."""
    columns = corpus.columns
    counts: dict[str, Any] = {"name": corpus.name, "clips": len(columns["label"])}
    counts |= {f"{name}s": len(np.unique(columns[name][columns[name] >= 0])) for name in ("label", "speaker")}
    if isinstance(corpus, Corpus):
        unit = corpus.settings.hop if corpus.features.ndim == 3 else 1
        seconds = np.asarray(corpus.lengths, float).sum() * unit / corpus.settings.sample_rate
        counts |= {"hours": seconds / 3600, "skipped": len(corpus.skipped)}
    return counts


def fingerprint(recordings: Recordings, corpus: Corpus) -> str:
    """Name, counts and a digest of all data of a loaded corpus, to tell whether they are still the same."""
    content = hashlib.blake2b(repr((recordings.digest(), corpus.settings, sorted(corpus.names.items()))).encode())
    for _, column in sorted(corpus.columns.items()):
        content.update(column.tobytes())
    counts = ", ".join(f"{value} {name}" for name, value in summary(corpus).items() if name not in ("name", "hours"))
    return f"{corpus.name}: {counts}, digest {content.hexdigest()[:16]}"


def read_noise(
    paths: Sequence[Path], settings: FeatureSettings, on_error: Literal["raise", "skip"] = "raise"
) -> Float[Array, "time mel"]:
    """Log-mel of recordings of noise, one after the other, for `augment`.

    Raises:
        InputError: one of them cannot be read (under "skip" it is left out, with a warning), or none is left.
    """
    waves = []
    for path in paths:
        try:
            waves.append(read_audio(path, settings.sample_rate))
        except InputError as error:
            if on_error == "raise":
                raise
            warnings.warn(f"a recording of noise is left out: {error}", stacklevel=2)
    if not waves:
        raise InputError("the corpus has no recordings of noise; use coloured noise.")
    return jax.jit(log_mel, static_argnums=1)(np.concatenate(waves), settings)


def _frames_touching(num_samples: int, settings: FeatureSettings) -> int:
    """Return how many frames overlap a clip of `num_samples` samples once centred."""
    start = (settings.num_samples - num_samples) // 2
    frames = np.arange(settings.num_frames) * settings.hop
    return int(np.sum((frames < start + num_samples) & (frames + settings.window > start)))


@partial(jax.jit, static_argnames="settings")
def _features(waves: Float[Array, "batch samples"], settings: FeatureSettings) -> Float[Array, "batch time mel"]:
    # On CPU 16 clips at a time stay within the cache, which halves the time.
    return jax.lax.map(lambda wave: log_mel(wave, settings), waves, batch_size=16)


def _whole(wave: Float32[np.ndarray, " samples"], settings: FeatureSettings) -> Float32[np.ndarray, "time mel"]:
    """Return the features of a wave of any length, which is transformed piece by piece."""
    count, step = frames_of(len(wave), settings), settings.num_frames * settings.hop
    pieces = -(-count // settings.num_frames)
    frames = []
    for first in range(0, pieces, _PIECES):
        size = min(_PIECES, pieces - first)
        group = np.zeros((1 << (size - 1).bit_length(), settings.num_samples), np.float32)  # few shapes to compile
        for row in range(size):
            piece = wave[(first + row) * step :][: settings.num_samples]
            group[row, : len(piece)] = piece
        frames.append(np.asarray(_features(group, settings))[:size].reshape(-1, settings.num_mels))
    return np.concatenate(frames)[:count]


def _read(
    recordings: Recordings, settings: FeatureSettings, longest: float | None, whole_waves: bool, batch: range
) -> list[tuple[np.ndarray, int, bool] | InputError]:
    """Return the features of each clip of a batch, how many of its frames count and whether it was cropped."""
    waves = np.zeros((_BATCH, settings.num_samples), np.float32)
    centred: dict[int, int] = {}  # frames that count, by row
    read: list[Any] = []
    for row, (clip, wave) in enumerate(zip(batch, recordings.read(batch, settings.sample_rate), strict=True)):
        try:
            if isinstance(wave, InputError):
                raise wave
            name = recordings.clip_names[clip]
            check_wave(wave, name, settings.window, settings.sample_rate, settings.low, settings.high)
            if longest is not None and len(wave) > longest * settings.sample_rate:
                seconds = len(wave) / settings.sample_rate
                told = f"{name} lasts {seconds:.2f} s, expected at most {longest:g} s"
                raise InputError(f"{told}: cut it, or leave it out with on_error = skip.")
        except InputError as error:
            read.append(error)
            continue
        if longest is not None:
            frames = np.asarray(wave, np.float32) if whole_waves else _whole(wave, settings)
            read.append((frames, len(frames), False))
        elif len(wave) > settings.num_samples:
            frames = _whole(wave, settings)
            read.append((loudest(frames, settings).copy(), settings.num_frames, True))  # else all frames are held
        else:
            waves[row, (settings.num_samples - len(wave)) // 2 :][: len(wave)] = wave
            centred[row] = _frames_touching(len(wave), settings)
            read.append(None)
    features = np.asarray(_features(waves, settings)) if centred else ()
    return [(features[row], centred[row], False) if row in centred else clip for row, clip in enumerate(read)]


def _compute(
    recordings: Recordings, settings: FeatureSettings, longest: float | None, waves: bool, on_error: str, progress: bool
) -> dict[str, np.ndarray]:
    """Return the arrays of the cache: features and lengths of the clips kept, which they are, and what is left out."""
    clips = len(recordings.clip_names)
    most = settings.num_samples if longest is None else int(longest * settings.sample_rate)
    shape = (most,) if waves else (frames_of(most, settings), settings.num_mels)
    features = np.empty((clips, *shape), np.float32)  # takes no memory before it is written to
    lengths: list[int] = []
    kept: list[int] = []
    skipped: list[str] = []
    cropped = 0
    batches = [range(start, min(start + _BATCH, clips)) for start in range(0, clips, _BATCH)]
    with tqdm(total=clips, desc=recordings.name, unit="clip", disable=not progress) as bar:
        for batch, read in zip(
            batches, _in_order(partial(_read, recordings, settings, longest, waves), batches), strict=True
        ):
            for clip, found in zip(batch, read, strict=True):
                if isinstance(found, InputError):
                    if on_error == "raise":
                        raise found
                    skipped.append(str(found))
                    continue
                frames, length, crop = found
                features[len(kept), : len(frames)] = frames
                lengths.append(length)
                cropped += crop
                kept.append(clip)
            bar.update(len(batch))
    if not kept:
        raise InputError(f"{recordings.name}: none of the {clips} clips can be used; the first: {skipped[0]}")
    if longest is not None:
        features = features[: len(kept), : max(lengths)]
        for row, length in zip(features, lengths, strict=True):
            row[length:] = 0.0 if waves else np.log(FLOOR)
    told = {"kept": np.array(kept), "cropped": np.array(cropped), "skipped": np.array(json.dumps(skipped))}
    return {"features": features[: len(kept)], "lengths": np.array(lengths, np.int32)} | told


def _in_order(function: Callable[[range], Any], items: Sequence[range]) -> Iterator[Any]:
    """Map over a thread pool, in order, at most `_READ_AHEAD` items ahead of the consumer."""
    with ThreadPoolExecutor() as pool:
        pending = deque(pool.submit(function, item) for item in items[:_READ_AHEAD])
        for place in range(len(items)):
            pending += [pool.submit(function, item) for item in items[place + _READ_AHEAD : place + _READ_AHEAD + 1]]
            yield pending.popleft().result()


def _cached(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """Return the arrays in `path`, or None: with a warning where there are others than `key` asks for."""
    try:
        arrays = disk.read(path)
        if arrays is not None and str(arrays.get("key")) != key:
            raise InputError(f"cache file {path} holds other features than its name says.")
        return arrays
    except (ValueError, OSError) as error:
        warnings.warn(f"The features are computed again: {error}", stacklevel=3)
        return None


def _check(recordings: Recordings, on_error: str) -> None:
    """Raise InputError where the fields of `recordings` do not fit together."""
    name, clips = recordings.name, len(recordings.clip_names)
    if on_error not in ("raise", "skip"):
        raise InputError(f'on_error is {on_error!r}, expected "raise" or "skip".')
    if clips == 0:
        raise InputError(f"{name} holds no clips.")
    if missing := {"label", "speaker"} - recordings.columns.keys():
        raise InputError(f"{name} lacks the column {min(missing)!r}, expected at least 'label' and 'speaker'.")
    if recordings.texts is not None and len(recordings.texts) != clips:
        raise InputError(f"{name} has {len(recordings.texts)} texts for {clips} clips.")
    for column, values in recordings.columns.items():
        limit = len(recordings.names.get(column, ()))
        if values.shape != (clips,) or values.min() < -1 or values.max() >= limit:
            raise InputError(f"{name}: column {column!r} must hold {clips} indices from -1 to {limit - 1}.")
