"""The policy that trains the new head alone."""

from __future__ import annotations

from typing import Any


def head(groups: list[str], stages: dict[str, tuple[str, ...]], *, epochs: int = 10) -> list[dict[str, Any]]:
    """One phase: the head, for `epochs`.

    >>> head([], {}, epochs=3)
    [{'train': 'head', 'epochs': 3}]
    """
    return [{"train": "head", "epochs": epochs}]
