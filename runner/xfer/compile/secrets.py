"""No secret is written to a bundle: an address that holds one is refused, since the recipe itself is kept there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from xfer.compile.collector import Collector

SIGNED = re.compile(r"signature|token|secret|password|credential|^(sig|key|api_?key|access_?key)$", re.IGNORECASE)
ADVICE = "and a bundle keeps the recipe; download the file and give its path, or let the storage library read its own settings"


def refuse(data: Any, collector: Collector) -> bool:
    """A fault for every address in the recipe with a password or a signed query; True if there is one."""
    found = [(path, kind) for path, text in strings(data) if (kind := secret_of(text)) is not None]
    for path, kind in found:
        collector.add(path, f"the address holds a {kind}, {ADVICE}")
    return bool(found)


def secret_of(text: str) -> str | None:
    """What secret an address holds, or None.

    >>> secret_of("https://me:word@host/w.pth"), secret_of("s3://bucket/w.pth?X-Amz-Signature=ab"), secret_of("https://host/w.pth?v=2")
    ('password', 'signed query', None)
    """
    if "://" not in text:
        return None
    try:
        address = urlsplit(text)
        if address.password:
            return "password"
    except ValueError:
        return None
    return "signed query" if any(SIGNED.search(name) for name, _ in parse_qsl(address.query)) else None


def strings(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every text in plain data, paths as in messages: `freeze[0].train`."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from strings(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from strings(value, f"{path}[{index}]")
