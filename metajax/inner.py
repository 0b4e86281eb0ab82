"""Two ways to learn one task: gradient steps, of a part of the model under a rule, and a closed form."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from metajax.core import Apply, Batch, Error, KeyArray, Learner, Params, Phi, Scalar, Theta, combined, held, scalar
from metajax.errors import InputError, expected, function
from metajax.names import merged, named

Mode: TypeAlias = Literal["reverse", "mixed"]
Own: TypeAlias = PyTree  # the parameters that a task has for itself
Inner: TypeAlias = optax.GradientTransformation | Callable[[Theta], optax.GradientTransformation]


class Part(NamedTuple):
    """What of the model a task learns; `names.match` finds parameters, and says so where there are none."""

    init: Callable[[Params, KeyArray], Theta]  # what theta holds for it, by name
    split: Callable[[Theta], Own]  # the task's own parameters before any step
    join: Callable[[Theta, Own, Array], Params]  # the model's parameters after so many steps
    max_steps: int | None = None  # steps that theta has parameters for, where it has them per step


class Rule(NamedTuple):
    """How the inner optimiser's updates are changed by what is learned.

    A rule has no memory; what the optimiser itself reads, such as its momentum, is learned by an `inner` of theta. The
    updates hold the inner rate already: a rule that undoes their size, such as by their sign, brings a rate of its own;
    as a sign has no slope, what the updates came from then learns nothing.
    """

    init: Callable[[Own], Theta]  # what theta holds for it, by name
    apply: Callable[[Theta, Own, Array], Own]  # (theta, updates, steps taken) -> updates
    max_steps: int | None = None


class Fast(NamedTuple):
    """phi of gradient-based learners."""

    own: Own  # the task's own parameters
    opt_state: optax.OptState  # of the inner optimiser
    count: Int[Array, ""]  # type: ignore[assignment]  # steps taken; hides tuple.count


def everything() -> Part:
    """All parameters: own = params."""

    def join(theta: Theta, own: Own, count: Array) -> Params:
        params = theta["params"]
        if jax.tree.structure(own) == jax.tree.structure(params):  # type: ignore[operator]
            return own
        return merged(params, named(own))  # statistics of the support set lie beside them

    return Part(lambda params, key: {}, lambda theta: theta["params"], join)


def plain() -> Rule:
    """The inner optimiser's updates as they are."""
    return Rule(lambda own: {}, lambda theta, updates, count: updates)


