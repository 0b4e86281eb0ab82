"""The scripts about several modalities: what they refuse, and what a small run leaves behind."""

import json
import sys
from functools import partial

import crossmodal
import fusion
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import runs
from metajax.data import words
from metajax.data.spoken_digits import Spoken
from tests import tiny
from tests.conftest import assert_refused, write_tones
from tests.conftest import words as columns

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


def spoken(*_, **__):
    """Ten digits of two languages by six speakers: noise, with a level of its own for each word, and its name."""
    label, speaker = columns(20, 6, 2)
    noise = np.random.default_rng(0).normal(size=(len(label), 24, 10)).astype(np.float32)
    shape = np.sin((1 + label[:, None, None]) * np.arange(10) / 3) + 0 * noise
    text = np.stack([1 + label % 10, 11 + label // 10], 1).astype(np.int32)
    part = Spoken(
        jnp.asarray(noise + 4 * shape, jnp.float32), jnp.asarray(text), label % 10, label, speaker, label // 10
    )
    return part, part, 13


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs a script at tiny sizes; its exit code."""
    monkeypatch.setattr(fusion, "spoken_digits", spoken)

    def call(script, *argv: object) -> int:
        places = ["--out", tmp_path / "out", "--cache", tmp_path / "cache", "--outer-steps", 2, "--episodes", 3]
        argv = [*map(str, [*places, "--width", 8, *argv])]
        return runs.main(script.Settings, script.run, script.__doc__, argv)

    return call


@pytest.fixture
def small_ear(monkeypatch):
    """One convolution in place of TC-ResNet8, which takes longest to compile."""
    monkeypatch.setattr(sys.modules["metajax.models.fusion"], "TCResNet8", tiny.ear)


def test_what_cannot_be_run_is_refused(main, capsys):
    cases = [(["--kinds", "apart"], "kinds holds 'apart', expected some of concat, gated, bottleneck, experts"),
             (["--methods", "sum"], "methods holds 'sum'"), (["--queries", "0"], "queries is 0")]  # fmt: skip
    assert_refused(partial(main, fusion), capsys, *cases)
    assert_refused(partial(main, crossmodal), capsys, (["--ways", "1"], "ways is 1"))


def test_cells_are_every_method_every_fusion_and_every_smaller_set():
    cells = fusion.wanted(fusion.Settings(seeds=(0, 1)))
    assert len(cells) == len(set(cells)) == 2 * (4 + 3 + 6)
    assert {cell.had for cell in cells if cell.method != "late_fusion"} == {"audio + image + text"}


def test_time_warping_is_the_least_sum_along_a_path():
    a, b = (np.random.default_rng(i).normal(size=(n, 3)).astype(np.float32) for i, n in enumerate((6, 4)))
    cost = 1 - (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    total = np.full((7, 5), np.inf)
    total[0, 0] = 0
    for i, j in np.ndindex(6, 4):
        total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    np.testing.assert_allclose(crossmodal.warped(jnp.asarray(a), jnp.asarray(b)), total[-1, -1], atol=1e-5)
    assert jax.jit(crossmodal.warped)(a, a) < 1e-5


def test_degraded_leaves_clean_clips_as_they_are_and_adds_noise_at_the_level():
    part, _, symbols = spoken()
    x = {"audio": part.audio[:4], "image": jnp.ones((4, 8, 8)), "text": part.text[:4]}
    levels = jnp.array([fusion.CONDITIONS[name] for name in ("clean", "0 dB", "occluded", "typos")])
    found = jax.jit(fusion.degraded, static_argnums=3)(x, jax.random.key(0), levels, symbols)
    normal = lambda a: (a - a.mean(0)) / np.sqrt(np.square(a - a.mean(0)).mean() + 1e-6)  # noqa: E731
    for i in (0, 2, 3):
        np.testing.assert_allclose(found["audio"][i], normal(np.asarray(x["audio"][i])), atol=1e-3)
    assert np.abs(found["audio"][1] - normal(np.asarray(x["audio"][1]))).max() > 0.1
    assert [(one == 0).sum() for one in found["image"]] == [0, 0, 16, 0]  # a square of 4
    np.testing.assert_array_equal(found["text"][:3], x["text"][:3])


@pytest.mark.slow
def test_tables_of_fusion_compare_models_on_the_same_episodes(main, tmp_path, monkeypatch):
    """With models whose every score is known: what is told of them, over episodes and over seeds."""

    def scored(s, cell, data):
        full = cell.had == fusion.SETS[-1]
        level = lambda some: 0.1 * len(some.split(" + ")) + 0.02 * cell.seed + 0.05 * (not full)  # noqa: E731
        scores = {some: {name: [level(some), level(some) + 0.2] for name in fusion.CONDITIONS}
                  for some in (fusion.SETS if full else [cell.had])}  # fmt: skip
        return {"scores": scores}

    monkeypatch.setattr(fusion, "run_cell", scored)
    assert main(fusion, "--methods", "late_fusion", "simpleshot", "--kinds", "gated", "--seeds", 0, 1) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = found["rows"]
    assert len(rows) == 7 + 1 + 6
    assert rows["late_fusion, apart: audio"]["clean"] == pytest.approx({"mean": 0.21, "ci95": 12.706 * 0.01}, abs=1e-4)
    gain = found["all three"]["less the best alone"]["each"]
    assert gain == pytest.approx({"mean": 0.2, "ci95": 0}, abs=1e-6)  # by seed, not of all together
    cost = found["missing at test"]["less never had"]["image + text"]
    assert cost["mean"] == pytest.approx(-0.05)
    assert (tmp_path / "out" / "fusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_small_model_is_tested_on_every_set_and_what_is_absent_is_as_good_as_clean(small_ear):
    s = fusion.Settings(methods=("late_fusion",), outer_steps=2, episodes=3, queries=1, width=8)
    scores = fusion.run_cell(s, fusion.wanted(s)[0], spoken())["scores"]
    assert set(scores) == {*fusion.SETS}
    assert all(
        len(found) == 3 and 0 <= min(found) <= max(found) <= 1 for row in scores.values() for found in row.values()
    )
    text = scores["text"]
    assert text["0 dB"] == text["occluded"] == text["clean"] and text["each"] == text["typos"]


@pytest.mark.slow
def test_a_whole_small_run_of_matching(main, tmp_path, monkeypatch, small_ear):
    tones = write_tones(tmp_path, 12, 6, 2)
    load = words.load_words
    monkeypatch.setattr(words, "load_words", lambda name, *rest, **how: load("manifest", tones, ways=4, **how))
    assert main(crossmodal, "--ways", 3) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert set(rows) == set(crossmodal.ROWS) and all(set(row) == set(crossmodal.COLUMNS) for row in rows.values())
    assert rows["time warping + pixels"]["words alone"]["mean"] > 0.6  # tones are told apart without learning
    assert (tmp_path / "out" / "crossmodal.png").read_bytes().startswith(b"\x89PNG")
