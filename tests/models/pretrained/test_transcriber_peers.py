"""Whisper's decoder against Transformers' PyTorch, on tiny random models whose texts end at different times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.core import Transcripts
from metajax.models import pretrained
from metajax.models.pretrained import whisper
from metajax.models.pretrained.layout import to_params
from tests.models.pretrained.tiny import contents

torch = pytest.importorskip("torch", reason="torch is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
from transformers.modeling_outputs import BaseModelOutput  # noqa: E402

from tests.models.pretrained.test_peers import close, compare  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

END, SIZE, FRAMES, NUM, MODELS = 30, 40, 20, 6, 6
CONFIG = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_layers": 2,
          "decoder_attention_heads": 4, "decoder_ffn_dim": 24, "vocab_size": SIZE, "max_source_positions": FRAMES,
          "max_target_positions": 24, "num_mel_bins": 80, "decoder_start_token_id": 31, "suppress_tokens": None,
          "begin_suppress_tokens": None}  # fmt: skip
CONFIG |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), END)
GENERATION = {
    "lang_to_id": {"<|en|>": 32, "<|de|>": 33, "<|ar|>": 34},
    "task_to_id": {"transcribe": 35, "translate": 36},
    "no_timestamps_token_id": 39,
    "is_multilingual": True,
    "suppress_tokens": [1, 2, *range(31, 40)],
    "begin_suppress_tokens": [5, END],
    "max_length": 24,
}


def peer(folder=None, seed=0, generation=GENERATION, **changes):
    """A random model of PyTorch; what it writes depends on the place, on the frames and, often, is the end."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG | changes)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape))
        decoder = model.model.decoder
        decoder.embed_positions.weight.mul_(5)
        decoder.embed_tokens.weight[END] *= 1.4
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(3)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    if folder is not None:
        model.save_pretrained(folder)
    return model


def frames():
    return np.random.default_rng(1).normal(size=(NUM, FRAMES, 16)).astype(np.float32)


def encoded(output):
    output = jnp.asarray(output)
    return pretrained.Encoded(output, (output,), jnp.full(len(output), FRAMES))


def params_of(model, settings):
    tensors = {name: tensor.numpy() for name, tensor in model.model.state_dict().items()}
    return to_params(tensors, settings.shapes, jnp.float32)


def rows(transcripts):
    tokens, lengths = (np.asarray(a) for a in transcripts)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def unpadded(texts):
    return [[token for token in row if token != END] for row in texts.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"decoder_layers": 1, "activation_function": "relu", "num_mel_bins": 128}])
