"""The reference joint model as one writes it in PyTorch: what `multitask_embedding.py` is compared with (`peers`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TwoHeads(nn.Module):
    """Input -> Embedding -> Task A & Task B: the mean embedding of an input's tokens, a linear head per task."""

    def __init__(self, num_tokens: int = 1000, width: int = 128, speech: int = 30, image: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.speech = nn.Linear(width, speech)
        self.image = nn.Linear(width, image)

    def forward(self, speech: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.speech(self.embedding(speech).mean(1)), self.image(self.embedding(image).mean(1))


def load(model: TwoHeads, params: Mapping[str, Any]) -> TwoHeads:
    """Give `model` the parameters of `metajax.models.multitask.embedding_heads`, in their precision."""
    values = {"embedding.weight": params["shared"]["embedding"]}
    for task, head in params["heads"].items():
        values |= {f"{task}.weight": np.asarray(head["kernel"]).T, f"{task}.bias": head["bias"]}
    model.to(torch.from_numpy(np.array(values["embedding.weight"])).dtype)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in values.items()})
    return model


def train(
    model: TwoHeads, data: Mapping[str, tuple[Tensor, Tensor]], order: Mapping[str, Tensor], rate: float = 1e-3
) -> list[float]:
    """Train by the sum of the two cross-entropies; returns the mean loss of each epoch.

    Args:
      model: to be trained.
      data: tokens `[n, length]` and labels `[n]` of each task.
      order: rows of `data` that each step sees, `[epochs, steps, batch]` by task.
      rate: learning rate of Adam.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    criterion = nn.CrossEntropyLoss()
    history = []
    for rows in zip(order["speech"], order["image"], strict=True):
        losses = []
        for speech, image in zip(*rows, strict=True):
            optimizer.zero_grad()
            speech_logits, image_logits = model(data["speech"][0][speech], data["image"][0][image])
            loss = criterion(speech_logits, data["speech"][1][speech])
            loss = loss + criterion(image_logits, data["image"][1][image])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history
