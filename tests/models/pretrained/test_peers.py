"""Pretrained encoders against Transformers' PyTorch, on tiny random configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax import InputError, Utterances
from metajax.models import pretrained
from metajax.models.pretrained.layout import placed
from metajax.names import named, replaced
from tests.models.pretrained.tiny import SMALL, contents

torch = pytest.importorskip("torch", reason="torch is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

LAYER, STABLE = {"feat_extract_norm": "layer"}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
ODD, TWO_TAPS = {"num_conv_pos_embeddings": 5}, {"num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 1}
MODELS = {
    "base": ("Wav2Vec2Model", {}),
    "large": ("Wav2Vec2Model", STABLE),
    "large ctc": ("Wav2Vec2ForCTC", STABLE | {"conv_bias": True}),
    "layer, normalised after": ("Wav2Vec2Model", LAYER | ODD),
    "group, stable": ("Wav2Vec2Model", {"do_stable_layer_norm": True}),
    "two taps, one group": ("Wav2Vec2Model", LAYER | TWO_TAPS),
    "activations": ("Wav2Vec2Model", LAYER | {"hidden_act": "relu", "feat_extract_activation": "silu"}),
    "eps": ("Wav2Vec2Model", STABLE | {"layer_norm_eps": 1e-2}),
    "mms": ("Wav2Vec2ForCTC", STABLE | {"adapter_attn_dim": 4}),
    "pretraining": ("Wav2Vec2ForPreTraining", {"codevector_dim": 8, "proj_codevector_dim": 8}),
    "hubert": ("HubertModel", {}),
    "hubert large ctc": ("HubertForCTC", STABLE | {"conv_bias": True}),
    "no projection norm": ("HubertModel", LAYER | {"feat_proj_layer_norm": False}),
    "batch norm": ("HubertModel", STABLE | {"conv_pos_batch_norm": True}),
    "wavlm": ("WavLMModel", {}),
    "wavlm large": ("WavLMModel", STABLE | ODD),
    "wavlm ctc, few buckets": ("WavLMForCTC", LAYER | {"num_buckets": 8, "max_bucket_distance": 16}),
}  # fmt: skip
EVERYDAY = ("base", "large ctc", "batch norm", "wavlm")
NUM, TIME = 3, 900


def peer(name, folder, **changes):
    """A random model of PyTorch, none of whose parameters is 0 or 1, saved."""
    kind, options = MODELS[name]
    cls = getattr(transformers, kind)
    return saved(cls, cls.config_class(**SMALL | {"pad_token_id": 0} | options | changes), folder)


def saved(cls, config, folder):
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape))
    model.save_pretrained(folder)
    return model


def waves(time=TIME):
    return np.random.default_rng(0).normal(size=(NUM, time)).astype(np.float32)


def told(model, x, lengths=None, dtype=torch.float32):
    """Frames, all layers and scores of the model of PyTorch."""
    model = model.to(dtype)
    core = getattr(model, model.base_model_prefix, model)
    options = {"output_hidden_states": True}
    if lengths is not None:
        options["attention_mask"] = torch.tensor(np.arange(x.shape[1]) < np.asarray(lengths)[:, None]).long()
    encoded = core(torch.tensor(x).to(dtype), **options)
    head = getattr(model, "lm_head", None)
    return encoded.last_hidden_state, encoded.hidden_states, None if head is None else head(encoded.last_hidden_state)


def close(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


def compare(grads, slopes, settings, tolerance):
    """Gradients, relative to each parameter's largest, with those of PyTorch, by name in the file.

    Some are 0 but for rounding, such as that of the bias of keys, so that none counts as less than 1e-3 of all.
    """
    grads = named(grads)
    least = 1e-3 * max(np.abs(g).max() for g in grads.values())
    for name in (name for name in settings.shapes if settings.names[name] in slopes):
        place = placed(name, settings.shapes[name])
        slope = slopes[settings.names[name]].numpy()
        slope = slope.T if place.endswith("kernel") else slope.reshape(grads[place].shape)
        scale = max(np.abs(slope).max(), least)
        np.testing.assert_allclose(grads[place] / scale, slope / scale, rtol=0, atol=tolerance, err_msg=name)


def equals(folder, theirs, dtype, tolerance):
    """Outputs, layers, scores and the slopes of all parameters."""
    x = waves().astype(dtype)
    theirs.zero_grad()
    output, layers, scores = told(theirs, x, dtype=getattr(torch, dtype))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    model, params, settings = pretrained.load(folder, dtype=jnp.dtype(dtype))

    def run(params):
        encoded = model.encode(params, x)
        return (encoded.output * weights.numpy()).sum(), (encoded, model.apply(params, x))

    (_, (encoded, applied)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    close(encoded.output, output, tolerance)
    close(applied, output if scores is None else scores, tolerance)
    assert len(encoded.layers) == len(layers) == 3
    for k in range(3 - theirs.config.do_stable_layer_norm):  # in place of the last of a stable one they give the output
        close(encoded.layers[k], layers[k], tolerance)

    (output * weights).sum().backward()
    slopes = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    reached = [name for name in settings.shapes if settings.names[name] in slopes]
    assert len(reached) >= len(settings.shapes) - 4  # all but a head and statistics
    compare(grads, slopes, settings, 1e-4 if dtype == "float32" else tolerance)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERYDAY else pytest.mark.slow) for n in MODELS if n != "large"]
)
def test_equals_transformers(tmp_path, name):
    theirs = peer(name, tmp_path)
    with jax.enable_x64(True):
        equals(tmp_path, theirs, "float64", 1e-10)
    if name in EVERYDAY:  # single precision of others: below
        equals(tmp_path, theirs, "float32", 1e-5)


UNEQUAL = "large", "layer, normalised after", "mms", "hubert large ctc", "wavlm large", "activations", "eps"


@pytest.mark.parametrize("name", [*UNEQUAL, "no projection norm"])
def test_equals_transformers_on_unequal_lengths(tmp_path, name):
    theirs, lengths = peer(name, tmp_path), [TIME, 433, 105]
    model, params, _ = pretrained.load(tmp_path)
    encoded = jax.jit(model.encode)(params, Utterances(jnp.asarray(waves()), jnp.asarray(lengths)))
    with torch.no_grad():
        output, layers, _ = told(theirs, waves(), lengths)
    assert encoded.lengths.tolist() == [20, 9, 1]
    for i, count in enumerate(encoded.lengths.tolist()):
        close(encoded.output[i, :count], output[i, :count], 1e-5)
        close(encoded.layers[1][i, :count], layers[1][i, :count], 1e-5)


@pytest.mark.parametrize("name", ["base", "group, stable", "batch norm", "wavlm"])
def test_padded_is_what_transformers_gives_alone(tmp_path, name):
    """Also where Transformers takes no mask, or lets padding into a batch normalisation."""
    theirs, lengths = peer(name, tmp_path), [TIME, 433, 105]
    model, params, _ = pretrained.load(tmp_path)
    encoded = jax.jit(model.encode)(params, Utterances(jnp.asarray(waves()), jnp.asarray(lengths)))
    for i, length in enumerate(lengths):
        with torch.no_grad():
            output = told(theirs, waves()[i : i + 1, :length])[0][0]
        assert len(output) == encoded.lengths[i] > 0
        close(encoded.output[i, : len(output)], output, 1e-5)


def test_400_samples_of_the_published_convolutions(tmp_path):
    options = {"conv_dim": [6] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
    theirs = peer("large", tmp_path, num_feat_extract_layers=7, **options)
    model, params, _ = pretrained.load(tmp_path)
    for time, frames in ((400, 1), (719, 1), (720, 2)):
        ours = jax.jit(model.apply)(params, waves(time))
        assert ours.shape[1] == frames
        close(ours, told(theirs, waves(time))[0], 1e-5)


def test_long_distances_of_wavlm_fall_into_the_buckets_of_transformers(tmp_path):
    theirs = peer("wavlm", tmp_path)
    attention, time = theirs.encoder.layers[0].attention, 1500
    _, params, settings = pretrained.load(tmp_path)
    c = pretrained.wav2vec2.checked(settings.config)
    table = params["encoder"]["layers"]["0"]["attention"]["rel_attn_embed"]["embedding"]
    ours = pretrained.wav2vec2._relative(c, table, time)
    assert np.array_equal(np.asarray(ours), attention.compute_bias(time, time).detach().numpy())


def test_normalises_as_the_preprocessor_says(tmp_path):
    theirs, lengths = peer("large", tmp_path), [TIME, 433, 120]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    x = 3 + 0.1 * waves()
    heard = extractor([a[:n] for a, n in zip(x, lengths, strict=True)], sampling_rate=16000, padding=True)
    model, params, settings = pretrained.load(tmp_path)
    assert settings.normalize
    with torch.no_grad():
        output = told(theirs, np.stack(heard["input_values"]), lengths)[0]
    encoded = jax.jit(model.encode)(params, Utterances(jnp.asarray(x), jnp.asarray(lengths)))
    for i, count in enumerate(encoded.lengths.tolist()):
        close(encoded.output[i, :count], output[i, :count], 1e-5)


@pytest.mark.parametrize("name", ["large ctc", "batch norm", "pretraining"])
def test_round_trip_and_adapted_weights_load_in_transformers(tmp_path, name):
    theirs = peer(name, tmp_path / "a")
    model, params, settings = pretrained.load(tmp_path / "a")
    pretrained.save(tmp_path / "b", params, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    params = jax.tree.map(lambda a: 1.1 * a + 0.01, params)
    pretrained.save(tmp_path / "c", params, settings)
    again = type(theirs).from_pretrained(tmp_path / "c").eval()
    close(jax.jit(model.encode)(params, waves()).output, told(again, waves())[0], 1e-5)


def test_reads_what_torch_save_wrote(tmp_path):
    theirs = peer("large ctc", tmp_path)
    state = theirs.state_dict()  # with an attribute of its own, `_metadata`
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        stem = "wav2vec2.encoder.pos_conv_embed.conv."
        state[stem + old] = state.pop(f"{stem}parametrizations.weight.{new}")
    _, wanted, _ = pretrained.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state["lm_head.weight"] = torch.nn.Parameter(state["lm_head.weight"].T.contiguous().T)  # other strides
    torch.save(state, tmp_path / "pytorch_model.bin")
    _, params, settings = pretrained.load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted))
    pretrained.save(tmp_path / "out", params, settings)
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in settings.names.values()
    type(theirs).from_pretrained(tmp_path / "out")


def test_what_torch_save_wrote_before_1_6_is_refused_and_what_it_tells_to_do_helps(tmp_path):
    peer("base", tmp_path)
    _, wanted, _ = pretrained.load(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), path, _use_new_zipfile_serialization=False)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin .* older than PyTorch 1\.6; load it by torch\.load"):
        pretrained.load(tmp_path)
    save_file(torch.load(path, weights_only=True), tmp_path / "model.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, pretrained.load(tmp_path)[1], wanted))


def whisper(folder, **changes):
    options = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    options |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 30}
    options |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    return saved(transformers.WhisperForConditionalGeneration, transformers.WhisperConfig(**options | changes), folder)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_that_of_whisper(mels):
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    lengths, x = [20000, 5000], 0.1 * waves(20000)[:2]
    heard = extractor([a[:n] for a, n in zip(x, lengths, strict=True)], sampling_rate=16000, return_tensors="np")
    x[1, 5000:] = 0
    ours = jax.jit(pretrained.whisper.log_mel, static_argnums=1)(x, mels)
    np.testing.assert_allclose(ours.mT, heard["input_features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mels", [80, 128])
def test_equals_the_encoder_of_whisper(tmp_path, mels):
    theirs = whisper(tmp_path, num_mel_bins=mels, max_source_positions=50)
    encoder, x = theirs.model.encoder, 0.1 * waves(16000)

    with jax.enable_x64(True), torch.no_grad():
        model, params, _ = pretrained.load(tmp_path, dtype=jnp.float64)
        wide = x.astype(np.float64)
        heard = np.asarray(pretrained.whisper.log_mel(jnp.asarray(wide), mels, 100).mT)
        output = encoder.double()(torch.tensor(heard)).last_hidden_state
        close(jax.jit(model.apply)(params, wide), output, 1e-10)
    encoded = encoder.float()(torch.tensor(heard, dtype=torch.float32), output_hidden_states=True)
    encoded.last_hidden_state.pow(2).sum().backward()
    model, params, settings = pretrained.load(tmp_path)

    def run(params):
        encoded = model.encode(params, x)
        return jnp.square(encoded.output).sum(), encoded

    (_, ours), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    close(ours.output, encoded.last_hidden_state, 1e-5)
    for layer, wanted in zip(ours.layers[:-1], encoded.hidden_states[:-1], strict=True):
        close(layer, wanted, 1e-5)
    errors = [np.abs(np.asarray(a) - output.numpy()).max() for a in (ours.output, encoded.last_hidden_state.detach())]
    assert errors[0] < 2 * errors[1]  # as near to double precision, though from the wave
    slopes = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    inside = [name for name in settings.shapes if name.startswith("encoder.")]
    assert len(slopes) >= len(inside) - 1  # positions are not trained there
    compare(grads, slopes, settings, 1e-4)


def test_whisper_is_written_back_with_its_decoder(tmp_path):
    theirs = whisper(tmp_path / "a", num_mel_bins=80, max_source_positions=50)
    model, params, settings = pretrained.load(tmp_path / "a")
    assert len(settings.files.tensors) == 0 and params.keys() == {"encoder", "decoder"}
    pretrained.save(tmp_path / "b", params, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    type(theirs).from_pretrained(tmp_path / "b")
    x = Utterances(jnp.asarray(0.1 * waves(8000)), jnp.array([8000, 640, 700]))
    assert model.encode(params, x).lengths.tolist() == [25, 2, 3]
    with pytest.raises(InputError, match="x has 16001 samples, expected at most 16000"):
        model.apply(params, waves(16001))


def test_a_language_of_mms_is_what_a_task_learns(tmp_path):
    """Its adapters and head in place of the model's, by name or as phi, as Transformers loads them."""
    peer("mms", tmp_path / "other", vocab_size=7)._get_adapters()
    other = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "other")
    theirs = peer("mms", tmp_path / "model")
    path = tmp_path / "model" / "adapter.xyz.safetensors"
    save_file({name: 1.5 * tensor.detach() for name, tensor in other._get_adapters().items()}, path)
    theirs = type(theirs).from_pretrained(tmp_path / "model").eval()
    theirs.load_adapter("xyz")
    model, params, settings = pretrained.load(tmp_path / "model")
    own = pretrained.adapter(path, settings)
    with torch.no_grad():
        close(jax.jit(model.apply)(replaced(params, own), waves()), told(theirs, waves())[2], 1e-5)
    pretrained.save(tmp_path / "again", replaced(params, own), settings)
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    assert again.config.vocab_size == 7
    with torch.no_grad():
        close(told(again, waves())[2], told(theirs, waves())[2], 1e-6)
    part = mj.only("*.adapter_layer", "lm_head")
    assert part.split({"params": params}).keys() == own.keys()
    assert part.join({"params": params}, own, 0)["lm_head"]["kernel"].shape == (16, 7)
    save_file({"lm_head.weight": torch.ones(7, 16), "lm_head.bias": torch.ones(7)}, path)
    with pytest.raises(
        InputError, match="xyz.safetensors lacks encoder.layers.0.adapter_layer.norm.weight and 11 more"
    ):
        pretrained.adapter(path, settings)
    peer("large", tmp_path / "none")
    with pytest.raises(InputError, match="has no adapters"):
        pretrained.adapter(path, pretrained.load(tmp_path / "none")[2])
