"""Gradual unfreezing: the head first, then one more stage at a time, the deepest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal


def gradual(
    groups: Sequence[str],
    stages: Mapping[str, tuple[str, ...]],
    rate: float,
    *,
    every: int = 1,
    epochs: int | None = None,
    layer_decay: float | None = None,
    norm: Literal["train", "frozen"] = "train",
) -> list[dict[str, Any]]:
    """A phase of `every` epochs for the head, then one more for each stage that joins (Howard & Ruder 2018, "Universal language
    model fine-tuning for text classification", section 3.3). `epochs` in all: with fewer than all stages need, the first stages
    stay frozen; with more, the last phase goes on. Without it each phase has `every`.

    >>> [(phase["train"], phase["epochs"]) for phase in gradual([], {"stage0": (), "stage1": ()}, 1e-3, every=2, epochs=5)]
    [('head', 2), (['stage1', 'head'], 2), (['stage0', 'stage1', 'head'], 1)]
    """
    names = list(stages)
    left = every * (len(names) + 1) if epochs is None else epochs
    phases: list[dict[str, Any]] = []
    for count in range(len(names) + 1):
        length = left if count == len(names) else min(every, left)
        if length <= 0:
            break
        train: Any = [*names[len(names) - count :], "head"] if count else "head"
        phases.append({"train": train, "epochs": length, "layer_decay": layer_decay, "norm": norm})
        left -= length
    return phases
