"""All methods in one table: what each needs, how it is made and tested. A new method is one file and one row here."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import metajax as mj
from metajax.core import Apply, Error, KeyArray, Objective, Params, Sampler, Theta
from metajax.evaluate import curve, drawn
from metajax.losses import classify, classify_corpus
from metajax.models import Model
from metajax.names import named
from metajax.parallel import hoisted, over_tasks, replicate, task_mesh


class Setting(NamedTuple):
    """What a method is made from."""

    apply: Apply  # a model with a head
    embed: Apply  # without: `(params, x, key) -> embeddings [n, features]`
    error: Error  # of the outputs, on the labels that the method is trained on
    inner: optax.GradientTransformation
    num_steps: int  # inner steps while training
    ways: int  # classes of an episode
    classes: int  # words of the training corpus
    features: int  # size of an embedding
    norms: tuple[str, ...] = ()  # pattern of the normalisation layers, where the model has some
    how: dict[str, Any] = {}  # noqa: RUF012  (never changed) `part`, `rule` and `support_error`, where they are chosen


class Method(NamedTuple):
    """One row: how to make it, and what it trains on."""

    make: Callable[[Setting], mj.Algorithm]
    kind: Literal["gradient", "metric", "joint"]  # what adaptation does, and what training sees
    head: Literal["episode", "corpus", "none"]  # what the model's own head predicts
    rate: float = 0.1  # inner learning rate, of stochastic gradient descent
    batched: bool = True  # tasks share the network's weights, so that one batch serves all
    test_steps: int | None = None  # adaptation steps when tested, where not those of training
    takes: tuple[str, ...] = ()  # of `part`, `rule` and `support_error`, those that are free to choose
    by_query: bool = True  # trained by `query_loss`, so with any learner in place of its own
    # objectives that follow each other, where there are several, each with its share of the training
    phases: Callable[[Setting], list[tuple[float, Objective]]] | None = None


_ERROR = "support_error"


def _gradient(
    factory: Callable[..., mj.Algorithm], *takes: str, rate: float = 0.1, batched: bool = False, **row: Any
) -> Method:
    def make(s: Setting) -> mj.Algorithm:
        return factory(s.apply, s.error, s.inner, s.num_steps, **s.how)

    return Method(make, "gradient", "episode", rate, batched, takes=takes, **row)


def _metric(factory: Callable[..., mj.Algorithm], *needs: str, **options: Any) -> Method:
    def make(s: Setting) -> mj.Algorithm:
        return factory(s.embed, s.error, s.ways, **{name: getattr(s, name) for name in needs}, **options)

    return Method(make, "metric", "none", test_steps=1)


def _annealed(s: Setting) -> list[tuple[float, Objective]]:
    """MAML++: first order and the errors of all steps at first, second order and the last step's in the end."""
    make = partial(mj.mamlpp, s.apply, s.error, s.inner, s.num_steps, norms=s.norms, **s.how)
    return mj.multi_step_phases(make, s.num_steps)


METHODS = {
    "maml": _gradient(mj.maml, "part", "rule", _ERROR),
    "fomaml": _gradient(mj.fomaml, "part", "rule", _ERROR),
    "anil": _gradient(mj.anil, "rule", _ERROR, rate=0.5, batched=True),
    "boil": _gradient(mj.boil, "rule", _ERROR),
    "meta_sgd": _gradient(mj.meta_sgd, "part", _ERROR),
    "meta_curvature": _gradient(mj.meta_curvature, "part", _ERROR),
    "mamlpp": Method(
        lambda s: mj.mamlpp(s.apply, s.error, s.inner, s.num_steps, norms=s.norms, **s.how),
        "gradient", "episode", 0.1, False, takes=("part", _ERROR), by_query=False, phases=_annealed,
    ),
    "tnet": _gradient(mj.tnet, "part", "rule", _ERROR),
    "cavia": _gradient(mj.cavia, "rule", _ERROR, rate=1.0, batched=True),
    "reptile": _gradient(mj.reptile, "part", _ERROR, by_query=False),
    "imaml": _gradient(mj.imaml, "part", _ERROR, by_query=False),
    "proto_maml": Method(
        lambda s: mj.proto_maml(s.embed, s.error, s.inner, s.num_steps, s.ways, **s.how),
        "gradient", "none", 0.01, False, takes=("part",),
    ),
    "protonet": _metric(mj.protonet),
    "protonet_cosine": _metric(mj.protonet, metric="cosine", temperature=0.1),
    "matching": _metric(mj.matching),
    "relation": _metric(mj.relation, "features"),
    "ridge": _metric(mj.ridge),
    "logistic": _metric(mj.logistic),
    "hypernetwork": _metric(mj.hypernetwork, "features"),
    "task_encoder": _metric(mj.task_encoder, "features"),
    "in_context": _metric(mj.in_context, "features"),
    "simpleshot": Method(
        lambda s: mj.simpleshot(s.embed, s.error, s.ways, s.apply, s.features),
        "joint", "corpus", test_steps=1, by_query=False,
    ),
    "baselinepp": Method(
        lambda s: mj.baselinepp(s.embed, s.error, s.ways, s.inner, s.classes, s.features),
        "joint", "none", 1.0, test_steps=20, by_query=False,
    ),
    "joint": Method(lambda s: mj.joint(s.apply, s.error), "joint", "corpus", test_steps=0),
}  # fmt: skip


