"""How well embeddings know words: the script as a whole, at a small size."""

import json

import pytest
import words_table
from words_table import METHODS, ROOMS, Settings

from metajax import runs


@pytest.mark.slow
def test_a_table_and_a_picture_of_synthetic_words(tmp_path, capsys, monkeypatch):
    for name in ("pyopen_wakeword", "tflite", "espeakng_loader", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is of an extra")
    monkeypatch.setattr(words_table, "BATCH", 40)
    small = "--ways 2 90 --shots 1 --noisy-shots 1 --snrs 0 --queries 1 --episodes 60 --clips 80"
    argv = [*small.split(), "--out", str(tmp_path / "out")]
    assert runs.main(Settings, words_table.run, words_table.__doc__, argv) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    found = results["found"]["espeak"]
    assert set(found["too few"]) == {"90 words, 1 clips each"} and "the words" in found["unseen"]
    assert "| 90 words, both | - |" in out and (tmp_path / "out/table.md").read_text() in out
    cells = found["cells"]
    assert len(cells) == len(METHODS) * (
        2 + 1 + 2 * (1 + len(ROOMS))
    )  # clean, the same as taught alike, noise and rooms

    def mean(**where):
        return words_table.at(found, ways=5, shots=1, **where)["mean"]

    for method in METHODS:
        clean, alike, noisy = (
            mean(method=method, place=place, taught=taught)
            for place, taught in (("clean", "clean"), ("clean", "alike"), ("0 dB", "clean"))
        )
        assert 1 >= clean == alike > noisy > 0.25
    assert mean(method="both", place="clean", taught="clean") > 0.95
    assert (tmp_path / "out/words.png").stat().st_size > 10000
