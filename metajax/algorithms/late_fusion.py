"""Late fusion: every modality decides by itself, and its word counts by what it has proved worth on new classes."""

from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from metajax.algorithms.dense import dtype_of
from metajax.algorithms.heads import classes_of, onehot
from metajax.core import Algorithm, Apply, Batch, Episode, Error, KeyArray, Metrics, Params, Scalar, Theta
from metajax.inner import closed_form
from metajax.losses.classify import labels_of

SPEED = 100  # of trust: the outer optimiser takes steps of a size that suits a network
Phi = tuple[Float[Array, "modalities classes features"], Bool[Array, "modalities classes"]]


def late_fusion(
    embed: Apply,
    error: Error,
    num_classes: int,
    *,
    modalities: int,
    held: Int[ArrayLike, " classes"] | None = None,
    temperature: float = 0.1,
) -> Algorithm:
    """A product of experts: logit_c(x) = sum_m w_m(x) e_mc(x), e_mc = log p_m(c | x) - log p(c), over what is there.

    p_m = softmax_c(-s_m |z_m - p_mc|^2) of modality m alone, p_mc the mean of its vectors of class c, and p(c) = 1 over
    the number of classes that have one. With w = 1 it is the posterior of what is independent given the class. A query
    that lacks m, and a class without it in the support set, have e_mc = 0: m says nothing for or against.

    Each modality is trained by an error of its own, of e_m, in which the others have no part: it learns what it would
    learn alone. Trust, w_m = softplus(100 t_m . f_m), f_m = (1, log(a + 0.01)), a the distance to the nearest p_mc over
    its sum with the mean one between two of them (how strange x is to m; 0 where it was seen), is trained by the fused
    error, the mean over all sets of modalities, which changes nothing else. A network is too sure on classes that it
    was trained on: let trust learn from others. An episode with a class that is `held` trains only that, all others
    only the modalities.

    Args:
      embed: `(params, x, key) -> [n, modalities, features]`, zeros for what is absent, such as `fusion(kind="apart")`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      modalities: how many.
      held: numbers within the corpus of classes that trust alone learns from; None for both from all.
      temperature: 1 / s_m at first; s_m is learned.

    Returns:
      The algorithm; theta is `{"params", "scale", "trust"}`, log s and t; it learns a task in one step.

    Raises:
      InputError: when called, the support set lacks a class, as for `protonet`.

    Reference: Kittler, Hatef, Duin, Matas, "On Combining Classifiers", IEEE PAMI 1998 (the product of posteriors);
      Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002; Snell, Swersky, Zemel,
      "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (each modality).

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = late_fusion(lambda p, x, key: x, mj.losses.classify, 2, modalities=2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> both = jnp.array([[[1.0], [1]], [[2], [2]]])
      >>> phi = learner.step(theta, None, mj.Batch(both, jnp.array([0, 1])), jax.random.key(0))
      >>> x = jnp.array([[[1.0], [0]], [[0], [2]]])  # the first lacks the second modality, and the other way round
      >>> learner.predict(theta, phi, x, None).argmax(-1).tolist()
      [0, 1]
    """

    sets = jnp.array(list(product((0, 1), repeat=modalities))[1:])

    def init(params: Params, key: KeyArray) -> Theta:
        dtype = dtype_of(params)
        trust = jnp.zeros((modalities, 2), dtype).at[:, 0].set(jnp.log(jnp.e - 1) / SPEED)  # w = 1
        return {"params": params, "scale": jnp.full(modalities, -jnp.log(temperature), dtype), "trust": trust}

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Phi:
        z = embed(theta["params"], support.x, key)
        own = onehot(classes_of(support.y), num_classes, z.dtype)[:, None] * (z != 0).any(-1)[..., None]
        count = own.sum(0)
        return jnp.einsum("nmc,nmf->mcf", own, z) / jnp.maximum(count, 1)[..., None], count > 0

    def heard(theta: Theta, phi: Phi, x: PyTree, key: KeyArray | None) -> tuple[Array, Array]:
        """What each modality says, e `[n, modalities, classes]`, and how strange that is to it, f."""
        (prototype, known), z = phi, embed(theta["params"], x, key)
        said = (z != 0).any(-1)[..., None] & known
        count = jnp.maximum(said.sum(-1), 1).astype(z.dtype)
        far = jnp.square(z[:, :, None] - prototype).sum(-1)
        logits = jnp.where(said, -far * jnp.exp(theta["scale"])[:, None], jnp.finfo(z.dtype).min / 2)
        e = jnp.where(said, jax.nn.log_softmax(logits) + jnp.log(count)[..., None], 0)
        pairs = known[:, None] & known[:, :, None] & ~jnp.eye(num_classes, dtype=bool)
        between = jnp.square(prototype[:, None] - prototype[:, :, None]).sum(-1)
        usual = jnp.where(pairs, between, 0).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1)
        nearest = jnp.where(said.any(-1), jnp.where(said, far, jnp.inf).min(-1), 0)
        strange = nearest / (nearest + usual + 1e-8)
        return e, jnp.stack([jnp.ones_like(strange), jnp.log(strange + 0.01)], -1)

    def weighted(theta: Theta, e: Array, f: Array) -> Float[Array, "n modalities classes"]:
        return jax.nn.softplus(SPEED * (theta["trust"] * f).sum(-1))[..., None] * e

    def predict(theta: Theta, phi: Phi, x: PyTree, key: KeyArray | None) -> Array:
        return weighted(theta, *heard(theta, phi, x, key)).sum(1)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        support_key, key = jax.random.split(key)
        e, f = heard(theta, solve(theta, episode.support, support_key), episode.query.x, key)
        own = jax.vmap(lambda e: error(e, episode.query.y)[0], 1)(e).sum()
        logits = jnp.einsum("sm,nmc->snc", sets.astype(e.dtype), weighted(theta, *jax.lax.stop_gradient((e, f))))
        each, metrics = jax.vmap(lambda logits: error(logits, episode.query.y))(logits)
        whole, metrics = each.mean(), jax.tree.map(lambda a: a[-1], metrics)  # the last set is of all
        if held is None:
            return own + whole, metrics
        new = jnp.isin(labels_of(episode.query.y, "corpus"), jnp.asarray(held)).any()
        return jnp.where(new, whole, own), metrics

    return Algorithm(closed_form(solve, predict, init), objective)