def descent(
    apply: Apply,
    error: Error,
    inner: Inner,
    *,
    part: Part = everything(),  # noqa: B008  (pure functions)
    rule: Rule = plain(),  # noqa: B008
    first_order: bool = False,
    mode: Mode = "reverse",
    proximal: float = 0.0,
) -> Learner:
    """Learn a task by gradient steps on its support error E(own) = error(apply(join(theta, own), x), y).

    own_0 = split(theta);  own_{k+1} = own_k + rule(theta, inner(grad E(own_k))).

    Args:
      apply: the model, `(params, x, key) -> outputs`.
      error: `(outputs, y) -> (scalar, metrics)` of the support set.
      inner: any optax transformation, or one for each theta: `lambda theta: optax.sgd(theta["rate"])`. Adam needs
        `eps_root > 0`, or its second derivative is not finite.
      part: what of the model a task learns.
      rule: how the inner optimiser's updates are changed.
      first_order: drop the second derivative: the inner optimiser's update counts as a constant (FOMAML).
      mode: how the gradient through a step is computed: reverse over reverse, or "mixed", forward over reverse, which
        keeps no activations of the steps.
      proximal: adds proximal / 2 |own - split(theta)|^2 to the support error.

    Returns:
      A learner whose phi is a `Fast`.

    Raises:
      InputError: `mode` is unknown; `part` or `rule` is none, such as one not called; both add the same name to theta;
        when called, theta lacks what part or rule read, the rule's updates are not like its own, the error is not a
        scalar, or, once differentiated, the inner optimiser has no finite derivative where a gradient is zero.

    Reference: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation", 2025 (for "mixed").
    """

    for name, given, kind in (("part", part, Part), ("rule", rule, Rule)):
        if not isinstance(given, kind):
            told = getattr(given, "__name__", type(given).__name__)
            raise InputError(f"{name} is {told}, expected a {kind.__name__}: what such a function returns.")
    function("apply", apply, "`model.apply`")
    if not callable(inner):
        expected("inner", inner, optax.GradientTransformation)
    optimizer = inner if callable(inner) else lambda theta: inner

    def value(args: tuple[Theta, Array, Batch, KeyArray], own: Own) -> Scalar:
        theta, count, support, key = args
        result, _ = scalar(error(apply(_read(part.join, theta, own, count), support.x, key), support.y))
        if proximal:
            squares = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), own, part.split(theta))
            result = result + proximal / 2 * optax.tree.sum(squares)
        return result

    gradient = support_gradient(value, mode)

    def init(params: Params, key: KeyArray) -> Theta:
        theta = combined({"params": params}, part.init(params, key))
        return combined(theta, rule.init(part.split(theta)))

    def start(theta: Theta, support: Batch, key: KeyArray) -> Fast:
        own = _read(part.split, theta)
        if not isinstance(own, tuple) and not jax.tree.leaves(own):
            raise InputError("part.split gives no parameter for a task to learn, expected one or more.")
        return Fast(own, _read(optimizer, theta).init(own), jnp.zeros((), jnp.int32))

    def step(theta: Theta, phi: Fast, support: Batch, key: KeyArray) -> Fast:
        grads = gradient((theta, phi.count, support, key), phi.own)
        inner = optimizer(theta)
        if not first_order:
            grads = _checked(inner, grads)
        updates, opt_state = inner.update(grads, phi.opt_state, phi.own)
        if first_order:  # the optimiser's own terms, such as its weight decay, too
            updates, opt_state = jax.lax.stop_gradient((updates, opt_state))
        changed = _read(rule.apply, theta, updates, phi.count)
        if jax.tree.map(jnp.shape, changed) != jax.tree.map(jnp.shape, updates):
            raise InputError("The rule's updates are of another structure or shape than those that it was given.")
        return Fast(optax.apply_updates(phi.own, changed), opt_state, phi.count + 1)

    def predict(theta: Theta, phi: Fast, x: PyTree, key: KeyArray | None) -> PyTree:
        return apply(part.join(theta, phi.own, phi.count), x, key)

    bounds = [bound for bound in (part.max_steps, rule.max_steps) if bound is not None]
    return Learner(init, start, step, predict, min(bounds, default=None))


def _read(reads: Callable[..., Any], theta: Theta, *args: Any) -> Any:
    """reads(theta, *args); an `InputError` where it looks for a name that theta lacks."""
    try:
        return reads(theta, *args)
    except KeyError as missing:
        held(theta, missing.args[0])
        raise


