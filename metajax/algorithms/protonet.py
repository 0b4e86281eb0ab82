"""ProtoNet: classify by the nearest class mean in a learned embedding space."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metajax.core import Algorithm, Batch, KeyArray, Metrics, Params, Scalar, Theta, query_loss
from metajax.errors import InputError
from metajax.inner import closed_form
from metajax.losses import classify

EmbedFn: TypeAlias = Callable[[Params, PyTree], Array]
Metric: TypeAlias = Literal["euclidean", "cosine"]


def onehot(labels: Int[Array, " n"], num_classes: int, dtype: Any) -> Float[Array, "n classes"]:
    """One-hot labels of a support set; an `InputError` if one of the classes is missing (traced: if one must be)."""
    if len(labels) < num_classes:
        raise InputError(f"The support set has {len(labels)} examples, expected one or more of {num_classes} classes.")
    # traced labels have no values to look at
    if not isinstance(labels, jax.core.Tracer) and (found := set(labels.tolist())) != set(range(num_classes)):
        raise InputError(f"The support set has classes {sorted(found)}, expected every one of 0..{num_classes - 1}.")
    return jax.nn.one_hot(labels, num_classes, dtype=dtype)


def prototypes(
    z: Float[Array, "n features"], labels: Int[Array, " n"], num_classes: int
) -> Float[Array, "classes features"]:
    """Class means `[classes, features]` of embeddings `[n, features]`; an `InputError` for a class without examples."""
    members = onehot(labels, num_classes, z.dtype)
    return members.T @ z / members.sum(0)[:, None]


def nearness(z: Float[Array, "n features"], p: Float[Array, "classes features"]) -> Float[Array, "n classes"]:
    """-|z - p|^2 without its |z|^2, which is the same for all classes and changes no probability."""
    return 2 * z @ p.T - jnp.square(p).sum(-1)


def unit(z: Float[Array, "n features"]) -> Float[Array, "n features"]:
    """Rows scaled to length 1; a row of zeros, as dead units give it, stays one."""
    return z * jax.lax.rsqrt(jnp.square(z).sum(-1, keepdims=True) + 1e-8)


def protonet(
    embed_fn: EmbedFn, num_classes: int, *, metric: Metric = "euclidean", temperature: float = 1.0
) -> Algorithm:
    """Prototypical networks: logit_c(x) = -|f_theta(x) - p_c|^2 / temperature, p_c the mean embedding of class c.

    With the cosine metric, logit_c(x) = cos(f_theta(x), p_c) / temperature; a temperature near 0.1 suits it.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      num_classes: ways, the number of classes of an episode.
      metric: "euclidean" or "cosine".
      temperature: divides the squared distances or cosines.

    Returns:
      The algorithm; it learns a task in one step.

    Raises:
      InputError: `metric` is unknown; when called, the support set lacks a class (not seen under `jit`, unless there
        are fewer examples than classes).

    Reference: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """
    if metric not in get_args(Metric):
        raise InputError(f"metric is {metric!r}, expected one of {', '.join(get_args(Metric))}.")

    def solve(theta: Theta, support: Batch, key: KeyArray) -> Array:
        return prototypes(embed_fn(theta, support.x), support.y.episode, num_classes)

    def loss(theta: Theta, phi: Array, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        z = embed_fn(theta, batch.x)
        logits = nearness(z, phi) if metric == "euclidean" else unit(z) @ unit(phi).T
        return classify(logits / temperature, batch.y.episode)

    learner = closed_form(solve, loss)
    return Algorithm(learner, query_loss(learner, num_steps=1))
