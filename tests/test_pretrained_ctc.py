"""The script about speakers of a pretrained encoder, on tones, with a random encoder and one read from disk."""

import json

import numpy as np
import pretrained_ctc as script
import pytest

from metajax import runs
from tests.conftest import write_tones
from tests.models.pretrained.tiny import write


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "read"])
def test_a_small_run(tmp_path, capsys, monkeypatch, kind):
    arms = script.ARMS[::3] if kind == "random" else script.ARMS[:3]
    monkeypatch.setattr(script, "ARMS", arms)
    monkeypatch.setattr(script, "RATES", script.RATES[:2])
    tones = write_tones(tmp_path, 3, 4, 2, further=(",text", ",ä"))
    sizes = "--seeds 0 --shots 1 --queries 2 --num-steps 1 --head-steps 2 --outer-steps 2 --episodes 4 --layers 1"
    argv = ["--root", str(tones), "--corpus", "manifest", "--out", str(tmp_path / "out"), *sizes.split()]
    if kind == "read":  # with a head of its own, whose tokens are vocab.json's
        write(tmp_path / "encoder", feat_extract_norm="layer")
        argv += ["--encoder", str(tmp_path / "encoder")]
    assert runs.main(script.Settings, script.run, script.__doc__, argv) == 0
    shown = capsys.readouterr().out
    assert ("RANDOM encoder, which knows nothing of speech" in shown) == (kind == "random")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == list(arms) and all(arm in shown for arm in arms)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000
    for row in results["rows"].values():
        assert [point["step"] for point in row["character"]] == list(script.STEPS)
        assert all(np.isfinite(point["mean"]) for point in row["character"])
    train, validation, test = json.loads(next((tmp_path / "out" / "cells").iterdir()).read_text())["speakers"]
    assert sorted(train + validation + test) == ["s0", "s1", "s2", "s3"] and validation and test
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert runs.main(script.Settings, script.run, script.__doc__, argv) == 0  # finds every cell
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