class Built(NamedTuple):
    """A method on a network: what is trained, and what is tested."""

    model: Model  # whose fresh parameters `algorithm.learner.init` takes
    algorithm: mj.Algorithm  # for training episodes of `train_ways`
    tested: mj.Learner  # for test episodes of `ways`
    error: Error  # of its outputs
    num_steps: int  # adaptation steps when tested
    train_ways: int  # words per training episode
    phases: list[tuple[float, Objective]]  # what theta descends for which share of the training


def build(
    method: Method, network: Callable[[int | None], Model], x: PyTree, *,
    ways: int, train_ways: int, classes: int, num_steps: int, rate: float | Array | None = None,
    part: mj.Part | None = None, rule: mj.Rule | None = None, support_error: Error | None = None,
) -> Built:  # fmt: skip
    """Make a method on a network; under `support` normalisation with the statistics of the support set.

    Args:
      method: a row of `METHODS`.
      network: `num_outputs or None -> Model`.
      x: inputs, or their shapes.
      ways: words of a test episode.
      train_ways: words of a training episode where the method leaves the choice: more make a better metric.
      classes: words of the training corpus.
      num_steps: inner steps while training.
      rate: inner learning rate; None for the row's own.
      part, rule, support_error: of a gradient-based method; None for its own.

    Raises:
      InputError: the method does not leave the choice of the part, rule or support error that is given, or has an
        objective of its own, which `support` normalisation does not reach.
    """
    name = next((name for name, row in METHODS.items() if row is method), "this method")
    chosen = {"part": part, "rule": rule, _ERROR: support_error}
    how = {option: value for option, value in chosen.items() if value is not None}
    if fixed := [option for option in how if option not in method.takes]:
        free = ", ".join(method.takes) or "nothing"
        raise mj.InputError(f"{fixed[0]} is given, but {name} leaves no choice of it; it takes: {free}.")
    model, embedding = network({"episode": ways, "corpus": classes, "none": None}[method.head]), network(None)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
    features = jax.eval_shape(embedding.apply, params, x).shape[-1]
    inner = optax.sgd(method.rate if rate is None else rate)
    error = classify_corpus if method.head == "corpus" else classify
    norms = ("*norm*",) if any("norm" in layer for layer in named(params)) else ()
    setting = Setting(model.apply, embedding.apply, error, inner, num_steps, ways, classes, features, norms, how)
    # joint methods want many words, a head has as many as it has
    many = {"gradient": ways, "metric": max(ways, min(train_ways, classes)), "joint": min(32, classes)}[method.kind]
    training = setting._replace(ways=many) if method.kind == "metric" else setting
    steps = num_steps if method.test_steps is None else method.test_steps
    trained, tested = method.make(training), method.make(setting).learner
    if jax.eval_shape(model.statistics, params, x):
        if not method.by_query:
            names = ", ".join(name for name, row in METHODS.items() if row.by_query)
            raise mj.InputError(f"normalization is 'support', but {name} has no part in it; these do: {names}.")

        def supported(s: Setting, learner: mj.Learner) -> mj.Learner:
            if method.head != "episode":
                return mj.by_support(learner, model.statistics)
            seen = method.make(s._replace(apply=lambda params, x, key: params)).learner.predict
            return mj.by_support(learner, model.statistics, lambda theta, phi: seen(theta, phi, (), None))

        learner, tested = supported(training, trained.learner), supported(setting, tested)
        seen_steps = num_steps if method.kind == "gradient" else steps
        trained = mj.Algorithm(learner, mj.query_loss(learner, error, seen_steps))
    phases = method.phases(training) if method.phases else [(1.0, trained.objective)]
    return Built(model, trained, tested, error if steps == 0 else classify, steps, many, phases)