def support_gradient(value: Callable[[PyTree, Own], Scalar], mode: Mode = "reverse") -> Callable[[PyTree, Own], Own]:
    """(args, own) -> grad_own value(args, own), itself differentiated in the given mode.

    The backward pass of "mixed" is d/de grad_(args, own) value(args, own + e v) for the cotangent v: one jvp of one
    gradient, from args and own alone.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is {mode!r}, expected one of {', '.join(get_args(Mode))}.")

    def gradient(args: PyTree, own: Own) -> Own:
        return jax.grad(lambda own: value(args, own))(own)

    def backward(kept: tuple[PyTree, Own], cotangent: Own) -> tuple[PyTree, Own]:
        args, own = kept
        leaves, tree = jax.tree.flatten(args)
        smooth = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

        def of_floats(floats: list[Array], own: Own) -> Scalar:
            rest = iter(floats)
            whole = [next(rest) if s else leaf for s, leaf in zip(smooth, leaves, strict=True)]
            return value(jax.tree.unflatten(tree, whole), own)

        floats = [leaf for s, leaf in zip(smooth, leaves, strict=True) if s]

        def slopes(floats: list[Array], own: Own, cotangent: Own) -> tuple[list[Array], Own]:
            return jax.jvp(lambda own: jax.grad(of_floats, (0, 1))(floats, own), (own,), (cotangent,))[1]

        # JAX itself would notice only when it compiles the step, with no word of the mode
        if "custom_lin" in str(jax.make_jaxpr(slopes)(floats, own, cotangent)):
            raise InputError(
                'mode is "mixed", but the error has a custom_vjp, which cannot be differentiated forward; '
                'use mode="reverse".'
            )
        slope = slopes(floats, own, cotangent)
        rest = iter(slope[0])
        return jax.tree.unflatten(tree, [next(rest) if s else None for s in smooth]), slope[1]

    if mode == "reverse":
        return gradient
    mixed = jax.custom_vjp(gradient)
    mixed.defvjp(lambda args, own: (gradient(args, own), (args, own)), backward)
    return mixed


def _checked(inner: optax.GradientTransformation, grads: Own) -> Own:
    """grads; an `InputError` if they are differentiated and the update has no slope where an entry or a leaf is 0."""
    leaves, tree = jax.tree.flatten(grads)

    def slopes(grads: Own, params: Own, cotangent: Own) -> list[Array]:
        def update(grads: Own, params: Own) -> Own:
            updates = inner.update(grads, inner.init(params), params)[0]
            # depends on the parameters: zeros that JAX makes itself would be a program each
            return jax.tree.map(lambda u, p: u + 0 * p, updates, params)

        # in reverse, where a branch that is not taken gives 0 times its slope
        return jax.tree.leaves(jax.vjp(update, grads, params)[1](cotangent))

    def differentiated(primals: tuple[Own], tangents: tuple[Own]) -> tuple[Own, Own]:
        # numpy's, as arguments: what a jitted function makes itself is here evaluated operation by operation
        ones = [np.ones(leaf.shape, leaf.dtype) for leaf in leaves]
        some = [(np.arange(one.size).reshape(one.shape) % 2).astype(one.dtype) for one in ones]  # of dead units
        dead = [[one * (i % 2 == side) for i, one in enumerate(ones)] for side in (0, 1)]  # layers
        points = [some, ones, *(dead if len(leaves) > 1 else [])]
        fresh = [[one * (i != 1) for one in ones] for i in range(len(points))]  # parameters that are 0, as biases
        three = (points, fresh, [ones] * len(points))
        stacked = [jax.tree.unflatten(tree, [np.stack(of) for of in zip(*p, strict=True)]) for p in three]
        with jax.ensure_compile_time_eval():
            known = jax.jit(jax.vmap(slopes))(*stacked)
            # an inner rate that is itself traced leaves nothing to look at
            seen = [leaf for leaf in known if not isinstance(leaf, jax.core.Tracer)]
            if not all(np.isfinite(leaf).all() for leaf in seen):
                raise InputError(
                    "The inner optimiser's update has no finite derivative where a gradient is zero, of one entry or "
                    "of a whole layer, or where a parameter is, so second order would give NaN; give Adam eps_root > 0,"
                    " as in optax.adam(1e-3, eps_root=1e-8), take one that divides by no norm, or use first_order=True."
                )
        return primals[0], tangents[0]

    if not leaves:
        return grads
    same = jax.custom_jvp(lambda grads: grads)
    same.defjvp(differentiated)
    return same(grads)


def closed_form(
    solve: Callable[[Theta, Batch, KeyArray], Phi],
    predict: Callable[[Theta, Phi, PyTree, KeyArray | None], PyTree],
    init: Callable[[Params, KeyArray], Theta] = lambda params, key: {"params": params},
) -> Learner:
    """Learn a task in one step: phi_0 = 0;  phi_1 = solve(theta, support); further steps change nothing.

    Args:
      solve: phi from theta and the support set.
      predict: `(theta, phi, x, key) -> outputs`.
      init: theta from model parameters.

    Returns:
      A learner whose phi is what `solve` returns.
    """

    def start(theta: Theta, support: Batch, key: KeyArray) -> Phi:
        shapes = jax.eval_shape(solve, theta, support, key)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def step(theta: Theta, phi: Phi, support: Batch, key: KeyArray) -> Phi:
        return solve(theta, support, key)

    return Learner(init, start, step, predict)


class Supported(NamedTuple):
    """phi of a learner that normalises by the support set."""

    phi: Phi
    statistics: dict[str, Array]  # mean and variance of every normalisation layer, by name


def by_support(
    learner: Learner,
    statistics: Callable[[Params, PyTree], dict[str, Array]],
    seen: Callable[[Theta, Phi], Params] = lambda theta, phi: theta["params"],
) -> Learner:
    """The learner under normalisation by the support set, whose statistics `start` computes and phi keeps.

    Every query then stands alone. The statistics are those before any step, and stay while the task's own parameters
    move.

    Args:
      learner: any whose model reads `mean` and `variance` of a normalisation layer, where its parameters have them.
      statistics: `(params, x) -> {"norm0.mean": ...}`, such as a model's.
      seen: the parameters that the model has at the start, where they are not theta's own: `(theta, phi) -> params`.

    Returns:
      The learner; train its theta with `query_loss`.
    """

    def placed(theta: Theta, kept: dict[str, Array]) -> Theta:
        return theta | {"params": merged(theta["params"], kept)}

    def start(theta: Theta, support: Batch, key: KeyArray) -> Supported:
        phi = learner.start(theta, support, key)
        return Supported(phi, statistics(seen(theta, phi), support.x))

    def step(theta: Theta, phi: Supported, support: Batch, key: KeyArray) -> Supported:
        return phi._replace(phi=learner.step(placed(theta, phi.statistics), phi.phi, support, key))

    def predict(theta: Theta, phi: Supported, x: PyTree, key: KeyArray | None) -> PyTree:
        return learner.predict(placed(theta, phi.statistics), phi.phi, x, key)

    return Learner(learner.init, start, step, predict, learner.max_steps)


class SelfLabelled(NamedTuple):
    """phi of a learner whose labels are its own."""

    phi: Phi
    y: PyTree  # of the support set, from the first pass


def first_pass(learner: Learner, label: Callable[[PyTree], PyTree]) -> Learner:
    """The learner on a support set labelled by its own first pass: y = label(predict(theta, phi_0, support.x)).

    The labels are constants: they stay while phi moves, and no gradient runs through them.

    Args:
      learner: any, whose error takes what `label` gives.
      label: of the model's outputs, such as `losses.pseudo_labels`.

    Returns:
      The learner, which never reads the support set's y; train its theta with `query_loss`.

    Example:
      ``learner = first_pass(descent(model.apply, pseudo, optax.sgd(0.1)), pseudo_labels)``
    """

    def start(theta: Theta, support: Batch, key: KeyArray) -> SelfLabelled:
        phi = learner.start(theta, support, key)
        y = label(learner.predict(theta, phi, support.x, None))
        return SelfLabelled(phi, jax.lax.stop_gradient(y))

    def step(theta: Theta, phi: SelfLabelled, support: Batch, key: KeyArray) -> SelfLabelled:
        return phi._replace(phi=learner.step(theta, phi.phi, support._replace(y=phi.y), key))

    def predict(theta: Theta, phi: SelfLabelled, x: PyTree, key: KeyArray | None) -> PyTree:
        return learner.predict(theta, phi.phi, x, key)

    return Learner(learner.init, start, step, predict, learner.max_steps)


class Cached(NamedTuple):
    """phi of a learner on the features of a frozen encoder."""

    phi: Phi
    features: PyTree  # of the support set


def cached(learner: Learner, encode: Callable[[PyTree], PyTree]) -> Learner:
    """The learner on what a frozen encoder makes of x: `start` encodes the support set once, and phi keeps it.

    A step thus costs what lies above the encoder, such as a head.

    Args:
      learner: of the features.
      encode: x to features, of the same leading axis; closes over its parameters, none of which is in theta.

    Returns:
      The learner of x.
    """

    def of(support: Batch, features: PyTree) -> Batch:
        return support._replace(x=features)

    def start(theta: Theta, support: Batch, key: KeyArray) -> Cached:
        features = encode(support.x)
        return Cached(learner.start(theta, of(support, features), key), features)

    def step(theta: Theta, phi: Cached, support: Batch, key: KeyArray) -> Cached:
        return phi._replace(phi=learner.step(theta, phi.phi, of(support, phi.features), key))

    def predict(theta: Theta, phi: Cached, x: PyTree, key: KeyArray | None) -> PyTree:
        return learner.predict(theta, phi.phi, encode(x), key)

    return Learner(learner.init, start, step, predict, learner.max_steps)
