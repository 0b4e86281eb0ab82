"""A BiLSTM encoder: its sizes and options."""

import jax
import jax.numpy as jnp
import pytest

from metajax import InputError
from metajax.models.bilstm import bilstm

KEY = jax.random.key(0)


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
