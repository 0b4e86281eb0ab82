"""Joined strings, utterances with their texts, tasks of them, and buckets."""

import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from metajax import InputError, Transcripts, Utterances
from metajax.data.acoustics import babble
from metajax.data.audio import resample
from metajax.data.buckets import bucket_bounds, bucket_of, run_in_buckets
from metajax.data.corpora import fsdd
from metajax.data.corpora.joined import SAYS, digits, joined
from metajax.data.corpus import Recordings, load, summary
from metajax.data.features import FeatureSettings, log_mel, log_mels
from metajax.data.speech import by_column, crowd, held_out, in_buckets, load_encoded, load_speech, read_pieces, speakers
from metajax.data.text import decode_all, vocabulary
from metajax.losses.ctc import ctc, log_likelihood
from metajax.models import bilstm, conformer
from tests.conftest import assert_close
from tests.shared import shared_data

RATE = 16000
WORDS, SPEAKERS = ("one", "two", "six"), ("anna", "ben", "cleo")
SETTINGS = FeatureSettings()


def word(clip):
    """Silence, a burst whose frequency tells the word and the speaker, silence."""
    time = np.arange(3200) / RATE
    burst = np.sin(2 * np.pi * (500 + 100 * (clip % 9)) * time)
    return np.concatenate([np.zeros(1600), 0.2 * burst, np.zeros(800)]).astype(np.float32)


