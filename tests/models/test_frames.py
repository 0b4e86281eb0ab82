"""What every encoder of utterances keeps: padding and the other utterances change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Utterances
from metajax.models import bilstm, conformer

KEY = jax.random.key(0)
ENCODERS = {
    "bilstm": bilstm(5, width=8, num_layers=1),
    "conformer": conformer(5, width=8, num_layers=1, heads=2, taps=3),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request):
    """The compiled model, and parameters without compiling any initialiser."""
    model, generator = ENCODERS[request.param], np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 6)))
    params = jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.5), s.dtype), shapes)
    return jax.jit(model.apply), params


def test_padding_changes_nothing(encoder):
    """Each utterance alone, at its own length, gives the frames that it gives in a padded batch, then blanks."""
    apply, params = encoder
    frames, lengths = jax.random.normal(KEY, (3, 23, 6)), jnp.array([23, 9, 14])
    y = apply(params, Utterances(frames, lengths))
    assert y.shape == (3, 6, 5)
    for row, x, length in zip(y[:2], frames, lengths.tolist(), strict=False):
        alone = apply(params, x[None, :length])[0]
        kept = -(-length // 4)
        assert len(alone) == kept
        np.testing.assert_allclose(row[:kept], alone, atol=1e-5)
        assert (row[kept:, 0] == 0).all() and np.isneginf(row[kept:, 1:]).all()
    longer = apply(params, Utterances(jnp.pad(frames, ((0, 0), (0, 50), (0, 0)), constant_values=7), lengths))
    np.testing.assert_allclose(longer[:, :6], y, atol=1e-5)
    np.testing.assert_array_equal(apply(params, Utterances(frames.at[1, 9:].set(50), lengths)), y)


def test_every_frame_hears_the_whole_utterance_and_none_another(encoder):
    apply, params = encoder
    x = jax.random.normal(KEY, (2, 40, 6))
    y = apply(params, x)
    for place, far in ((0, -1), (-1, 0)):
        assert np.abs(apply(params, x.at[0, place].add(9))[0, far] - y[0, far]).max() > 1e-6
    np.testing.assert_allclose(apply(params, x.at[0].add(9))[1], y[1], atol=1e-6)
