"""The script that tests frozen encoders, on tones and a tiny random encoder."""

import json
import sys
from pathlib import Path

import pytest

from metajax import runs
from tests.conftest import write_tones
from tests.models.pretrained.tiny import write

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
import pretrained_fewshot as script


@pytest.mark.slow
def test_words_on_a_frozen_encoder(tmp_path, capsys):
    tones = write_tones(tmp_path, 6, 6, 3)
    write(tmp_path / "encoder", num_hidden_layers=1, architectures=["Wav2Vec2Model"], feat_extract_norm="layer")
    argv = ["--corpus", "manifest", "--root", str(tones), "--encoder", str(tmp_path / "encoder"), "--layer", "0"]
    argv += ["--ways", "2", "--train-ways", "2", "--shots", "1", "2", "--queries", "2", "--episodes", "20"]
    argv += ["--synthetic", "0", "--outer-steps", "3", "--tune", "2", "--seeds", "0", "1"]
    assert runs.main(script.Settings, script.run, script.__doc__, [*argv, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    accuracy = results["accuracy"]
    assert "manifest, test words, 2-way" in capsys.readouterr().out
    assert accuracy["frozen: ridge"]["1"]["mean"] > 0.6  # tones are told apart by a random network
    learned = {"whitened: class means", "map learned: ProtoMAML", "map learned: in-context", "all learned: ProtoNet"}
    assert learned < set(accuracy)
    assert all(cell["ci95"] >= 0 and 0.3 < cell["mean"] <= 1 for of in accuracy.values() for cell in of.values())
    kept = [(tmp_path / "out" / f"theta{seed}").exists() for seed in (0, 1)]
    assert kept == [True, True]
