"""Paths into a recipe: 'freeze[0].train' as text, ('freeze', '0', 'train') as keys.

Keys are text everywhere, list positions too: a mapping and a list never share a path, so nothing is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Keys = tuple[str, ...]

_PART = re.compile(r"\[([^\[\]]+)\]|(?:^|\.)([^.\[\]]+)")
_PLAIN = re.compile(r"[^.\[\]\s]+")


def split(path: str) -> Keys:
    """Keys of a path; `freeze.0.lr` and `freeze[0].lr` are the same, brackets hold keys with dots. Raises ValueError.

    >>> split("freeze[0].train"), split("freeze.0.train"), split("sweep.space[head.dropout]")
    (('freeze', '0', 'train'), ('freeze', '0', 'train'), ('sweep', 'space', 'head.dropout'))
    """
    keys, at = [], 0
    while at < len(path):
        found = _PART.match(path, at)
        if found is None:
            raise ValueError(f"'{path}' is not a path such as optimizer.lr or freeze[0].epochs")
        keys.append(found[1] or found[2])
        at = found.end()
    return tuple(keys)


def render(keys: Sequence[str | int]) -> str:
    """The path as a person writes it; whole numbers are list positions.

    >>> render(("freeze", 0, "train")), render(("sweep", "space", "head.dropout", "grid"))
    ('freeze[0].train', 'sweep.space[head.dropout].grid')
    """
    text = ""
    for key in keys:
        if isinstance(key, int) or not _PLAIN.fullmatch(key):
            text += f"[{key}]"
        else:
            text += f".{key}" if text else key
    return text


def as_keys(keys: Sequence[str | int]) -> Keys:
    return tuple(str(key) for key in keys)


def related(one: Keys, other: Keys) -> bool:
    """True if they are the same place, or one lies below the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
