"""The policy that trains the last stages and the head, and leaves what lies below them as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal


def last(
    groups: Sequence[str],
    by_stage: Mapping[str, tuple[str, ...]],
    rate: float,
    *,
    stages: int = 1,
    epochs: int = 10,
    layer_decay: float | None = None,
    norm: Literal["train", "frozen"] = "train",
) -> list[dict[str, Any]]:
    """One phase: the last `stages` stages and the head, for `epochs`.

    >>> last([], {}, 1e-3, stages=2, epochs=3)
    [{'train': ['last 2 stages', 'head'], 'epochs': 3, 'layer_decay': None, 'norm': 'train'}]
    """
    return [{"train": [f"last {stages} stages", "head"], "epochs": epochs, "layer_decay": layer_decay, "norm": norm}]