def test_scores_of_whole_texts(tmp_path, changes):
    """And slopes with respect to the parameters of both sides."""
    theirs, x = peer(tmp_path, **changes), 0.1 * np.random.default_rng(0).normal(size=(3, 6400))
    tokens = np.random.default_rng(0).integers(0, END, (3, 24))
    weights = np.random.default_rng(1).normal(size=(3, 24, SIZE))
    mels = changes.get("num_mel_bins", 80)

    with jax.enable_x64(True), torch.no_grad():
        model, params, settings = pretrained.load(tmp_path, dtype=jnp.float64)
        heard = np.asarray(whisper.log_mel(jnp.asarray(x), mels, 2 * FRAMES).mT)
        wanted = theirs.double()(torch.tensor(heard), decoder_input_ids=torch.tensor(tokens))
        logits = pretrained.transcriber(settings, language="en").logits
        close(jax.jit(lambda p: logits(p, model.encode(p, x), jnp.asarray(tokens)))(params), wanted.logits, 1e-10)
    x = x.astype(np.float32)
    given = torch.tensor(heard, dtype=torch.float32)
    theirs = theirs.float()
    told = theirs(given, decoder_input_ids=torch.tensor(tokens))
    (told.logits * torch.tensor(weights, dtype=torch.float32)).sum().backward()
    model, params, settings = pretrained.load(tmp_path)
    logits = pretrained.transcriber(settings, language="en").logits
    frames = encoded(told.encoder_last_hidden_state.detach().numpy())
    close(jax.jit(logits)(params, frames, jnp.asarray(tokens)), told.logits, 1e-5)

    def run(params):
        return (logits(params, model.encode(params, x), jnp.asarray(tokens)) * weights).sum()

    slopes = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(slopes) >= len(settings.shapes) - 1  # positions of the encoder are not trained there
    compare(jax.jit(jax.grad(run))(params), slopes, settings, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("options", [{"language": "de"}, {}, {"num_beams": 3, "task": "translate"}], ids=str)
def test_texts_of_waves(tmp_path, mels, options):
    theirs, x = peer(tmp_path, num_mel_bins=mels), np.random.default_rng(0).normal(size=(NUM, 6400))
    x = (x * np.sin(np.arange(6400) * np.linspace(1e-3, 1e-2, NUM)[:, None])).astype(np.float32)
    heard = torch.tensor(np.asarray(whisper.log_mel(jnp.asarray(x), mels, 2 * FRAMES).mT))
    model, params, settings = pretrained.load(tmp_path)
    found = pretrained.transcriber(settings, **options).generate(params, jax.jit(model.encode)(params, x))
    assert rows(found) == unpadded(theirs.generate(heard, **options))


OPTIONS = {
    "greedy": {"language": "de"},
    "greedy, short": {"language": "ar", "max_new_tokens": 5},
    "beams of 3": {"language": "en", "num_beams": 3},
    "beams of 5, long": {"num_beams": 5, "length_penalty": 2.0},
    "beams of 5, short": {"language": "de", "num_beams": 5, "length_penalty": -1.0},
    "full": {"language": "de", "num_beams": 4, "early_stopping": True},
    "never": {"task": "transcribe", "num_beams": 4, "early_stopping": "never", "length_penalty": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_texts_of_random_models(tmp_path, name):
    """Token for token, rows of a batch ending at different times; one program for all models."""
    peer(tmp_path)
    _, _, settings = pretrained.load(tmp_path)
    ours = {"max_tokens" if k == "max_new_tokens" else k: v for k, v in OPTIONS[name].items()}
    speech = pretrained.transcriber(settings, **ours)
    lengths = set()
    for seed in range(MODELS):
        theirs = peer(seed=seed)
        wanted = unpadded(theirs.generate(encoder_outputs=BaseModelOutput(torch.tensor(frames())), **OPTIONS[name]))
        assert rows(speech.generate(params_of(theirs, settings), encoded(frames()))) == wanted
        lengths |= {len(row) for row in wanted}
    assert len(lengths) >= 5


GENERATIONS = {
    "old": GENERATION | {"forced_decoder_ids": [[1, None], [2, 35]]},
    "english": {"forced_decoder_ids": [[1, 39]], "no_timestamps_token_id": 39, "suppress_tokens": [3], "max_length": 9},
    "bare": {},
    "two ends": GENERATION | {"eos_token_id": [END, 7], "language": "de", "task": "translate"},
}


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", GENERATIONS)
def test_what_generation_config_says(tmp_path, name, beams):
    for seed in range(3):
        theirs = peer(tmp_path, seed, GENERATIONS[name])
        _, params, settings = pretrained.load(tmp_path)
        wanted = theirs.generate(
            encoder_outputs=BaseModelOutput(torch.tensor(frames())), num_beams=beams, max_new_tokens=12
        )
        wanted = [row[: row.index(7)] if 7 in row and name == "two ends" else row for row in unpadded(wanted)]
        speech = pretrained.transcriber(settings, num_beams=beams, max_tokens=12)
        assert rows(speech.generate(params, encoded(frames()))) == wanted


def test_round_trip_with_the_decoder_and_adapted(tmp_path):
    theirs = peer(tmp_path / "a")
    _, params, settings = pretrained.load(tmp_path / "a")
    pretrained.save(tmp_path / "b", params, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    params = jax.tree.map(lambda a: 1.1 * a + 0.01, params)
    pretrained.save(tmp_path / "c", params, settings)
    again = type(theirs).from_pretrained(tmp_path / "c").eval()
    speech, tokens = pretrained.transcriber(settings), np.arange(12).reshape(NUM, 2)
    outputs = BaseModelOutput(torch.tensor(frames()))
    close(
        speech.logits(params, encoded(frames()), jnp.asarray(tokens)),
        again(encoder_outputs=outputs, decoder_input_ids=torch.tensor(tokens)).logits,
        1e-5,
    )


def test_text_is_as_their_tokenizer_writes_it(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|startofprev|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġa", "lo", "Ã¤", *special])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[("Ġ", "a"), ("l", "o"), ("Ã", "¤")])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens(["<|0.00|>", "<|0.02|>"])
    peer(tmp_path, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    assert "tokenizer.json" in contents(tmp_path)
    _, _, settings = pretrained.load(tmp_path)
    speech = pretrained.transcriber(settings, language="en")
    said = [" alo Hällo, 日本 \n-- a", "ß", "", "Allo\tÅÄ"]
    tokens = [tokenizer.encode(text) for text in said]
    tokens[3].insert(4, tokenizer.convert_tokens_to_ids("<|0.02|>"))
    tokens.append(np.random.default_rng(0).integers(0, len(tokenizer), 60).tolist())
    lengths = np.array([len(row) for row in tokens])
    padded = np.zeros((len(tokens), lengths.max()), int)
    for line, row in zip(padded, tokens, strict=True):
        line[: len(row)] = row
    texts = speech.text(Transcripts(padded, lengths))
    assert texts[:4] == said
    assert texts == [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
