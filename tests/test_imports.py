"""The import rules and sizes that keep the library in layers."""

import ast
import subprocess
import sys
from inspect import isfunction
from pathlib import Path

import pytest

import metajax

ROOT = Path(metajax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
EXPERIMENTS = ROOT.parent / "experiments"
SCRIPTS = sorted(EXPERIMENTS.rglob("*.py"))
SCRIPT_NAMES = [str(path.relative_to(EXPERIMENTS)) for path in SCRIPTS]
FILE_MODULES = ("os", "pathlib", "io", "json", "shutil", "tempfile", "pickle", "soundfile", "orbax", "csv", "zipfile",
                "tarfile")  # fmt: skip
OPTIONAL = ("espeakng_loader", "matplotlib", "torch", "librosa", "sklearn", "PIL", "beartype", "pytest", "tyro",
            "safetensors", "tflite", "pyopen_wakeword", "transformers", "onnxruntime", "starlette", "uvicorn",
            "sounddevice")  # fmt: skip
# what each layer stands on, all the way down
LAYERS = {
    "errors": (),
    "core": ("errors",),
    "names": ("errors",),
    "inner": ("core", "errors", "names"),
    "losses": ("core", "errors", "names"),
    "algorithms": ("core", "errors", "names", "inner", "losses"),
}
TOUCH_FILES = ("data/", "checkpoint.py", "runs.py", "report.py")
# these take folders from the caller and open nothing; `os` counts the cores
TAKE_PATHS = {"train.py": {"pathlib"}, "parallel.py": {"pathlib", "os"}, "recipes.py": {"pathlib"},
              "models/pretrained/__init__.py": {"pathlib"}, "models/saved.py": {"pathlib"},
              "web.py": {"pathlib"}}  # fmt: skip


def module(path):
    """`metajax.core` for `metajax/core.py`, `metajax.losses` for `metajax/losses/__init__.py`."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, top_level_only=False):
    """Full names of all that a file imports; `from a import b` gives `a.b`, and `a` unless `a.b` is a module here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names
            if names - MODULES:
                yield node.module


MODULES = {module(path) for path in FILES}
GRAPH = {module(path): set(imports(path)) for path in FILES}


def reached(start, packages=True):
    """Everything that importing `start` may import, other libraries too; with the packages that a module lies in."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo.extend(GRAPH.get(name, ()))
        if packages and "." in name:
            todo.append(name.rpartition(".")[0])
    return seen


def under(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def layer(name):
    return name.removeprefix("metajax.").split(".")[0]


def test_there_is_something_to_check():
    assert len(FILES) > 50 and len(SCRIPTS) > 5
    assert {"core.py", "algorithms/maml.py", "conv/primitives.py", "data/corpus.py"} <= set(NAMES)
    assert {"metajax.errors", "jax"} <= reached("metajax.core") and "flax" in reached("metajax.models")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_import_rules(path):
    name, own = str(path.relative_to(ROOT)), module(path)
    found = set(imports(path))
    assert not [m for m in found if under(m, "experiments", "tests")]
    assert not [m for m in imports(path, top_level_only=True) if under(m, *OPTIONAL)]
    assert under(own, "metajax.models") or not [m for m in found if under(m, "flax")]
    if not name.startswith(TOUCH_FILES):
        assert {m.split(".")[0] for m in found if under(m, *FILE_MODULES)} <= TAKE_PATHS.get(name, set())
    if layer(own) in LAYERS and own != "metajax":
        lower = {m for m in reached(own, packages=False) if m in GRAPH}
        assert not {layer(m) for m in lower} - {layer(own), *LAYERS[layer(own)]}
        assert not [m for m in reached(own, packages=False) if under(m, "flax", *FILE_MODULES[1:], "tqdm", "scipy")]


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_only_models_and_what_is_told_of_them_reaches_flax(name):
    """Packages count: who imports one of their modules runs them too."""
    if under(name, "metajax.models", "metajax.methods"):
        return
    assert not [m for m in reached(name) if under(m, "flax")], name


def test_no_module_needs_itself():
    for name in GRAPH:
        assert all(name not in reached(m, packages=False) for m in GRAPH[name] if m in GRAPH and m != "metajax"), name


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_data_checkpoint_runs_and_report_touch_files(path):
    if str(path.relative_to(ROOT)).startswith(TOUCH_FILES):
        return
    methods = {
        "open",
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "mkdir",
        "unlink",
        "rename",
        "touch",
        "tofile",
    }
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    called = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
    assert not called & methods


@pytest.mark.parametrize("path", SCRIPTS, ids=SCRIPT_NAMES)
def test_a_script_imports_no_other_script(path):
    """Those of `speed` and `peers` share among themselves."""
    others = {other.stem for other in SCRIPTS if other.parent != path.parent or path.parent == EXPERIMENTS}
    folders = {folder.name for folder in EXPERIMENTS.iterdir() if folder.is_dir()}
    beside = {other.stem for other in SCRIPTS if other.parent == path.parent != EXPERIMENTS}
    found = {name.split(".")[0] for name in imports(path)}
    assert not found & ((others | folders | {"experiments", "tests"}) - {path.stem} - beside)


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=[*NAMES, *SCRIPT_NAMES])
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (200 if path.parent == EXPERIMENTS else 400)


@pytest.mark.parametrize("path", sorted((ROOT / "algorithms").glob("*.py")), ids=lambda path: path.name)
def test_every_method_has_an_example_and_a_reference(path):
    """A file that is named like a public function is a method."""
    if isfunction(getattr(metajax, path.stem, None)):
        told = ast.get_docstring(
            next(n for n in ast.parse(path.read_text(encoding="utf-8")).body if getattr(n, "name", "") == path.stem)
        )
        assert ">>> " in told and "Reference: " in told and "Args:" in told and "Returns:" in told


def test_importing_metajax_imports_nothing_optional_and_starts_no_backend():
    code = (
        "import sys, metajax, metajax.tasks.episodes\n"
        "print('flax' in sys.modules)\n"
        "import metajax.methods, metajax.models, metajax.data.corpus, metajax.runs, metajax.report\n"
        f"print([name for name in {OPTIONAL!r} if name in sys.modules])\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["False", "[]", "False"]
