"""What every encoder of utterances keeps: padding and the other utterances change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Utterances
from metajax.models import bilstm, conformer
from tests.conftest import normal

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
    frames, lengths = np.asarray(normal(3, 23, 6)), jnp.array([23, 9, 14])
    y = np.asarray(apply(params, Utterances(jnp.asarray(frames), lengths)))
    assert y.shape == (3, 6, 5)
    for row, x, length in zip(y[:2], frames, lengths.tolist(), strict=False):
        alone = np.asarray(apply(params, jnp.asarray(x[None, :length])))[0]
        kept = -(-length // 4)
        assert len(alone) == kept
        np.testing.assert_allclose(row[:kept], alone, atol=1e-5)
        assert (row[kept:, 0] == 0).all() and np.isneginf(row[kept:, 1:]).all()
    longer = jnp.asarray(np.pad(frames, ((0, 0), (0, 50), (0, 0)), constant_values=7))
    np.testing.assert_allclose(np.asarray(apply(params, Utterances(longer, lengths)))[:, :6], y, atol=1e-5)
    other = frames.copy()
    other[1, 9:] = 50
    np.testing.assert_array_equal(apply(params, Utterances(jnp.asarray(other), lengths)), y)


def test_every_frame_hears_the_whole_utterance_and_none_another(encoder):
    apply, params = encoder
    x = np.asarray(normal(2, 40, 6))
    y = np.asarray(apply(params, x))

    def moved(*at):
        other = x.copy()
        other[at] += 9
        return np.asarray(apply(params, other))

    for place, far in ((0, -1), (-1, 0)):
        assert np.abs(moved(0, place)[0, far] - y[0, far]).max() > 1e-6
    np.testing.assert_allclose(moved(0)[1], y[1], atol=1e-6)
