"""The import rules and sizes that keep the library in layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metajax

ROOT = Path(metajax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
FILE_MODULES = {
    "os",
    "pathlib",
    "io",
    "json",
    "shutil",
    "tempfile",
    "pickle",
    "soundfile",
    "orbax",
    "csv",
    "zipfile",
    "tarfile",
}
OPTIONAL = ("espeakng_loader", "matplotlib", "torch", "librosa", "sklearn", "PIL", "beartype", "pytest")


def imports(path, top_level_only=False):
    """Full names of all modules that a file imports; `from a import b` gives `a` and `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def touches_files(name):
    return name.startswith("data/") or name in ("checkpoint.py", "report.py")


def test_there_is_something_to_check():
    assert len(FILES) > 20
    assert {"core.py", "algorithms/maml.py", "models/conv.py", "data/corpus.py"} <= set(NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_import_rules(path):
    name = str(path.relative_to(ROOT))
    found = set(imports(path))
    assert not [m for m in found if under(m, "experiments", "tests")]
    assert not [m for m in imports(path, top_level_only=True) if under(m, *OPTIONAL)]
    if name.startswith("algorithms/"):
        allowed = ("metajax.core", "metajax.errors", "metajax.inner", "metajax.losses", "metajax.algorithms", "jax")
        assert not [m for m in found if not under(m, *allowed, "optax", "jaxtyping", "typing", "collections")]
    if not name.startswith("models/"):
        assert not [m for m in found if under(m, "flax")]
    if not touches_files(name):
        # these two take folders from the caller and open nothing; `os` counts the cores
        allowed = {"train.py": {"pathlib", "pathlib.Path"}, "parallel.py": {"pathlib", "pathlib.Path", "os"}}
        assert not {m for m in found if under(m, *FILE_MODULES)} - allowed.get(name, set())


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_data_checkpoint_and_report_touch_files(path):
    if touches_files(str(path.relative_to(ROOT))):
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


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_all_is_sorted_and_complete():
    assert metajax.__all__ == sorted(metajax.__all__)
    assert len(set(metajax.__all__)) == len(metajax.__all__)
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert {m.asname or m.name for n in tree.body if isinstance(n, ast.ImportFrom) for m in n.names} == set(
        metajax.__all__
    )


def test_importing_metajax_imports_nothing_optional_and_starts_no_backend():
    code = (
        "import sys, metajax, metajax.models, metajax.tasks.episodes, metajax.data.corpus\n"
        f"print([name for name in {OPTIONAL!r} if name in sys.modules])\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
