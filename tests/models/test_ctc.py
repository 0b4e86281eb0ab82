"""CTC against all alignments, its second derivative, decoding, and a BiLSTM encoder that padding does not change."""

from itertools import groupby, product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import Batch, InputError
from metajax.ctc import Transcripts, Utterances, blank_after, ctc, greedy
from metajax.models.bilstm import bilstm

KEY = jax.random.key(0)
WORDS = Transcripts(jnp.array([[1, 2, 2], [2, 1, 2], [1, 1, 1], [2, 2, 2]]), jnp.array([2, 1, 0, 2]))
FRAMES = jnp.array([4, 2, 3, 3])


def merged(path):
    return [token for token, _ in groupby(path) if token]


def loss_of(logits, transcripts=WORDS):
    return ctc(lambda params, x: blank_after(params, x))(logits, Batch(FRAMES, transcripts), KEY)[0]


def by_enumeration(logits):
    """-log of the summed probability of every path over the frames that count, per token."""
    total = 0.0
    for row, tokens, length, frames in zip(np.asarray(logits), *map(np.asarray, (*WORDS, FRAMES)), strict=True):
        p = np.exp(row) / np.exp(row).sum(-1, keepdims=True)
        paths = product(range(p.shape[1]), repeat=int(frames))
        wanted = list(tokens[:length])
        total -= np.log(sum(np.prod([p[t, k] for t, k in enumerate(path)]) for path in paths if merged(path) == wanted))
    return total / int(WORDS.lengths.sum())


def test_loss_is_the_sum_over_alignments(x64):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3)))
    wanted = by_enumeration(logits)
    np.testing.assert_allclose(loss_of(logits), wanted, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(loss_of)(logits), wanted, rtol=1e-10)
    past = jnp.arange(3) >= WORDS.lengths[:, None]
    optaxes = optax.ctc_loss(logits, jnp.arange(5) >= FRAMES[:, None], WORDS.tokens, past * 1.0).sum() / 5
    np.testing.assert_allclose(optaxes, wanted, rtol=1e-10)
    padded = Transcripts(jnp.pad(WORDS.tokens, ((0, 0), (0, 2)), constant_values=2), WORDS.lengths)
    np.testing.assert_allclose(loss_of(jnp.pad(logits, ((0, 0), (0, 3), (0, 0))), padded), wanted, rtol=1e-10)


def test_a_transcript_without_an_alignment_costs_a_lot_and_has_a_finite_gradient():
    words = Transcripts(jnp.ones((4, 5), int), jnp.array([2, 3, 0, 5]))
    value, gradient = jax.jit(jax.value_and_grad(loss_of))(jnp.zeros((4, 5, 3)), words)
    assert value > 1e4 and jnp.isfinite(gradient).all()


def test_half_precision_is_summed_in_single_precision():
    logits = jax.random.normal(KEY, (4, 5, 3), jnp.bfloat16)
    found, wanted = loss_of(logits), loss_of(logits.astype(jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, wanted)


def test_second_derivative_is_that_of_finite_differences(x64):
    generator = np.random.default_rng(1)
    logits, direction = (jnp.asarray(generator.normal(size=(4, 5, 3))) for _ in range(2))
    gradient, small = jax.jit(jax.grad(loss_of)), 1e-5

    def along(logits):
        return jnp.vdot(jax.grad(loss_of)(logits), direction)

    wanted = (gradient(logits + small * direction) - gradient(logits - small * direction)) / (2 * small)
    found = jax.jit(jax.grad(along))(logits)
    assert np.abs(found).max() > 1e-2
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    np.testing.assert_array_equal(found[1, 2:], 0)  # nothing comes from the frames past the end


@pytest.mark.parametrize(
    ("tokens", "lengths", "sentence"),
    (
        ([[1, 2], [3, 1], [1, 1], [1, 1]], [2, 1, 0, 2], r"Transcript 1 has token 3, expected 1..2"),
        ([[1, 0], [2, 1], [1, 1], [1, 1]], [2, 1, 0, 2], r"Transcript 0 has token 0, expected 1..2"),
        ([[1, 2], [2, 2], [1, 1], [1, 1]], [2, 2, 0, 2], r"Transcript 1 of 2 tokens needs 3 frames, .* gives 2"),
    ),
)
def test_transcripts_that_cannot_be_are_refused(tokens, lengths, sentence):
    with pytest.raises(InputError, match=sentence):
        loss_of(jnp.zeros((4, 5, 3)), Transcripts(jnp.array(tokens), jnp.array(lengths)))


def test_logits_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"\(3, 5, 3\) and tokens \(4, 3\)"):
        ctc(lambda params, x: params)(jnp.zeros((3, 5, 3)), Batch(FRAMES, WORDS), KEY)


def test_greedy_decoding_against_a_loop():
    logits = jax.random.normal(KEY, (20, 9, 3))
    lengths = jnp.arange(20) % 10
    tokens, found = jax.jit(greedy)(blank_after(logits, lengths))
    for row, kept, total, best, length in zip(tokens, found, lengths, logits.argmax(-1), lengths, strict=True):
        wanted = merged(best[:length].tolist())
        assert row[:kept].tolist() == wanted and kept == len(wanted) and total == length
        assert not row[kept:].any()


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
