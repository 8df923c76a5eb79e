"""The policy that trains everything from the start: plain fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal


def everything(
    groups: Sequence[str],
    stages: Mapping[str, tuple[str, ...]],
    rate: float,
    *,
    epochs: int = 10,
    layer_decay: float | None = None,
    norm: Literal["train", "frozen"] = "train",
) -> list[dict[str, Any]]:
    """One phase: the head and all of the source, for `epochs`.

    >>> everything([], {}, 1e-3, epochs=3)
    [{'train': 'all', 'epochs': 3, 'layer_decay': None, 'norm': 'train'}]
    """
    return [{"train": "all", "epochs": epochs, "layer_decay": layer_decay, "norm": norm}]
