"""A new meta-learning algorithm, whole, next to MAML: copy this file and change `my_algorithm`.

    python experiments/new_algorithm.py

The example is Proto-MAML: each task starts from a linear head that is ProtoNet, then all of the network learns by
gradient steps. Trains both on the embedded corpus of synthetic speech and prints the accuracy after each step on words
and speakers never heard; a picture is in `runs/new_algorithm`. About 3 minutes on 2 CPU cores.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import metajax as mj
from metajax import methods, models, recipes, report, runs
from metajax.data import words
from metajax.data.cache import default_folder
from metajax.losses import classify
from metajax.parallel import use_all_cores


@dataclass(frozen=True)
class Settings:
    ways: int = 5  # words per episode
    num_steps: int = 5  # inner steps
    outer_steps: int = 300  # outer steps of each
    episodes: int = 600  # test episodes
    out: Path = Path("runs/new_algorithm")  # folder of the picture
    cache: Path = field(default_factory=default_folder)  # folder of cached features and compiled programs


def my_algorithm(embed, inner, num_steps, ways):
    """own_0 = (params, w_c = 2 p_c, b_c = -|p_c|^2);  own_{k+1} = own_k + inner(grad error(own_k, support))."""

    def apply(own, x, key):
        return embed(own["net"], x, key) @ own["w"].T + own["b"]

    def split(theta):  # what a task learns, before it has seen its support set
        return {"net": theta["params"], "w": jnp.zeros(()), "b": jnp.zeros(())}

    whole = mj.Part(lambda params, key: {}, split, lambda theta, own, count: own)
    steps = mj.descent(apply, classify, inner, part=whole)

    def start(theta, support, key):
        members = jax.nn.one_hot(support.y.episode, ways)
        p = members.T @ embed(theta["params"], support.x, key) / members.sum(0)[:, None]
        own = {"net": theta["params"], "w": 2 * p, "b": -jnp.square(p).sum(-1)}
        return mj.Fast(own, inner.init(own), jnp.zeros((), int))

    learner = steps._replace(start=start)
    return mj.Algorithm(learner, mj.query_loss(learner, classify, num_steps))


def run(s: Settings) -> None:
    runs.check(s, ("plot",), ways=2, num_steps=1, outer_steps=1, episodes=2)
    runs.open_folder(s.out, runs.config(s))
    use_all_cores(s.cache / "compiled")
    task = words.load_words("espeak", cache=s.cache, clips_per_label=12)
    sizes = {"ways": s.ways, "shots": 1, "queries": 5}
    train, test = words.sampler(task, "train", augmentation=0.5, **sizes), words.sampler(task, "test", **sizes)
    net, curves, key = models.network(), {}, jax.random.key(0)
    embedding, classifier = net(None), net(s.ways)
    contestants = {
        "my algorithm": (embedding, my_algorithm(embedding.apply, optax.sgd(0.01), s.num_steps, s.ways)),
        "maml": (classifier, mj.maml(classifier.apply, classify, optax.sgd(0.1), s.num_steps)),
    }
    for name, (model, algorithm) in contestants.items():
        theta = algorithm.learner.init(recipes.fresh(model.init, train, key), key)
        how = {"optimizer": recipes.adamw(), "chunk": 1, "title": name}
        fitted = recipes.meta_train([(1.0, algorithm.objective)], theta, train, key, s.outer_steps, **how)
        score = methods.scorer(methods.curves(lambda _, a=algorithm: a.learner, s.num_steps), test, s.episodes, seed=2)
        curves[name] = report.curve(*mj.mean_ci95(score(fitted.theta)))
    print(report.table(curves, 1 / s.ways, range(s.num_steps + 1)))
    title = f"Synthetic words, {s.ways}-way 1-shot, unseen words and speakers, {s.episodes} episodes"
    report.plot_curves(curves, 1 / s.ways, title, s.out / "curve.png")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
