"""Whisper's encoder and its features; that they are Transformers' is tested with Transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.data.checkpoints import write_files
from metajax.models import pretrained
from metajax.models.pretrained import whisper
from tests.models.pretrained.tiny import contents, whisper_files


def test_features_of_silence_and_of_a_tone():
    tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(3200) / 16000)
    features = jax.jit(whisper.log_mel, static_argnums=(1, 2))(jnp.stack([0 * tone, tone]), 80, 40)
    assert features.shape == (2, 40, 80)
    np.testing.assert_allclose(features[0], -1.5, atol=1e-6)  # (log10(1e-10) + 4) / 4
    # 1000 Hz is 15 mel of 45.2, so 26.8 of the 81 steps between the edges of bands
    assert (features[1, 1:19].argmax(-1) == 26).all()
    np.testing.assert_allclose(features[1, 25:], features[1].max() - 2, atol=1e-6)  # 8 below the largest, over 4


def test_an_encoder_alone_and_one_with_a_decoder(tmp_path):
    for head in (False, True):
        write_files(tmp_path / "a", whisper_files(head))
        model, params, settings = pretrained.load(tmp_path / "a")
        assert list(params) == ["encoder", "decoder"][: 1 + head]
        assert "bias" not in params["encoder"]["layers"]["0"]["self_attn"]["k_proj"]
        assert jax.eval_shape(model.apply, params, jnp.ones((2, 3000))).shape == (2, 10, 8)
        pretrained.save(tmp_path / "b", params, settings)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(InputError, match="x has 3201 samples, expected at most 3200"):
        model.apply(params, jnp.ones((2, 3201)))
