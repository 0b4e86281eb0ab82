"""Whisper's decoder, without Transformers: against scores of whole texts, and what is refused in which words."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import InputError
from metajax.core import Transcripts
from metajax.data.checkpoints import write_files
from metajax.losses import classify
from metajax.models import pretrained
from tests.conftest import normal
from tests.models.pretrained.tiny import GENERATION, contents, whisper_files

TEXT = (0, 1, 2, 3, 4, 6)  # what is not suppressed, the end last
NUM = 3


def loaded(folder, made=None):
    write_files(folder, whisper_files() if made is None else made)
    return pretrained.load(folder)


def heard(num=NUM, rows=slice(None)):
    """Of any encoder: frames alone are looked up."""
    frames = jnp.asarray(np.tile(np.asarray(normal(NUM, 10, 8, scale=2))[rows], (num // NUM, 1, 1)))
    return pretrained.Encoded(frames, (frames,), jnp.asarray(np.full(len(frames), 10)))


def log_probabilities(speech, params, encoded, texts):
    """Of each token of texts `[n, length]` behind the prompt, scored as a whole: `[n, length, vocabulary]`."""
    start = jnp.tile(jnp.array(speech.prompt), (len(texts), 1))
    scores = jax.jit(speech.logits)(params, encoded, jnp.concatenate([start, texts], 1)[:, :-1])
    return np.asarray(jax.nn.log_softmax(scores))[:, len(speech.prompt) - 1 :]


def test_the_best_next_token_is_that_of_the_text_scored_as_a_whole(tmp_path):
    """What the cache holds is what is computed at once."""
    _, params, settings = loaded(tmp_path)
    speech = pretrained.transcriber(settings, language="de")
    assert speech.prompt == (5, 8, 9, 11) and speech.ends == (6,)
    tokens, lengths = speech.generate(params, heard())
    scores = log_probabilities(speech, params, heard(), tokens)
    assert tokens.shape == (NUM, 5) and len(set(lengths.tolist())) > 1
    for row, length, score in zip(tokens.tolist(), lengths.tolist(), scores, strict=True):
        for i in range(min(length + 1, 5)):
            allowed = TEXT[:-1] if i == 0 else TEXT
            assert row[i] == allowed[score[i, list(allowed)].argmax()]
        assert length == 5 or row[length:] == [6] * (5 - length)


@pytest.mark.parametrize("penalty", [1.0, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.5, 2.0))])
def test_a_beam_of_all_texts_finds_the_best(tmp_path, penalty):
    _, params, settings = loaded(tmp_path)
    options = {"language": "en", "max_tokens": 3, "num_beams": 36, "early_stopping": "never"}
    speech = pretrained.transcriber(settings, length_penalty=penalty, **options)
    found = [tuple(row[:n]) for row, n in zip(*map(np.asarray, speech.generate(params, heard())), strict=True)]
    texts = [text for text in itertools.product(TEXT, repeat=3) if text[0] != 6 and (text[1] != 6 or text[2] == 6)]
    counts = [min(text.index(6) + 1 if 6 in text else 3, 3) for text in texts]
    for i, row in enumerate(found):
        encoded = heard(len(texts) * NUM, slice(i, i + 1))
        scores = log_probabilities(speech, params, encoded, jnp.array(texts))
        marks = [
            sum(score[j, text[j]] for j in range(count)) / count**penalty
            for text, count, score in zip(texts, counts, scores, strict=True)
        ]
        best = texts[int(np.argmax(marks))]
        assert row == (best[: best.index(6)] if 6 in best else best)


def test_lowers_for_every_accelerator(tmp_path):
    _, params, settings = loaded(tmp_path)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, heard()))
    for beams in (1, 2):
        speech = pretrained.transcriber(settings, num_beams=beams)
        lowered = jax.export.export(speech.generate, platforms=["cpu", "cuda", "tpu"])(*shapes)
        assert lowered.platforms == ("cpu", "cuda", "tpu") and lowered.out_avals[0].shape == (NUM, 6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_in_other_precisions(tmp_path, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        write_files(tmp_path, whisper_files())
        _, params, settings = pretrained.load(tmp_path, dtype=dtype)
        encoded = jax.tree.map(lambda a: a.astype(dtype) if a.ndim == 3 else a, heard())
        for beams in (1, 3):
            speech = pretrained.transcriber(settings, num_beams=beams)
            _, lengths = speech.generate(params, encoded)
            assert lengths.shape == (NUM,)
        assert speech.logits(params, encoded, jnp.zeros((NUM, 2), int)).dtype == dtype


def adapting(folder):
    """Low-rank matrices in the decoder learn from three texts: cross-entropy of what follows the prompt."""
    model, params, settings = loaded(folder)
    speech = pretrained.transcriber(settings, language="de")
    texts = np.array([[*speech.prompt, 0, 1, 6], [*speech.prompt, 4, 6, 6], [*speech.prompt, 2, 2, 6]])
    follows = np.where(np.arange(1, 7) < len(speech.prompt), -1, texts[:, 1:])
    follows[1, -1] = -1  # behind its end

    def apply(params, x, key=None):
        return speech.logits(params, model.encode(params, x["heard"]), x["said"])

    def error(outputs, y):
        return classify(outputs.reshape(-1, 12), y.reshape(-1))

    waves = normal(NUM, 3000, scale=0.1)
    batch = mj.Batch({"heard": waves, "said": jnp.array(texts[:, :-1])}, jnp.array(follows))
    part = mj.lora(2, "decoder.layers.*.kernel")
    learner, objective = mj.maml(apply, error, optax.sgd(0.1), 2, part=part)
    return learner, objective, learner.init(params, jax.random.key(1)), batch


def test_a_part_of_the_decoder_is_what_a_task_learns(tmp_path):
    learner, _, theta, batch = adapting(tmp_path)
    phi = jax.eval_shape(lambda key: mj.adapt(learner, theta, batch, key, 1)[0], jax.random.key(0))
    assert len(phi.own) == 10 and all(name.startswith("decoder.layers.0.") for name in phi.own)


@pytest.mark.slow
def test_slopes_run_through_adaptation_to_texts(tmp_path):
    _, objective, theta, batch = adapting(tmp_path)
    run = jax.jit(jax.value_and_grad(lambda theta: objective(theta, mj.Episode(batch, batch), jax.random.key(0))[0]))
    losses = []
    for _ in range(3):
        loss, slopes = run(theta)
        theta = jax.tree.map(lambda a, d: a - 0.05 * d, theta, slopes)
        losses.append(float(loss))
    assert losses[2] < losses[0] - 0.01
    assert np.abs(slopes["params"]["encoder"]["conv1"]["kernel"]).max() > 0


def test_an_output_projection_of_its_own_and_one_that_is_held_twice(tmp_path):
    made = whisper_files(tie_word_embeddings=False)
    _, params, settings = loaded(tmp_path / "a", made)
    assert params["proj_out"]["kernel"].shape == (8, 12)
    speech = pretrained.transcriber(settings, language="en")
    said, logits = np.zeros((NUM, 2), int), jax.jit(speech.logits)
    other = params | {"proj_out": {"kernel": 2 * params["proj_out"]["kernel"]}}
    np.testing.assert_allclose(2 * np.asarray(logits(params, heard(), said)), logits(other, heard(), said), rtol=1e-5)
    tied = whisper_files()
    twice = tied.tensors | {"proj_out.weight": tied.tensors["model.decoder.embed_tokens.weight"]}
    _, params, settings = loaded(tmp_path / "b", made._replace(tensors=twice, documents=tied.documents))
    pretrained.save(tmp_path / "c", params, settings)
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
    pretrained.save(tmp_path / "d", jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 1), params), settings)
    _, again, _ = pretrained.load(tmp_path / "d")
    assert np.array_equal(
        again["decoder"]["embed_tokens"]["embedding"], params["decoder"]["embed_tokens"]["embedding"] + 1
    )
    with pytest.raises(InputError, match=r"proj_out.weight differs from model.decoder.embed_tokens.weight, where"):
        loaded(tmp_path / "e", made._replace(documents=tied.documents))


def written(folder, tokens, **documents):
    made = whisper_files()
    _, _, settings = loaded(folder, made._replace(documents=made.documents | documents))
    rows = np.array([tokens, tokens])
    return pretrained.transcriber(settings).text(Transcripts(rows, np.array([len(tokens), 1])))


def test_text_of_bytes(tmp_path):
    """Ġ is a space, a letter beyond ASCII is of several tokens, half a letter is told as such."""
    known = {"<|endoftext|>": 6, "a": 0, "Ġb": 1, "Ã": 2, "¤": 3, "ĠæĹ¥": 4}
    files = {"vocab.json": json.dumps(known).encode(), "added_tokens.json": b'{"<|en|>": 7, "<|0.02|>": 11}'}
    assert written(tmp_path / "a", [0, 1, 2, 3, 7, 4, 11, 6], **files) == ["a bä 日", "a"]
    assert written(tmp_path / "a", [2, 0], **files) == ["\ufffda", "\ufffd"]
    added = [{"id": 6, "content": "<|endoftext|>"}, {"id": 7, "content": "<|en|>"}]
    whole = {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "Ġb": 1}}, "added_tokens": added}).encode()}
    assert written(tmp_path / "b", [0, 7, 1, 6], **whole) == ["a b", "a"]
    damaged = "tokenizer.json of the checkpoint is damaged, expected"
    for files, sentence in (
        (whole, "Token 9 is not of the checkpoint's vocabulary of 4 tokens"),
        ({}, "has no vocab.json or tokenizer.json"),
        ({"tokenizer.json": b'{"model": {"vocab": []}}'}, damaged),
        ({"tokenizer.json": b'{"added_tokens": [1]}'}, damaged),
    ):
        with pytest.raises(InputError, match=sentence):
            written(tmp_path / sentence[:20] / str(len(files)), [0, 9], **files)


ENGLISH = {
    "decoder_start_token_id": 5,
    "eos_token_id": 6,
    "forced_decoder_ids": [[1, 11]],
    "no_timestamps_token_id": 11,
}
OLD = GENERATION | {"forced_decoder_ids": [[1, None], [2, 9]]}
PROMPTS = {
    "heard": (GENERATION, {}, (5, None, 11)),
    "task": (OLD, {"task": "translate"}, (5, None, 10, 11)),
    "old": (OLD, {}, (5, None, 9, 11)),
    "old, language": (OLD, {"language": "<|de|>"}, (5, 8, 9, 11)),
    "both": (GENERATION, {"language": "EN", "task": "translate"}, (5, 7, 10, 11)),
    "stored": (GENERATION | {"language": "de", "num_beams": None}, {}, (5, 8, 9, 11)),
    "english": (ENGLISH, {}, (5, 11)),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(tmp_path, name):
    generation, options, prompt = PROMPTS[name]
    _, _, settings = loaded(tmp_path, whisper_files(generation=generation))
    assert pretrained.transcriber(settings, **options).prompt == prompt


def test_a_checkpoint_may_limit_its_texts(tmp_path):
    _, params, settings = loaded(tmp_path, whisper_files(generation=GENERATION | {"max_new_tokens": 2}))
    few = pretrained.transcriber(settings, language="de").generate(params, heard()).tokens
    more = pretrained.transcriber(settings, language="de", max_tokens=4).generate(params, heard()).tokens
    assert few.shape == (NUM, 2) and more.shape == (NUM, 4)
    np.testing.assert_array_equal(few, more[:, :2])


REFUSED = {
    "language": ({}, {"language": "fr"}, r"language is 'fr', expected <\|en\|>, <\|de\|>."),
    "english": (ENGLISH, {"language": "en"}, "language is 'en', expected None, as generation_config.json names none"),
    "task": ({}, {"task": "sing"}, r"task is 'sing', expected transcribe, translate"),
    "prompt": ({}, {"language": "en", "max_tokens": 6}, "prompt has 4 tokens and max_tokens is 6, .* = 9"),
    "tokens": ({}, {"max_tokens": 0}, "max_tokens is 0, expected 1 or more"),
    "beams": ({}, {"num_beams": 0}, "num_beams is 0, expected 1 or more"),
    "start": ({"eos_token_id": 6}, {}, "generation_config.json lacks decoder_start_token_id"),
    "end": ({"decoder_start_token_id": 6}, {}, "generation_config.json lacks eos_token_id"),
    "vocabulary": (GENERATION | {"eos_token_id": [6, 12]}, {}, r"12 is no token of 0..11"),
    "forced": (ENGLISH | {"forced_decoder_ids": [[2, 9]]}, {}, r"forced_decoder_ids is \[\[2, 9\]\], expected places"),
    "sampling": (GENERATION | {"do_sample": True}, {}, "do_sample is True, which is not read, expected False"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(tmp_path, name):
    generation, options, sentence = REFUSED[name]
    _, _, settings = loaded(tmp_path, whisper_files(generation=generation or GENERATION))
    with pytest.raises(InputError, match=sentence):
        pretrained.transcriber(settings, **options)


def test_refuses_what_is_no_decoder(tmp_path):
    made = whisper_files()
    tensors = dict(made.tensors)
    tensors.pop("model.decoder.layers.0.encoder_attn.k_proj.weight")
    with pytest.raises(
        InputError, match="lacks decoder.layers.0.encoder_attn.k_proj.weight, which config.json asks for"
    ):
        loaded(tmp_path / "a", made._replace(tensors=tensors))
    config = {k: v for k, v in json.loads(made.documents["config.json"]).items() if k != "decoder_layers"}
    with pytest.raises(InputError, match="config.json lacks decoder_layers, which a whisper model needs"):
        loaded(tmp_path / "b", made._replace(documents={"config.json": json.dumps(config).encode()}))
    _, _, settings = loaded(tmp_path / "c", whisper_files(head=False))
    with pytest.raises(InputError, match="The checkpoint holds no decoder, expected one of Whisper's"):
        pretrained.transcriber(settings)


def test_refuses_texts_of_another_shape(tmp_path, unchecked):
    _, params, settings = loaded(tmp_path)
    speech = pretrained.transcriber(settings)
    for shape in ((NUM, 10), (NUM - 1, 2), (NUM,)):
        with pytest.raises(InputError, match=r"tokens have shape .*, expected \[3, length\] of at most 9"):
            speech.logits(params, heard(), jnp.zeros(shape, int))
