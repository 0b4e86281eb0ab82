"""A new meta-learning algorithm, whole, next to MAML: copy this file and change `my_algorithm`.

    python experiments/new_algorithm.py

The example is Proto-MAML: each task starts from a linear head that is ProtoNet, then all of the network learns by
gradient steps. Trains both on the embedded corpus of synthetic speech and prints the accuracy after each step on words
and speakers never heard; a picture is in `runs/new_algorithm.png`. About 3 minutes on 2 CPU cores.
"""

import argparse
from pathlib import Path

import cells
import jax
import jax.numpy as jnp
import optax
from keyword_fewshot import initial, load_task, network, parse, sampler

import metajax as mj
from metajax import checkpoint, report
from metajax.losses import classify, cross_entropy
from metajax.parallel import hoisted, replicate, task_mesh, use_all_cores

WAYS, NUM_STEPS, TASKS, OUTER_STEPS, EPISODES = 5, 5, 4, 300, 600


def my_algorithm(embed_fn, inner, num_steps):
    """phi_0 = (theta, w_c = 2 p_c, b_c = -|p_c|^2); phi_{k+1} = phi_k + inner(grad loss(phi_k, support))."""

    def loss_fn(phi, batch, key):
        return classify(embed_fn(phi["net"], batch.x) @ phi["w"].T + phi["b"], batch.y.episode)

    kernel = mj.descent(loss_fn, inner)

    def start(theta, support, key):
        member = jax.nn.one_hot(support.y.episode, WAYS)
        p = member.T @ embed_fn(theta, support.x) / member.sum(0)[:, None]
        return kernel.start({"net": theta, "w": 2 * p, "b": -jnp.square(p).sum(-1)}, support, key)

    learner = kernel._replace(start=start)
    return mj.Algorithm(learner, mj.query_loss(learner, num_steps))


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    use_all_cores()
    args = parse([])
    cells.check(args, ("plot",))
    checkpoint.make_folder(Path("runs"))
    task = load_task("espeak", None, args)
    train, test = sampler(task, "train", args, ways=WAYS, training=True), sampler(task, "test", args, ways=WAYS)
    embedding, classifier = network(None, args), network(WAYS, args)
    contestants = {
        "my algorithm": (embedding, my_algorithm(embedding.apply, optax.sgd(0.01), NUM_STEPS)),
        "maml": (classifier, mj.maml(cross_entropy(classifier.apply), optax.sgd(0.1), NUM_STEPS)),
    }
    mesh, test_mesh, curves = task_mesh(TASKS), task_mesh(EPISODES), {}
    for name, (model, algorithm) in contestants.items():
        optimizer = optax.adam(2e-3)
        theta = algorithm.learner.init(initial(model, train, jax.random.key(0)))
        state = replicate(mj.init_state(theta, optimizer), mesh)
        step = mj.meta_step(algorithm.objective, optimizer, train, TASKS, chunk=1, mesh=mesh)
        theta = mj.fit(step, state, jax.random.key(1), OUTER_STEPS, num_tasks=TASKS, title=name).theta

        def measure(theta, learner=algorithm.learner):
            return mj.evaluate(learner, theta, test, jax.random.key(2), EPISODES, NUM_STEPS, mesh=test_mesh)

        curves[name] = report.curve(*mj.mean_ci95(hoisted(measure)(replicate(theta, test_mesh))["accuracy"]))
    print(report.table(curves, 1 / WAYS, range(NUM_STEPS + 1)))
    title = "Synthetic words, 5-way 1-shot, unseen words and speakers"
    report.plot_curves(curves, 1 / WAYS, title, Path("runs/new_algorithm.png"))


if __name__ == "__main__":
    main()
