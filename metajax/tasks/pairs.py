"""Two clips of each of many words, as an embedding learns from them: by any voices, or by those of real speakers."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metajax.core import Episode, KeyArray, Sampler
from metajax.tasks.episodes import Across, episodes


def word_pairs(
    x: Float[Array, "clips time mel"],
    *,
    label: Int[np.ndarray, " clips"],
    speaker: Int[np.ndarray, " clips"],
    real: Int[np.ndarray, " clips"],
    ways: int,
    mixed: float,
    alike: float,
) -> Sampler:
    """Episodes of one support and one query clip of each word, drawn in one of three ways.

    Where no word is said by both kinds of voices, all episodes are of any voices.

    Args:
        x: inputs of all clips.
        label: the word of each, -1 where it is not to be drawn.
        speaker: of each; within a word hardly ever the same twice, so that it is not looked at.
        real: 1 where the voice is made from a real speaker's.
        ways: words of an episode.
        mixed: share of the episodes with one clip of each word by a real speaker's voice and one by another.
        alike: share of those with both by real speakers' voices.

    Returns:
        `sample(key) -> Episode`, jittable.

    Raises:
        InputError: too few words for one of the three whose share is not 0, with how many there are.
    """
    both = np.isin(label, np.intersect1d(label[real == 1], label[real == 0]))
    parts: list[tuple[float, Sampler]] = []

    def draw(share: float, name: str, label: np.ndarray, speaker: np.ndarray, across: Across) -> None:
        if share > 0:
            one = episodes(x, label, speaker, ways=ways, shots=1, queries=1, across=across, name=name)
            parts.append((share, one))

    if both.any():
        draw(mixed, "words by both kinds of voices (mixed)", np.where(both, label, -1), real, "speaker")
        draw(alike, "words by real voices (alike)", np.where(real == 1, label, -1), speaker, "none")
    draw(1.0 - sum(share for share, _ in parts), "words by any voices", label, speaker, "none")
    ends = jnp.cumsum(jnp.array([share for share, _ in parts]))[:-1]

    def sample(key: KeyArray) -> Episode:
        part = (jax.random.uniform(jax.random.fold_in(key, 1)) > ends).sum()
        return jax.lax.switch(part, [one for _, one in parts], key)

    return sample
