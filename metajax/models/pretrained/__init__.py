"""Pretrained encoders of speech, read from disk; their parameters are nested dicts, which any part can address."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

from metajax.core import KeyArray, Params
from metajax.data.checkpoints import amended, document, read_files, read_tensors, write_files
from metajax.errors import InputError
from metajax.models.pretrained import wav2vec2, whisper
from metajax.models.pretrained.layers import Encoded, Pretrained, averaged, last_layers, split, windowed
from metajax.models.pretrained.layout import Settings, Shapes, common, fitted, fresh, to_params, to_tensors
from metajax.models.pretrained.speech_embedding import speech_embedding
from metajax.models.pretrained.transcriber import Transcriber, transcriber
from metajax.names import named

_READERS = {kind: module for module in (wav2vec2, whisper) for kind in module.KINDS}
_PROJECTION, _TOKENS = "proj_out.weight", "decoder.embed_tokens.weight"  # of Whisper, which a file may hold both


def load(
    path: str | Path, *, dtype: DTypeLike = jnp.float32, normalize: bool | None = None
) -> tuple[Pretrained, Params, Settings]:
    """Read an encoder that Transformers has saved: wav2vec 2.0, HuBERT, WavLM, with a CTC head if any, or Whisper.

    Parameters have the checkpoint's names, without the prefix of a model with a head: `encoder.layers.0.attention.
    q_proj.kernel`; kernels are `[*taps, in, out]`, scales of normalisations `scale`. Whisper's encoder reads only
    `params["encoder"]`, its decoder is for `transcriber`.

    Args:
      path: the folder, or a file of tensors in it.
      dtype: of the parameters, and of what is computed with them; float64 needs JAX's x64.
      normalize: whether the model gives each utterance mean 0 and variance 1 first; None for what the checkpoint's
        preprocessor says, no where it has none.

    Returns:
      The model, whose `apply` takes samples at 16 kHz, `[n, samples]` or `Utterances` of them, and gives the CTC head's
      scores `[n, frames, vocabulary]`, or frames `[n, frames, features]` where there is no head; the parameters; what
      `save` and `transcriber` need beside them. Scores are in the checkpoint's order, the blank
      at its `pad_token_id`; with `scores[..., np.array(read_vocabulary(...).ids)]` it is at 0, where `ctc`, `suta` and
      decoding expect it.

    Raises:
      InputError: the folder is no checkpoint, an architecture is not read, a shard or a tensor is missing, a tensor is
        unexpected or of another shape, the blank is no token; when called, x is of another shape or too short.
    """
    files = read_files(path)
    config = document(files, "config.json")
    reader, architecture = _reader(config)
    if reader is whisper:
        head = any(common(name).startswith("decoder.") for name in files.tensors)
    else:
        head = architecture.endswith("ForCTC") or (not architecture and "lm_head.weight" in files.tensors)
    heard = document(files, "preprocessor_config.json")
    heard = heard or document(files, "processor_config.json").get("feature_extractor", {})
    if (rate := heard.get("sampling_rate", 16000)) != 16000:
        raise InputError(f"preprocessor_config.json: sampling_rate is {rate}, expected 16000 Hz.")
    normalize = bool(heard.get("do_normalize", False)) if normalize is None else normalize
    c = reader.checked(config)
    shapes = reader.shapes(c, head)
    if "lm_head.weight" in shapes and c["pad_token_id"] not in range(shapes["lm_head.weight"][0]):
        raise InputError(f"config.json: pad_token_id is {c['pad_token_id']!r}, expected a token of the CTC head.")
    tensors, names = fitted(files.tensors, shapes, reader.CARRIED)
    params = to_params(tensors, shapes, dtype)
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    rest = {name: files.tensors[name] for name in files.tensors if name not in set(names.values())}
    vocabulary = document(files, "vocab.json")
    settings = Settings(config, vocabulary, normalize, shapes, names, types, files._replace(tensors=rest))
    if _TOKENS in names and not np.array_equal(rest.get(_PROJECTION, tensors[_TOKENS]), tensors[_TOKENS]):
        raise InputError(f"The checkpoint's {_PROJECTION} differs from {names[_TOKENS]}, where config.json ties them.")
    return _model(c, shapes, normalize, dtype), params, settings


def adapter(path: str | Path, settings: Settings, *, dtype: DTypeLike = jnp.float32) -> dict[str, Array]:
    """A language's adapters and CTC head, as MMS keeps them: what a task has of `only("*.adapter_layer", "lm_head")`.

    Put them in by `metajax.names.replaced(params, adapter(...))`, or as `own` of phi.

    Args:
      path: a file such as `adapter.ara.safetensors`.
      settings: of the model, as `load` gave them.
      dtype: of the parameters.

    Returns:
      Parameters by dotted name; the head has as many outputs as the language has tokens.

    Raises:
      InputError: the model has no adapters, or the file does not fit it.
    """
    tensors, _ = read_tensors(Path(path).expanduser())
    shapes = {n: shape for n, shape in settings.shapes.items() if ".adapter_layer." in n or n.startswith("lm_head.")}
    if not any("adapter_layer" in name for name in shapes):
        raise InputError("The model has no adapters, expected adapter_attn_dim in its config.json.")
    vocabulary = [len(tensor) for name, tensor in tensors.items() if common(name) == "lm_head.weight"]
    for name in ("lm_head.weight", "lm_head.bias"):
        if vocabulary and name in shapes:
            shapes[name] = (vocabulary[0], *shapes[name][1:])
    return named(to_params(fitted(tensors, shapes, "$^", str(path))[0], shapes, dtype))


def save(folder: str | Path, params: Params, settings: Settings) -> None:
    """Write parameters in the layout that they were read from; parameters that are as they were give the same files.

    Args:
      folder: where to; made where it is missing.
      params: of the model.
      settings: as `load` gave them. Tensors have the types that they had, so that float32 is not rounded by what was
        read from float32, and is by what was read from bfloat16. A CTC head may have another size, such as that of
        another language's `adapter`: config.json then tells its vocab_size, vocab.json is as it was.

    Raises:
      InputError: the parameters are not those of the checkpoint, or the folder cannot be made.
    """
    bias, size = params.get("lm_head", {}).get("bias"), settings.shapes.get("lm_head.bias")
    if size and bias is not None and np.shape(bias) != size:
        head = {"lm_head.weight": (len(bias), settings.shapes["lm_head.weight"][1]), "lm_head.bias": (len(bias),)}
        files = amended(settings.files, "config.json", vocab_size=len(bias))
        settings = settings._replace(shapes=settings.shapes | head, files=files)
    tensors = to_tensors(params, settings) | settings.files.tensors
    if _PROJECTION in settings.files.tensors and _TOKENS in settings.names:
        tensors[_PROJECTION] = tensors[settings.names[_TOKENS]]
    write_files(folder, settings.files._replace(tensors=tensors))


def random(config: dict[str, Any], *, dtype: DTypeLike = jnp.float32) -> Pretrained:
    """A model by its config.json alone, whose `init(key, ())` draws parameters: it knows nothing of speech.

    Args:
      config: `model_type` and what such a model needs; with a CTC head where `architectures` has one.
      dtype: of the parameters.

    Returns:
      The model, which normalises each utterance.

    Raises:
      InputError: an architecture is not read, or a field is missing.
    """
    reader, architecture = _reader(config)
    c = reader.checked(config)
    return _model(c, reader.shapes(c, architecture.endswith("ForCTC")), True, dtype)


def _reader(config: dict[str, Any]) -> tuple[Any, str]:
    """The module that reads a kind of model, and its architecture, "" where config.json tells none."""
    kind, architecture = config.get("model_type"), (config.get("architectures") or [""])[0]
    if kind not in _READERS or (architecture and not architecture.endswith(_READERS[kind].ARCHITECTURES)):
        raise InputError(
            f"config.json names {architecture or kind!r}, expected a "
            f"{', '.join(dict.fromkeys(wav2vec2.ARCHITECTURES + whisper.ARCHITECTURES))} of {', '.join(_READERS)}."
        )
    return _READERS[kind], architecture


def _model(
    c: dict[str, Any], shapes: Shapes, normalize: bool, dtype: DTypeLike, first: int | None = None
) -> Pretrained:
    def init(key: KeyArray, x: PyTree) -> Params:
        return fresh(key, shapes, dtype)

    def encode(params: Params, x: PyTree) -> Encoded:
        return _READERS[c["model_type"]].encode(c, params, x, normalize, first)

    def apply(params: Params, x: PyTree, key: KeyArray | None = None) -> Array:
        encoded = encode(params, x)
        return wav2vec2.logits(c, params, encoded) if "lm_head.weight" in shapes else encoded.output

    def above(layer: int) -> Pretrained:
        return _model(c, shapes, normalize, dtype, layer)

    return Pretrained(init, apply, lambda params, x: {}, encode, above)
