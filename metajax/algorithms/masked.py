"""Masked prediction: an encoder of frames learns from speech alone, by what it says of frames that it does not see."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metajax.algorithms.dense import dense_apply, dense_init, dtype_of
from metajax.core import Algorithm, Apply, Batch, Episode, KeyArray, Metrics, Params, Scalar, Theta
from metajax.errors import InputError
from metajax.inner import closed_form

Clips = Float[Array, "n time mel"]


def masked_prediction(
    encode: Apply, *, features: int, bands: int, stride: int, span: int = 10, share: float = 0.4
) -> Algorithm:
    """The squared error of masked frames: mean over t in M of |x_t - (W f_theta(x with 0 in M) + b)_t|^2 / bands.

    M is some spans of `span` frames, of each clip its own. Each of the encoder's frames is read by one linear map for
    the `stride` frames of x that it stands for. Only the inputs of an episode are looked at, so that it trains on any
    sampler; `theta["params"]` then serves another method, as its start or as it is. `mix` adds it to another objective.

    Args:
      encode: `(params, x, key) -> frames [n, time / stride, features]`, rounded up, of x `[n, time, mel]`.
      features: of its frames.
      bands: mel bands of x.
      stride: frames of x for each of them.
      span: frames that are masked together.
      share: of the frames that spans cover, were none to overlap; at least one span is masked.

    Returns:
      The algorithm. Its theta is `{"params", "decoder"}`; there is nothing to adapt; it predicts x.

    Raises:
      InputError: a number is out of its range; when called, clips are shorter than a span, or frames are too few.

    Reference: Liu, Li, Lee, "TERA: Self-Supervised Learning of Transformer Encoder Representation for Speech", 2021;
      Hsu et al., "HuBERT", 2021, which predicts clusters in place of spectra.

    Example:
      ``masked_prediction(tcresnet8(pooled=False).apply, features=48, bands=40, stride=8)``
    """
    for name, value in {"features": features, "bands": bands, "stride": stride, "span": span}.items():
        if value < 1:
            raise InputError(f"{name} is {value}, expected 1 or more.")
    if not 0 < share < 1:
        raise InputError(f"share is {share}, expected more than 0 and less than 1.")

    def init(params: Params, key: KeyArray) -> Theta:
        return {"params": params, "decoder": dense_init(key, (features, stride * bands), dtype_of(params), last=0.0)}

    def predict(theta: Theta, phi: tuple[()], x: Clips, key: KeyArray | None) -> Clips:
        z = encode(theta["params"], x, key)
        if z.shape[1] * stride < x.shape[1]:
            raise InputError(f"{z.shape[1]} frames of stride {stride} do not cover the {x.shape[1]} frames of x.")
        return dense_apply(theta["decoder"], z).reshape(len(x), -1, bands)[:, : x.shape[1]]

    def objective(theta: Theta, episode: Episode, key: KeyArray) -> tuple[Scalar, Metrics]:
        x = jnp.concatenate([batch.x for batch in episode])
        mask_key, key = jax.random.split(key)
        hidden = _spans(mask_key, len(x), x.shape[1], span, share)
        error = jnp.square(predict(theta, (), jnp.where(hidden[..., None], 0, x), key) - x).mean(-1)
        loss = jnp.where(hidden, error, 0).sum() / hidden.sum()
        return loss, {"loss": loss}

    def solve(theta: Theta, support: Batch, key: KeyArray) -> tuple[()]:
        return ()

    return Algorithm(closed_form(solve, predict, init), objective)


def _spans(key: KeyArray, clips: int, frames: int, span: int, share: float) -> Bool[Array, "clips frames"]:
    """True in spans of each clip: share * frames / span starts, at least one, at random and without replacement."""
    starts, count = frames - span + 1, max(1, round(share * frames / span))
    if starts < count:
        raise InputError(f"{count} spans of {span} frames do not fit in {frames} frames.")
    first = jax.lax.top_k(jax.random.uniform(key, (clips, starts)), count)[1]
    at = jnp.arange(frames)
    return ((at >= first[..., None]) & (at < first[..., None] + span)).any(1)
