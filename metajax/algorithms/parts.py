"""Parts: what of the model a task learns. A new one is a function that returns a `Part`, for any method."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metajax.core import KeyArray, Params, Theta, combined, held
from metajax.errors import InputError
from metajax.inner import Own, Part, everything  # noqa: F401  (everything is a part, too)
from metajax.names import changed, match, merged, named, renewed, replaced


def nothing() -> Part:
    """No parameters, as in joint training: own = ()."""
    return Part(_adds_nothing, lambda theta: (), lambda theta, own, count: theta["params"])


def only(*patterns: str) -> Part:
    """The parameters whose name matches a pattern: `only("head")`, `only("encoder.layers.*.attention.*")`.

    `only("*.bias")` is BitFit. The fewer parameters adapt, the larger an inner rate they want: often 0.1 for all of a
    network, 0.5 for a head, more for biases: 5 where a network of words learned nothing at 0.5.

    Args:
      *patterns: see `metajax.names.match`.

    Returns:
      The part; own is a dict of arrays by dotted name.

    Raises:
      InputError: when called, a pattern matches no parameter, with their names.
    """

    def split(theta: Theta) -> Own:
        return match(theta["params"], patterns)

    return Part(_adds_nothing, split, lambda theta, own, count: replaced(theta["params"], own))


def without(*patterns: str) -> Part:
    """All parameters but those whose name matches a pattern; else as `only`."""

    def split(theta: Theta) -> Own:
        kept = match(theta["params"], patterns)
        return {name: leaf for name, leaf in named(theta["params"]).items() if name not in kept}

    return Part(_adds_nothing, split, lambda theta, own, count: replaced(theta["params"], own))


def context(size: int, *patterns: str) -> Part:
    """A context vector c, 0 before any step, that shifts parameters by a linear map F in theta: w + c F_w.

    The entries of F have variance 1 / size, so that a step on c moves w about as far as the same step on w would.

    Args:
      size: of the context vector.
      *patterns: of the parameters to shift; none for all vectors, such as scales and biases.

    Returns:
      The part; theta gets `context`, an array `[size, *leaf]` by dotted name; own is `[size]`.

    Raises:
      InputError: `size` is below 1; when called, a pattern matches no parameter, with their names.

    Reference: Zintgraf et al., "Fast Context Adaptation via Meta-Learning", ICML 2019.
    """
    if size < 1:
        raise InputError(f"size is {size}, expected 1 or more.")

    def init(params: Params, key: KeyArray) -> Theta:
        chosen = _vectors(params, patterns)
        keys = dict(zip(chosen, jax.random.split(key, len(chosen)), strict=True))
        return {"context": {n: _normal(keys[n], (size, *w.shape), w.dtype) / size**0.5 for n, w in chosen.items()}}

    def split(theta: Theta) -> Own:
        return jnp.zeros(size, jax.tree.leaves(held(theta, "context"))[0].dtype)

    return Part(init, split, lambda theta, own, count: shifted(theta["params"], held(theta, "context"), own))


def shifted(params: Params, maps: dict[str, Array], vector: Array) -> Params:
    """params with `leaf + vector @ maps[name]` for each leaf that has a map."""
    return changed(params, maps, lambda w, each: w + jnp.tensordot(vector, each, 1))


def lora(rank: int, *patterns: str, beside: bool = False) -> Part:
    """Low-rank changes of matrices: W + A B, A random and B = 0 in theta; own = (A, B) of each.

    Args:
      rank: columns of A and rows of B.
      *patterns: of the kernels `[*taps, in, out]` to change, taken as matrices `[taps * in, out]`; none for all.
      beside: leave W as it is and let the model add (x A) B, so that no slope of the size of W is computed; the model
        must look for `lora` beside the kernel, as those of `models.pretrained` do. Convolutions get none. theta and own
        are the same, so that the part without `beside` joins them to W + A B.

    Returns:
      The part; theta gets `lora`, `{"a": [taps * in, rank], "b": [rank, out]}` by dotted name.

    Raises:
      InputError: `rank` is below 1; when called, a pattern matches no parameter or matches no matrix, with the names.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    if rank < 1:
        raise InputError(f"rank is {rank}, expected 1 or more.")

    def init(params: Params, key: KeyArray) -> Theta:
        found = (_linear if beside else _matrices)(params, patterns, "lora")
        chosen, pairs = {name: w.reshape(-1, w.shape[-1]) for name, w in found.items()}, {}
        for (name, w), one in zip(chosen.items(), jax.random.split(key, len(chosen)), strict=True):
            a = _normal(one, (len(w), rank), w.dtype) / len(w) ** 0.5
            pairs[name] = {"a": a, "b": jnp.zeros((rank, w.shape[1]), w.dtype)}
        return {"lora": pairs}

    def join(theta: Theta, own: Own, count: Array) -> Params:
        if beside:
            pairs = {name.removesuffix("kernel") + "lora": pair for name, pair in own.items()}
            return merged(theta["params"], named(pairs))
        return changed(theta["params"], own, lambda w, pair: w + (pair["a"] @ pair["b"]).reshape(w.shape))

    return Part(init, lambda theta: held(theta, "lora"), join)


