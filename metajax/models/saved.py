"""A recogniser in a folder: theta, and all that recognising and adapting with it needs."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from metajax import checkpoint, core, runs
from metajax.algorithms.parts import context, film, lhuc, lora, only
from metajax.algorithms.rules import rates
from metajax.core import Batch, Error, Learner, Phi, Theta, Utterances
from metajax.data.augment import normalized
from metajax.data.buckets import run_in_buckets
from metajax.data.decode import Heard, timed_text
from metajax.data.features import FeatureSettings, check_settings
from metajax.data.speech import Pieces, Speech
from metajax.data.text import Vocabulary, read_vocabulary, write_vocabulary
from metajax.errors import DivergedError, InputError
from metajax.inner import Part, SelfLabelled, descent, everything, first_pass, plain
from metajax.losses import ctc, entropy, of_logits, pseudo, pseudo_labels, suta, verdict
from metajax.models.judged import judged
from metajax.models.model import Model
from metajax.models.named import recogniser
from metajax.names import named

PARTS: dict[str, Callable[[], Part]] = {
    "all": everything,
    "head": partial(only, "head"),
    "lhuc": lhuc,
    "film": film,
    "lora": partial(lora, 4),
    "context": partial(context, 16),
}
# "text" takes transcripts, the others none
ERRORS: dict[str, Error] = {
    "text": of_logits(ctc),
    "suta": of_logits(suta),
    "entropy": of_logits(entropy),
    "pseudo-labels": of_logits(pseudo),
    "learned": verdict,
}
_FILE = "recogniser.json"
_TRAINED = "trained_with.json"  # within theta's folder, so that it goes where that goes


class Way(NamedTuple):
    """How a recogniser adapts, by names."""

    error: str = "text"  # one of ERRORS, which its steps descend
    part: str = "all"  # one of PARTS, what adapts
    rate: float = 0.03  # of the inner optimiser
    steps: int = 5
    learned_rates: bool = False  # whether theta holds a factor of the rate for every parameter
    adam: bool = False  # in place of gradient descent
    floor: float = 0.8  # confidence from which on a pseudo-label counts


_USUAL = Way()


class Saved(NamedTuple):
    """A trained recogniser."""

    theta: Theta
    vocabulary: Vocabulary
    features: FeatureSettings  # each utterance is then normalised by its own mean and variance
    longest: float  # seconds, of the utterances that it was trained on
    network: dict[str, Any]  # arguments of `recogniser`
    way: Way = _USUAL


def trained_on(speech: Speech, network: dict[str, Any], theta: Theta, way: Way = _USUAL) -> Saved:
    """The recogniser whose theta was trained on such speech."""
    settings, frames = speech.corpus.settings, speech.corpus.features.shape[1]
    seconds = (frames * settings.hop + settings.window) / settings.sample_rate
    return Saved(theta, speech.vocabulary, settings, seconds, network, way)


def judging(network: dict[str, Any], vocabulary: Vocabulary) -> Model:
    """The model of a recogniser: `judged`, so that every error of `ERRORS` has what it reads."""
    return judged(recogniser(**network)(None), len(vocabulary.tokens))


def adapting(saved: Saved) -> Learner:
    """The learner that adapts as `saved.way` tells.

    Raises:
      InputError: there is no such error or part.
    """
    way = saved.way
    runs.known("error", [way.error], ERRORS)
    runs.known("part", [way.part], PARTS)
    inner = optax.adam(way.rate) if way.adam else optax.sgd(way.rate)
    rule = rates() if way.learned_rates else plain()
    apply = judging(saved.network, saved.vocabulary).apply
    learner = descent(apply, ERRORS[way.error], inner, part=PARTS[way.part](), rule=rule, first_order=True)
    if way.error == "pseudo-labels":
        return first_pass(learner, lambda outputs: pseudo_labels(outputs.logits, way.floor))
    return learner


def save_recogniser(folder: Path, saved: Saved) -> None:
    """Write a recogniser to a folder, whole or not at all: `recogniser.json`, `vocab.json` and the checkpoint `theta`.

    Within `theta` is written which vocabulary and features it was trained with, which `load_recogniser` compares.

    Args:
      folder: one that holds a recogniser is replaced.
      saved: with a theta of `adapting(saved).init`.

    Raises:
      InputError: the folder holds other files.

    Example:
      ``save_recogniser(folder, trained_on(speech, {"width": 0.5}, theta, Way(steps=2)))``
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _FILE).is_file():
        raise InputError(f"{folder} exists and holds no recogniser; choose another folder.")
    told = {name: part._asdict() if hasattr(part, "_asdict") else part for name, part in saved._asdict().items()}

    def fill(fresh: Path) -> None:
        checkpoint.save(fresh / "theta", told.pop("theta"))
        checkpoint.write_json(fresh / "theta" / _TRAINED, {name: told[name] for name in ("vocabulary", "features")})
        write_vocabulary(saved.vocabulary, fresh / "vocab.json")
        checkpoint.write_json(fresh / _FILE, told)

    checkpoint.make_folder(folder.parent)
    checkpoint.replace_folder(folder, fill)


