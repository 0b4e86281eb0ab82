"""Whitening: a linear map under which the clips of a word scatter alike in all directions."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from metajax.algorithms.heads import unit
from metajax.core import KeyArray, Params
from metajax.errors import InputError
from metajax.models.model import Model
from metajax.models.pretrained.layers import Pretrained


def whitening(
    x: Float[np.ndarray, "n features"], label: Int[np.ndarray, " n"], *, shrink: float = 0.1
) -> dict[str, Float[Array, "..."]]:
    """The map x -> (x - m) W with W W^T = S^-1, S = (1 - s) C + s tr(C) / d I; C the covariance within the classes.

    What differs between speakers of one word counts less then, and cosines compare what differs between words. The
    words need not be those that are learned later, nor of their language.

    Args:
      x: embeddings; m is their mean.
      label: class of each, -1 where unknown, which counts for m alone.
      shrink: s, how far C is drawn to a multiple of the identity, in 0..1.

    Returns:
      `{"mean": [features], "kernel": [features, features]}`, float32.

    Raises:
      InputError: `shrink` is out of 0..1, or no class has two members that differ; at 0, C must have full rank.

    Reference: Hatch, Kajarekar, Stolcke, "Within-Class Covariance Normalization for SVM-based Speaker Recognition",
    Interspeech 2006.
    """
    if not 0 <= shrink <= 1:
        raise InputError(f"shrink is {shrink}, expected a number within 0..1.")
    x, (known, place) = np.asarray(x, np.float64), np.unique(label, return_inverse=True)
    counts = np.bincount(place)
    means = np.stack([np.bincount(place, column) for column in x.T], 1) / counts[:, None]
    rest = (x - means[place])[np.asarray(label) >= 0]
    covariance = rest.T @ rest / max(len(rest), 1)
    size = len(covariance)
    if not np.trace(covariance) > 0:
        raise InputError(f"No two of {len(rest)} embeddings of {len(known)} classes are of one class and differ.")
    drawn = (1 - shrink) * covariance + shrink * np.trace(covariance) / size * np.eye(size)
    try:
        kernel = np.linalg.cholesky(np.linalg.inv(drawn))
    except np.linalg.LinAlgError:
        raise InputError(f"shrink is {shrink}, too small for {len(rest)} embeddings of {size} features.") from None
    return {"mean": jnp.asarray(x.mean(0), jnp.float32), "kernel": jnp.asarray(kernel, jnp.float32)}


def whitened(model: Model | Pretrained, *, length: bool = False) -> Model:
    """A model of embeddings of length 1, whitened: (f(x) - m) W over its norm; parameters `encoder` and `whitening`.

    Args:
      model: of embeddings `[..., features]`. Its `init` makes no whitening: `whitening` does.
      length: whether to leave them their length, as of frames, of which those of silence are short.
    """

    def init(key: KeyArray, x: PyTree) -> Params:
        encoder = model.init(key, x)
        size = model.apply(encoder, x).shape[-1]
        return {"encoder": encoder, "whitening": {"mean": jnp.zeros(size), "kernel": jnp.eye(size)}}

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Float[Array, "*n features"]:
        if "adapter" in params["whitening"]:
            raise InputError("params hold whitening.adapter, which this map does not read; adapt the encoder's layers.")
        z = white(params["whitening"], model.apply(params["encoder"], x, key))
        return z if length else unit(z)

    return Model(init, apply, model.statistics)


def white(params: Params, z: Float[Array, "*n features"]) -> Float[Array, "*n features"]:
    """(z - m) W, by a map that `whitening` made."""
    return (z - params["mean"]) @ params["kernel"]
