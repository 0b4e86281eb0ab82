"""CTC against all alignments and PyTorch, its derivatives, what cannot be, and decoding."""

from itertools import groupby, product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import InputError, Transcripts
from metajax.losses.ctc import blank_after, check_transcripts, ctc, greedy, log_likelihood, spans
from tests.conftest import normal

KEY = jax.random.key(0)
WORDS = Transcripts(jnp.array([[1, 2, 2], [2, 1, 2], [1, 1, 1], [2, 2, 2]]), jnp.array([2, 1, 0, 2]))
FRAMES = jnp.array([4, 2, 3, 3])


def merged(path):
    return [token for token, _ in groupby(path) if token]


def loss_of(logits, transcripts=WORDS):
    return ctc(blank_after(logits, FRAMES), transcripts)[0]


# one program of each kind for all cases
value_of, slope_of, both_of = jax.jit(loss_of), jax.jit(jax.grad(loss_of)), jax.jit(jax.value_and_grad(loss_of))


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
    np.testing.assert_allclose(value_of(logits), wanted, rtol=1e-10)
    past = np.arange(3) >= np.asarray(WORDS.lengths)[:, None]
    late = np.arange(5) >= np.asarray(FRAMES)[:, None]
    optaxes = np.asarray(jax.jit(optax.ctc_loss)(logits, late, WORDS.tokens, past * 1.0)).sum() / 5
    np.testing.assert_allclose(optaxes, wanted, rtol=1e-10)
    padded = Transcripts(np.pad(WORDS.tokens, ((0, 0), (0, 2)), constant_values=2), WORDS.lengths)
    np.testing.assert_allclose(value_of(np.pad(logits, ((0, 0), (0, 3), (0, 0))), padded), wanted, rtol=1e-10)
    nothing = log_likelihood(logits, Transcripts(jnp.zeros((4, 0), int), jnp.zeros(4, int)))
    np.testing.assert_allclose(nothing, jax.nn.log_softmax(logits)[..., 0].sum(1), rtol=1e-10)


def test_a_transcript_without_an_alignment_costs_infinity_and_leaves_the_others_their_gradient():
    words = Transcripts(jnp.asarray(np.ones((4, 5), int)), jnp.array([2, 3, 0, 5]))
    logits = normal(4, 5, 3)
    nats_of = jax.jit(lambda logits: log_likelihood(blank_after(logits, FRAMES), words))
    nats = nats_of(logits)
    assert np.isneginf(nats).tolist() == [False, True, False, True]
    value, gradient = jax.tree.map(np.asarray, both_of(logits, words))
    assert value == np.inf
    assert not gradient[1].any() and not gradient[3].any()
    possible = jax.jit(jax.grad(lambda logits: -nats_of(logits)[::2].sum() / 10))(logits)
    np.testing.assert_allclose(gradient, possible, atol=1e-7)
    assert gradient[0].any() and np.isfinite(jax.jit(jax.hessian(loss_of))(logits, words)).all()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_single_precision(precision):
    logits = np.asarray(normal(4, 5, 3)).astype(jnp.dtype(precision))
    found, wanted = (value_of(x) for x in (logits, np.asarray(logits, np.float32)))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, wanted)
    assert np.isfinite(found)


def test_a_path_may_cost_whatever_it_does():
    """Logits of one certain token a frame, which the transcript needs otherwise: 1,000 frames of 590 nats and more."""
    frames, cost = 1000, 590.0
    logits = np.float32([0, 0, cost]) * np.ones((1, frames, 1), np.float32)  # everything but token 2 costs 590
    word = Transcripts(jnp.array([[1]]), jnp.array([1]))
    # paths of blanks, one run of token 1, blanks: as many as there are runs
    wanted = frames * cost - np.log(frames * (frames + 1) / 2)
    for precision in (np.float32, np.float16):
        found = jax.jit(loss_of_long)(logits.astype(precision), word)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    slope = np.asarray(jax.jit(jax.grad(loss_of_long))(logits, word))[0]
    # token 1 is at frame t (from 0) in (t + 1) (T - t) of them
    share = (np.arange(frames) + 1) * (frames - np.arange(frames)) / (frames * (frames + 1) / 2)
    np.testing.assert_allclose(slope[:, 1], -share, atol=1e-4)
    np.testing.assert_allclose(slope[:, 0], share - 1, atol=1e-4)
    np.testing.assert_allclose(slope[:, 2], 1, atol=1e-4)


