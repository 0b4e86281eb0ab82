"""The benchmark: what it refuses, how it sums up, that both sides do the same work, and one whole small run."""

import json
from contextlib import contextmanager

import adaptation_speed as speed
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import speed_adaptation
from speed_workloads import AUGMENTATION, WORKLOADS, Workload, flops

import metajax as mj
from metajax.data.augment import Augmentation, augment, normalize
from metajax.models.conv import conv

WEIGHTS = {"head": {"kernel": np.array([[3.0]]), "bias": np.array([4.0])}}
WORK = {"flops": 2e9, "parameters": 2}
FIRST = {"import_s": 1.0, "first_step_s": 2.0, "memory_mib": 3.0}


def made_up(monkeypatch, loss, seconds=0.5):
    """Children that compute nothing: `loss` by side, metajax 0.1 s each, PyTorch `seconds` and six times that."""
    asked, settings = [], set()

    @contextmanager
    def child(side, workload, device, cache=None, *, keep=False):
        def ask(name, peer="metajax", **arguments):
            asked.append((peer, name))
            settings.add((workload.convolution, workload.precision))
            each = {"metajax": 0.1, "torch": seconds, "torch_func": 6 * seconds}[peer]
            answers = {
                "work": WORK, "start": None, "first": FIRST, "settings": {"device": "made up"}, "matmul": 100.0,
                "cost": {"outer_ms": 7.0, "memory_mib": 3.0, "compile_seconds": 1.0},
                "check": (WEIGHTS, loss[peer], WEIGHTS), "outer": arguments.get("count", 0) * each,
                "adapt": [each] * arguments.get("repeats", 0), "users": [each] * arguments.get("repeats", 0),
            }  # fmt: skip
            return answers[name]

        yield ask

    monkeypatch.setattr(speed, "child", child)
    return asked, settings


def refused(capsys, *arguments):
    assert speed.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and line.count("error: ") == 1 and "Traceback" not in err
    assert "ratio |" not in out
    return line


@pytest.mark.parametrize(
    "arguments", (["--workload", "resnet"], ["--peer", "keras"], ["--device", "abacus"], ["--frobnicate"])
)
def test_unknown_arguments_end_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        speed.main(arguments)
    assert exit.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_it_refuses_what_it_cannot_do(capsys, monkeypatch, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "at most one" in refused(capsys, "--scaling", "--adaptation", "x.json", *out)
    assert "x.json" in refused(capsys, "--adaptation", tmp_path / "x.json", *out)
    assert "add --peer none" in refused(capsys, "--precision", "bfloat16", *out)
    assert "leave them out" in refused(capsys, "--adaptation", "x.json", "--convolution", "direct", *out)
    (tmp_path / "y.json").write_text("[]")
    assert "y.json" in refused(capsys, "--adaptation", tmp_path / "y.json", *out)
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "--peer", "none", "--out", tmp_path / "file")
    for module in (speed, speed.cells):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "matplotlib" in refused(capsys, "--peer", "none", *out)
    assert "torch" in refused(capsys, *out)


@pytest.mark.parametrize("loss", (2.01, float("nan")))
def test_no_ratio_where_losses_differ(capsys, monkeypatch, tmp_path, loss):
    monkeypatch.setattr(speed, "find_spec", lambda name: True)
    asked, _ = made_up(monkeypatch, {"metajax": 2.0, "torch": 2.0, "torch_func": loss})
    said = refused(capsys, "--workload", "ctc", "--quick", "--out", tmp_path)
    assert "ctc" in said and "2.000000" in said and f"{loss:.6f}" in said and "torch_func" in said
    assert not (tmp_path / "results.json").exists()
    assert not {"outer", "adapt", "users", "first"} & {name for _, name in asked}  # nothing was timed


