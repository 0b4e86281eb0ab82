"""What does it take to be taught five words by a clip each, and to say which is heard?

    python experiments/speed/teaching.py
    python experiments/speed/teaching.py --onnx speech-embedding.onnx      # beside ONNX Runtime and NumPy

Every number is of processes of their own, from their start: `experiments/teach.py` with the encoder and without, what
it kept and exported, and, on the same clips, the encoder alone in ONNX Runtime, class means by cosine in NumPy, as one
would write it without metajax. Cold: no program compiled before; warm: the tool's cache folder (`XDG_CACHE_HOME`) holds
them from an earlier run. Processor time is told beside the time on the clock, which other programs lengthen.
There is no row for PyTorch: the network is published for TensorFlow, TensorFlow Lite and ONNX. A minute or two.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from metajax import InputError, checkpoint, report, runs
from metajax.data import corpora

RATE, NUMBERS = 16000, (1, 3, 4, 6, 8)
TOOL = Path(__file__).parents[1] / "teach.py"
EXPORTED = """
import json, sys
import numpy, jax.export, soundfile
x, _ = soundfile.read(sys.argv[2], dtype="float32")
x = numpy.pad(x[:20000], (0, 20000 - len(x[:20000])))[None]
p = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call(x)
print(f"clip: {json.load(open(sys.argv[1] + '.json'))[int(p[0].argmax())]}, {100 * float(p[0].max()):.0f} %")
"""  # what `--export` promises
KINDS = {"metajax, both": "True", "metajax, its network alone": "False"}  # whether the encoder is asked


@dataclass(frozen=True)
class Settings:
    onnx: Path | None = None  # the encoder as an ONNX file, to compare with
    asked: int = 4  # clips of each word to recognise
    repeats: int = 3  # processes, of which the quickest is told
    seed: int = 0  # of the synthetic clips
    out: Path = Path("runs/speed_teach")


def process(command: list[Any], cache: Path | None = None) -> dict[str, Any]:
    """Run it; seconds to its first answer and in all, those of the processor, and its peak memory."""
    begin, lines, first = time.perf_counter(), [], None
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(
            [sys.executable, *map(str, command)], env=os.environ | {"XDG_CACHE_HOME": str(cache or empty)},
            stdout=subprocess.PIPE, text=True,
        ) as child,
    ):  # fmt: skip
        assert child.stdout
        for line in child.stdout:
            lines.append(line)
            if first is None and re.search(r"(\.wav|^clip): ", line):
                first = time.perf_counter() - begin
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or first is None:
        raise InputError(f"{Path(str(command[0])).name} ended with exit code {child.returncode} and no answer.")
    processor, mib = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return {"first_s": first, "processor_s": processor, "mib": mib, "out": "".join(lines)}


def quickest(s: Settings, command: list[Any], cache: Path | None = None) -> dict[str, Any]:
    return min((process(command, cache) for _ in range(s.repeats)), key=lambda one: one["processor_s"])


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if not found:
        raise InputError(f"teach.py printed no {pattern!r}, expected it in its output.")
    return float(found[1])


def clips(s: Settings, folder: Path) -> tuple[list[str], list[Path]]:
    """WORD=FILE of a voice each, and files by other voices."""
    made = corpora.read("espeak", languages=["en"], numbers=NUMBERS, clips_per_label=1 + s.asked, seed=s.seed)
    taught: dict[int, str] = {}
    asked = []
    for i, wave in enumerate(made.read(range(len(made.clip_names)), RATE)):
        label = int(made.columns["label"][i])
        word = made.names["label"][label].replace(":", "")
        soundfile.write(path := folder / f"{word}_{i}.wav", wave, RATE)
        asked += [path] if label in taught else []
        taught.setdefault(label, f"{word}={path}")
    return list(taught.values()), asked


def run(s: Settings) -> None:
    runs.check(s, ["espeak"], asked=1, repeats=1)
    if s.onnx and not s.onnx.is_file():
        raise InputError(f"{s.onnx} does not exist, expected the encoder as an ONNX file.")
    runs.open_folder(s.out, runs.config(s))
    head = ["", "teach, ms", "a clip, ms", "cold, s", "processor, s", "warm, s", "processor, s", "peak, MiB",
            "kept, KB", "exported, MB", "right"]  # fmt: skip
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words, asked = clips(s, folder)
        answers = [path.name.split("_")[0] for path in asked]
        for label, encoder in KINDS.items():
            kept, exported, cache = (folder / f"{encoder}{end}" for end in (".safetensors", ".hlo", ".cache"))
            how = ["--encoder", encoder]
            whole = process([TOOL, *words, *how, "--save", kept, "--export", exported, "--recognise", *asked])
            again = [TOOL, "--taught", kept, *how, "--recognise", asked[0]]
            cold, _, warm = quickest(s, again), process(again, cache), quickest(s, again, cache)
            alone = quickest(s, ["-c", EXPORTED, exported, asked[0]])
            told = re.findall(r"\.wav: (\w+), ", whole["out"])
            right = np.mean([a == b for a, b in zip(told, answers, strict=True)])
            ms = number(r"clips in ([\d.]+) ms", whole["out"]), number(r"clips, ([\d.]+) ms", whole["out"])
            sizes = kept.stat().st_size / 1024, exported.stat().st_size / 1024**2
            told = [cold["first_s"], cold["processor_s"], warm["first_s"], warm["processor_s"]]
            cells = [f"{ms[0]:.0f}", f"{ms[1]:.1f}", *(f"{one:.1f}" for one in told), f"{cold['mib']:.0f}"]
            rows.append([label, *cells, f"{sizes[0]:.1f}", f"{sizes[1]:.1f}", f"{100 * right:.0f} %"])
            seconds = [f"{alone['first_s']:.1f}", f"{alone['processor_s']:.1f}"]
            rows.append(["what it exported, by JAX alone", "-", "-", *seconds, "-", "-", f"{alone['mib']:.0f}", *"---"])
            results[label] = {"taught": whole, "cold": cold, "warm": warm, "exported": alone, "sizes": sizes}
        if not s.onnx or find_spec("onnxruntime") is None:
            print("note: no ONNX file is given, or onnxruntime is not installed: not compared", file=sys.stderr)
        else:
            found = quickest(s, [Path(__file__).with_name("teaching_onnx.py"), s.onnx, *words, "--", *asked])
            inner = json.loads(found["out"].splitlines()[-1])
            right = np.mean([a == b for a, b in zip(inner["said"], answers, strict=True)])
            seconds = [f"{found['first_s']:.1f}", f"{found['processor_s']:.1f}"]
            row = ["encoder alone, ONNX Runtime", f"{inner['teach_ms']:.0f}", f"{inner['clip_ms']:.1f}", *seconds]
            rows.append([*row, "-", "-", f"{found['mib']:.0f}", "-", "-", f"{100 * right:.0f} %"])
            results["onnx"] = found
    table = report.markdown(head, rows)
    print(f"\n{report.environment()['device']}\n\n{table}")
    checkpoint.write_text(s.out / "table.md", table)
    runs.save_results(s.out, {"config": runs.config(s), "found": results})


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
