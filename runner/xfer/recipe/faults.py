"""What pydantic found, in the words of a person and at its place.

`Findings` is where all parts of the loader put what they find; it knows where every key was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from xfer.errors import Fault
from xfer.plugins import nearest
from xfer.recipe import shape
from xfer.recipe.document import Document, Place
from xfer.recipe.paths import Keys, as_keys, related, render
from xfer.recipe.rules import LIST, MAPPING, SCALAR
from xfer.recipe.schema import Recipe
from xfer.recipe.words import one_line, shown

MAX_ROUNDS = 50  # taking a faulty key out can bring up another fault, but not for ever
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


class Findings:
    """Faults so far, the places of all keys, and the paths that are known to be faulty."""

    def __init__(self, places: dict[Keys, Place]) -> None:
        self.places = places
        self.faults: list[Fault] = []
        self.blocked: set[Keys] = set()
        self.overrides: list[str] = []

    def take(self, document: Document) -> None:
        self.faults += document.faults
        self.blocked |= document.blocked

    def is_blocked(self, keys: Keys) -> bool:
        return any(related(keys, faulty) for faulty in self.blocked)

    def add(self, keys: tuple[str | int, ...], message: str, suggestion: str | None = None) -> None:
        """A fault, unless something at, above or below that path is known to be faulty already."""
        if not self.is_blocked(as_keys(keys)):
            self.faults.append(fault_at(self.places, keys, message, suggestion))
            self.blocked.add(as_keys(keys))

    def sorted(self) -> tuple[Fault, ...]:
        """By file and line; those of the command line come last, in its order."""

        def order(fault: Fault) -> tuple[bool, str, int, int]:
            turn = self.overrides.index(fault.path) if fault.file is None and fault.path in self.overrides else 0
            return fault.file is None, fault.file or "", fault.line or turn, fault.column or 0

        return tuple(sorted(dict.fromkeys(self.faults), key=order))


def place_of(places: Mapping[Keys, Place], keys: Keys) -> tuple[Place, Keys]:
    """Where a path, or else its nearest parent, was written; and the path that was found."""
    for n in range(len(keys), -1, -1):
        if keys[:n] in places:
            return places[keys[:n]], keys[:n]
    return Place(), ()


def fault_at(places: Mapping[Keys, Place], keys: tuple[str | int, ...], message: str, suggestion: str | None = None) -> Fault:
    """A fault in a recipe's own form: at the file's line, or naming the override that the value came from."""
    path, message = one_line(render(keys)), one_line(message)
    place, found = place_of(places, as_keys(keys))
    if not place.override:  # a rule over a whole section is broken by the override inside it
        inside = [other for other, where in places.items() if where.override and other[: len(keys)] == as_keys(keys)]
        if inside and len(found) <= len(keys):
            place = places[inside[-1]]
    if place.override:
        words = message if place.sets == as_keys(keys) else f"{path}: {message}"
        return Fault(None, None, None, place.override, words, suggestion)
    return Fault(place.file, place.line, place.column, path, message, suggestion)


def validated(data: dict[str, Any], findings: Findings) -> Recipe | None:
    """The recipe, after everything faulty was noted and taken out; None where what is left is no recipe."""
    remaining = _copied(data)
    for _ in range(MAX_ROUNDS):
        try:
            return Recipe.model_validate(remaining)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        located = [(item, _located(item, remaining)) for item in errors]
        for item, keys in sorted(located, key=lambda pair: pair[0]["type"] == "missing"):
            _report(item, keys, remaining, findings)
        for item, keys in located:
            if not _drop(remaining, keys[:-1] if item["type"] == "missing" else keys):
                return None
    return None


def in_a_phase(error: ValidationError, phase: dict[str, Any]) -> tuple[str, str, Any]:
    """What is wrong first in a phase that no recipe wrote but a policy made: its key, the words, and the value."""
    item, findings = error.errors(include_url=False)[0], Findings({})
    keys = _located(item, phase)
    _report(item, ("freeze", 0, *keys), {"freeze": [phase]}, findings)
    return render(as_keys(keys)), findings.faults[0].message, item["input"]


def _copied(value: Any) -> Any:
    """A copy whose empty sections are mappings: `runtime:` with all its keys commented out means the defaults."""

    def copy(kinds: shape.Kinds, value: Any) -> Any:
        if value is None and shape.section(kinds):
            return {}
        kind = shape.pick(kinds, value)
        if isinstance(value, dict):
            return {key: copy(shape.below(kind, key) or (), item) for key, item in value.items()}
        if isinstance(value, list):
            return [copy(shape.below(kind, str(index)) or (), item) for index, item in enumerate(value)]
        return value

    return copy(shape.ROOT, value)


def _located(error: Any, data: dict[str, Any]) -> tuple[str | int, ...]:
    """Pydantic's location without the names of union branches, and with the key that a rule names."""
    keys = tuple(key for key in error["loc"] if key not in (LIST, MAPPING, SCALAR, "[key]"))
    if error["type"] == "rule":
        keys = (*keys, error["ctx"]["key"])
    return keys


def _drop(data: dict[str, Any], keys: tuple[str | int, ...]) -> bool:
    """Takes a key out; an item takes its whole list along, so that no position shifts. False where that is not possible."""
    while keys and isinstance(keys[-1], int):
        keys = keys[:-1]
    if not keys:
        return False
    container: Any = data
    for key in keys[:-1]:
        if not isinstance(container, dict | list):
            return True
        container = container.get(key) if isinstance(container, dict) else container[int(key)] if int(key) < len(container) else None
    if isinstance(container, dict):
        container.pop(str(keys[-1]), None)
    return True


