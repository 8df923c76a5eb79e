"""The schema as data: which kinds of value may stand at a key, in words, with defaults, and by name.

Everything here walks the pydantic models' annotations beside a value, so a new key in the schema needs no line here.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xfer.recipe.schema import Recipe

_NUMBERS = (int, float)


@dataclass(frozen=True)
class Kind:
    """One branch of an annotation: `base` is int, float, str, bool, NoneType, Any, a model, or Literal, list and dict with arguments."""

    base: Any
    bounds: tuple[Any, ...] = ()

    @property
    def origin(self) -> Any:
        return typing.get_origin(self.base) or self.base

    @property
    def arguments(self) -> tuple[Any, ...]:
        return typing.get_args(self.base)

    @property
    def is_model(self) -> bool:
        return isinstance(self.base, type) and issubclass(self.base, BaseModel)


Kinds = tuple[Kind, ...]
ROOT: Kinds = (Kind(Recipe),)
ANYTHING: Kinds = (Kind(Any),)


def kinds_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> Kinds:
    """All branches of an annotation."""
    if typing.get_origin(annotation) is Annotated:
        inner, *extra = typing.get_args(annotation)
        return kinds_of(inner, (*metadata, *extra))
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in kinds_of(part, metadata))
    bounds = []
    for item in metadata:
        bounds += item.metadata if isinstance(item, FieldInfo) else [item]
    return (Kind(annotation, tuple(bound for bound in bounds if isinstance(bound, Ge | Gt | Le | Lt))),)


@cache
def fields(model: type[BaseModel]) -> dict[str, Kinds]:
    """The kinds of each field of a model, by name."""
    return {name: kinds_of(info.annotation, tuple(info.metadata)) for name, info in model.model_fields.items()}


def takes_options(model: type[BaseModel]) -> bool:
    """True where unknown keys are a plugin's options."""
    return model.model_config.get("extra") == "allow"


def pick(kinds: Kinds, value: Any) -> Kind | None:
    """The branch that a mapping or a list is meant for; None for a single value, and where no branch is of that shape."""
    for kind in kinds:
        if kind.base is Any:
            return kind
        if isinstance(value, dict) and (kind.is_model or kind.origin is dict):
            return kind
        if isinstance(value, list) and kind.origin is list:
            return kind
    return None


def below(kind: Kind | None, key: str) -> Kinds | None:
    """The kinds at a key of a mapping or at a position of a list; None where the schema has no such key."""
    if kind is None:
        return None
    if kind.base is Any:
        return ANYTHING
    if kind.origin is list:
        return kinds_of(kind.arguments[0]) if kind.arguments else ANYTHING
    if kind.origin is dict:
        return kinds_of(kind.arguments[1]) if kind.arguments else ANYTHING
    if kind.is_model:
        found = fields(kind.base).get(key)
        return ANYTHING if found is None and takes_options(kind.base) else found
    return None


def at(value: Any, keys: tuple[str, ...]) -> Kinds | None:
    """The kinds at a path of a recipe's data, branches picked by the shape of what stands there."""
    kinds: Kinds | None = ROOT
    for key in keys:
        kinds = below(pick(kinds or (), value), key)
        value = step(value, key)
    return kinds


def step(value: Any, key: str) -> Any:
    """What stands at a key, or None."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and len(key) < 9 and int(key) < len(value):
        return value[int(key)]
    return None


def section(kinds: Kinds) -> type[BaseModel] | None:
    """The model, where nothing but a mapping of it may stand: such a section may be left empty."""
    return kinds[0].base if len(kinds) == 1 and kinds[0].is_model else None


def filled(kinds: Kinds, value: Any) -> Any:
    """A value with all defaults below it. Missing keys that have no default stay missing; what doesn't fit stays as it is."""
    if value is None and section(kinds):
        value = {}
    kind = pick(kinds, value)
    if kind is None or kind.base is Any:
        return deepcopy(value)
    if kind.origin is list:
        return [filled(below(kind, str(index)) or (), item) for index, item in enumerate(value)]
    if kind.origin is dict:
        return {key: filled(below(kind, key) or (), item) for key, item in value.items()}
    result = {}
    for name, info in kind.base.model_fields.items():
        if name in value:
            result[name] = filled(fields(kind.base)[name], value[name])
        elif not info.is_required():
            result[name] = {} if section(fields(kind.base)[name]) else deepcopy(info.get_default())
            result[name] = filled(fields(kind.base)[name], result[name])
    return result | {key: deepcopy(item) for key, item in value.items() if key not in result}


def required(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Paths of the keys that must be written, with an example each."""
    for name, info in model.model_fields.items():
        if info.is_required():
            inner = section(fields(model)[name])
            if inner:
                yield from required(inner, (*path, name))
            else:
                yield (*path, name), example(info)


def example(info: FieldInfo) -> str | None:
    return str(info.examples[0]) if info.examples else None


@cache
def everywhere() -> dict[str, str]:
    """For each key of the schema, the shortest path at which it may stand: `lr` is `optimizer.lr`."""
    found: dict[str, tuple[int, str]] = {}

    def walk(model: type[BaseModel], prefix: str, depth: int) -> None:
        for name, kinds in fields(model).items():
            if depth and depth < found.get(name, (99, ""))[0]:
                found[name] = (depth, prefix + name)
            for kind in kinds:
                inner = kinds_of(kind.arguments[0])[0] if kind.origin is list and kind.arguments else kind
                if inner.is_model:
                    walk(inner.base, prefix + name + ("[0]." if inner is not kind else "."), depth + 1 + (inner is not kind))

    walk(Recipe, "", 0)
    return {name: path for name, (_, path) in found.items()}


def in_words(kinds: Kinds) -> str:
    """What must stand there, as a person would say it.

    >>> in_words(fields(Recipe)["seed"])
    'a whole number of at least 0 and below 4294967296'
    """
    return " or ".join(dict.fromkeys(_words(kind) for kind in kinds if kind.base is not type(None)))


def _words(kind: Kind) -> str:
    if kind.base in _NUMBERS:
        name = "a whole number" if kind.base is int else "a number"
        limits = bounds(kind)
        return f"{name} of {limits}" if limits.startswith("at ") else f"{name} {limits}".rstrip()
    if kind.origin is Literal:
        names = ", ".join(str(argument) for argument in kind.arguments)
        return f"one of {names}" if len(kind.arguments) > 1 else f"'{names}'"
    if kind.origin is list:
        items = in_words(kinds_of(kind.arguments[0])) if kind.arguments else ""
        return f"a list of {_plural(items)}" if _plural(items) else "a list"
    if kind.is_model:
        return f"a mapping with keys such as {', '.join(list(fields(kind.base))[:3])}"
    return {str: "text", bool: "true or false", dict: "a mapping"}.get(kind.origin, "a value")


def _plural(words: str) -> str:
    for start, many in (("a whole number", "whole numbers"), ("a number", "numbers"), ("a mapping", "mappings")):
        if words.startswith(start):
            return many
    return words if words == "text" else ""


def bounds(kind: Kind) -> str:
    """The limits of a number: 'at least 1', 'above 0 and below 1', 'from 8 to 4096'."""
    limit: dict[str, float] = {}
    for bound in kind.bounds:
        limit |= {name: getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
    if "ge" in limit and "le" in limit:
        return f"from {limit['ge']} to {limit['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {value}" for name, value in limit.items())
