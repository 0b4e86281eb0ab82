"""Words to learn from a few recordings: a corpus, its splits, and episodes of them."""

from collections.abc import Callable
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from metajax.core import KeyArray, Sampler
from metajax.data import corpora
from metajax.data.augment import Augmentation, augment, normalized, scaled
from metajax.data.corpus import Corpus, fingerprint, load, read_noise
from metajax.data.features import FeatureSettings
from metajax.errors import InputError
from metajax.parallel import hoisted
from metajax.tasks.episodes import Across, episodes, with_inputs
from metajax.tasks.splits import Splits, divide, without_tested

_SETTINGS = FeatureSettings()


class Words(NamedTuple):
    """A corpus of words, and which clips of it belong to which split."""

    corpus: Corpus
    splits: Splits  # no word and no speaker in two of them
    noise: Float[Array, "time mel"] | None  # log-mel of the corpus's own recordings of noise
    data: str  # counts and a digest, to tell whether the data are still the same


def load_words(
    name: str,
    root: str | Path | None = None,
    *,
    ways: int = 5,
    settings: FeatureSettings = _SETTINGS,
    cache: Path | None = None,
    seed: int = 0,
    noise: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    **options: Any,
) -> Words:
    """Read a corpus of words and divide it into splits that share no word and no speaker.

    Args:
        name: one of `metajax.data.corpora.READERS`.
        root: the corpus's folder, or the manifest file; None for espeak.
        ways: words that an episode needs.
        settings: of the features.
        cache: folder of cached features, None for no cache.
        seed: of the splits.
        noise: whether to read the corpus's recordings of noise, for `sampler` to add.
        on_error: "raise", or "skip" to leave out clips that cannot be used.
        options: of the reader, e.g. `languages` of espeak.

    Raises:
        InputError: as `corpora.read`, `load`, `read_noise` and `divide`.

    Example:
        ``words = load_words("espeak", languages=["de", "sw", "tr", "fr", "ru"])``
    """
    recordings = corpora.read(name, root, on_error=on_error, **options)
    recordings = recordings._replace(digest=cached(recordings.digest))  # it reads all files, and is asked for twice
    corpus = load(recordings, settings, cache=cache, on_error=on_error)
    recorded = read_noise(corpora.noise_files(name, root), settings, on_error) if noise else None
    splits = divide(corpus.columns, corpus.names, ways=ways, seed=seed)
    frames = "" if recorded is None else f", {len(recorded)} frames of noise"
    return Words(corpus, splits, recorded, fingerprint(recordings, corpus) + frames)


def clips(
    name: str,
    root: str | Path | None = None,
    *,
    settings: FeatureSettings = _SETTINGS,
    cache: Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    **options: Any,
) -> tuple[Float[Array, "n time mel"], Corpus]:
    """Recordings as the inputs that `sampler` trains on, e.g. to adapt to some and recognise others.

    Args:
        name, root, settings, cache, on_error, options: as of `load_words`.

    Returns:
        Inputs `[n, time, mel]`, and the corpus with the columns, names and texts of each.

    Raises:
        InputError: as `corpora.read` and `load`.

    Example:
        ``x, corpus = clips("manifest", "new.csv")``
    """
    corpus = load(corpora.read(name, root, on_error=on_error, **options), settings, cache=cache, on_error=on_error)
    return normalized(corpus.features), corpus


def names_of(words: Words, split: str, column: str) -> list[str]:
    """Return the words ("label") or speakers ("speaker") of a split, by name."""
    values = words.corpus.columns[column][getattr(words.splits, split)]
    return [words.corpus.names[column][i] for i in np.unique(values) if i >= 0]


def leave_out(words: Words, tested: Words) -> Words:
    """Return `words` without the words and speakers, by name, that `tested` is tested on; told in a warning.

    Raises:
        InputError: no clip is left to train on.
    """
    names = {column: set(names_of(tested, "test", column)) for column in ("label", "speaker")}
    return words._replace(splits=without_tested(words.splits, words.corpus.columns, words.corpus.names, names))


def sampler(
    words: Words,
    split: str,
    *,
    ways: int,
    shots: int,
    queries: int,
    across: Across = "speaker",
    augmentation: float = 0.0,
) -> Sampler:
    """Episodes of one split: clips, augmented, then each normalised by its own mean and variance.

    Args:
        words: the corpus and its splits.
        split: "train", "validation" or "test".
        ways, shots, queries, across: as in `metajax.tasks.episodes.episodes`.
        augmentation: its strength (1 for the defaults of `Augmentation`), with the noise of `words`, or coloured noise
            where there is none; 0 for no augmentation.

    Returns:
        `sample(key) -> Episode` with x of shape `[ways * shots, time, mel]` and `Labels`.

    Raises:
        InputError: there is no such split, or it holds too little.
    """
    if split not in Splits._fields:
        raise InputError(f"split is {split!r}, expected one of {', '.join(Splits._fields)}.")
    columns, name = words.corpus.columns, f"{words.corpus.name} ({split})"
    label = np.where(getattr(words.splits, split), columns["label"], -1)
    sizes: dict[str, Any] = {"ways": ways, "shots": shots, "queries": queries}
    sample = episodes(words.corpus.features, label, columns["speaker"], **sizes, across=across, name=name)
    return with_inputs(sample, prepared(words, augmentation))


def prepared(
    words: Words, augmentation: float | Augmentation = 0.0
) -> Callable[[Float[Array, "n time mel"], KeyArray], Array]:
    """`(x, key) -> x`: what `sampler` does to clips; where no label may be read, to `words.corpus.features[chosen]`.

    Args:
        words: whose recordings of noise are added, where there are some.
        augmentation: as of `sampler`, or the strengths of its parts.
    """
    strengths = augmentation if isinstance(augmentation, Augmentation) else scaled(augmentation)
    change = augment(strengths, words.noise) if augmentation else None

    def prepare(x: Float[Array, "n time mel"], key: KeyArray) -> Float[Array, "n time mel"]:
        return normalized(x if change is None else change(x, key))

    return prepare


def embedded(words: Words, split: str, embed: Callable[[Float[Array, "n time mel"]], Array]) -> Callable[..., Sampler]:
    """Episodes of vectors: every clip of a split is embedded once, where a method embeds it alike in all of them.

    Args:
        words: the corpus and its splits.
        split: "train", "validation" or "test".
        embed: log-mels as they are in the corpus to `[n, features]`; for those of `sampler`, through `prepared(words)`.

    Returns:
        `(ways=..., shots=..., queries=...) -> sampler`, as of `metajax.tasks.episodes.episodes`.
    """
    chosen, columns = np.flatnonzero(getattr(words.splits, split)), words.corpus.columns
    each = hoisted(lambda x: jax.lax.map(lambda one: embed(one[None])[0], x, batch_size=256))
    z = each(words.corpus.features[chosen])
    label, speaker = (columns[name][chosen] for name in ("label", "speaker"))
    return partial(episodes, z, label, speaker, name=f"{words.corpus.name} ({split})")
