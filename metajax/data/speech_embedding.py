"""The weights of Google's speech embedding, from where pyopen-wakeword is installed, and what was learned on top."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from metajax.data.checkpoints import read_tensors
from metajax.errors import InputError

CONVOLUTIONS = 20


def read_speech_embedding() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels `[time, mel, in, out]` and biases of the network's convolutions, first to last.

    They are of Google's speech_embedding (Apache-2.0), in a TensorFlow Lite file that lies in the package; no code of
    the package runs.

    Raises:
      InputError: a package is not installed, or its file is another than expected.
    """
    spec = find_spec("pyopen_wakeword")
    if spec is None or spec.origin is None or find_spec("tflite") is None:
        raise InputError("speech_embedding needs pyopen-wakeword and tflite: pip install 'metajax[encoder]'.")
    import tflite

    path = Path(spec.origin).parent / "models" / "embedding_model.tflite"
    if not path.is_file():
        raise InputError(f"{path} is missing, expected it in the package pyopen-wakeword, version 1.1 or later.")
    model = tflite.Model.GetRootAs(path.read_bytes())
    graph, found = model.Subgraphs(0), []

    def tensor(index: np.integer) -> np.ndarray:
        held = graph.Tensors(index)
        return model.Buffers(held.Buffer()).DataAsNumpy().view(np.float32).reshape(held.ShapeAsNumpy())

    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) == tflite.BuiltinOperator.CONV_2D:
            _, kernel, bias = operator.InputsAsNumpy()
            found.append((tensor(kernel).transpose(1, 2, 3, 0), tensor(bias)))
    if len(found) != CONVOLUTIONS or found[0][0].shape != (3, 3, 1, 24) or found[-1][0].shape != (3, 1, 96, 96):
        raise InputError(f"{path} holds {len(found)} convolutions, expected the {CONVOLUTIONS} of speech_embedding.")
    return found


def read_words(name: Literal["words", "word_net"] = "words") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors that a script made of synthetic speech, which come with metajax, and their card.

    Args:
      name: "words", of `experiments/whiten_words.py`, or "word_net", of `experiments/train_words.py`.

    Raises:
      InputError: safetensors is not installed.
    """
    tensors, card = read_tensors(Path(__file__).with_name(f"{name}.safetensors"))
    return tensors, card or {}


def by_layer(tensors: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Tensors named `layer/leaf` as parameters."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = tensor
    return params