def film(*patterns: str) -> Part:
    """Scales and shifts of features: s (1 + own_s) for a scale s, b + own_b for any other vector; own starts in theta.

    The network's own parameters serve all tasks as they are, so that a joint loss can train them beside it.

    Args:
      *patterns: of the vectors; none for all. A scale is one whose last name is `scale`.

    Returns:
      The part; theta gets `film`, an array by dotted name, 0 at first.

    Raises:
      InputError: when called, a pattern matches no parameter, with their names.

    Reference: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
    """

    def init(params: Params, key: KeyArray) -> Theta:
        return {"film": jax.tree.map(jnp.zeros_like, _vectors(params, patterns))}

    def join(theta: Theta, own: Own, count: Array) -> Params:
        def change(name: str, w: Array) -> Array:
            if name not in own:
                return w
            return w * (1 + own[name]) if name.rsplit(".", 1)[-1] == "scale" else w + own[name]

        return renewed(theta["params"], change)

    return Part(init, lambda theta: held(theta, "film"), join)


def lhuc(*patterns: str) -> Part:
    """Learning hidden unit contributions: unit i counts 2 sigmoid(a_i) times, so within 0..2; own = a, 0 at first.

    What a kernel reads is scaled, whatever nonlinearity made it, by scaling the kernel's rows: (r h) W = h (r W).

    Args:
      *patterns: of the kernels `[*taps, in, out]` that read the units, such as `*.output_dense`; none for all. Units
        that several kernels read have factors for each.

    Returns:
      The part; theta gets `lhuc`, an array `[in]` by dotted name.

    Raises:
      InputError: when called, a pattern matches no parameter or matches no matrix, with the names.

    Reference: Swietojanski, Renals, "Learning Hidden Unit Contributions for Unsupervised Speaker Adaptation of Neural
    Network Acoustic Models", SLT 2014.
    """

    def init(params: Params, key: KeyArray) -> Theta:
        kernels = _matrices(params, patterns, "lhuc")
        return {"lhuc": {name: jnp.zeros(w.shape[-2], w.dtype) for name, w in kernels.items()}}

    def join(theta: Theta, own: Own, count: Array) -> Params:
        return changed(theta["params"], own, lambda w, a: w * (2 * jax.nn.sigmoid(a))[:, None])

    return Part(init, lambda theta: held(theta, "lhuc"), join)


def adapters(size: int, *patterns: str) -> Part:
    """Bottlenecks after linear layers: y + gelu(y D + d) U + u; D random, the others 0 in theta; own = all four.

    No change of a kernel can do this, so the model must look for `adapter` beside the kernel, as those of
    `models.pretrained` do. Houlsby et al. put them after the last layer of each block, before the residual sum.

    Args:
      size: of the bottleneck.
      *patterns: of the layers, such as `*.out_proj` and `*.output_dense`; none for all. Convolutions get none.

    Returns:
      The part; theta gets `adapters`, `{"down": {"kernel": [out, size], "bias"}, "up": {...}}` by dotted name.

    Raises:
      InputError: `size` is below 1; when called, a pattern matches no parameter or no linear layer, with the names.

    Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.
    """
    if size < 1:
        raise InputError(f"size is {size}, expected 1 or more.")

    def init(params: Params, key: KeyArray) -> Theta:
        chosen = _linear(params, patterns, "adapters")
        keys, theta = jax.random.split(key, len(chosen)), {}
        for (name, w), one in zip(chosen.items(), keys, strict=True):
            out = w.shape[-1]
            down = _normal(one, (out, size), w.dtype) / out**0.5
            theta[name.removesuffix("kernel") + "adapter"] = {
                "down": {"kernel": down, "bias": jnp.zeros(size, w.dtype)},
                "up": {"kernel": jnp.zeros((size, out), w.dtype), "bias": jnp.zeros(out, w.dtype)},
            }
        return {"adapters": theta}

    def join(theta: Theta, own: Own, count: Array) -> Params:
        return merged(theta["params"], named(own))

    return Part(init, lambda theta: held(theta, "adapters"), join)


