"""The scripts on joint training: what they refuse, what they make of their cells, and a small run of each."""

import json

import joint_vs_maml
import multitask_common as common
import multitask_weighting
import numpy as np
import pytest

import metajax as mj
from tests.test_experiments import tones  # noqa: F401

SCRIPTS = pytest.mark.parametrize("script", [multitask_weighting, joint_vs_maml])


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs a script in a folder of its own: exit code, stdout, last line of stderr."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})  # as many devices as conftest made

    def run(script, *arguments):
        code = script.main([*map(str, arguments), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")])
        told = capsys.readouterr()
        return code, told.out, told.err.splitlines()[-1] if told.err else ""

    return run


@SCRIPTS
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--width", 0), "error: --width is 0.0, expected a finite number, 0.1 or more."),
        (("--augment", "nan"), "error: --augment is nan, expected a finite number, 0 or more."),
        (("--corpus", "fsdd"), "error: The corpus fsdd lies in a folder of yours: give it with --root"),
        (("--root", "absent"), "error: The corpus espeak reads no folder, found absent"),
    ],
)
def test_bad_arguments_are_refused(script, arguments, sentence, call):
    code, _, error = call(script, *arguments)
    assert code == 2 and error.startswith(sentence)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (multitask_weighting, ("--steps", 25), "error: --steps is 25, expected a multiple of 10."),
        (multitask_weighting, ("--batch", 0), "error: --batch is 0, expected a finite number, 1 or more."),
        (joint_vs_maml, ("--weights", 1, -1), "error: --weights holds -1.0, expected finite numbers, 0 or more."),
        (joint_vs_maml, ("--budget", "inf"), "error: --budget is inf, expected a finite number, 0.1 or more."),
        (joint_vs_maml, ("--episodes", 1), "error: --episodes is 1, expected a finite number, 2 or more."),
    ],
)
def test_bad_arguments_of_one_are_refused(script, arguments, sentence, call):
    assert call(script, *arguments) == (2, "", sentence)


@SCRIPTS
def test_an_unknown_corpus_is_refused_with_those_known(script, capsys):
    with pytest.raises(SystemExit) as ending:
        script.main(["--corpus", "nonsense"])
    assert ending.value.code == 2 and "espeak" in capsys.readouterr().err


def write(folder, cells):
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for i, cell in enumerate(cells):
        (folder / "cells" / f"{i}.json").write_text(json.dumps(cell))


def test_weightings_are_tuned_on_validation_and_compared_in_pairs(tmp_path, call):
    script, out = multitask_weighting, tmp_path / "out"
    seeds, settings = (0, 1, 2), multitask_weighting.settings(multitask_weighting.parse([]))
    test = dict.fromkeys((*script.WEIGHTINGS, *script.ALONE, *script.PROBES), 0.5)
    test |= {"fixed 0.1": 0.9, "fixed 0.7": 0.6, "Nash-MTL": 0.7, "speech alone": 0.4, "probe of the inputs": 0.2}
    validation = {"fixed 0.1": 0.1, "fixed 0.7": 0.8}  # 0.7 is chosen though 0.1 has the better test accuracy
    write(
        out,
        [
            {
                "method": method, "seed": seed, "settings": settings, "classes": {"speech": 40, "image": 10},
                "accuracy": {
                    task: {"validation": validation.get(method, 0.5), "test": value + 0.1 * seed}
                    for task in ([script.ALONE[method]] if method in script.ALONE else script.TASKS)
                },
            }
            for method, value in test.items() for seed in seeds
        ],
    )  # fmt: skip
    steps = {name: {"ms": 2.0, "ratio": 1.25} for name in ("sum", "fixed 0.1", "Nash-MTL")}
    (out / "timings.json").write_text(json.dumps({"settings": settings, "measured": steps}))
    code, told, _ = call(script)  # nothing is missing: no training, no data
    assert code == 0 and "45 cells, 45 of them finished before." in told
    # accuracies 0.7, 0.8, 0.9: the t interval is 4.303 * 0.1 / sqrt(3); the model alone moves with them
    assert "| Nash-MTL | 80.0 ± 24.8 | 80.0 ± 24.8 | +30.0 ± 0.0 | +20.0 ± 0.0 | 2.00 | 1.25 | 1 |" in told
    assert "| fixed, tuned | 70.0 ± 24.8 | 70.0 ± 24.8 | +20.0 ± 0.0 | +10.0 ± 0.0 | 2.00 | 1.25 | 5 |" in told
    assert "| speech alone | 50.0 ± 24.8 |  |  |  |  |  | 1 |" in told and "| fixed 0.1" not in told
    results = json.loads((out / "results.json").read_text())
    assert results["rows"][1]["speech_shares"] == [0.7, 0.7, 0.7]
    assert (out / "weightings.png").stat().st_size > 1000
    assert call(script, "--steps", 20)[0] == 2


