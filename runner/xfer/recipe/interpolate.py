"""`${a.b}` in a recipe: the value of another key, and nothing else.

Resolvers such as `${oc.env:TOKEN}` are refused, because what they read would be written into bundles. Everything that could go wrong
(an unknown key, a circle, growth without end) is found before OmegaConf resolves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xfer.errors import Fault
from xfer.plugins import nearest
from xfer.recipe import shape
from xfer.recipe.faults import Findings, place_of
from xfer.recipe.paths import Keys, as_keys, related, render, split
from xfer.recipe.references import PLAIN

MAX_LENGTH = 10_000  # characters of what an interpolation expands to
MAX_INTERPOLATIONS = 200


def resolved(data: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """The data with all interpolations replaced; those that can't be are faults, and are left out."""
    texts = {as_keys(keys): (keys, text) for keys, text in _interpolated(data, ())}
    if not texts:
        return data
    named = {path: [split(name) for name in PLAIN.findall(text)] for path, (_, text) in texts.items()}
    if sum(map(len, named.values())) > MAX_INTERPOLATIONS:
        place, _ = place_of(findings.places, ())
        findings.faults.append(Fault(place.file, place.line, place.column, "", f"more than {MAX_INTERPOLATIONS} interpolations"))
        faulty = set(texts)
    else:
        faulty = {path for path, (keys, text) in texts.items() if not _names_keys(data, keys, text, findings)}
    named = {path: names for path, names in named.items() if path not in faulty}
    faulty |= _endless(data, {path: texts[path][0] for path in named}, named, faulty, findings)
    for path in sorted(faulty, key=len, reverse=True):
        _take_out(data, texts[path][0])
        findings.blocked.add(path)
    if len(faulty) == len(texts):
        return data
    from omegaconf import OmegaConf  # costs 0.1 s, which only recipes that interpolate pay

    result = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def _endless(
    data: dict[str, Any], keys: dict[Keys, tuple[str | int, ...]], named: dict[Keys, list[Keys]], faulty: set[Keys], findings: Findings
) -> set[Keys]:
    """The values that go round in a circle, grow beyond all measure, or name a value that is faulty itself."""
    found: set[Keys] = set()
    sizes: dict[Keys, int] = {}
    waiting = dict(named)
    while waiting:
        ready = [path for path in waiting if not any(related(name, other) for name in waiting[path] for other in waiting)]
        if not ready:
            for path in waiting:
                findings.add(keys[path], "goes round in a circle: " + " and ".join(f"${{{render(name)}}}" for name in waiting[path]))
            return found | set(waiting)
        for path in ready:
            names = waiting.pop(path)
            sizes[path] = sum(_length(_at(data, name), name, sizes) for name in names)
            if any(related(name, other) for name in names for other in faulty | found):
                found.add(path)
            elif sizes[path] > MAX_LENGTH:
                findings.add(keys[path], f"expands to more than {MAX_LENGTH:,} characters")
                found.add(path)
    return found


def _length(value: Any, path: Keys, sizes: dict[Keys, int]) -> int:
    """Characters of a value as text, its interpolations expanded."""
    if isinstance(value, dict):
        return sum(_length(item, (*path, key), sizes) for key, item in value.items())
    if isinstance(value, list):
        return sum(_length(item, (*path, str(index)), sizes) for index, item in enumerate(value))
    return sizes.get(path, 0) + len(str(value))


def _at(value: Any, path: Keys) -> Any:
    for key in path:
        value = shape.step(value, key)
    return value


def _interpolated(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str) and "${" in value:
        yield keys, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _interpolated(item, (*keys, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _interpolated(item, (*keys, index))


def _names_keys(data: dict[str, Any], keys: tuple[str | int, ...], text: str, findings: Findings) -> bool:
    for name in PLAIN.findall(text):
        value: Any = data
        known: list[str] = []
        path = split(name)
        if findings.is_blocked(path):
            return False
        for position, key in enumerate(path):
            known = (
                list(value) if isinstance(value, dict) else [str(index) for index in range(len(value))] if isinstance(value, list) else []
            )
            if key not in known:
                inside = f"; {render(path[:position])} has no '{key}'" if position else ""
                findings.add(keys, f"'${{{name}}}' names no key of the recipe{inside}", nearest(key, known))
                return False
            value = shape.step(value, key)
    return True


def _take_out(data: Any, keys: tuple[str | int, ...]) -> None:
    """Removes a key; an item of a list takes the list along, so that no position shifts."""
    while isinstance(keys[-1], int):
        keys = keys[:-1]
    for key in keys[:-1]:
        data = shape.step(data, str(key))
    if isinstance(data, dict):
        data.pop(keys[-1], None)