def frozen(part: Part, params: Params) -> Part:
    """The part on a model that has `params` too, which are closed over: theta["params"] holds only what is learned.

    So neither the outer gradient nor the outer optimiser's state nor a checkpoint has the size of a large encoder.

    Args:
      part: what a task learns, of theta's parameters or of the closed-over ones, which a task may change but no outer
        step does.
      params: of the model; those that theta has are theta's.

    Returns:
      The part; `init` takes the parameters that are learned.

    Example:
      >>> import metajax as mj, optax
      >>> params = {"body": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 1))}}
      >>> apply = lambda p, x, key: x @ p["body"]["kernel"] @ p["head"]["kernel"]
      >>> part = frozen(lora(1, "body"), params)
      >>> learner = mj.descent(apply, mj.losses.squared_error, optax.sgd(0.1), part=part)
      >>> sorted(learner.init({"head": params["head"]}, jax.random.key(0)))
      ['lora', 'params']
    """

    def whole(theta: Theta) -> Theta:
        return theta | {"params": merged(params, named(theta["params"]))}

    return Part(
        lambda learned, key: part.init(merged(params, named(learned)), key),
        lambda theta: part.split(whole(theta)),
        lambda theta, own, count: part.join(whole(theta), own, count),
        part.max_steps,
    )


def warped(part: Part) -> Part:
    """T-Net: the model sees kernel @ warp, a matrix `[out, out]` per kernel in theta, the identity at first.

    A step on the kernel thus moves what the model sees by -alpha grad @ warp^T warp: a learned metric.

    Args:
      part: what a task learns of the kernels before they are warped.

    Returns:
      The part; theta gets `warp`, by dotted name.

    Reference: Lee, Choi, "Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace", ICML 2018.
    """

    def init(params: Params, key: KeyArray) -> Theta:
        kernels = {name: w for name, w in named(params).items() if w.ndim > 1}
        warp = {name: jnp.eye(w.shape[-1], dtype=w.dtype) for name, w in kernels.items()}
        return combined(part.init(params, key), {"warp": warp})

    def join(theta: Theta, own: Own, count: Array) -> Params:
        return changed(part.join(theta, own, count), held(theta, "warp"), jnp.matmul)

    return Part(init, part.split, join, part.max_steps)


def norms_by_step(num_steps: int, *patterns: str, part: Part | None = None) -> Part:
    """All but the normalisation layers, of which theta holds a copy for each of the steps 0..K that no task changes.

    Args:
      num_steps: K, the most steps that can be taken.
      *patterns: of the normalisation layers; none for `*norm*`.
      part: what of the others a task learns; None for all.

    Returns:
      The part; theta gets `norms`, arrays `[K + 1, ...]` by dotted name.

    Raises:
      InputError: `num_steps` is below 1; when called, a pattern matches no parameter, with their names, or `part`
        lets a task change a normalisation layer itself.

    Reference: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.
    """
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, expected 1 or more.")
    patterns = patterns or ("*norm*",)
    rest = without(*patterns) if part is None else part

    def init(params: Params, key: KeyArray) -> Theta:
        norms = match(params, patterns)
        copies = {name: jnp.stack([w] * (num_steps + 1)) for name, w in norms.items()}
        theta = combined(rest.init(params, key), {"norms": copies})
        own = jax.tree.leaves(rest.split(theta | {"params": params}))
        if twice := [name for name, w in norms.items() if any(w is leaf for leaf in own)]:
            raise InputError(f"part lets a task change {twice[0]}, of which theta holds a copy for every step.")
        return theta

    def join(theta: Theta, own: Own, count: Array) -> Params:
        norms = {name: w[count] for name, w in held(theta, "norms").items()}
        return rest.join(theta | {"params": replaced(theta["params"], norms)}, own, count)

    bounds = [num_steps] if rest.max_steps is None else [num_steps, rest.max_steps]
    return Part(init, rest.split, join, min(bounds))


def _adds_nothing(params: Params, key: KeyArray) -> Theta:
    return {}


def _matrices(params: Params, patterns: tuple[str, ...], part: str) -> dict[str, Array]:
    """The leaves of several axes, all or those that match."""
    leaves = match(params, patterns) if patterns else named(params)
    if not (chosen := {name: w for name, w in leaves.items() if w.ndim > 1}):
        raise InputError(f"{part} changes matrices, but the patterns match vectors alone: {', '.join(leaves)}.")
    return chosen


def _linear(params: Params, patterns: tuple[str, ...], part: str) -> dict[str, Array]:
    """The kernels of linear layers, all or those that match."""
    leaves = _matrices(params, patterns, part)
    if not (chosen := {name: w for name, w in leaves.items() if name.endswith("kernel") and w.ndim == 2}):
        raise InputError(f"{part} goes with linear layers, but the patterns match none: {', '.join(leaves)}.")
    return chosen


def _vectors(params: Params, patterns: tuple[str, ...]) -> dict[str, Array]:
    """The leaves that match, or all vectors."""
    if patterns:
        return match(params, patterns)
    if not (found := {name: w for name, w in named(params).items() if w.ndim == 1}):
        raise InputError(f"No parameter is a vector; the parameters are {', '.join(named(params))}.")
    return found


def _normal(key: KeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.normal(key, shape, dtype)
