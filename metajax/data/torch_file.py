"""Tensors of a file that PyTorch has pickled, read without running anything that the file names."""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from metajax.errors import InputError

_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows dicts and tensors, and refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if name is None:
            raise InputError(f"{path} is a zip file without data.pkl, expected tensors that PyTorch has saved.")
        super().__init__(archive.open(name))
        self.archive, self.folder, self.path = archive, name.removesuffix("data.pkl"), path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _tensor(storage, offset, size, stride, self.path)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _TYPES:
            return name
        raise InputError(f"{self.path} names {module}.{name}, expected nothing but tensors; it was not run.")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, *_ = pid
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), _TYPES[kind])


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], path: Path) -> np.ndarray:
    """A copy of part of a storage, which it lies within."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise InputError(f"{path} is damaged: a tensor is made of something else than a storage.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and not (0 <= offset <= last < len(storage) >= math.prod(size) and min(stride, default=0) >= 0):
        raise InputError(f"{path} is damaged: a tensor of shape {list(size)} lies outside its {len(storage)} numbers.")
    steps = [step * storage.itemsize for step in stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save` wrote, by name; no code is run, whatever the file says.

    Raises:
      InputError: the file is damaged, of a form older than PyTorch 1.6, or holds anything but tensors by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = _Reader(archive, path).load()
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} holds no tensors, is damaged or older than PyTorch 1.6; load it by torch.load(path, "
            "weights_only=True) and write it again by safetensors.torch.save_file."
        ) from error
    except InputError:
        raise
    except Exception as error:  # what a malformed pickle raises has no common type
        raise InputError(f"{path} is damaged: {error!s:.200}.") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, np.ndarray) for value in tensors.values()):
        raise InputError(f"{path} holds more than tensors by name, expected the state dict of a model.")
    return dict(tensors)
