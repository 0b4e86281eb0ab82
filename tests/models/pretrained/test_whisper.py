"""Whisper's encoder and its features; that they are Transformers' is tested with Transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.data.checkpoints import Files, write_files
from metajax.models import pretrained
from metajax.models.pretrained import whisper
from tests.models.pretrained.tiny import contents

CONFIG = {
    "model_type": "whisper",
    "d_model": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 10,
    "num_mel_bins": 80,
    "max_source_positions": 10,
}


def test_features_of_silence_and_of_a_tone():
    tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(3200) / 16000)
    features = jax.jit(whisper.log_mel, static_argnums=(1, 2))(jnp.stack([0 * tone, tone]), 80, 40)
    assert features.shape == (2, 40, 80)
    np.testing.assert_allclose(features[0], -1.5, atol=1e-6)  # (log10(1e-10) + 4) / 4
    # 1000 Hz is 15 mel of 45.2, so 26.8 of the 81 steps between the edges of bands
    assert (features[1, 1:19].argmax(-1) == 26).all()
    np.testing.assert_allclose(features[1, 25:], features[1].max() - 2, atol=1e-6)  # 8 below the largest, over 4


def test_checkpoint_with_a_decoder_beside(tmp_path):
    shapes = whisper.shapes(whisper.checked(CONFIG), False) | {"decoder.embed_tokens.weight": (7, 8)}
    tensors = {f"model.{name}": np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}
    places = dict.fromkeys(tensors, "model.safetensors")
    write_files(
        tmp_path / "a",
        Files({"config.json": json.dumps(CONFIG).encode()}, tensors, places, {"model.safetensors": None}),
    )
    model, params, settings = pretrained.load(tmp_path / "a")
    assert list(params) == ["encoder"] and "bias" not in params["encoder"]["layers"]["0"]["self_attn"]["k_proj"]
    assert jax.eval_shape(model.apply, params, jnp.ones((2, 3000))).shape == (2, 10, 8)
    pretrained.save(tmp_path / "b", params, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(InputError, match="x has 3201 samples, expected at most 3200"):
        model.apply(params, jnp.ones((2, 3201)))
