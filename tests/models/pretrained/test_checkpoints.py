"""Reading and writing checkpoints: what comes back, and what is refused in which words."""

import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.data.checkpoints import read_files, write_files
from metajax.models import pretrained
from metajax.names import named
from tests.models.pretrained.tiny import BFLOAT16, contents, files, write

ARCHITECTURES = ["HubertModel"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"old": True},
        {"shards": 3},
        {"dtype": BFLOAT16},
        {"dtype": np.float16, "conv_pos_batch_norm": True, "model_type": "hubert", "architectures": ARCHITECTURES},
        {"model_type": "wavlm"},
    ],
    ids=str,
)
def test_round_trip_is_the_same_files(tmp_path, options):
    write(tmp_path / "a", **options)
    _, params, settings = pretrained.load(tmp_path / "a")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    pretrained.save(tmp_path / "b", params, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_old_and_new_names_of_weight_normalisation_load_alike(tmp_path):
    _, new, _ = pretrained.load(write(tmp_path / "new"))
    _, old, _ = pretrained.load(write(tmp_path / "old", old=True) / "model.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, new, old))
    assert old["encoder"]["pos_conv_embed"]["conv"]["gain"].shape == (6,)


def test_an_adapted_model_is_written_with_its_new_weights(tmp_path):
    model, params, settings = pretrained.load(write(tmp_path / "a", num_hidden_layers=1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 400)))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    fresh = jax.tree.map(lambda a: np.asarray(a) * 2 + 1, params)
    pretrained.save(tmp_path / "b", fresh, settings)
    _, again, other = pretrained.load(tmp_path / "b")
    assert jax.tree.all(jax.tree.map(np.array_equal, fresh, again))
    assert other.vocabulary == {"<pad>": 0, "ä": 1}


def changed(folder, change, **options):
    """A checkpoint whose files were changed by `change(tensors, documents)`."""
    made = files(**options)
    tensors, documents = dict(made.tensors), dict(made.documents)
    change(tensors, documents)
    places = {name: made.places.get(name, "model.safetensors") for name in tensors}
    write_files(folder, made._replace(tensors=tensors, documents=documents, places=places))
    return folder


def configured(**fields):
    def change(tensors, documents):
        documents["config.json"] = json.dumps(json.loads(documents["config.json"]) | fields).encode()

    return change


def without(field):
    def change(tensors, documents):
        fields = json.loads(documents["config.json"])
        del fields[field]
        documents["config.json"] = json.dumps(fields).encode()

    return change


def rated(tensors, documents):
    documents["preprocessor_config.json"] = b'{"sampling_rate": 8000}'


NAME = "wav2vec2.encoder.layers.1.attention.q_proj.weight"
REFUSED = {
    "missing": (lambda t, d: t.pop(NAME), "lacks encoder.layers.1.attention.q_proj.weight, which config.json"),
    "several": (lambda t, d: [t.pop(n) for n in list(t) if "lm_head" in n], "lacks lm_head.weight and 1 more"),
    "unexpected": (lambda t, d: t.update({"extra.bias": np.ones(3)}), "holds extra.bias, for which"),
    "shape": (lambda t, d: t.update({NAME: np.ones((16, 15))}), rf"{NAME} has shape \[16, 15\], .* \[16, 16\]"),
    "integers": (lambda t, d: t.update({NAME: np.ones((16, 16), int)}), f"{NAME} is int64, expected floating point"),
    "twice": (lambda t, d: t.update({NAME[9:]: t[NAME]}), f"holds both .*{NAME[9:]}"),
    "architecture": (configured(model_type="bert"), "names 'Wav2Vec2ForCTC', expected .* wav2vec2, hubert, wavlm"),
    "head": (configured(architectures=["Wav2Vec2ForXVector"]), "names 'Wav2Vec2ForXVector', expected a Model, ForCTC"),
    "field": (without("hidden_size"), "config.json lacks hidden_size"),
    "activation": (configured(hidden_act="mish"), "hidden_act is 'mish', expected one of gelu"),
    "adapter": (configured(add_adapter=True), "add_adapter is True, expected one of False"),
    "heads": (configured(num_attention_heads=3), "hidden_size is 16, expected a multiple of num_attention_heads = 3"),
    "strides": (configured(conv_stride=[5, 2]), "differ in length"),
    "rate": (rated, "sampling_rate is 8000, expected 16000 Hz"),
    "json": (lambda t, d: d.update({"config.json": b"{"}), "config.json of the checkpoint is damaged"),
    "list": (lambda t, d: d.update({"config.json": b"[]"}), "config.json of the checkpoint holds a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_does_not_fit(tmp_path, name):
    change, sentence = REFUSED[name]
    with pytest.raises(InputError, match=sentence):
        pretrained.load(changed(tmp_path, change))


def test_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        pretrained.load(tmp_path / "absent")
    with pytest.raises(InputError, match="no checkpoint: it lacks model.safetensors"):
        pretrained.load(tmp_path)
    write(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00002.safetensors, one of the 2 shards"):
        pretrained.load(tmp_path)
    for content in ("{}", '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": {"a": 1}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match="index.json is damaged"):
            pretrained.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\1\0\0\0\0\0\0\0x")
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="lacks config.json"):
        pretrained.load(tmp_path)


def test_refuses_types_that_are_not_there(tmp_path):
    write(tmp_path, num_hidden_layers=1)
    for dtype in (jnp.float64, jnp.int32):
        with pytest.raises(InputError, match=f"dtype is {jnp.dtype(dtype)}, .* float64 needs jax_enable_x64"):
            pretrained.load(tmp_path, dtype=dtype)


def test_refuses_parameters_of_another_model(tmp_path):
    _, params, settings = pretrained.load(write(tmp_path / "a"))
    for other, sentence in (
        ({k: v for k, v in params.items() if k != "lm_head"}, "lack lm_head.kernel, .* lm_head.weight"),
        (params | {"adapter": jnp.ones(3)}, "hold adapter, which"),
        (
            params | {"lm_head": {"kernel": jnp.ones((16, 12)), "bias": jnp.ones(11)}},
            r"lm_head.kernel of shape \[16, 12\]",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            pretrained.save(tmp_path / "b", other, settings)


class Evil:
    """Pickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def archive(path, data, storages=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for key, numbers in storages:
            file.writestr(f"archive/data/{key}", numbers.tobytes())


def test_a_pickle_runs_nothing(tmp_path):
    """Reading `.bin` files that PyTorch wrote is tested with PyTorch."""
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    archive(path, pickle.dumps({"weight": Evil(tmp_path / "made")}))
    with pytest.raises(InputError, match=r"names (_?io|builtins).open, expected nothing but tensors; it was not run"):
        pretrained.load(tmp_path)
    assert not (tmp_path / "made").exists()
    archive(path, pickle.dumps({"weight": 3}))
    with pytest.raises(InputError, match="holds more than tensors by name"):
        pretrained.load(tmp_path)
    archive(path, b"\x80\x02garbage")
    with pytest.raises(InputError, match="is damaged"):
        pretrained.load(tmp_path)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="older than PyTorch 1.6; .*safetensors"):
        pretrained.load(tmp_path)


class Storage:
    def __init__(self, count):
        self.count = count


class Tensor:
    """Pickled as PyTorch pickles a tensor of shape [size] with these strides."""

    def __init__(self, size, stride, count):
        self.size, self.stride, self.storage = size, stride, Storage(count)

    def __reduce__(self):
        return Named("torch._utils", "_rebuild_tensor_v2"), (self.storage, 0, self.size, self.stride, False, {})


class Named:
    """A function by name, which need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError


class Pickler(pickle._Pickler):
    """Writes names that do not exist here, and storages apart, as PyTorch does."""

    def persistent_id(self, value):
        return (
            ("storage", Named("torch", "FloatStorage"), "0", "cpu", value.count) if isinstance(value, Storage) else None
        )

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            return self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        return super().save(value, save_persistent_id)


@pytest.mark.parametrize(
    ("size", "stride", "right"), [((2, 3), (1, 2), True), ((2, 3), (3, 2), False), ((9,), (0,), False)]
)
def test_a_tensor_lies_within_its_storage(tmp_path, size, stride, right):
    path, numbers = tmp_path / "pytorch_model.bin", np.arange(6, dtype=np.float32)
    with (tmp_path / "data").open("wb") as file:
        Pickler(file, 2).dump({"weight": Tensor(size, stride, 6)})
    archive(path, (tmp_path / "data").read_bytes(), [("0", numbers)])
    (tmp_path / "config.json").write_text("{}")
    if right:
        assert np.array_equal(read_files(tmp_path).tensors["weight"], numbers.reshape(3, 2).T)
    else:
        with pytest.raises(InputError, match="lies outside its 6 numbers"):
            read_files(tmp_path)


def test_a_tensor_is_no_storage_of_another(tmp_path):
    """Else one of shape (2000, 0), which holds nothing, would pass for 2000 numbers."""
    empty, outer = Tensor((2000, 0), (0, 0), 6), Tensor((2000,), (1,), 6)
    outer.storage = empty
    with (tmp_path / "data").open("wb") as file:
        Pickler(file, 2).dump({"weight": outer})
    archive(tmp_path / "pytorch_model.bin", (tmp_path / "data").read_bytes(), [("0", np.arange(6, dtype=np.float32))])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="something else than a storage"):
        read_files(tmp_path)


def test_names_are_those_of_the_checkpoint(tmp_path):
    params = pretrained.load(write(tmp_path))[1]
    names = named(params)
    assert {"feature_extractor.conv_layers.0.layer_norm.scale", "encoder.layers.1.attention.q_proj.kernel"} < set(names)
    assert not [name for name in names if "masked_spec_embed" in name]
    tensor = files().tensors["wav2vec2.encoder.layers.0.feed_forward.output_dense.weight"]
    assert np.array_equal(names["encoder.layers.0.feed_forward.output_dense.kernel"], tensor.T)
