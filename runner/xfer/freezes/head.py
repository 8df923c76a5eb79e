"""The policy that trains the new head alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def head(groups: Sequence[str], stages: Mapping[str, tuple[str, ...]], rate: float, *, epochs: int = 10) -> list[dict[str, Any]]:
    """One phase: the head, for `epochs`.

    >>> head([], {}, 1e-3, epochs=3)
    [{'train': 'head', 'epochs': 3}]
    """
    return [{"train": "head", "epochs": epochs}]