def loss_of_long(logits, word):
    return ctc(logits, word)[0]


@pytest.mark.peers
@pytest.mark.parametrize(
    "scale", [pytest.param(1, marks=pytest.mark.slow), 200, pytest.param(2000, marks=pytest.mark.slow)]
)
def test_loss_and_gradient_are_those_of_pytorch(scale):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    draw = np.random.default_rng(0)
    logits, tokens = draw.normal(size=(6, 1000, 12)) * scale, draw.integers(1, 12, (6, 80))
    logits = logits.astype(np.float32)
    tokens[3:5] = 5  # repeated: 60 in 1,000 frames; 5 in 8, which are too few, as blanks must part them
    lengths, frames = np.array([80, 31, 1, 60, 5, 0]), np.array([1000, 700, 900, 1000, 8, 12])
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    rows = x.log_softmax(-1).transpose(0, 1)
    lost = torch.nn.functional.ctc_loss(rows, *map(torch.tensor, (tokens, frames, lengths)), reduction="none")
    possible = np.isfinite(lost.detach().numpy())
    assert possible.tolist() == [True, True, True, True, False, True]
    lost[possible].sum().backward()
    wanted = np.where(possible[:, None, None], x.grad.numpy(), 0)  # PyTorch's slope of the impossible is NaN, ours 0
    words = Transcripts(jnp.asarray(tokens), jnp.asarray(lengths))

    def nats(logits):
        found = log_likelihood(blank_after(logits, jnp.asarray(frames)), words)
        return -jnp.where(possible, found, 0).sum(), -found

    slopes = jax.jit(jax.value_and_grad(nats, has_aux=True))
    (_, found), slope = slopes(jnp.asarray(logits))
    np.testing.assert_allclose(found, lost.detach(), rtol=1e-5)
    # single precision against double
    np.testing.assert_allclose(slope, wanted, atol=2e-5 if scale == 1 else 1e-3)
    with jax.enable_x64(True):
        (_, found), slope = slopes(jnp.asarray(logits, jnp.float64))
        np.testing.assert_allclose(found, lost.detach(), rtol=1e-12)
        np.testing.assert_allclose(slope, wanted, atol=1e-9)


def test_logits_of_what_cannot_be(x64):
    """-inf is a probability of 0: as very low logits, derivatives too, and infinite where the transcript needs it."""
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(4, 5, 3))
    logits[0, 1, 1] = logits[3, 0, 0] = -np.inf
    low = np.where(np.isneginf(logits), -80.0, logits)
    slope, hessian = both_of, jax.jit(jax.hessian(loss_of))
    (found, first), (wanted, wanted_first) = slope(logits), slope(low)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(first, wanted_first, atol=1e-12)
    second = [hessian(a) for a in (logits, low)]
    np.testing.assert_allclose(*second, atol=1e-12)
    never, unknown = logits.copy(), logits.copy()
    never[0, :, 1], unknown[0, 1, 1] = -np.inf, np.nan
    assert slope(never)[0] == np.inf
    assert np.isnan(slope(unknown)[0])


def test_second_derivative_is_that_of_finite_differences(x64):
    generator = np.random.default_rng(1)
    logits, direction = generator.normal(size=(2, 4, 5, 3))
    gradient, small = (lambda logits: np.asarray(slope_of(logits))), 1e-5

    def along(logits):
        return jnp.vdot(jax.grad(loss_of)(logits), direction)

    wanted = (gradient(logits + small * direction) - gradient(logits - small * direction)) / (2 * small)
    found = np.asarray(jax.jit(jax.grad(along))(logits))
    assert np.abs(found).max() > 1e-2
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    np.testing.assert_array_equal(found[1, 2:], 0)  # nothing comes from the frames past the end