def chunk_of(method: Method) -> int | None:
    """Tasks at a time on a device: all where they share weights; one, the fastest on CPU, where each has its own."""
    return None if method.batched or jax.default_backend() != "cpu" else 1


def graft(theta: Theta, fresh: Params) -> Theta:
    """A jointly trained network with the head of `fresh` parameters, its bias and weights zero, to be fine-tuned."""
    return {"params": theta["params"] | {"head": jax.tree.map(jnp.zeros_like, fresh["head"])}}


class Curves(NamedTuple):
    """A learner, compiled to be tested on any episodes of one shape."""

    learner: Callable[[Array], mj.Learner]  # of an inner rate
    run: Callable[..., Array]  # (theta, inner rate, episodes, keys) -> query accuracy [tasks, num_steps + 1]
    num_steps: int


def curves(learner: Callable[[Array], mj.Learner], num_steps: int, error: Error = classify) -> Curves:
    """Adaptation curves on episodes from anywhere, so that validation and test, and any theta, share one program.

    Args:
      learner: of an inner rate.
      num_steps: adaptation steps.
      error: of the query set, with `accuracy` among its metrics.
    """

    def one(theta: Theta, rate: Array, episode: mj.Episode, key: KeyArray) -> Array:
        return curve(learner(rate), error, theta, episode, key, num_steps)["accuracy"]

    def all_of(shared: tuple[Theta, Array], items: tuple[mj.Episode, Array]) -> Array:
        return jax.lax.map(lambda item: one(*shared, *item), items)

    @hoisted
    def run(theta: Theta, rate: Array, episodes: mj.Episode, keys: Array) -> Array:
        return over_tasks(all_of, task_mesh(len(keys)))((theta, rate), (episodes, keys))

    return Curves(learner, run, num_steps)


_BATCH = 32  # episodes drawn and tested at a time


def scorer(curves: Curves, sample: Sampler, num_tasks: int, seed: int) -> Callable[..., np.ndarray]:
    """`(theta, inner rate) -> query accuracy [num_tasks, num_steps + 1]` on the tasks of `evaluate(key(seed))`.

    Args:
      curves: how a task is learned and tested, compiled.
      sample: task distribution.
      num_tasks: number of tasks, spread over the devices.
      seed: equal seeds give equal tasks.
    """
    mesh, draw = task_mesh(min(num_tasks, _BATCH)), hoisted(jax.vmap(partial(drawn, sample)))
    size = -(-min(num_tasks, _BATCH) // mesh.size) * mesh.size
    spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("tasks"))
    keys = jax.random.split(jax.random.key(seed), num_tasks)

    def score(theta: Theta, rate: float | Array = 0.0) -> np.ndarray:
        theta, rate = replicate((theta, jnp.float32(rate)), mesh)
        found = []
        for start in range(0, num_tasks, size):
            some = keys[(start + np.arange(size)) % num_tasks]  # some again at the end, so that one program serves
            found.append(curves.run(theta, rate, *jax.device_put((draw(some), some), spread)))
        return np.concatenate(found)[:num_tasks]

    return score


RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # inner rates that validation chooses from, for every method alike


class Tested(NamedTuple):
    """How a learner does on test episodes."""

    accuracy: np.ndarray  # [episodes, steps + 1]
    rate: float | None  # inner rate that validation chose, where steps have one


def tested(
    curves: Curves, theta: Theta, validation: Sampler | None, test: Sampler, *,
    episodes: int, seed: int, rates: Sequence[float] = RATES, choosing: int = 32,
) -> Tested:  # fmt: skip
    """Test a learner at the inner rate with the best accuracy on validation episodes after the last step.

    Args:
      curves: of the learner.
      theta: what is tested.
      validation: episodes to choose on; None takes the middle rate.
      test: episodes to test on.
      episodes: how many of them.
      seed: equal seeds give equal episodes, also for another learner.
      rates: to choose from; one-step learners have none to choose.
      choosing: validation episodes.
    """
    rate = None
    if curves.num_steps > 1:
        rate = rates[len(rates) // 2]
        if validation is not None:
            score = scorer(curves, validation, choosing, seed + 2)
            rate = max(rates, key=lambda rate: float(np.nan_to_num(score(theta, rate)[:, -1].mean())))
    return Tested(scorer(curves, test, episodes, seed + 1)(theta, rate or 0.0), rate)
