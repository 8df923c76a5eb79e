"""A plugin's options, bound to its signature at compile time, so that a misspelt option is a recipe fault with a line number."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xfer.compile.collector import Collector


def bind(
    function: Callable[..., Any], given: Mapping[str, Any], *, at: str, owner: str, collector: Collector, own: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The options with values checked against the keyword-only parameters' annotations. Faults are placed at `<at>.<option>`;
    `owner` names the plugin for people, `own` are the section's own keys, as candidates for a misspelt one."""
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function if inspect.isfunction(function) else function.__init__)  # type: ignore[misc]
    known = {p.name: p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    bound = {}
    for name, value in given.items():
        path = f"{at}.{name}"
        if name not in known:
            collector.add(
                path,
                "unknown key" if not known else f"unknown key; {owner} takes {', '.join(known)}",
                candidates=(*known, *own),
                wanted=name,
            )
            continue
        try:
            bound[name] = TypeAdapter(hints.get(name, Any)).validate_python(value, strict=False)
        except ValidationError:
            collector.add(path, f"must be {in_words(hints[name])}, not {value!r}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            collector.add(f"{at}.{name}", f"required by {owner}")
    return bound


def in_words(hint: Any) -> str:
    """An annotation as a person would say it.

    >>> in_words(int), in_words(str | None), in_words(list[str])
    ('a whole number', 'text or null', 'a list of text')
    """
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", dict: "a mapping"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"a list of {in_words(arguments[0])}" if arguments else "a list"
    return words.get(origin, getattr(hint, "__name__", str(hint)))  # type: ignore[arg-type]