@pytest.mark.parametrize(
    ("tokens", "lengths", "sentence"),
    (
        ([[1, 2], [3, 1], [1, 1], [1, 1]], [2, 1, 0, 2], r"Transcript 1 has token 3, expected 1..2"),
        ([[1, 0], [2, 1], [1, 1], [1, 1]], [2, 1, 0, 2], r"Transcript 0 has token 0, expected 1..2"),
        ([[1, -1], [2, 1], [1, 1], [1, 1]], [2, 1, 0, 2], r"Transcript 0 has token -1, expected 1..2"),
        ([[1, 2], [2, 1], [1, 1], [1, 1]], [2, 1, 0, 3], r"Transcript 3 has length 3, expected 0..2"),
        ([[1, 2], [2, 1], [1, 1], [1, 1]], [2, 1, -1, 2], r"Transcript 2 has length -1, expected 0..2"),
        ([[1, 2], [2, 2], [1, 1], [1, 1]], [2, 2, 0, 2], r"Transcript 1 of 2 tokens needs 3 frames, .* gives 2"),
    ),
)
def test_transcripts_that_cannot_be_are_refused(tokens, lengths, sentence):
    words = Transcripts(jnp.array(tokens), jnp.array(lengths))
    with pytest.raises(InputError, match=sentence):
        loss_of(jnp.zeros((4, 5, 3)), words)
    with pytest.raises(InputError, match=sentence):
        check_transcripts(words, np.asarray(FRAMES), 3)
    # traced, what is out of range has a loss and a gradient that are no numbers; what has no alignment, an infinite one
    value, gradient = jax.tree.map(np.asarray, both_of(np.zeros((4, 5, 3), np.float32), words))
    row = int(sentence.split()[1])
    if "frames" in sentence:
        assert value == np.inf and not gradient[row].any()
    else:
        assert np.isnan(value) and np.isnan(gradient[row]).any()


def test_a_frame_that_can_only_be_blank_may_part_two_equal_tokens():
    logits = np.zeros((1, 3, 3), np.float32)
    logits[0, 1, 1:] = -np.inf
    words = Transcripts(jnp.array([[1, 1]]), jnp.array([2]))
    np.testing.assert_allclose(jax.jit(loss_of_long)(logits, words), np.log(3), rtol=1e-6)


def test_logits_that_do_not_fit_are_refused(unchecked):
    with pytest.raises(InputError, match=r"\(3, 5, 3\), tokens \(4, 3\) and lengths \(4,\)"):
        ctc(jnp.zeros((3, 5, 3)), WORDS)
    for y in ((), None, WORDS.tokens):
        with pytest.raises(InputError, match="This error needs transcripts"):
            ctc(jnp.zeros((4, 5, 3)), y)


def test_greedy_decoding_against_a_loop():
    logits, lengths = np.asarray(normal(20, 9, 3)), np.arange(20) % 10
    heard = jax.jit(lambda logits, lengths: greedy(blank_after(logits, lengths)))(logits, lengths)
    tokens, found = jax.tree.map(np.asarray, tuple(heard))
    for row, kept, total, best, length in zip(tokens, found, lengths, logits.argmax(-1), lengths, strict=True):
        wanted = merged(best[:length].tolist())
        assert row[:kept].tolist() == wanted and kept == len(wanted) and total == length
        assert not row[kept:].any()


def test_spans_of_tokens_against_a_loop():
    logits = np.repeat(normal(30, 6, 3), 2, 1)[:, :11]
    (tokens, lengths), first, last = jax.tree.map(np.asarray, tuple(jax.jit(spans)(logits)))
    for row, kept, starts, ends, best in zip(tokens, lengths, first, last, logits.argmax(-1).tolist(), strict=True):
        wanted, at = [], 0
        for token, run in groupby(best):
            size = len(list(run))
            wanted += [(token, at, at + size)] if token else []
            at += size
        found = list(zip(row[:kept].tolist(), starts[:kept].tolist(), ends[:kept].tolist(), strict=True))
        assert found == wanted and not starts[kept:].any() and not ends[kept:].any()
