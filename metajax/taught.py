"""Words taught by a clip each: what is learned of their embeddings, and what is heard in clips and in running audio."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float

from metajax.algorithms.open_set import Known, open_set
from metajax.core import Batch
from metajax.errors import InputError
from metajax.losses import classify

_MANY = 8  # words and clips are filled up to a multiple of it

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

    windows: int = 0  # so far
    word: int = -1  # of the stretch that the last window belongs to
    stretch: tuple[float, ...] = ()  # its probabilities
    waiting: Found | None = None  # told unless a stronger one follows soon


def learned(z: Embeddings, said: Sequence[str], unknown: Mapping[str, float]) -> Taught:
    """Words from the embeddings of their clips, in the order in which they first occur.

    Args:
      z: `[clips, features]`, such as `mj.models.words()` gives.
      said: the word of each clip.
      unknown: numbers of `open_set` that fit the embedding.

    Raises:
      InputError: a word is called unknown, which is what all else is called.

    Example:
      >>> taught = learned(jnp.eye(3), ["yes", "no", "yes"], {})
      >>> taught.words, hearing(taught, {})(jnp.array([1.0, 0.0, 1.0])).argmax().tolist()
      (['yes', 'no'], 0)
    """
    words = list(dict.fromkeys(said))
    if "unknown" in words:
        raise InputError("A word to teach is called unknown, as all that is not taught is, expected another name.")
    ways, step, _ = _compiled(len(words), unknown)
    size = max(-(-len(said) // _MANY) * _MANY, ways)
    y = np.pad([words.index(word) for word in said], (0, size - len(said)), constant_values=-1)
    phi = step(np.pad(np.asarray(z), ((0, size - len(said)), (0, 0))), y)
    return Taught(words, Known(*(np.asarray(value)[: len(words)] for value in phi)))  # NumPy compiles nothing


def hearing(taught: Taught, unknown: Mapping[str, float]) -> Callable[[Embeddings], Probabilities]:
    """Embeddings to probabilities of the words and, last, of none of them."""
    count = len(taught.words)
    ways, _, predict = _compiled(count, unknown)
    phi = Known(*(np.pad(value, [(0, ways - count), (0, 0)][: value.ndim]) for value in taught.phi))

    def heard(z: Embeddings) -> Probabilities:
        p = predict(phi, z)
        return jnp.concatenate([p[..., :count], p[..., -1:]], -1)

    return heard


def exported(
    embed: Callable[[Float[Array, "n samples"]], Embeddings], taught: Taught, unknown: Mapping[str, float], samples: int
) -> dict[str, bytes]:
    """Programs that need JAX alone, by `jax.export`, for CPU and accelerators, by the end of their files' names.

    `jax.export.deserialize(bytearray(FILE.read())).call` is the function again. Clips are float32 `[n, samples]`,
    probabilities p those of the words and, last, of none of them.

    Args:
      embed: clips to embeddings, with its parameters.
      taught: the words.
      unknown: as of `learned`.
      samples: of a clip.

    Returns:
      `""`: a clip -> p of the words taught. `".adapt"`: 8 clips, int32 `[8]` the word of each, 0 to 7, -1 for none ->
      means, counts. `".predict"`: means, counts, a clip -> p of these 8 words.
    """
    ways, step, predict = _compiled(_MANY, unknown)
    heard = hearing(taught, unknown)
    clip, clips = (jax.ShapeDtypeStruct((n, samples), jnp.float32) for n in (1, _MANY))
    said = jax.ShapeDtypeStruct((ways,), jnp.int32)

    def adapt(clips: Array, said: Array) -> tuple[Array, ...]:
        return tuple(step(embed(clips), said))  # of no type of its own, which would have to be known where it is read

    programs: dict[str, tuple[Callable, tuple]] = {
        "": (lambda x: heard(embed(x)), (clip,)),
        ".adapt": (adapt, (clips, said)),
        ".predict": (
            lambda means, counts, x: predict(Known(means, counts), embed(x)),
            (*jax.eval_shape(adapt, clips, said), clip),
        ),
    }
    return {
        end: bytes(export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(*given).serialize())
        for end, (program, given) in programs.items()
    }


def spot(
    state: Spotting, p: Float[np.ndarray, " words"], *, sure: float = 0.5, apart: int = 8
) -> tuple[Spotting, Found | None]:
    """One window more: a word is told for a stretch of windows in each of which it is the likeliest and likely enough.

    Args:
      state: `Spotting()` at first.
      p: probabilities of the words in the window; what is missing to 1 is none of them.
      sure: the least probability.
      apart: windows within which two words are one, the likelier.

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
    if state.word >= 0 and word != state.word:
        places = np.arange(state.windows - len(state.stretch), state.windows)
        found = Found(float(np.average(places, weights=state.stretch)), state.word, max(state.stretch))
        if waiting and found.middle - waiting.middle > apart:
            told, waiting = waiting, found
        elif not waiting or found.p > waiting.p:
            waiting = found
    if waiting and not told and word < 0 and state.windows - waiting.middle > apart:
        told, waiting = waiting, None
    kept = state.stretch if word == state.word else ()
    return Spotting(state.windows + 1, word, (*kept, float(p[best])) if word >= 0 else (), waiting), told


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


def _compiled(count: int, unknown: Mapping[str, float]) -> tuple[int, Callable, Callable]:
    """Classes, a step and a prediction for so many words or a few more, so that few numbers of words are compiled."""
    ways = -(-count // _MANY) * _MANY
    return ways, *_programs(ways, tuple(sorted(unknown.items())))


@lru_cache
def _programs(ways: int, unknown: tuple[tuple[str, float], ...]) -> tuple[Callable, Callable]:
    learner = open_set(lambda params, z, key: z, classify, ways, **dict(unknown)).learner
    theta, key = learner.init({}, jax.random.key(0)), jax.random.key(0)

    def predict(phi: Known, z: Embeddings) -> Probabilities:
        logits = learner.predict(theta, phi, z, None)
        return jax.nn.softmax(jnp.where(jnp.append(phi.counts > 0, True), logits, -jnp.inf))

    return jax.jit(lambda z, y: learner.step(theta, None, Batch(z, y), key)), jax.jit(predict)
