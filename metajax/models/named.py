"""The networks that scripts choose by name."""

from collections.abc import Callable
from typing import Literal

from metajax.models.bilstm import bilstm
from metajax.models.conformer import conformer
from metajax.models.conv4 import conv4
from metajax.models.layers import Normalization
from metajax.models.model import Model, in_bfloat16
from metajax.models.tcresnet import tcresnet8

Network = Literal["tcresnet8", "conv4"]
Recogniser = Literal["conformer", "bilstm"]
Precision = Literal["float32", "bfloat16"]


def network(
    name: Network = "tcresnet8",
    *,
    width: float = 1.0,
    normalization: Normalization = "group",
    precision: Precision = "float32",
) -> Callable[[int | None], Model]:
    """A network by name, with as many outputs as asked, or None for its embedding.

    Args:
      name: `tcresnet8` or `conv4`.
      width: multiplies its channels.
      normalization: see `Norm`.
      precision: bfloat16 is for GPU and TPU.

    Returns:
      `num_outputs or None -> Model`.
    """

    def make(outputs: int | None) -> Model:
        if name == "tcresnet8":
            model = tcresnet8(outputs, normalization=normalization, width=width)
        else:
            model = conv4(outputs, normalization=normalization, width=round(64 * width))
        return in_bfloat16(model) if precision == "bfloat16" else model

    return make


def recogniser(
    name: Recogniser = "conformer",
    *,
    width: float = 1.0,
    num_layers: int | None = None,
    precision: Precision = "float32",
) -> Callable[[int | None], Model]:
    """An encoder of utterances by name, with a vocabulary of as many tokens as asked, or None for its embeddings.

    Args:
      name: `conformer` or `bilstm`.
      width: multiplies its features.
      num_layers: of it; None for its own default.
      precision: bfloat16 is for GPU and TPU.

    Returns:
      `num_outputs or None -> Model`, on `Utterances`.
    """

    def make(outputs: int | None) -> Model:
        size = 8 * round(16 * width)
        if name == "conformer":
            model = conformer(outputs, width=size, num_layers=num_layers or 4)
        else:
            model = bilstm(outputs, width=size, num_layers=num_layers or 2)
        return in_bfloat16(model) if precision == "bfloat16" else model

    return make