def test_arms_are_pooled_and_compared_in_pairs(tmp_path, call):
    script, out = joint_vs_maml, tmp_path / "out"
    args = script.parse(["--weights", "0.5", "--seeds", "0", "1"])
    settings = script.settings(args)
    best = {"joint": 0.6, "maml": 0.7, "mix 0.5": 0.75}
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2, 1000)) / 10
    write(
        out,
        [
            {
                "arm": arm, "seed": seed, "settings": settings, "inner_rate": 0.1, "outer_steps": 100,
                "accuracy": [
                    {"step": step, "mean": value, "ci95": 0.02} for step, value in enumerate((0.2, best.get(arm, 0.5)))
                ],
                "adapted": {"step": 1, "mean": best.get(arm, 0.5), "ci95": 0.02},
                "episodes": (best.get(arm, 0.5) + noise[seed]).tolist(),
                "heads": {"speech_accuracy": 0.3, "speech_loss": 2.0, "image_accuracy": 0.9, "image_loss": 0.1},
                "unseen_words": ["a", "b"], "unseen_speakers": ["c"],
            }
            for arm in script.arms(args.weights) for seed in args.seeds
        ],
    )  # fmt: skip
    (out / "rates.json").write_text(json.dumps({"settings": settings, "measured": {"joint": 1, "maml": 1, "mix": 1}}))
    arguments = ("--weights", 0.5, "--seeds", 0, 1)
    code, told, _ = call(script, *arguments)
    assert code == 0 and "12 cells, 12 of them finished before." in told
    # the arms saw the same episodes: their noise cancels, and the gain is over the better of the two
    assert "| mix 0.5 | 100 | 75.0 ± 1.4 | 1, 1 | 0.1, 0.1 | 30.0 | 2.00 | 90.0 | 0.10 | +5.0 ± 0.0 (maml) |" in told
    assert (
        "| joint, then maml | 100 | 50.0 ± 1.4 | 1, 1 | 0.1, 0.1 | 30.0 | 2.00 | 90.0 | 0.10 | -20.0 ± 0.0 (maml) |"
        in told
    )
    assert "75.0 ±  1.4" in told
    assert "support and query by different speakers" in json.loads((out / "results.json").read_text())["title"]
    assert (out / "curve.png").exists() and (out / "weight.png").stat().st_size > 1000
    code, _, error = call(script, *arguments, "--budget", 7)
    assert code == 2 and "was made with budget = 60.0, now it is 7.0" in error
    (out / "cells" / "0.json").write_text("[]")
    code, _, error = call(script, *arguments)
    assert code == 2 and "is damaged" in error


def test_nobody_is_on_two_sides():
    label, speaker = (a.reshape(-1) for a in np.mgrid[:4, :10])
    split = common.divide(speaker, label, 0)
    assert [len(np.unique(speaker[part])) for part in split.values()] == [6, 2, 2]
    assert sum(map(len, split.values())) == 40
    # without groups each class is divided on its own
    split = common.divide(np.full(40, -1), label, 0)
    assert all((np.bincount(label[part]) == count).all() for part, count in zip(split.values(), (6, 2, 2), strict=True))
    assert np.unique(np.concatenate(list(split.values()))).size == 40
    with pytest.raises(mj.InputError, match="2 speakers or drawers, expected at least 3"):
        common.divide(speaker % 2, label, 0)
    with pytest.raises(mj.InputError, match="2 classes have no training example"):
        common.divide(label, label, 0)
    mean, half = common.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3) and common.interval([1.0]) == (1.0, None)


@pytest.mark.slow
def test_a_small_run_of_the_weightings(monkeypatch, tmp_path, call):
    script = multitask_weighting
    monkeypatch.setattr(script, "ROUNDS", 2)
    monkeypatch.setattr(script, "WEIGHTINGS", {name: script.WEIGHTINGS[name] for name in ("sum", "PCGrad")})
    arguments = ("--steps", 20, "--batch", 8, "--seeds", 0, "--width", 0.25)
    code, told, _ = call(script, *arguments)
    assert code == 0 and "| PCGrad |" in told
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert set(rows) == {"sum", "PCGrad", *script.ALONE, *script.PROBES}
    assert rows["probe of the inputs"]["accuracy"]["image"]["mean"] > 0.9 and rows["sum"]["ratio"] == 1
    assert "6 cells, 6 of them finished before." in call(script, *arguments)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of a column of the manifest that nothing reads
def test_a_small_run_of_joint_and_maml(monkeypatch, tmp_path, call, tones):  # noqa: F811
    script = joint_vs_maml
    monkeypatch.setattr(script, "MEASURED", 0.01)
    monkeypatch.setattr(script, "VALIDATION_EPISODES", 4)
    sizes = ("--ways", 2, "--queries", 2, "--tasks", 2, "--num-steps", 1, "--adapt-steps", 2, "--episodes", 10)
    arguments = ("--corpus", "manifest", "--root", tones, *sizes, "--seeds", 0, "--weights", 1, "--budget", 0.2)
    code, told, _ = call(script, *arguments, "--width", 0.5)
    assert code == 0 and "| mix 1 to 0 |" in told
    for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]:
        assert len(row["accuracy"]) == 3 and all(np.isfinite(list(row["heads"].values())))
        assert (row["outer_steps"] == 0) == (row["arm"] == "from scratch")
