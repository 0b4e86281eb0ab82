"""Two ways to learn one task: gradient steps, and a closed form."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from metajax.core import Batch, KeyArray, Learner, LossFn, Metrics, Params, Phi, Scalar, Theta, scalar
from metajax.errors import InputError


class Fast(NamedTuple):
    """phi of gradient-based learners: the fast weights and their inner optimiser's state."""

    params: PyTree
    opt_state: optax.OptState


Mode: TypeAlias = Literal["reverse", "mixed"]


def descent(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    *,
    split: Callable[[Theta], Params] = lambda theta: theta,
    join: Callable[[Theta, Params], Params] = lambda theta, params: params,
    precondition: Callable[[Theta, Params], Params] = lambda theta, updates: updates,
    init: Callable[[Params], Theta] = lambda params: params,
    first_order: bool = False,
    mode: Mode = "reverse",
) -> Learner:
    """Learn a task by gradient steps on its support loss.

    phi_0 = split(theta);
    phi_{k+1} = phi_k + precondition(theta, inner(grad_phi loss(join(theta, phi_k), support))).

    Args:
      loss_fn: `(params, batch, key) -> (scalar, metrics)`.
      inner: any optax transformation. Adam needs `eps_root > 0`, or its second derivative is not finite.
      split: the part of theta that a task learns; all of it by default.
      join: the model's parameters from theta and a task's part.
      precondition: `(theta, updates) -> updates`, a learned change of the inner optimiser's updates.
      init: theta from the model's parameters, where it holds more than those.
      first_order: drop the second derivative: the step's gradient counts as a constant (FOMAML).
      mode: how the gradient through a step is computed: reverse over reverse, or "mixed", forward over reverse, which
        keeps no activations of the steps.

    Returns:
      A learner whose phi is a `Fast`.

    Raises:
      InputError: `mode` is unknown; when called, the loss is not a scalar or the inner optimiser has no finite second
        derivative where an entry of a gradient is zero.

    Reference: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation", 2025 (for "mixed").
    """
    gradient = support_gradient(lambda args, params: loss_fn(join(args[0], params), *args[1:])[0], mode)

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        params = split(theta)
        return Fast(params, inner.init(params))

    def step(theta: Theta, phi: Fast, support: Batch, key: KeyArray) -> Fast:
        grads = gradient((theta, support, key), phi.params)
        grads = jax.lax.stop_gradient(grads) if first_order else checked(inner, grads)
        updates, opt_state = inner.update(grads, phi.opt_state, phi.params)
        return Fast(optax.apply_updates(phi.params, precondition(theta, updates)), opt_state)

    def loss(theta: Theta, phi: Fast, batch: Batch, key: KeyArray) -> tuple[Scalar, Metrics]:
        return loss_fn(join(theta, phi.params), batch, key)

    return Learner(init, start, step, loss)


def support_gradient(
    loss: Callable[[PyTree, Params], Scalar], mode: Mode = "reverse"
) -> Callable[[PyTree, Params], Params]:
    """(args, params) -> grad_params loss(args, params), itself differentiated in the given mode.

    The backward pass of "mixed" is d/de grad_(args, params) loss(args, params + e v) for the cotangent v: one jvp of
    one gradient, from args and params alone.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is {mode!r}, expected one of {', '.join(get_args(Mode))}.")

    def gradient(args: PyTree, params: Params) -> Params:
        return jax.grad(lambda params: scalar(loss(args, params)))(params)

    def backward(kept: tuple[PyTree, Params], cotangent: Params) -> tuple[PyTree, Params]:
        args, params = kept
        leaves, tree = jax.tree.flatten(args)
        smooth = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

        def value(floats: list[Array], params: Params) -> Scalar:
            rest = iter(floats)
            return loss(
                jax.tree.unflatten(tree, [next(rest) if s else leaf for s, leaf in zip(smooth, leaves, strict=True)]),
                params,
            )

        floats = [leaf for s, leaf in zip(smooth, leaves, strict=True) if s]

        def slopes(floats: list[Array], params: Params, cotangent: Params) -> tuple[list[Array], Params]:
            return jax.jvp(lambda params: jax.grad(value, (0, 1))(floats, params), (params,), (cotangent,))[1]

        # JAX itself would notice only when it compiles the step, with no word of the mode
        if "custom_lin" in str(jax.make_jaxpr(slopes)(floats, params, cotangent)):
            raise InputError(
                'mode is "mixed", but the loss has a custom_vjp, which cannot be differentiated forward; '
                'use mode="reverse".'
            )
        slope = slopes(floats, params, cotangent)
        rest = iter(slope[0])
        return jax.tree.unflatten(tree, [next(rest) if s else None for s in smooth]), slope[1]

    if mode == "reverse":
        return gradient
    mixed = jax.custom_vjp(gradient)
    mixed.defvjp(lambda args, params: (gradient(args, params), (args, params)), backward)
    return mixed


def checked(inner: optax.GradientTransformation, grads: Params) -> Params:
    """grads; an `InputError` if they are differentiated and the update has no slope where an entry is 0."""

    def finite(zeros: Params, ones: Params) -> Array:
        slope = jax.jvp(lambda grads: inner.update(grads, inner.init(ones), ones)[0], (zeros,), (ones,))[1]
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope)]).all()

    def differentiated(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Params, Params]:
        # as arguments: what a jitted function without any makes is here evaluated operation by operation
        ones = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
        # every other gradient is zero, as those of dead units are
        zeros = jax.tree.map(lambda a: (np.arange(a.size).reshape(a.shape) % 2).astype(a.dtype), ones)
        with jax.ensure_compile_time_eval():
            known = jax.jit(finite)(zeros, ones)
            # an inner rate that is itself traced leaves nothing to look at
            if not isinstance(known, jax.core.Tracer) and not known:
                raise InputError(
                    "The inner optimiser's update has no finite derivative where a gradient is zero, so second order "
                    "would give NaN (Adam divides by sqrt(v), whose slope at 0 is infinite); give it eps_root > 0, as "
                    "in optax.adam(1e-3, eps_root=1e-8), or use first_order=True."
                )
        return primals[0], tangents[0]

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), grads)
    if not jax.tree.leaves(shapes):
        return grads
    same = jax.custom_jvp(lambda grads: grads)
    same.defjvp(differentiated)
    return same(grads)


def closed_form(
    solve: Callable[[Theta, Batch, KeyArray], Phi],
    loss: Callable[[Theta, Phi, Batch, KeyArray], tuple[Scalar, Metrics]],
    init: Callable[[Params], Theta] = lambda params: params,
) -> Learner:
    """Learn a task in one step: phi_0 = 0;  phi_1 = solve(theta, support); further steps change nothing.

    Args:
      solve: phi from theta and the support set.
      loss: `(theta, phi, batch, key) -> (scalar, metrics)`.
      init: theta from model parameters.

    Returns:
      A learner whose phi is what `solve` returns.
    """

    def start(theta: Theta, support: Batch, key: KeyArray) -> Phi:
        shapes = jax.eval_shape(solve, theta, support, key)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def step(theta: Theta, phi: Phi, support: Batch, key: KeyArray) -> Phi:
        return solve(theta, support, key)

    return Learner(init, start, step, loss)
