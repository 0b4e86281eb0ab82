"""A recogniser that judges its own outputs: an objective without labels, learned with the rest of theta."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from metajax.core import KeyArray, Params
from metajax.errors import InputError
from metajax.losses.ctc import blank_after
from metajax.losses.selftrain import Judged
from metajax.models.frames import Inputs, frames_of
from metajax.models.model import Model


def judged(encoder: Model, num_outputs: int, hidden: int = 32) -> Model:
    """An encoder with a linear head for CTC, z -> l, and beside it the verdict mean_t v tanh(W [z_t, softmax l_t] + b).

    v is 0 at first. In the inner loop a step descends the verdict (`losses.verdict`), in the outer loop the loss of the
    transcript teaches it what to say (`losses.of_logits(ctc)`): the error without labels is itself learned.

    Args:
      encoder: of utterances to `[n, frames, features]`, such as `recogniser()(None)`, whose frames past an utterance's
        end count nowhere.
      num_outputs: size of the vocabulary, blank included.
      hidden: features of the verdict.

    Returns:
      The model, whose outputs are `Judged`; its parameters are the encoder's, `head` and `objective`.

    Raises:
      InputError: `hidden` is below 1.

    Reference: Bechtle et al., "Meta Learning via Learned Loss", ICPR 2020 (there the learned loss sees labels).
    """
    if hidden < 1:
        raise InputError(f"hidden is {hidden}, expected 1 or more.")

    def init(key: KeyArray, x: PyTree) -> Params:
        encoder_key, head_key, key = jax.random.split(key, 3)
        params = encoder.init(encoder_key, x)
        size = jax.eval_shape(encoder.apply, params, x).shape[-1]
        draw = jax.nn.initializers.lecun_normal()
        head = {"kernel": draw(head_key, (size, num_outputs)), "bias": jnp.zeros(num_outputs)}
        hear = draw(key, (size + num_outputs, hidden))
        objective = {"kernel": hear, "bias": jnp.zeros(hidden), "out": jnp.zeros((hidden, 1))}
        return params | {"head": head, "objective": objective}

    def apply(params: Params, x: Inputs, key: KeyArray | None = None) -> Judged:
        head, objective = params["head"], params["objective"]
        z, (frames, lengths) = encoder.apply(params, x, key), frames_of(x)
        lengths = -(-lengths // -(-frames.shape[1] // z.shape[1]))
        logits = z @ head["kernel"] + head["bias"]
        seen = jnp.concatenate([z, jax.nn.softmax(logits)], -1)
        said = (jnp.tanh(seen @ objective["kernel"] + objective["bias"]) @ objective["out"])[..., 0]
        inside = jnp.arange(z.shape[1]) < lengths[:, None]
        verdict = jnp.where(inside, said, 0).sum(1) / jnp.maximum(lengths, 1)
        return Judged(blank_after(logits, lengths), verdict)

    return Model(init, apply, encoder.statistics)
