"""Sizes and durations as a person writes them: '50GB', '5min'."""

from __future__ import annotations

import re

from xfer.recipe.words import shown

BYTES = {
    "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50,
}  # fmt: skip
SECONDS = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_LONGEST = 64  # characters: no real quantity is longer


def parse_bytes(value: str | int) -> int:
    """Bytes that a size means; a whole number is bytes already. Units are decimal (GB) or binary (GiB). Raises ValueError.

    >>> parse_bytes("50GB"), parse_bytes("1.5 KiB"), parse_bytes(4096)
    (50000000000, 1536, 4096)
    """
    amount, unit = _split(value)
    if unit is None or unit.lower() not in {"", *BYTES} or (not unit and amount != int(amount)):
        raise ValueError(f"must be a size such as '50GB', '512MiB' or a whole number of bytes, not {shown(value)}")
    n_bytes = int(amount * BYTES[unit.lower() or "b"])
    if n_bytes < 1:
        raise ValueError(f"must be at least one byte, not {shown(value)}")
    return n_bytes


def parse_seconds(value: str) -> float:
    """Seconds that a duration means: '30s', '5min', '2h', '1d'. The unit must be written. Raises ValueError.

    >>> parse_seconds("5min"), parse_seconds("1.5 h")
    (300.0, 5400.0)
    """
    amount, unit = _split(value)
    if not unit or unit.lower() not in SECONDS:
        raise ValueError(f"must be a duration such as '30s', '5min' or '2h', not {shown(value)}")
    if amount <= 0:
        raise ValueError(f"must be longer than no time, not {shown(value)}")
    return amount * SECONDS[unit.lower()]


def _split(value: object) -> tuple[float, str | None]:
    """Amount and unit; unit None where it is no quantity at all."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, ""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST else None
    if found is None:
        return 0.0, None
    return float(found[1]), found[2]
