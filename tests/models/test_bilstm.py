"""A BiLSTM encoder that padding does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError, Utterances
from metajax.models.bilstm import bilstm

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def encoder():
    model = bilstm(5, width=8, num_layers=1)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 6)))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.5), s.dtype), shapes)
    return jax.jit(model.apply), params


def test_padding_changes_nothing(encoder):
    """Each utterance alone, at its own length, gives the frames that it gives in a padded batch, then blanks."""
    apply, params = encoder
    frames, lengths = jax.random.normal(KEY, (3, 23, 6)), jnp.array([23, 14, 9])
    y = apply(params, Utterances(frames, lengths))
    assert y.shape == (3, 6, 5)
    for row, x, length in zip(y, frames, lengths.tolist(), strict=True):
        alone = apply(params, x[None, :length])[0]
        kept = -(-length // 4)
        assert len(alone) == kept
        np.testing.assert_allclose(row[:kept], alone, atol=1e-5)
        np.testing.assert_array_equal(row[kept:].argmax(-1), 0)
        assert (row[kept:, 1:] < -1e4).all()
    np.testing.assert_array_equal(apply(params, Utterances(frames.at[2, 9:].set(50), lengths)), y)


def test_every_frame_hears_the_whole_utterance(encoder):
    apply, params = encoder
    x = jax.random.normal(KEY, (2, 40, 6))
    y = apply(params, x)
    for place, far in ((0, -1), (-1, 0)):
        assert np.abs(apply(params, x.at[0, place].add(9))[0, far] - y[0, far]).max() > 1e-6
    np.testing.assert_allclose(apply(params, x.at[0].add(9))[1], y[1], atol=1e-6)


def test_embeddings_and_numbers_of_parameters():
    shapes = jax.eval_shape(bilstm(32).init, KEY, jnp.zeros((1, 8, 40)))
    convolutions, layer = 5 * 40 * 128 + 5 * 128 * 128 + 4 * 2 * 128, 2 * (128 * 256 + 64 * 256 + 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == convolutions + 2 * layer + 128 * 32 + 32
    embed = bilstm(width=6)
    body = jax.eval_shape(embed.init, KEY, jnp.zeros((2, 9, 4)))
    assert "head" not in body
    assert jax.eval_shape(embed.apply, body, jnp.zeros((2, 9, 4))).shape == (2, 3, 6)


@pytest.mark.parametrize(
    ("options", "sentence"), (({"normalization": "support"}, "layer, group"), ({"width": 7}, "even"))
)
def test_options_that_do_not_fit_are_refused(unchecked, options, sentence):
    with pytest.raises(InputError, match=sentence):
        bilstm(3, **options)
