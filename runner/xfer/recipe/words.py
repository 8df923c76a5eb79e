"""Values as messages show them."""

from __future__ import annotations

from typing import Any

_LONGEST = 60  # characters


def shown(value: Any, *, quotes: bool = True) -> str:
    """A value in a message: short, on one line, and as YAML has it.

    >>> shown("adamx"), shown(None), shown(True), shown([1])
    ("'adamx'", 'null', 'true', 'a list')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    text = one_line(text)
    return f"'{text}'" if isinstance(value, str) and quotes else text


def one_line(text: str) -> str:
    """Text without line ends and control characters: a fault is one line, whatever a recipe holds."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "�" for letter in text)
