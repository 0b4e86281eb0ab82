"""Words taught by a clip each: what is learned of their embeddings, and what is heard in clips and in running audio."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metajax.algorithms.open_set import Known, open_set
from metajax.core import Batch, Learner, Theta
from metajax.losses import classify

Embeddings = Float[Array | np.ndarray, "*n features"]
Probabilities = Float[Array, "*n words_and_none"]


class Taught(NamedTuple):
    """What was learned."""

    words: list[str]
    phi: Known


class Found(NamedTuple):
    """A word in running audio."""

    middle: float  # in windows from the first; in samples where `listen` gives it
    word: int
    p: float  # the largest of its windows


class Spotting(NamedTuple):
    """What is remembered of the windows so far."""

    count: int = 0
    word: int = -1  # of the stretch that the last window belongs to
    stretch: tuple[float, ...] = ()  # its probabilities
    waiting: Found | None = None  # told unless a stronger one follows soon


def learned(z: Embeddings, said: Sequence[str], unknown: Mapping[str, float]) -> Taught:
    """Words from the embeddings of their clips, in the order in which they first occur.

    Args:
      z: `[clips, features]`, such as `mj.models.words()` gives.
      said: the word of each clip.
      unknown: numbers of `open_set` that fit the embedding.

    Example:
      >>> taught = learned(jnp.eye(3), ["yes", "no", "yes"], {})
      >>> taught.words, hearing(taught, {})(jnp.array([1.0, 0.0, 1.0])).argmax().tolist()
      (['yes', 'no'], 0)
    """
    words = list(dict.fromkeys(said))
    learner, theta = _learner(len(words), unknown)
    support = Batch(jnp.asarray(z), jnp.asarray([words.index(word) for word in said]))
    return Taught(words, learner.step(theta, None, support, jax.random.key(0)))


def hearing(taught: Taught, unknown: Mapping[str, float]) -> Callable[[Embeddings], Probabilities]:
    """Embeddings to probabilities of the words and, last, of none of them."""
    learner, theta = _learner(len(taught.words), unknown)
    return lambda z: jax.nn.softmax(learner.predict(theta, taught.phi, z, None))


def spot(
    state: Spotting, p: Float[np.ndarray, " words"], *, sure: float = 0.5, apart: int = 8, least: int = 1
) -> tuple[Spotting, Found | None]:
    """One window more: a word is told for a stretch of windows in each of which it is the likeliest and likely enough.

    Args:
      state: `Spotting()` at first.
      p: probabilities of the words in the window; what is missing to 1 is none of them.
      sure: the least probability.
      apart: windows within which two words are one, the likelier.
      least: windows of a stretch that counts.

    Returns:
      The state, and a word, once no likelier one can be near it: `apart` windows late, or when its stretch ends.

    Example:
      >>> state, told = Spotting(), []
      >>> for p in (0.1, 0.8, 0.9, 0.8, *[0.0] * 9):
      ...     state, found = spot(state, np.array([0.05, p]))
      ...     told += [found] if found else []
      >>> [(round(one.middle, 3), one.word, one.p) for one in told]
      [(2.0, 1, 0.9)]
    """
    best = int(p.argmax())
    word, told, waiting = best if p[best] >= sure else -1, None, state.waiting
    if state.word >= 0 and word != state.word and len(state.stretch) >= least:
        places = np.arange(state.count - len(state.stretch), state.count)
        found = Found(float(np.average(places, weights=state.stretch)), state.word, max(state.stretch))
        if waiting and found.middle - waiting.middle > apart:
            told, waiting = waiting, found
        elif not waiting or found.p > waiting.p:
            waiting = found
    if waiting and not told and word < 0 and state.count - waiting.middle > apart:
        told, waiting = waiting, None
    kept = state.stretch if word == state.word else ()
    return Spotting(state.count + 1, word, (*kept, float(p[best])) if word >= 0 else (), waiting), told


def listen(
    heard: Callable[[Float[np.ndarray, "1 samples"]], Float[Array, "1 windows words_and_none"]],
    blocks: Iterable[Float[np.ndarray, " samples"]],
    *,
    samples: int,
    hop: int,
    sure: float = 0.5,
) -> Iterator[Found]:
    """Words in running audio as it comes.

    Args:
      heard: samples to the probabilities of every window in them.
      blocks: of samples, whole multiples of `hop`, without gaps.
      samples: of a window.
      hop: samples from one window to the next.
      sure: as of `spot`.
    """
    state, tail = Spotting(), np.zeros(samples - hop, np.float32)  # before the first there is silence
    for block in blocks:
        x = np.concatenate([tail, block])
        tail = x[len(block) :]
        for p in np.asarray(heard(x[None]))[0, :, :-1]:
            state, found = spot(state, p, sure=sure)
            if found:
                yield found._replace(middle=(found.middle + 1) * hop - samples / 2)


def _learner(ways: int, unknown: Mapping[str, float]) -> tuple[Learner, Theta]:
    """Of embeddings, and its theta."""
    learner = open_set(lambda params, z, key: z, classify, ways, **unknown).learner
    return learner, learner.init({}, jax.random.key(0))