def load_recogniser(folder: Path) -> Saved:
    """Read what `save_recogniser` wrote.

    Raises:
      InputError: there is none, it is damaged, or its files do not belong together: theta is of another vocabulary,
        other features or another network than `recogniser.json` tells.
    """
    if not folder.is_dir() and (whole := folder.with_name(f"{folder.name}.new")).is_dir():
        folder = whole  # a crash left the only good copy there
    path = folder / _FILE
    if not path.is_file():
        inside = sorted(str(one.parent) for one in folder.glob(f"recognisers/*/*/{_FILE}"))
        more = f" ({len(inside) - 1} more there)" if inside[1:] else ""
        told = f", expected a folder such as {inside[0]}{more}." if inside else f": there is no {path}."
        raise InputError(f"{folder} is no recogniser{told}")
    found = runs.read_json(path)
    try:
        known: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in found["vocabulary"].items()}
        vocabulary, features = Vocabulary(**known), FeatureSettings(**found["features"])
        saved = Saved({}, vocabulary, features, float(found["longest"]), dict(found["network"]), Way(**found["way"]))
        learner, init = adapting(saved), judging(saved.network, vocabulary).init
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of another version: {error!s:.200}.") from error
    check_settings(features)
    listed = read_vocabulary(folder / "vocab.json", vocabulary.normalizer, vocabulary.unit)
    if listed != vocabulary:
        rows = zip([*listed.tokens, None], [*vocabulary.tokens, None], strict=False)
        differing = ((i, row) for i, row in enumerate(rows) if row[0] != row[1])
        place, (one, other) = next(differing, (0, (listed.ids, vocabulary.ids)))
        raise InputError(f"{folder}: token {place} is {one!r} in vocab.json but {other!r} in {_FILE}, not the same.")
    if (with_it := folder / "theta" / _TRAINED).is_file():  # those of earlier versions have none
        trained = named(runs.read_json(with_it))
        given = named({part: found[part] for part in ("vocabulary", "features")})
        if odd := [name for name in {**given, **trained} if trained.get(name) != given.get(name)]:
            name = min(odd, key=lambda name: ".ids." in name)  # the token, not its place
            this, other = trained.get(name), given.get(name)
            raise InputError(f"{folder}: theta was trained with {name} {this!r}, but {_FILE} tells {other!r}.")
    x, key = jnp.zeros((1, 8, features.num_mels)), jax.random.key(0)
    like = jax.eval_shape(lambda: learner.init(init(key, x), key))
    try:
        return saved._replace(theta=checkpoint.restore(folder / "theta", like))
    except InputError as error:
        other = "of another vocabulary, other features or another network"
        raise InputError(f"theta does not fit {path}, so is {other}, or is damaged: {error}") from error


class Ready(NamedTuple):
    """A recogniser made ready, compiled for few shapes, whatever the recordings.

    Fields:
      adapt: utterances, not normalised, and what was said in them, () for what adapts without text -> phi.
      hear: pieces of a recording, and phi, None for none -> what is said, with times.
      compiling: seconds of each compilation so far, which the calls took besides their own time.
    """

    adapt: Callable[[Utterances, PyTree], Phi]
    hear: Callable[[Pieces, Phi | None], Heard]
    compiling: list[float]


def ready(saved: Saved, search: Callable[[np.ndarray], Sequence[int]] | None = None, batch: int = 8) -> Ready:
    """Make a recogniser ready to adapt as `saved.way` tells, and to transcribe.

    Args:
      saved: the recogniser; what its way of adapting needs beyond its theta is added as it starts.
      search: logits of a piece to tokens, as of `timed_text`.
      batch: pieces at a time, where a recording has more than one.

    Returns:
      What adapts and hears; its `hear` raises a `DivergedError` where the outputs are not finite.

    Example:
      ``heard = (t := ready(load_recogniser(run))).hear(pieces, t.adapt(pieces.x, ()))``
    """
    learner, key, compiling = adapting(saved), jax.random.key(0), list[float]()
    hearing = adapting(saved._replace(way=saved.way._replace(error="text")))  # the same, but its phi holds no labels
    theta = learner.init(saved.theta["params"], key) | saved.theta
    unadapted = hearing.start(theta, Batch((), ()), key)
    frames = saved.longest * saved.features.sample_rate / saved.features.hop
    bounds = sorted({8 * math.ceil(frames / part / 8) for part in (4, 2, 1)})

    def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
        ready: dict[Any, Any] = {}

        def call(*args: Any) -> Any:
            if (kind := str(jax.tree.map(jnp.shape, args))) not in ready:
                begin = time.perf_counter()
                ready[kind] = jax.jit(f).lower(*args).compile()
                compiling.append(time.perf_counter() - begin)
            return jax.block_until_ready(ready[kind](*args))

        return call

    @compiled
    def adapted(theta: Theta, x: Utterances, y: PyTree) -> Phi:
        phi = core.adapt(learner, theta, Batch(normalized(x), y), key, saved.way.steps)[0]
        return phi.phi if isinstance(phi, SelfLabelled) else phi

    @compiled
    def logits(theta: Theta, phi: Phi, x: Utterances) -> Array:
        return hearing.predict(theta, phi, normalized(x), None).logits

    def adapt(x: Utterances, y: PyTree) -> Phi:
        # to the length of training: some errors count the frames past the end
        more = max(bounds[-1] - x.frames.shape[1], 0)
        return adapted(theta, Utterances(jnp.pad(x.frames, ((0, 0), (0, more), (0, 0))), x.lengths), y)

    def hear(pieces: Pieces, phi: Phi | None = None) -> Heard:
        model = partial(logits, theta, unadapted if phi is None else phi)
        found = run_in_buckets(model, pieces.x, bounds, batch if len(pieces.starts) > 1 else 1)
        if any(np.isnan(one).any() for one in found):
            raise DivergedError(f"Adaptation diverged at rate {saved.way.rate:g}; a smaller one is the usual cure.")
        return timed_text(saved.vocabulary, found, pieces.starts, saved.features, search=search)

    return Ready(adapt, hear, compiling)