def test_a_made_up_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "find_spec", lambda name: True)
    made_up(monkeypatch, {"metajax": 2.0, "torch": 2.0005, "torch_func": 2.0})
    assert speed.main(["--workload", "conv4", "--quick", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["name"], row["peer"], row["device"]) == ("conv4", "torch", "made up")
    assert row["metajax_ms"] == pytest.approx(100) and row["peer_ms"] == pytest.approx(500)
    assert row["ratio"] == pytest.approx(5) and row["losses"]["torch"] == 2.0005
    assert row["gradient_distance"] == {"torch": 0.0, "torch_func": 0.0}
    assert row["metajax_tasks_per_second"] == pytest.approx(40) and row["share_of_peak"] == pytest.approx(0.2)
    assert row["users"]["metajax_per_second"] == pytest.approx(640) and row["users"]["ratio"] == pytest.approx(5)
    assert row["adaptation"]["10"]["torch"] == pytest.approx({"median": 500, "p5": 500, "p95": 500})
    assert "| conv4 | torch | 100.00 | 500.00 | 5.00 | 2.5 | 40 | 20.0 | 20 % |" in capsys.readouterr().out
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_no_peer_no_ratio(capsys, monkeypatch, tmp_path):
    _, settings = made_up(monkeypatch, {"metajax": 2.0})
    flags = ["--workload", "crnn", "--convolution", "direct", "--precision", "bfloat16"]
    assert speed.main([*flags, "--quick", "--peer", "none", "--out", str(tmp_path)]) == 0
    assert settings == {("direct", "bfloat16")}
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert "ratio" not in row and "| crnn | none | 100.00 |  |  |" in capsys.readouterr().out


def test_scaling(capsys, monkeypatch, tmp_path):
    made_up(monkeypatch, {"metajax": 2.0})
    assert speed.main(["--scaling", "--workload", "crnn", "sinusoid", "--quick", "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "scaling.json").read_text())
    axes = {name: {p["axis"] for p in points if p["workload"] == name} for name in ("crnn", "sinusoid")}
    assert axes == {"crnn": set(speed.AXES), "sinusoid": {"shots", "tasks", "steps"}}  # no words, no frames
    assert "| crnn | steps | 2 | 7.00 | 3.0 |" in capsys.readouterr().out
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_the_faster_peer_counts_round_by_round():
    times = {"metajax": [1.0, 2.0, 1.0], "torch": [9.0, 9.0, 9.0], "torch_func": [4.0, 8.0, 6.0]}
    found = speed.compared(times)
    assert (found["peer"], found["peer_ms"], found["metajax_ms"], found["ratio"]) == ("torch_func", 6000, 1000, 4)


def test_rounds_alternate_and_leave_out_a_slow_peer():
    calls = []

    def job(name, seconds):
        return lambda count: calls.append(name) or count * seconds

    jobs = {"metajax": job("metajax", 0.1), "torch": job("torch", 0.2), "torch_func": job("torch_func", 1.1)}
    times = speed.rounds(jobs, 1.0, 3)
    assert {name: len(values) for name, values in times.items()} == {"metajax": 3, "torch": 3, "torch_func": 1}
    np.testing.assert_allclose(np.concatenate([*times.values()]), [0.1] * 3 + [0.2] * 3 + [1.1])
    assert calls[-6:] == ["metajax", "torch"] * 3


def test_steps_to_a_share_of_the_final_accuracy():
    assert speed_adaptation.reached([0.2, 0.5, 0.8, 0.85, 0.9], 0.2) == 3
    assert speed_adaptation.reached([0.2, 0.9, 0.5, 0.9], 0.2) == 3  # it fell back
    assert speed_adaptation.reached([0.9, 0.9], 0.2) == 0
    assert speed_adaptation.reached([0.2, 0.21], 0.2) is None


def test_adaptation_reads_a_run(capsys, tmp_path):
    def curve(*means):
        return [{"step": i, "mean": mean, "ci95": 0.01} for i, mean in enumerate(means)]

    run = {
        "algorithm": "maml", "accuracy": curve(0.2, 0.7, 0.8, 0.8), "adapt_ms": 9.0,
        "baselines": {"chance": 0.2, "from scratch": {"accuracy": curve(0.2, 0.2, 0.6), "inner_rate": 0.1}},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert speed.main(["--adaptation", str(tmp_path / "run.json"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cpu" in lines[0] and lines[2].startswith("| learner | ")
    assert lines[4:] == ["| maml | 80.0 | 2 | 6.0 |", "| from scratch | 60.0 | 2 |  |"]
    assert (tmp_path / "out" / "adaptation.png").stat().st_size > 1000
    (row, _) = json.loads((tmp_path / "out" / "adaptation.json").read_text())["rows"]
    assert row["results"].endswith("run.json")


def test_adaptation_reads_a_comparison_and_measures_its_methods(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(speed_adaptation, "FRAMES", 16)

    def row(method, *means):
        curve = [{"step": i, "mean": mean, "ci95": 0.01} for i, mean in enumerate(means)]
        return {"method": method, "normalization": "group", "shots": 1, "accuracy": curve}

    def spy(method, options, num_steps):
        measured.append((method, options.width, options.num_steps, num_steps))
        return milliseconds(method, options, num_steps)

    measured, milliseconds = [], speed_adaptation.milliseconds
    monkeypatch.setattr(speed_adaptation, "milliseconds", spy)
    rows = [row("from_scratch", 0.2, 0.3, 0.31), row("protonet", 0.2, 0.9), row("anil", 0.2, 0.2)]
    settings = {"width": "0.5", "num_steps": "2"}  # as text, as there
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings, "rows": rows}))
    assert speed.main(["--adaptation", str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "adaptation.json").read_text())["rows"]
    assert [one["steps"] for one in found] == [1, 1, None]
    assert measured == [("from_scratch", 0.5, 2, 1), ("protonet", 0.5, 2, 1)]
    assert [one["ms"] is not None and one["ms"] > 0 for one in found] == [True, True, False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "| anil, group, 1-shot | 20.0 | never |  |"
    assert lines[4].startswith("| protonet, group, 1-shot | 90.0 | 1 | ")


def test_loops_count_times_their_length():
    def f(a, b):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, b), None), a, None, length=7)[0]

    a, b = jnp.ones((3, 5)), jnp.ones((5, 5))
    assert flops(jax.make_jaxpr(f)(a, b).jaxpr, {}) == 7 * 2 * 3 * 5 * 5


def test_convolutions_count_every_example_once():
    x, kernel = jnp.ones((6, 8, 3)), jnp.ones((5, 3, 4))
    one = 2 * 6 * 8 * 5 * 3 * 4  # SAME padding: 8 outputs of each of 6 examples
    gradients = jax.make_jaxpr(jax.grad(lambda x, kernel: conv(x, kernel).sum(), (0, 1)))(x, kernel)
    assert flops(jax.make_jaxpr(conv)(x, kernel).jaxpr, {}) == one
    # the result itself, and its gradients in x (whose ends meet the padding, too) and kernel, beside a few reversals
    assert 3 * one <= flops(gradients.jaxpr, {}) <= 3.7 * one


@pytest.mark.peers
def test_both_sides_augment_alike():
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    from torch_speed import torch_augment

    key = jax.random.key(0)
    x = jax.random.normal(key, (50, 30, 40)) + jnp.linspace(-1, 1, 40)
    draw_key, noise_key = jax.random.split(key)
    draws, bits = jax.random.uniform(draw_key, (13, 50)), jax.random.bits(noise_key, x.shape)
    ours = jax.vmap(lambda clip: normalize(clip, "mean_variance"))(augment(Augmentation(**AUGMENTATION))(x, key))
    theirs = torch_augment(*(torch.tensor(np.array(a)) for a in (x, draws, bits.view(jnp.int32))))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_a_child_that_fails_says_why():
    with pytest.raises(mj.InputError, match="metajax process failed during 'make'"):  # noqa: SIM117
        with speed.child("metajax", Workload("nothing"), "cpu"):
            pass


@pytest.mark.slow
def test_one_step_costs_more_for_more_tasks(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    costs = []
    for tasks in (2, 64):
        with speed.child("metajax", WORKLOADS["sinusoid"]._replace(tasks=tasks), "cpu") as ask:
            costs.append(ask("cost", repeats=2))
    assert costs[0].keys() == {"outer_ms", "memory_mib", "compile_seconds"}
    assert costs[1]["memory_mib"] > 4 * costs[0]["memory_mib"] > 0 and costs[0]["outer_ms"] > 0


@pytest.mark.slow
@pytest.mark.peers
def test_one_small_run(capsys, monkeypatch, tmp_path):
    pytest.importorskip("torch", reason="torch is the peer")
    monkeypatch.delenv("XLA_FLAGS")  # which here keep the compiler from optimising
    monkeypatch.setitem(WORKLOADS, "sinusoid", WORKLOADS["sinusoid"]._replace(tasks=4, steps=2))
    assert speed.main(["--workload", "sinusoid", "--quick", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["ratio"] > 1 and max(row["gradient_distance"].values()) < 1e-3
    assert row["first"]["warm"]["first_step_s"] < row["first"]["cold"]["first_step_s"]
    assert "| sinusoid |" in capsys.readouterr().out
