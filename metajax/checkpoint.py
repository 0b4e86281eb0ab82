"""What a run leaves on disk: checkpoints, and metrics as JSON lines."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from metajax.errors import InputError
from metajax.names import named


def save(path: Path, tree: PyTree) -> None:
    """Write a pytree of arrays to the folder `path`, whole or not at all; an older one there is replaced."""
    import orbax.checkpoint as ocp  # half a second, which a script that saves nothing need not wait for

    def fill(fresh: Path) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(fresh, jax.tree.map(_bare, tree), force=True)

    replace_folder(path, fill)


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `path` by what `fill` writes into one of another name, whole or not at all."""
    path = path.absolute()
    part, fresh, old = (path.with_name(f"{path.name}.{end}") for end in ("part", "new", "old"))
    if fresh.is_dir() and not path.is_dir():  # a crash left the only good copy there
        fresh.rename(path)
    shutil.rmtree(part, ignore_errors=True)
    fill(part)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    part.rename(fresh)
    if path.is_dir():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it, where they are missing.

    Raises:
      InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be made ({error.strerror}).") from error


def exists(path: Path) -> bool:
    """Whether `restore` would find a checkpoint at `path`."""
    return path.is_dir() or path.with_name(f"{path.name}.new").is_dir()


def restore(path: Path, like: PyTree) -> PyTree:
    """Read a pytree written by `save`.

    Args:
      path: the folder.
      like: a tree of the same structure, shapes and dtypes, such as `jax.eval_shape` gives.

    Returns:
      The tree, on the default device.

    Raises:
      InputError: there is no checkpoint at `path`, it is damaged, or it does not fit `like`.
    """
    import orbax.checkpoint as ocp

    path = path.absolute()
    if not path.is_dir():  # a crash between removing the old one and renaming the new one
        path = path.with_name(f"{path.name}.new")
    if not path.is_dir():
        raise InputError(f"{path.with_suffix('')}: no checkpoint there.")
    wanted = jax.tree.map(lambda a: jnp.empty(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a, like)
    like = jax.tree.map(_bare, wanted)
    plain = tree = None
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # without a target first: given one, orbax casts to its dtypes silently
            plain = checkpointer.restore(path)
            tree = checkpointer.restore(path, like)
    except (ValueError, KeyError, OSError) as error:
        if plain is None:
            raise InputError(f"{path}: the checkpoint is damaged: {error!s:.200}") from error
    kinds = [sorted((a.shape, str(a.dtype)) for a in jax.tree.leaves(some)) for some in (plain, like)]
    if tree is None or kinds[0] != kinds[1]:
        found, expected = ({n: f"{a.dtype}{list(a.shape)}" for n, a in named(some).items()} for some in (plain, like))
        odd = next((n for n in {**expected, **found} if found.get(n) != expected.get(n)), "its structure")
        told = f"{odd} is {found.get(odd, 'missing')} in the checkpoint, expected {expected.get(odd, 'none')}"
        raise InputError(f"{path}: {told}: it is of another model.")
    return jax.tree.map(_typed, tree, wanted)


def _bare(leaf: Any) -> np.ndarray:
    """An array as numpy has it; of typed random keys their bits."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _typed(leaf: np.ndarray, like: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Write a file, whole or not at all, and the folders above it; an `InputError` where it cannot be."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append `value` as one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines anew, whole or not at all."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a file of JSON lines; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return values
