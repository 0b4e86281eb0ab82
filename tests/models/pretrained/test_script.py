"""The script that tests frozen encoders, on tones and a tiny random encoder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metajax import runs
from tests.conftest import write_tones
from tests.models.pretrained.tiny import write

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
import pretrained_fewshot as script


def test_a_clip_is_its_loudest_part_in_the_middle_of_silence():
    s = script.Settings(seconds=0.5, silence=0.125)
    wave = np.full(20000, 0.01, np.float32)
    wave[9000:17000] = 1
    assert np.array_equal(script.placed(wave, s), np.pad(np.ones(8000), 2000))
    assert np.array_equal(script.placed(np.ones(5, np.float32), s), np.pad(np.ones(5), (5997, 5998)))


@pytest.mark.slow
def test_words_on_a_frozen_encoder(tmp_path, capsys):
    tones = write_tones(tmp_path, 5, 4, 2)
    write(tmp_path / "encoder", num_hidden_layers=1, architectures=["Wav2Vec2Model"], feat_extract_norm="layer")
    argv = ["--corpus", "manifest", "--root", str(tones), "--encoder", str(tmp_path / "encoder"), "--layer", "0"]
    argv += ["--words", "all", "--ways", "2", "--shots", "1", "2", "--queries", "2", "--episodes", "20", "--batch", "7"]
    argv += ["--seconds", "0.5", "--out", str(tmp_path / "out")]
    assert runs.main(script.Settings, script.run, script.__doc__, argv) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "manifest, 5 words by 4 speakers, 2-way" in capsys.readouterr().out
    assert results["accuracy"]["ridge"]["1"]["mean"] > 0.6  # tones are told apart by a random network
