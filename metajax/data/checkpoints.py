"""Checkpoints in the layout of the Transformers library: tensors and documents of a folder, read and written back."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.checkpoint import make_folder
from metajax.data.torch_file import read_torch
from metajax.errors import InputError

WHOLE = "model.safetensors"


class Files(NamedTuple):
    """What a folder holds."""

    documents: dict[str, bytes]  # its JSON and text files, by name
    tensors: dict[str, np.ndarray]  # by name
    places: dict[str, str]  # the file that holds each tensor
    metadata: dict[str, dict[str, str] | None]  # of each of these files


def read_files(path: str | Path) -> Files:
    """Read a checkpoint: config.json, other documents, and tensors, whole or in shards with an index.

    Args:
      path: the folder, or a file of tensors in it. `pytorch_model.bin` is read where there is nothing else, without
        running any code that it names; needs `safetensors` for everything else.

    Returns:
      What is there. The tensors of a `.bin` count as those of one `model.safetensors`.

    Raises:
      InputError: the folder is no checkpoint (with what it lacks), a shard is missing, or a file is damaged.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or file, expected a checkpoint.")
    folder = path if path.is_dir() else path.parent
    weights = _weights(folder) if path.is_dir() else [path]
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no checkpoint: it lacks config.json.")
    found = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt") and ".bin." not in p.name)
    documents = {p.name: p.read_bytes() for p in found}
    tensors: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    metadata: dict[str, dict[str, str] | None] = {}
    for file in weights:
        place = file.name if file.suffix == ".safetensors" else WHOLE
        some, metadata[place] = read_tensors(file)
        tensors |= some
        places |= dict.fromkeys(some, place)
    return Files(documents, tensors, places, metadata)


def write_files(folder: str | Path, files: Files) -> None:
    """Write a checkpoint into a folder, which is made where it is missing: the same files that were read, bit for bit.

    Raises:
      InputError: the folder cannot be made.
    """
    from safetensors.numpy import save_file

    folder = Path(folder).expanduser()
    make_folder(folder)
    for name, content in files.documents.items():
        (folder / name).write_bytes(content)
    for place, metadata in files.metadata.items():
        some = {n: np.asarray(a, order="C") for n, a in files.tensors.items() if files.places[n] == place}
        save_file(some, folder / place, metadata)


def document(files: Files, name: str) -> dict[str, Any]:
    """A JSON document of a checkpoint; empty where there is none, an `InputError` where it is damaged."""
    try:
        value = json.loads(files.documents.get(name, b"{}"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{name} of the checkpoint is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} of the checkpoint holds a {type(value).__name__}, expected an object.")
    return value


def amended(files: Files, name: str, **values: Any) -> Files:
    """The files with some values of a JSON document changed."""
    content = json.dumps(document(files, name) | values, indent=2) + "\n"
    return files._replace(documents=files.documents | {name: content.encode()})


def _weights(folder: Path) -> list[Path]:
    """The files of tensors in a folder."""
    for whole in (WHOLE, "pytorch_model.bin"):
        if (folder / whole).is_file():
            return [folder / whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                if any(Path(name).name != name for name in names):
                    raise ValueError(names)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{index} is damaged, expected an object with weight_map, names of files in its folder."
                ) from error
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise InputError(f"{folder} lacks {missing[0]}, one of the {len(names)} shards that its index names.")
            return [folder / name for name in names]
    raise InputError(f"{folder} is no checkpoint: it lacks {WHOLE}, {WHOLE}.index.json and pytorch_model.bin.")


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str] | None]:
    """The tensors of one file by name, and its metadata; a file that is no safetensors is one of PyTorch."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file, expected tensors.")
    with path.open("rb") as file:  # behind the size of its header, safetensors begins with a brace
        if file.read(9)[8:] != b"{" and path.suffix != ".safetensors":
            return read_torch(path), {"format": "pt"}
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(f"{path} needs the package safetensors: pip install 'metajax[pretrained]'.") from error
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error!s:.200}.") from error
