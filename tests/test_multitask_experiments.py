"""The scripts on joint training: what they refuse, what they make of their cells, and a small run of each."""

import json

import jax.numpy as jnp
import joint_vs_maml
import multitask_weighting
import numpy as np
import pytest

from metajax import report, runs
from metajax.models import mlp
from metajax.models.model import Model
from tests.conftest import write_tones

SCRIPTS = pytest.mark.parametrize("script", [multitask_weighting, joint_vs_maml], ids=lambda script: script.__name__)
pytest.importorskip("sklearn", reason="handwritten digits and probes are scikit-learn's")


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), 6, 7, 2)


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs a script in a folder of its own: exit code, stdout, last line of stderr."""
    for script in (
        multitask_weighting,
        joint_vs_maml,
    ):  # conftest has set the devices and the compiled programs' folder
        monkeypatch.setattr(script, "use_all_cores", lambda folder: None)

    def run(script, *arguments):
        argv = [*map(str, arguments), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        code = runs.main(script.Settings, script.run, script.__doc__, argv)
        told = capsys.readouterr()
        return code, told.out, told.err.splitlines()[-1] if told.err else ""

    return run


@pytest.fixture
def small_networks(monkeypatch):
    """Perceptrons in place of the encoders, which take long to compile."""

    def flat(*arguments, **options):
        model = mlp(None, hidden=(8,))
        flatten = lambda x: jnp.reshape(x, (len(x), -1))  # noqa: E731
        return Model(
            lambda key, x: model.init(key, flatten(x)),
            lambda p, x, key=None: model.apply(p, flatten(x)),
            lambda p, x: {},
        )

    for script in (multitask_weighting, joint_vs_maml):
        monkeypatch.setattr(script, "tcresnet8", flat)
        monkeypatch.setattr(script, "image_encoder", flat)


@SCRIPTS
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--width", 0), "error: width is 0.0, expected a finite number, 0.1 or more."),
        (("--augment", "nan"), "error: augment is nan, expected a finite number, 0 or more."),
        (("--seeds", -1), "error: seeds holds -1, expected a finite number, 0 or more."),
        (("--corpus", "fsdd"), "error: The corpus fsdd needs a root"),
        (("--corpus", "nonsense"), "error: The corpus is 'nonsense', expected one of espeak"),
        (("--root", "absent"), "error: The corpus espeak is made on the spot and reads no folder"),
    ],
)
def test_bad_arguments_are_refused(script, arguments, sentence, call, tmp_path):
    code, _, error = call(script, *arguments)
    assert code == 2 and error.startswith(sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (multitask_weighting, ("--steps", 0), "error: steps is 0, expected a finite number, 1 or more."),
        (multitask_weighting, ("--batch", 0), "error: batch is 0, expected a finite number, 1 or more."),
        (joint_vs_maml, ("--weights", 1, -1), "error: weights holds -1.0, expected a finite number, 0 or more."),
        (joint_vs_maml, ("--rates", "nan"), "error: rates holds nan, expected a finite number, 0 or more."),
        (joint_vs_maml, ("--budget", "inf"), "error: budget is inf, expected a finite number, 0.1 or more."),
        (joint_vs_maml, ("--episodes", 1), "error: episodes is 1, expected a finite number, 2 or more."),
    ],
)
def test_bad_arguments_of_one_are_refused(script, arguments, sentence, call):
    assert call(script, *arguments) == (2, "", sentence)


def test_unknown_words_are_refused_with_those_known(call, tones):
    code, _, error = call(multitask_weighting, "--corpus", "manifest", "--root", tones, "--words", "w0", "w9")
    assert code == 2 and error == "error: words holds 'w9', expected some of w0, w1, w2, w3, w4, w5."


def test_weightings_are_tuned_on_validation_and_compared_in_pairs():
    script, seeds = multitask_weighting, (0, 1, 2)
    test = dict.fromkeys((*script.WEIGHTINGS, *script.ALONE, *script.PROBES), 0.5)
    test |= {"fixed 0.1": 0.9, "fixed 0.7": 0.6, "Nash-MTL": 0.7, "speech alone": 0.4}
    validation = {"fixed 0.1": 0.1, "fixed 0.7": 0.8}  # 0.7 is chosen though 0.1 has the better test accuracy
    done = {
        script.Cell(method, seed): {
            "accuracy": {
                task: {"validation": validation.get(method, 0.5), "test": value + 0.1 * seed}
                for task in ([script.ALONE[method]] if method in script.ALONE else script.TASKS)
            },
            "ms": (2.5 if method == "Nash-MTL" else 2.0) * (1 + seed),
        }
        for method, value in test.items()
        for seed in seeds
    }
    rows = script.summary(done, seeds)
    # accuracies 0.7, 0.8, 0.9: the t interval is 4.303 * 0.1 / sqrt(3); the model alone moves with them
    assert rows["Nash-MTL"]["speech"] == {"mean": pytest.approx(0.8), "ci95": pytest.approx(0.2484, abs=1e-4)}
    assert rows["Nash-MTL"]["transfer, speech"]["mean"] == pytest.approx(0.3)
    assert rows["Nash-MTL"]["transfer, speech"]["ci95"] == pytest.approx(0, abs=1e-9)
    assert (rows["Nash-MTL"]["ms"], rows["Nash-MTL"]["ratio"]) == (5.0, 1.25)
    assert rows["fixed, tuned"]["image"]["mean"] == pytest.approx(0.7)
    assert rows["fixed, tuned"]["speech_shares"] == [0.7, 0.7, 0.7]
    assert "fixed 0.1" not in rows and "transfer, speech" not in rows["speech alone"]


def test_arms_are_pooled_and_compared_in_pairs():
    script = joint_vs_maml
    s = script.Settings(weights=(0.5,), seeds=(0, 1))
    best, noise = {"joint": 0.6, "maml": 0.7, "mix 0.5": 0.75}, np.random.default_rng(0).normal(size=(2, 1000)) / 10
    done = {
        script.Cell(arm, seed): {
            "curve": report.curve(np.array([0.2, best.get(arm, 0.5)]), np.full(2, 0.02)),
            "episodes": (best.get(arm, 0.5) + noise[seed]).tolist(),
            "heads": {"speech_accuracy": 0.3, "image_accuracy": 0.9},
            "step": 1, "rate": 0.1, "train_rate": 0.03, "outer_steps": 100 + seed,
        }
        for arm in script.arms(s.weights)
        for seed in s.seeds
    }  # fmt: skip
    rows = script.summary(s, done)
    # the arms saw the same episodes: their noise cancels, and the gain is over the better of the two
    for arm, gain in (("mix 0.5", 0.05), ("joint, then maml", -0.2)):
        assert rows[arm]["gain over the better"]["mean"] == pytest.approx(gain)
        assert rows[arm]["gain over the better"]["ci95"] == pytest.approx(0, abs=1e-9)
    assert rows["mix 0.5"]["new words"]["mean"] == pytest.approx(0.75, abs=0.01)
    assert rows["mix 0.5"]["curve"][1]["ci95"] == pytest.approx(0.02 / 2**0.5)
    assert rows["mix 0.5"]["outer_steps"] == [100, 101] and "gain over the better" not in rows["joint"]


@pytest.mark.slow
def test_a_tiny_run_of_the_weightings(monkeypatch, tmp_path, call, tones, small_networks):
    script = multitask_weighting
    monkeypatch.setattr(script, "FIXED", {0.5: "sum"})
    monkeypatch.setattr(script, "WEIGHTINGS", {"sum": script.WEIGHTINGS["PCGrad"]})  # its own state and gradients
    arguments = ("--corpus", "manifest", "--root", tones, "--steps", 60, "--batch", 16, "--seeds", 0, "--augment", 0)
    code, told, _ = call(script, *arguments)
    assert code == 0 and "| image alone |" in told
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert set(rows) == {"sum", "fixed, tuned", *script.ALONE, *script.PROBES}
    assert rows["probe of the inputs"]["image"]["mean"] > 0.9 and rows["sum"]["ratio"] == 1
    assert rows["image alone"]["image"]["mean"] > 0.5 and rows["sum"]["speech"]["mean"] > 0.3
    assert (tmp_path / "out" / "weightings.png").read_bytes().startswith(b"\x89PNG")
    assert "5 cells, 5 of them finished before." in call(script, *arguments)[1]
    code, _, error = call(script, *arguments, "--steps", 61)
    assert code == 2 and "steps is 61 now but 60 in" in error


SMALL = ("--ways", 2, "--queries", 2, "--tasks", 1, "--num-steps", 1, "--adapt-steps", 2, "--episodes", 20)


def run_arms(call, tones, out, *arguments):
    code, told, _ = call(joint_vs_maml, "--corpus", "manifest", "--root", tones, *SMALL, "--weights", 1, *arguments)
    assert code == 0 and "| maml |" in told
    rows = json.loads((out / "results.json").read_text())["rows"]
    for arm, row in rows.items():
        assert len(row["curve"]) == 3 and np.isfinite(row["speech_accuracy"]["mean"])
        assert (row["outer_steps"] == [0]) == (arm == "from scratch")
        assert (row["train_rate"] == [None]) == (arm in ("from scratch", "joint"))
        assert all(rate in joint_vs_maml.RATES for rate in row["rate"])
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    return rows


@pytest.mark.slow
def test_a_tiny_run_of_every_arm(monkeypatch, tmp_path, call, tones, small_networks):
    chosen = joint_vs_maml.arms(())
    monkeypatch.setattr(joint_vs_maml, "arms", lambda weights: chosen)
    arguments = ("--seeds", 0, "--budget", 0.3, "--augment", 0, "--rates", 0.03)
    assert set(run_arms(call, tones, tmp_path / "out", *arguments)) == set(chosen)
