"""`key=value` on the command line: applied after defaults are filled in, to keys that the schema has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xfer.errors import Fault
from xfer.plugins import nearest
from xfer.recipe import shape
from xfer.recipe.document import Place, parse_value
from xfer.recipe.faults import Findings, unknown
from xfer.recipe.paths import Keys, as_keys, render, split
from xfer.recipe.words import one_line

MAX_DEPTH = 20
Typed = tuple[str | int, ...]


class NoKeyError(LookupError):
    """A key that the schema, or the recipe, does not have."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


def apply(overrides: Sequence[str], written: dict[str, Any], full: dict[str, Any], findings: Findings) -> None:
    """Puts each override into `written` (what the recipe says) and `full` (with defaults), or notes its fault."""
    findings.overrides = [one_line(text) for text in overrides]
    for written_text, text in zip(overrides, findings.overrides, strict=True):
        key, equals, value = written_text.partition("=")
        if not equals or not key.strip():
            _say(findings, text, "must be written key=value, e.g. optimizer.lr=3e-4")
        elif not value:
            _say(findings, text, "has no value after '='; write null for none, '' for empty text")
        else:
            try:
                keys, kinds = locate(full, split(key.strip()))
            except ValueError as error:
                _say(findings, text, str(error))
                continue
            except NoKeyError as error:
                _say(findings, text, error.message, error.suggestion)
                continue
            _put(keys, kinds, text, value.strip(), (written, full), findings)


def _say(findings: Findings, text: str, message: str, suggestion: str | None = None) -> None:
    findings.faults.append(Fault(None, None, None, text, message, suggestion))


def _put(keys: Typed, kinds: shape.Kinds, text: str, value: str, trees: tuple[dict[str, Any], ...], findings: Findings) -> None:
    path = as_keys(keys)
    document = parse_value(value, text, path)
    if document.data is None:
        findings.take(document)
        return
    parsed = document.data["value"]
    bases = {kind.base for kind in kinds} - {type(None)}
    if bases == {str} and isinstance(parsed, bool | int | float):
        parsed = value  # where only text may stand, a number needs no quotes
    for place in [known for known in findings.places if known[: len(path)] == path]:
        del findings.places[place]
    findings.blocked -= {known for known in findings.blocked if known[: len(path)] == path}  # what was wrong there is replaced
    for n in range(1, len(path)):
        findings.places.setdefault(path[:n], Place(override=text, sets=path))
    findings.take(document)
    findings.places.update(document.places)
    for tree in trees:
        _assign(tree, keys, parsed)


def _assign(tree: Any, keys: Typed, value: Any) -> None:
    """Puts the value there; what is not a container on the way becomes a mapping."""
    for key, following in zip(keys[:-1], keys[1:], strict=True):
        inner = shape.step(tree, str(key))
        if not isinstance(inner, list if isinstance(following, int) else dict):
            inner = tree[key] = {}
        tree = inner
    tree[keys[-1]] = value


def locate(full: dict[str, Any], path: Keys) -> tuple[Typed, shape.Kinds]:
    """The path with list positions as numbers, and what may stand there. Raises NoKeyError."""
    if path[:1] == ("extends",):
        raise NoKeyError("can't be overridden: recipes are merged before overrides are applied")
    if len(path) > MAX_DEPTH:
        raise NoKeyError(f"has more than {MAX_DEPTH} parts")
    kinds, value, keys = shape.ROOT, full, ()  # type: tuple[shape.Kinds, Any, Typed]
    for position, key in enumerate(path):
        is_last = position == len(path) - 1
        keys, kinds, value = _descend(kinds, value, keys, key, is_last=is_last)
    return keys, kinds


def _descend(kinds: shape.Kinds, value: Any, keys: Typed, key: str, *, is_last: bool) -> tuple[Typed, shape.Kinds, Any]:
    here = render(keys)
    if isinstance(value, list):
        kind = shape.pick(kinds, value)
        if not key.isdecimal() or len(key) > 9:
            raise NoKeyError(f"{here} is a list of {_count(value, keys)}: give a position, e.g. {render((*keys, 0))}.{key}")
        if int(key) >= len(value):
            raise NoKeyError(f"{here} has {_count(value, keys)}, counted from 0: there is no {render((*keys, int(key)))}")
        return (*keys, int(key)), shape.below(kind, key) or shape.ANYTHING, value[int(key)]
    if not isinstance(value, dict) and key.isdecimal() or (keys == ("freeze",) and key.isdecimal()):
        raise NoKeyError(_no_list(value, keys))
    kind = shape.pick(kinds, value if isinstance(value, dict) else {})
    if kind is None:
        raise NoKeyError(f"{here} is a single value and has no key '{key}'")
    if kind.origin is dict and not is_last and key not in (value or {}):
        raise NoKeyError("unknown key" if value else f"{here} is empty", nearest(key, value or ()))
    found = shape.below(kind, key)
    if found is None:
        siblings = list(shape.fields(kind.base)) if kind.is_model else []
        message, suggestion = unknown(key, siblings)
        raise NoKeyError(message, suggestion)
    return (*keys, key), found, value.get(key) if isinstance(value, dict) else None


def _count(value: list[Any], keys: Typed) -> str:
    what = "phase" if keys == ("freeze",) else "item"
    return f"{len(value)} {what}{'' if len(value) == 1 else 's'}"


def _no_list(value: Any, keys: Typed) -> str:
    if keys != ("freeze",):
        return f"{render(keys)} is no list"
    if isinstance(value, dict):
        policy = value.get("policy")
        return f"phases that the policy '{policy}' will make can't be indexed; override its options, or write freeze as a list"
    return "freeze is not written, and phases that its default will make can't be indexed; write freeze as a list"
