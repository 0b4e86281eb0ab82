"""Proto-MAML: MAML whose head starts at the prototypes."""

from typing import Any

import jax.numpy as jnp
import optax

from metajax.algorithms.protonet import EmbedFn, prototypes
from metajax.core import Algorithm, Batch, KeyArray, Params, Remat, Theta, query_loss
from metajax.inner import Fast, descent
from metajax.losses import cross_entropy


def proto_maml(
    embed_fn: EmbedFn,
    inner: optax.GradientTransformation,
    num_steps: int,
    num_classes: int,
    *,
    remat: Remat = "step",
    **options: Any,
) -> Algorithm:
    """MAML from (theta, W, b) with W_c = 2 p_c, b_c = -|p_c|^2, p_c the mean embedding of class c; all of it adapts.

    Without steps it is ProtoNet. The meta-gradient runs through the prototypes too.

    Args:
      embed_fn: `(params, x) -> embeddings [n, features]`.
      inner: inner optimiser, any optax transformation.
      num_steps: K, inner steps while training.
      num_classes: ways, the number of classes of an episode.
      remat: what the gradient through the inner steps keeps; see `adapt`.
      **options: passed to `descent`: `first_order`, `mode`.

    Returns:
      The algorithm.

    Reference: Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
    ICLR 2020.
    """

    def apply(params: Params, x: Any) -> Any:
        return embed_fn(params["params"], x) @ params["head"]["kernel"] + params["head"]["bias"]

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        p = prototypes(embed_fn(theta, support.x), support.y.episode, num_classes)
        params = {"params": theta, "head": {"kernel": 2 * p.T, "bias": -jnp.square(p).sum(-1)}}
        return Fast(params, inner.init(params))

    learner = descent(cross_entropy(apply), inner, join=lambda theta, params: params, **options)._replace(start=start)
    return Algorithm(learner, query_loss(learner, num_steps, remat=remat))
