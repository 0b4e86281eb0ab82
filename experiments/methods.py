"""All methods in one table: what each needs, how it is made and tested. A new method is one file and one row here."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax.core import LossFn, Objective
from metajax.losses import cross_entropy
from metajax.models import Model
from metajax.parallel import hoisted, replicate, task_mesh


class Setting(NamedTuple):
    """What a method is made from."""

    loss_fn: LossFn  # cross-entropy of a model with a head, on the labels that the method is trained on
    embed_fn: Callable[..., Any]  # (params, x) -> embeddings [n, features]
    inner: optax.GradientTransformation
    num_steps: int  # inner steps while training
    ways: int  # classes of an episode
    classes: int  # words of the training corpus
    features: int  # size of an embedding


class Method(NamedTuple):
    """One row: how to make it, and what it trains on."""

    make: Callable[[Setting], mj.Algorithm]
    kind: Literal["gradient", "metric", "joint"]  # what adaptation does, and what training sees
    head: Literal["episode", "corpus", "none"]  # what the model's own head predicts
    rate: float = 0.1  # inner learning rate, of stochastic gradient descent
    batched: bool = True  # tasks share the network's weights, so that one batch serves all
    test_steps: int | None = None  # adaptation steps when tested, where not those of training
    # objectives that follow each other, where there are several, each with its share of the training: of outer steps in
    # keyword_fewshot.py, of seconds in compare_algorithms.py
    phases: Callable[[Setting], list[tuple[float, Objective]]] | None = None


def gradient(factory: Callable[..., mj.Algorithm], rate: float = 0.1, batched: bool = False) -> Method:
    return Method(lambda s: factory(s.loss_fn, s.inner, s.num_steps), "gradient", "episode", rate, batched)


def metric(factory: Callable[..., mj.Algorithm], *needs: str, **options: Any) -> Method:
    return Method(
        lambda s: factory(s.embed_fn, s.ways, **{name: getattr(s, name) for name in needs}, **options),
        "metric", "none", test_steps=1,
    )  # fmt: skip


def annealed(s: Setting) -> list[tuple[float, Objective]]:
    """MAML++: first order and the losses of all steps at first, second order and the last step's in the end."""
    return mj.multi_step_phases(partial(mj.mamlpp, s.loss_fn, s.inner, s.num_steps), s.num_steps)


METHODS = {
    "maml": gradient(mj.maml),
    "fomaml": gradient(mj.fomaml),
    "anil": gradient(mj.anil, 0.5, True),
    "boil": gradient(mj.boil),
    "meta_sgd": gradient(mj.meta_sgd),
    "meta_curvature": gradient(mj.meta_curvature),
    "mamlpp": gradient(mj.mamlpp)._replace(phases=annealed),
    "tnet": gradient(mj.tnet),
    "cavia": gradient(mj.cavia, 1.0, True),
    "reptile": gradient(mj.reptile),
    "imaml": gradient(mj.imaml),
    "proto_maml": Method(
        lambda s: mj.proto_maml(s.embed_fn, s.inner, s.num_steps, s.ways), "gradient", "none", 0.01, False
    ),
    "protonet": metric(mj.protonet),
    "protonet_cosine": metric(mj.protonet, metric="cosine", temperature=0.1),
    "matching": metric(mj.matching),
    "relation": metric(mj.relation, "features"),
    "ridge": metric(mj.ridge),
    "logistic": metric(mj.logistic),
    "hypernetwork": metric(mj.hypernetwork, "features"),
    "task_encoder": metric(mj.task_encoder, "features"),
    "in_context": metric(mj.in_context, "features"),
    "simpleshot": Method(
        lambda s: mj.simpleshot(s.embed_fn, s.ways, s.loss_fn, s.features), "joint", "corpus", test_steps=1
    ),
    "baselinepp": Method(
        lambda s: mj.baselinepp(s.embed_fn, s.ways, s.inner, s.classes, s.features), "joint", "none", 1.0, test_steps=20
    ),
    "joint": Method(lambda s: mj.joint(s.loss_fn), "joint", "corpus", test_steps=0),
}


class Built(NamedTuple):
    """A method on a network: what is trained, and what is tested."""

    model: Model  # whose fresh parameters `algorithm.learner.init` takes
    algorithm: mj.Algorithm  # for training episodes of `train_ways`
    tested: mj.Algorithm  # for test episodes of `ways`
    num_steps: int  # adaptation steps when tested
    train_ways: int  # words per training episode
    phases: list[tuple[float, Objective]]  # what theta descends for which share of the training


def build(
    method: Method, network: Callable[[int | None], Model], x: Any, *,
    ways: int, train_ways: int, classes: int, num_steps: int, rate: float | None = None,
) -> Built:  # fmt: skip
    """Make a method on a network.

    Args:
      method: a row of `METHODS`.
      network: `num_outputs or None -> Model`.
      x: inputs, or their shape.
      ways: words of a test episode.
      train_ways: words of a training episode where the method leaves the choice: more make a better metric.
      classes: words of the training corpus.
      num_steps: inner steps while training.
      rate: inner learning rate; None for the row's own.
    """
    outputs = {"episode": ways, "corpus": classes, "none": None}[method.head]
    model, embedding = network(outputs), network(None)
    loss_fn = cross_entropy(model.apply, "corpus" if method.head == "corpus" else "episode")
    features = jax.eval_shape(lambda x: embedding.apply(embedding.init(jax.random.key(0), x), x), x).shape[-1]
    inner = optax.sgd(method.rate if rate is None else rate)
    setting = Setting(loss_fn, embedding.apply, inner, num_steps, ways, classes, features)
    # joint methods want many words, a head has as many as it has
    many = {"gradient": ways, "metric": max(ways, min(train_ways, classes)), "joint": min(32, classes)}[method.kind]
    training = setting._replace(ways=many) if method.kind == "metric" else setting
    trained = method.make(training)
    steps = num_steps if method.test_steps is None else method.test_steps
    phases = method.phases(training) if method.phases else [(1.0, trained.objective)]
    return Built(model, trained, method.make(setting), steps, many, phases)


def chunk_of(method: Method) -> int | None:
    """Tasks at a time on a device: all where they share weights; one, the fastest on CPU, where each has its own."""
    return None if method.batched or jax.default_backend() != "cpu" else 1


def graft(theta: Any, fresh: Any) -> Any:
    """A jointly trained network with a fresh head, its bias and weights zero, for fine-tuning on new words."""
    return theta | {"head": jax.tree.map(jnp.zeros_like, fresh["head"])}


def scorer(
    learner: Callable[[Any], mj.Learner], sample: mj.core.Sampler, num_tasks: int, num_steps: int, seed: int
) -> Callable[..., np.ndarray]:
    """Compiled `(theta, inner rate) -> query accuracy [num_tasks, num_steps + 1]`, tasks spread over the devices."""
    mesh = task_mesh(num_tasks)

    def accuracy(theta: Any, rate: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        return mj.evaluate(learner(rate), theta, sample, key, num_tasks, num_steps, mesh=mesh)["accuracy"]

    run = hoisted(accuracy)
    return lambda theta, rate=0.0: np.asarray(run(replicate(theta, mesh), jnp.float32(rate)))
