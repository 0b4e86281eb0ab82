"""What the tool takes: what is told of a process, and what it is compared with."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from metajax import InputError
from metajax.data.waves import placed

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "speed"))
import teaching
from teaching import Settings


def test_a_process_is_timed_to_its_first_answer(tmp_path):
    code = "import time; print('in use'); print('a.wav: yes, 90 %', flush=True); x = bytes(10**8); time.sleep(0.3)"
    found = teaching.process(["-c", code])
    assert 0 < found["first_s"] < 5 and found["processor_s"] < 5 and found["mib"] > 95
    assert found["out"].splitlines() == ["in use", "a.wav: yes, 90 %"]
    for code in ("print('a.wav: yes', flush=True); raise SystemExit(3)", "print('nothing')"):
        with pytest.raises(InputError, match="ended with exit code [03]"):
            teaching.process(["-c", code])
    with pytest.raises(InputError, match="expected the encoder as an ONNX file"):
        teaching.run(Settings(onnx=tmp_path / "away.onnx", out=tmp_path / "out"))


@pytest.mark.peers
def test_the_peer_hears_what_the_tool_hears(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is the peer")
    import teaching_onnx

    for samples in (9000, 16000):  # of longer ones, the tool looks for the word above the hum
        wave = 0.1 * np.random.default_rng(samples).normal(size=samples)
        wave[samples // 2 : samples // 2 + 4000] *= 5
        soundfile.write(tmp_path / "a.wav", wave, 16000, "FLOAT")
        np.testing.assert_allclose(teaching_onnx.clip(str(tmp_path / "a.wav")), placed(wave, 16000, 2000), atol=1e-6)


@pytest.mark.slow
@pytest.mark.peers
def test_the_table_is_whole(tmp_path, capsys, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeakng_loader is of an extra")
    monkeypatch.setattr(teaching, "KINDS", dict([*teaching.KINDS.items()][1:]))  # the encoder: in test_teach.py
    teaching.run(Settings(asked=1, repeats=1, out=tmp_path / "out"))
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "out/results.json").read_text())["found"]
    assert "not compared" in err and (tmp_path / "out/table.md").read_text() in out
    assert all(one["taught"]["first_s"] > one["warm"]["first_s"] / 2 and one["sizes"][0] < 40 for one in found.values())