def _report(error: Any, keys: tuple[str | int, ...], data: dict[str, Any], findings: Findings) -> None:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        _report_missing(keys, value, findings)
    elif kind == "extra_forbidden":
        message, suggestion = unknown(str(keys[-1]), _siblings(data, keys))
        findings.add(keys, message, suggestion)
    elif kind == "literal_error":
        kinds = shape.at(data, as_keys(keys)) or ()
        choices = [
            str(choice)
            for kind_ in kinds
            if kind_.arguments and not kind_.is_model
            for choice in kind_.arguments
            if isinstance(choice, str)
        ]
        findings.add(keys, *not_one_of(value, choices, _yaml_word(findings, keys, value)))
    elif kind == "rule":
        findings.add(keys, error["ctx"]["message"])
    elif kind == "value_error":
        findings.add(keys, str(error["ctx"]["error"]))
    else:
        message, word = _in_words(kind, value, keys, data), _yaml_word(findings, keys, value)
        if word:
            message += f"; YAML reads {word} as {shown(value)}: write '{word}' in quotes"
        elif message.startswith("must be text,") and isinstance(value, bool | int | float):
            message += f"; write it in quotes: '{shown(value)}'"
        findings.add(keys, message)


def _in_words(kind: str, value: Any, keys: tuple[str | int, ...], data: dict[str, Any]) -> str:
    kinds = shape.at(data, as_keys(keys)) or shape.ANYTHING
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most 100 characters, not {len(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {value}"
    if kind in _RANGES:
        numbers = [shape.bounds(one) for one in kinds if one.bounds]
        return f"must be {numbers[0]}, not {shown(value)}"
    model = shape.section(kinds)
    if value is None:
        return f"has no value; must be {shape.in_words(kinds)}"
    if model and isinstance(value, str):
        main = next((name for name, info in model.model_fields.items() if info.is_required()), next(iter(model.model_fields)))
        return f"must be a mapping, e.g. {{{main}: {shown(value, quotes=False)}}}, not {shown(value)}"
    if kind == "list_type" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return f"must be {shape.in_words(kinds)}, e.g. [{shown(value, quotes=False)}], not {shown(value)}"
    return f"must be {shape.in_words(kinds)}, not {shown(value)}"


def _report_missing(keys: tuple[str | int, ...], given: Any, findings: Findings) -> None:
    """A missing key, unless a misspelt one stands in its place; a missing section means the required keys inside it."""
    name = str(keys[-1])
    parent = keys[:-1]
    model = _model_at(keys, given)
    own = set(model.model_fields) if model else set()
    for other in given if isinstance(given, dict) else ():
        if other not in own and nearest(other, [*own, name]) == name:
            findings.add((*parent, other), "unknown key", name)
            findings.blocked.add(as_keys(keys))
            return
    inner = shape.section(shape.fields(model)[name]) if model else None
    wanted = list(shape.required(inner)) if inner else [((), shape.example(model.model_fields[name]) if model else None)]
    for below, example in wanted:
        findings.add((*keys, *below), "required" + (f", e.g. {example}" if example else ""))


def _model_at(keys: tuple[str | int, ...], given: Any) -> type[BaseModel] | None:
    """The model that misses `keys[-1]`, found by what was given in its place."""
    kinds: shape.Kinds = shape.ROOT
    for key in keys[:-1]:
        containers = [kind for kind in kinds if kind.is_model or kind.origin in (list, dict)]
        wanted = [kind for kind in containers if (kind.origin is list) == isinstance(key, int)]
        kinds = (shape.below(wanted[0], str(key)) or ()) if wanted else ()
    kind = shape.pick(kinds, given if isinstance(given, dict) else {})
    return kind.base if kind and kind.is_model else None


def _siblings(data: dict[str, Any], keys: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand beside."""
    value: Any = data
    for key in keys[:-1]:
        value = shape.step(value, str(key))
    kind = shape.pick(shape.at(data, as_keys(keys[:-1])) or (), value)
    names = list(shape.fields(kind.base)) if kind and kind.is_model else []
    return names if len(keys) > 1 else [*names, "extends"]


def unknown(name: str, siblings: Iterable[str]) -> tuple[str, str | None]:
    """Message and suggestion for a key that is not in the schema: a neighbour's name, or where that key belongs."""
    known = list(siblings)
    guess = nearest(name.lower(), known) or shape.everywhere().get(name)
    return ("unknown key", guess) if guess else (f"unknown key; there are {', '.join(known)}", None)


def not_one_of(value: Any, choices: list[str], word: str | None = None) -> tuple[str, str | None]:
    """Message and suggestion for a value that is none of the choices; `word` is what YAML made a boolean of."""
    guess = nearest(value.lower(), choices) if isinstance(value, str) else "none" if value is False and "none" in choices else None
    what = f"{word}, which YAML reads as {shown(value)}," if word else shown(value)
    return f"{what} is not one of {', '.join(choices)}", guess


def _yaml_word(findings: Findings, keys: tuple[str | int, ...], value: Any) -> str | None:
    """The word that YAML made a boolean of, where that is not plainly true or false."""
    place = findings.places.get(as_keys(keys))
    raw = place.raw if place and place.override is None else None
    return raw if isinstance(value, bool) and raw is not None and raw.lower() not in ("true", "false") else None
