"""A logistic regression head, differentiated through its optimum: MetaOptNet with another convex loss."""

from metajax.algorithms.heads import logistic_weights
from metajax.algorithms.ridge import linear_head
from metajax.core import Algorithm, Apply, Error


def logistic(embed: Apply, error: Error, num_classes: int, *, strength: float = 1.0, scale: float = 1.0) -> Algorithm:
    """Multinomial logistic regression: logits(x) = scale f_theta(x) W, W = `logistic_weights` of the support set.

    The paper's heads are a support vector machine and ridge regression. Strength and scale are learned, as logarithms.

    Args:
      embed: `(params, x, key) -> embeddings [n, features]`.
      error: of logits `[n, classes]` and labels, such as `classify`.
      num_classes: ways, the number of classes of an episode.
      strength: of the L2 penalty, at the start.
      scale: of the logits, at the start.

    Returns:
      The algorithm; theta is `{"params", "log_strength", "log_scale"}`; it learns a task in one step.

    Reference: Lee et al., "Meta-Learning with Differentiable Convex Optimization", CVPR 2019.

    Example:
      >>> import jax, jax.numpy as jnp, metajax as mj
      >>> learner = logistic(lambda p, x, key: x * p["w"], mj.losses.classify, 2).learner
      >>> theta = learner.init({"w": jnp.ones(1)}, jax.random.key(0))
      >>> phi, _ = mj.adapt(learner, theta, mj.Batch(jnp.eye(2), jnp.array([1, 0])), jax.random.key(0), 1)
      >>> learner.predict(theta, phi, jnp.eye(2), None).argmax(-1).tolist()
      [1, 0]
    """
    return linear_head(embed, error, num_classes, logistic_weights, strength, scale)
