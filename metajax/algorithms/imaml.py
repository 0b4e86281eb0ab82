"""iMAML: the meta-gradient of the inner optimum, whatever path led there."""

from typing import Any

import jax
import optax

from metajax.core import Algorithm, Apply, Episode, Error, KeyArray, Metrics, Scalar, Theta, adapt
from metajax.errors import InputError
from metajax.inner import Own, Part, descent, everything


def imaml(
    apply: Apply,
    error: Error,
    inner: optax.GradientTransformation,
    num_steps: int,
    *,
    support_error: Error | None = None,
    part: Part = everything(),  # noqa: B008  (pure functions)
    strength: float = 1.0,
    cg_steps: int = 5,
    **how: Any,
) -> Algorithm:
    """MAML with implicit gradients.

    own* minimises F(theta, own) = error(support) + strength / 2 |own - split(theta)|^2, and own_K descends to it;
    d own* / d theta = -(d^2 F / d own^2)^-1 d^2 F / d own d theta, applied to the query's gradient at own_K.

    Args:
      apply, error, inner, support_error: as in `maml`.
      num_steps: K, inner steps while training; the meta-gradient is right where they come near the optimum.
      part: what of the model a task learns; what it does not is learned through both errors.
      strength: of the pull towards theta; it should exceed the size of the Hessian's most negative eigenvalue.
      cg_steps: steps of conjugate gradient, each one Hessian-vector product.
      **how: passed to `descent`, but for `rule`, which the optimum does not depend on.

    Returns:
      The algorithm; the value of its objective is the query error at own_K.

    Raises:
      InputError: a `rule` is given.

    Reference: Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019.

    Example:
      >>> import jax.numpy as jnp, metajax as mj
      >>> algorithm = imaml(lambda p, x, key: p["c"] * x, mj.losses.squared_error, optax.sgd(0.25), 20, strength=2.0)
      >>> one = mj.Batch(jnp.ones(1), jnp.ones(1))  # own* = (2 + 2 c) / 4: the query's slope 2 (own* - 1) is halved
      >>> task = mj.Episode(one, one)
      >>> slope = jax.grad(lambda c: algorithm.objective({"params": {"c": c}}, task, jax.random.key(0))[0])
      >>> round(float(slope(0.0)), 3)
      -0.5
    """
    if "rule" in how:
        raise InputError("rule is given, but iMAML's optimum does not depend on the path: it would not be learned.")
    learner = descent(apply, support_error or error, inner, part=part, proximal=strength, **how)

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        adapt_key, key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(theta)
        phi, _ = adapt(learner, fixed, episode.support, adapt_key, num_steps)

        def query(theta: Theta, own: Own) -> tuple[Scalar, Metrics]:
            return error(learner.predict(theta, phi._replace(own=own), episode.query.x, key), episode.query.y)

        def slope(theta: Theta, own: Own) -> Own:
            """d F / d own."""

            def of_support(own: Own) -> Scalar:
                outputs = learner.predict(theta, phi._replace(own=own), episode.support.x, adapt_key)
                return (support_error or error)(outputs, episode.support.y)[0]

            pull = jax.tree.map(lambda a, b: strength * (a - b), own, part.split(theta))
            return jax.tree.map(lambda a, b: a + b, jax.grad(of_support)(own), pull)

        # reverse over reverse, since an error may hold a custom_vjp; the Hessian is symmetric
        _, hessian = jax.vjp(lambda own: slope(fixed, own), phi.own)
        wanted = jax.grad(lambda own: query(fixed, own)[0])(phi.own)
        direction, _ = jax.scipy.sparse.linalg.cg(lambda v: hessian(v)[0], wanted, maxiter=cg_steps, tol=1e-10)
        value, metrics = query(theta, jax.lax.stop_gradient(phi.own))
        implicit = optax.tree.vdot(jax.lax.stop_gradient(direction), slope(theta, jax.lax.stop_gradient(phi.own)))
        return value - implicit + jax.lax.stop_gradient(implicit), metrics

    return Algorithm(learner, objective)