def single(broken=()):
    """Two takes of three words by three speakers; speaker and word change fastest."""
    clips = np.arange(18)

    def read(indices, sample_rate):
        return (InputError(f"clip {i} is broken") if i in broken else word(i) for i in indices)

    columns = {"label": clips % 3, "speaker": clips // 3 % 3, "take": clips // 9}
    columns = {name: column.astype(np.int32) for name, column in columns.items()}
    names = {"label": WORDS, "speaker": SPEAKERS, "take": ("0", "1")}
    return Recordings("words", tuple(f"clip {i}" for i in clips), columns, names, None, lambda: "d", read)


def test_strings_are_of_one_speaker_and_say_what_is_written():
    strings = joined(
        single(), {"one": "eins", "six": "sechs"}, strings=40, words=(2, 4), gaps=(0.1, 0.2), levels=(-6.0, -6.0)
    )
    assert len(strings.texts) == 120 and strings.name == "words_joined"
    assert set(" ".join(strings.texts).split()) == {"eins", "sechs"}
    assert {len(text.split()) for text in strings.texts} == {2, 3, 4}
    counts = Counter(" ".join(strings.texts).split())
    assert abs(counts["eins"] - counts["sechs"]) < 0.3 * counts.total()
    assert strings.columns["speaker"].tolist() == [0] * 40 + [1] * 40 + [2] * 40
    assert (strings.columns["label"] == -1).all() and set(strings.columns["take"]) == {-1, 0, 1}
    for i in (0, 41, 119):
        (wave,) = strings.read([i], RATE)
        assert np.abs(wave).max() == pytest.approx(10 ** (-6 / 20), rel=0.02)
        # bursts 0.2 s long, apart: each tells the word and the speaker
        loud = np.convolve(np.abs(wave) > 0.05, np.ones(400), "same") > 0
        edges = np.flatnonzero(np.diff(loud.astype(int), prepend=0, append=0)).reshape(-1, 2)
        heard = []
        for first, last in edges:
            spectrum = np.abs(np.fft.rfft(wave[first:last] * np.hanning(last - first), 16000))
            heard.append(round((spectrum.argmax() - 500) / 100))
        assert [{0: "eins", 2: "sechs"}[h % 3] for h in heard] == strings.texts[i].split()
        assert {h // 3 for h in heard} == {i // 40}
        gaps = (edges[1:, 0] - edges[:-1, 1]) / RATE
        assert (gaps > 0.1).all() and (gaps < 0.32).all()  # margins of trimming and fades counted


def test_words_cross_over_where_the_gap_is_negative_and_draws_repeat():
    how = {"strings": 2, "words": (3, 3), "levels": (0.0, 0.0), "trim": -60.0}
    apart, over = (joined(single(), dict.fromkeys(WORDS, "x"), gaps=(g, g), **how) for g in (0.0, -0.05))
    one, two = (next(iter(r.read([0], RATE))) for r in (apart, over))
    assert len(one) - len(two) == 2 * round(0.05 * RATE)
    again = joined(single(), dict.fromkeys(WORDS, "x"), gaps=(-0.05, -0.05), **how)
    np.testing.assert_array_equal(next(iter(again.read([0], RATE))), two)
    other = joined(single(), dict.fromkeys(WORDS, "x"), gaps=(-0.05, -0.05), seed=1, **how)
    assert other.digest() != over.digest() == again.digest()


def test_halves_share_no_recording():
    """Two takes of a word, told apart by their length, are in strings of different halves."""
    takes = single()

    def read(indices, sample_rate):
        return (np.full(1000 + 10 * i, 0.5, np.float32) for i in indices)

    strings = joined(
        takes._replace(read=read), dict.fromkeys(WORDS, "x"), strings=60, words=(1, 1), gaps=(0.0, 0.0), halves=True
    )
    assert strings.names["half"] == ("first", "second")
    heard = {half: set() for half in (0, 1)}
    for i, half in enumerate(strings.columns["half"]):
        heard[half].add((len(next(iter(strings.read([i], RATE)))) - 1000) // 10)
    assert not heard[0] & heard[1]
    assert len(heard[0]) == len(heard[1]) == 9 and {clip % 9 for clip in heard[0]} == set(range(9))
    speech = load_speech(strings, cache=None, progress=False)
    episode = jax.eval_shape(speakers(speech, shots=3, queries=3, apart="half"), jax.random.key(0))
    assert episode.query.x.lengths.shape == (3,)
    with pytest.raises(InputError, match="halves need two clips, but anna says 'one' once"):
        one = {name: column[:9] for name, column in takes.columns.items()}
        joined(takes._replace(columns=one), {"one": "1"}, halves=True)


def test_joined_what_cannot_be():
    with pytest.raises(InputError, match="no speaker says any of seven"):
        joined(single(), {"seven": "7"})
    with pytest.raises(InputError, match=r"words is \(0, 3\), expected the lowest first, 1 or more"):
        joined(single(), {"one": "1"}, words=(0, 3))
    with pytest.raises(InputError, match=r"gaps is \(1.0, 0.0\), expected the lowest first\."):
        joined(single(), {"one": "1"}, gaps=(1.0, 0.0))
    found = list(joined(single(broken=(3, 12)), {"one": "1"}, strings=1).read([0, 1], RATE))
    assert isinstance(found[1], InputError) and "is broken" in str(found[1]) and isinstance(found[0], np.ndarray)


@pytest.fixture(scope="module")
def speech():
    strings = joined(
        single(), dict.fromkeys(WORDS, "") | {"one": "ab", "two": "b", "six": "a"}, strings=6, words=(1, 6)
    )
    return load_speech(strings, cache=None, progress=False)


def test_texts_are_tokens_and_tasks_are_speakers(speech):
    assert speech.vocabulary.tokens == ("<pad>", "|", "a", "b")
    assert decode_all(speech.vocabulary, speech.transcripts) == list(speech.corpus.texts)
    train, validation, test = held_out(speech, "speaker", (1, 1))
    assert sorted(train + validation + test) == list(SPEAKERS) and len(train) == 1
    sample = jax.jit(speakers(speech, values=test, shots=2, queries=3))
    episode = sample(jax.random.key(0))
    who = SPEAKERS.index(test[0])
    mine = {text for text, s in zip(speech.corpus.texts, speech.corpus.columns["speaker"], strict=True) if s == who}
    assert set(decode_all(speech.vocabulary, episode.query.y)) <= mine and len(episode.support.x.lengths) == 2
    for frames, length in zip(*episode.query.x, strict=True):
        np.testing.assert_allclose(frames[:length].mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(frames[:length].std(), 1, atol=1e-2)
        assert not frames[length:].any()
    loud = jax.jit(by_column(speech, "speaker", shots=2, queries=3, augmentation=1.0))(jax.random.key(0))
    assert np.isfinite(loud.query.x.frames).all()


@pytest.mark.slow
def test_waves_are_kept_and_heard_as_the_corpus_and_a_task_may_adapt_to_what_it_recognises(speech):
    strings = joined(
        single(), dict.fromkeys(WORDS, "") | {"one": "ab", "two": "b", "six": "a"}, strings=6, words=(1, 6)
    )
    waves = load_speech(strings, waves=True, cache=None, progress=False)
    assert waves.corpus.features.shape == (18, int(waves.corpus.lengths.max()))
    utterances = Utterances(waves.corpus.features, waves.corpus.lengths)
    for row, (wave, length) in enumerate(zip(*map(np.asarray, utterances), strict=True)):
        np.testing.assert_array_equal(wave[:length], next(iter(strings.read([row], RATE))))
        assert not wave[length:].any()
    np.testing.assert_array_equal(waves.transcripts.tokens, speech.transcripts.tokens)
    hours = [summary(one.corpus)["hours"] for one in (waves, speech)]
    assert hours[0] == pytest.approx(hours[1], rel=0.05)
    frames, lengths = jax.jit(log_mels, static_argnums=1)(utterances, SETTINGS)
    np.testing.assert_array_equal(lengths, speech.corpus.lengths)
    np.testing.assert_allclose(frames, speech.corpus.features, atol=1e-4)
    one, other = (jax.jit(speakers(corpus, shots=0, queries=2))(jax.random.key(1)) for corpus in (waves, speech))
    assert one.support.y == ()
    assert_close((one.support.x, one.query), (one.query.x, other.query), 1e-4)
    heard = []
    sample = speakers(waves, shots=2, queries=1, scenario=lambda x, key: heard.append(x) or log_mels(x, SETTINGS))
    jax.eval_shape(sample, jax.random.key(0))
    assert [x.frames.shape[0] for x in heard] == [3]  # support and query by one call
    mine = waves.corpus.columns["speaker"] == SPEAKERS.index("ben")
    theirs = babble(Utterances(waves.corpus.features[mine], waves.corpus.lengths[mine]), 2, 8000, 3)
    np.testing.assert_array_equal(crowd(waves, ["ben"], voices=2, seconds=0.5, seed=3), theirs)
    with pytest.raises(InputError, match="waves is True without longest"):
        load(strings, SETTINGS, cache=None, waves=True)


def test_tasks_that_cannot_be(speech):
    with pytest.raises(InputError, match="speaker 'ben' has 6 utterances, expected 9 for 5 shots and 4 queries"):
        speakers(speech, values=("ben",), shots=5, queries=4)
    with pytest.raises(InputError, match="has no speaker 'dora', expected one such as 'anna'"):
        speakers(speech, values=("dora",), shots=1, queries=1)
    with pytest.raises(InputError, match="has no column 'accent', expected one of label, speaker, take"):
        by_column(speech, "accent", shots=1, queries=1)
    with pytest.raises(InputError, match=r"has 3 of speaker, too few to hold out \(1, 2\)"):
        held_out(speech, "speaker", (1, 2))


def test_utterances_that_cannot_be_are_counted_and_listed(speech):
    strings = joined(single(), dict.fromkeys(WORDS, "ab"), strings=2, words=(1, 1))
    texts = ["x" * 90, "ab", "", "ab", "ac", "ab"]
    with pytest.raises(InputError, match="words:anna:0: the text of 90 tokens needs 179 frames, but has"):
        load_speech(strings._replace(texts=tuple(texts)), cache=None, progress=False)
    known = vocabulary(["abx"])
    with pytest.warns(UserWarning, match="3 of 6 texts are left out; the first: words:anna:0"):
        found = load_speech(strings._replace(texts=tuple(texts)), known, cache=None, on_error="skip", progress=False)
    assert found.corpus.texts == ("ab",) * 3 and len(found.corpus.skipped) == 3
    assert found.corpus.clip_names == ("words:anna:1", "words:ben:1", "words:cleo:1")
    assert len(found.corpus.features) == len(found.transcripts.tokens) == 3
    with pytest.raises(InputError, match="words_joined has no texts"):
        load_speech(strings._replace(texts=None), cache=None, progress=False)


@pytest.mark.slow
def test_utterances_as_an_encoder_gives_them():
    """Here one that gives the samples themselves, 320 a frame; it sees whole seconds, and what counts of them."""
    strings = joined(single(broken=(4,)), {"one": "ab", "six": "a"}, strings=3, words=(1, 4))
    shapes = []

    def encoder(x):
        shapes.append(x.frames.shape)
        return Utterances(x.frames.reshape(1, -1, 320), x.lengths // 320)

    seconds = [len(wave) / RATE for wave in strings.read(range(9), RATE)]
    longest = sorted(seconds)[-2]
    with pytest.raises(InputError, match=f"lasts {max(seconds):.2f} s, expected at most"):
        load_encoded(strings, encoder, longest=longest, progress=False)
    with pytest.warns(UserWarning, match="words_joined: 1 of 9 clips are left out; the first: words:.* lasts"):
        found = load_encoded(strings, encoder, longest=longest, on_error="skip", progress=False)
    assert all(size % RATE == 0 for _, size in shapes) and len(shapes) < 6
    kept = [i for i in range(9) if seconds[i] <= longest]
    assert found.corpus.texts == tuple(strings.texts[i] for i in kept) and len(found.corpus.skipped) == 1
    for row, length, i in zip(*found.corpus[1:3], kept, strict=True):
        (wave,) = strings.read([i], RATE)
        assert length == len(wave) // 320 and not row[length:].any()
        np.testing.assert_array_equal(row[:length].reshape(-1), wave[: 320 * length])
    sample = speakers(found, shots=1, queries=1, normalization="none")
    x = sample(jax.random.key(0)).support.x
    assert any(np.array_equal(x.frames[0], row) for row in found.corpus.features)
    with pytest.raises(InputError, match="augmentation is 0.5, expected 0 where normalization is 'none'"):
        speakers(found, shots=1, queries=1, augmentation=0.5, normalization="none")
    with pytest.raises(InputError, match="words_joined has no texts"):
        load_encoded(strings._replace(texts=None), encoder)


def test_bounds_leave_the_least_padding():
    draw = np.random.default_rng(0)
    for count in (1, 2, 3):
        lengths = draw.integers(1, 60, 12)
        ends = np.unique(-(-lengths // 8) * 8)

        def padded(bounds, lengths=lengths):
            return sum(min(b for b in bounds if b >= length) for length in lengths)

        found = bucket_bounds(lengths, count)
        choices = [(*(c for c in some if c < ends[-1]), ends[-1]) for some in _subsets(ends[:-1], count - 1)]
        assert len(found) <= count and padded(found) == min(padded(some) for some in choices)
        assert all(bound % 8 == 0 for bound in found)
    assert bucket_bounds(np.array([3, 3]), 4) == (8,)
    assert len(bucket_bounds(draw.integers(1, 100_000, 3000), 5)) == 5
    outlier = np.repeat([10, 50, 90, 400], [100, 50, 500, 1])
    assert bucket_bounds(outlier, 4) == (16, 56, 96, 400)
    assert bucket_bounds(outlier, 4, least=8) == (16, 56, 400)  # the longest is not alone
    assert bucket_bounds(outlier, 4, least=60) == (56, 400)
    assert bucket_bounds(outlier, 4, least=1000) == (400,)
    with pytest.raises(InputError, match="0 lengths"):
        bucket_bounds(np.zeros(0, int))


def _subsets(ends, most):
    return [
        [e for i, e in enumerate(ends) if chosen >> i & 1]
        for chosen in range(2 ** len(ends))
        if chosen.bit_count() <= most
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", [bilstm(4, width=8, num_layers=1), conformer(4, width=16, num_layers=1)])
def test_bucketed_outputs_and_losses_are_those_without_buckets(model):
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 5)))
    params = jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s.shape, scale=0.5), s.dtype), shapes)
    lengths = np.array([61, 9, 24, 40, 12, 13, 58])
    x = Utterances(jnp.asarray(generator.normal(size=(7, 64, 5)), jnp.float32), jnp.asarray(lengths))
    whole = np.asarray(jax.jit(model.apply)(params, x))
    compiled = []

    @jax.jit
    def apply(utterances):
        compiled.append(utterances.frames.shape)
        return model.apply(params, utterances)

    bounds = bucket_bounds(lengths, 3)
    found = run_in_buckets(apply, x, bounds, batch=2)
    assert len(compiled) == len(bounds) == 3
    for row, one, length in zip(whole, found, lengths, strict=True):
        assert len(one) == -(-length // 4)
        np.testing.assert_allclose(one, row[: len(one)], atol=1e-5)
    said = Transcripts(jnp.asarray(generator.integers(1, 4, (7, 2))), jnp.array([2, 1, 2, 2, 1, 1, 0]))
    after = np.full_like(whole, -np.inf)
    after[..., 0] = 0  # as past an utterance's end
    for row, one in zip(after, found, strict=True):
        row[: len(one)] = one
    nats = jax.jit(log_likelihood)
    np.testing.assert_allclose(nats(after, said), nats(whole, said), rtol=1e-5)
    # one that is longer than the largest bucket
    with pytest.warns(
        UserWarning, match="2 of 7 utterances are longer than the largest bucket, 40 frames, and are split"
    ):
        split = run_in_buckets(apply, x, (16, 40), batch=2)
    for row, one, length in zip(whole, split, lengths, strict=True):
        assert len(one) == -(-length // 4)
        if length <= 40:
            np.testing.assert_allclose(one, row[: len(one)], atol=1e-5)
    alone = jax.jit(model.apply)(params, x.frames[:1, 40:61])[0]
    np.testing.assert_allclose(split[0][10:], alone, atol=1e-5)
    with pytest.raises(InputError, match=r"Utterance 0 has 61 frames, but the largest bucket holds 40 \(2 of 7"):
        bucket_of(lengths, (16, 40))


def test_buckets_of_speech_have_shapes_of_their_own(speech):
    lengths = np.asarray(speech.corpus.lengths)
    bounds = bucket_bounds(lengths, 2)
    parts = in_buckets(speech, bounds)
    assert sum(len(part.corpus.texts) for part in parts) == len(lengths)
    for part, bound in zip(parts, bounds, strict=True):
        assert part.corpus.features.shape[1] == min(bound, speech.corpus.features.shape[1])
        assert part.corpus.lengths.max() <= bound
        assert decode_all(part.vocabulary, part.transcripts) == list(part.corpus.texts)
    logits = jnp.zeros((len(lengths), 50, 4))
    loss = jax.jit(lambda logits, y: ctc(logits, y)[0])
    nats = [loss(logits[: len(p.corpus.texts)], p.transcripts) * p.transcripts.lengths.sum() for p in parts]
    whole = loss(logits, speech.transcripts) * speech.transcripts.lengths.sum()
    np.testing.assert_allclose(sum(nats), whole, rtol=1e-5)
    with pytest.raises(InputError, match="no utterance is in the bucket of 8 frames"):
        in_buckets(speech, (8, *bounds))


def test_a_recording_longer_than_any_utterance_is_read_in_pieces(tmp_path):
    """Bursts with silence between: what is cut and where it began is told, a silent piece left out."""
    wave = np.concatenate([word(0), word(1), np.zeros(5 * RATE, np.float32), word(2)])
    soundfile.write(tmp_path / "long.wav", resample(wave, RATE, 44100), 44100)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        x, starts, seconds = read_pieces(tmp_path / "long.wav", 1.5)
    told = [str(one.message) for one in told]
    assert "long.wav lasts 6.0 s and is split at silences into" in told[0] and "of at most 1.5 s" in told[0]
    assert "clips are left out; the first: " in told[1] and "is silent" in told[1]
    assert seconds == pytest.approx(6.05, abs=0.01) and len(x.lengths) == len(starts) < 5
    assert starts[0] == 0 and starts[-1] > 3 and (np.asarray(x.lengths) * 0.01 < 1.5).all()
    soundfile.write(tmp_path / "short.wav", wave[: 2 * 5600], RATE, "FLOAT")
    one = read_pieces(tmp_path / "short.wav", 1.5)
    assert one.starts == (0.0,) and one.x.frames.shape == (1, 68, 40)
    np.testing.assert_allclose(
        one.x.frames[0], jax.jit(log_mel, static_argnums=1)(wave[: 2 * 5600], SETTINGS), atol=1e-3
    )
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "tiny.wav", wave[2000:2100], RATE)
    for name, sentence in (
        ("silent", "silent.wav is silent"),
        ("none", "none.wav does not exist"),
        ("tiny", "tiny.wav has 100 samples, expected at least 400"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_pieces(tmp_path / f"{name}.wav", 1.5)


def test_joined_real_digits():
    strings = joined(fsdd.read(shared_data("fsdd")), SAYS, strings=2, words=(3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = load(strings, SETTINGS, cache=None, longest=8.0, progress=False)
    assert len(corpus.texts) == 12 and isinstance(corpus.texts[0], str)
    assert set(" ".join(corpus.texts).split()) <= set(SAYS)
    assert corpus.lengths.min() > 60


def test_digits_are_joined_from_the_corpora_that_speak_them(unchecked):
    pytest.importorskip("espeakng_loader")
    strings, settings = digits("espeak", strings=2, words=(3, 3))
    assert len(strings.names["speaker"]) == 43 and len(strings.texts) == 86 and settings.high == 7600.0
    assert set(" ".join(strings.texts).split()) == set(SAYS)
    (wave,) = strings.read([5], RATE)
    assert 0.5 < len(wave) / RATE < 3.5
    with pytest.raises(InputError, match="The corpus is 'timit', expected one of espeak, arabic, fsdd"):
        digits("timit")
