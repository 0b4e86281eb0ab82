"""Tiny random checkpoints, made on the spot."""

import json

import ml_dtypes
import numpy as np

from metajax.data.checkpoints import Files, write_files
from metajax.models.pretrained import wav2vec2, whisper

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_dim": [6, 6, 6],
    "conv_stride": [5, 4, 2],
    "conv_kernel": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 11,
}  # a frame every 40 samples, from 105 samples on
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def config(**changes):
    return {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]} | SMALL | changes


def files(dtype=np.float32, old=False, shards=1, **changes):
    """What a folder holds for these changes of the configuration; `old`: by the older names of weight normalisation."""
    c, draw = config(**changes), np.random.default_rng(0)
    head = c["architectures"][0].endswith("ForCTC")
    tensors = {}
    for name, shape in wav2vec2.shapes(wav2vec2.checked(c), head).items():
        if old:
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v")
        name = name if name.startswith("lm_head") or not head else f"{c['model_type']}.{name}"
        ones = len(shape) == 1 and name.endswith(("weight", "var"))
        tensors[name] = (ones + 0.3 * draw.normal(size=shape).clip(-2, 2)).astype(dtype)
    tensors[("wav2vec2." if head else "") + "masked_spec_embed"] = draw.normal(size=16).astype(dtype)
    if c.get("conv_pos_batch_norm"):
        tensors["encoder.pos_conv_embed.batch_norm.num_batches_tracked"] = np.array(3)
    documents = {"config.json": json.dumps(c, indent=2).encode() + b"\r\n", "merges.txt": b"\xff"}
    documents["vocab.json"] = '{"<pad>": 0, "ä": 1}'.encode()
    if shards == 1:
        places = dict.fromkeys(tensors, "model.safetensors")
    else:
        places = {n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(tensors)}
        documents["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return Files(documents, tensors, places, {place: {"format": "pt"} for place in places.values()})


def write(folder, **options):
    write_files(folder, files(**options))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WHISPER = {
    "model_type": "whisper",
    "d_model": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 10,
    "num_mel_bins": 80,
    "max_source_positions": 10,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 10,
    "vocab_size": 12,
    "max_target_positions": 9,
}  # 3,200 samples
GENERATION = {
    "decoder_start_token_id": 5,
    "eos_token_id": 6,
    "lang_to_id": {"<|en|>": 7, "<|de|>": 8},
    "task_to_id": {"transcribe": 9, "translate": 10},
    "no_timestamps_token_id": 11,
    "suppress_tokens": [5, 7, 8, 9, 10, 11],
    "begin_suppress_tokens": [6, 40],
}


def whisper_files(head=True, generation=GENERATION, **changes):
    """A Whisper, with its decoder if `head`."""
    c, draw = WHISPER | changes, np.random.default_rng(0)
    tensors = {}
    for name, shape in whisper.shapes(whisper.checked(c), head).items():
        ones = len(shape) == 1 and name.endswith("weight")
        name = name if name == "proj_out.weight" else f"model.{name}"
        tensors[name] = (ones + draw.normal(size=shape)).astype(np.float32)
    documents = {"config.json": json.dumps(c).encode(), "generation_config.json": json.dumps(generation).encode()}
    return Files(documents, tensors, dict.fromkeys(tensors, "model.safetensors"), {"model.safetensors": None})
