"""A name in a recipe becomes an object, through entry points.

Built-in plugins are declared in pyproject.toml exactly as anyone else's are. Looking a name up imports nothing; only `load` does.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from xfer.errors import UsageError

GROUPS = ("sources", "datasets", "methods", "freezes", "backends")


@dataclass(frozen=True)
class Plugin:
    """A registered plugin: `target` is `module:attribute`, what the Plan stores, because workers must not discover plugins."""

    group: str
    name: str
    target: str
    distribution: str | None = None


@lru_cache(maxsize=None)
def registered(group: str) -> Mapping[str, Plugin]:
    """All plugins of a group (`sources`, `datasets`, `methods`, `freezes`, `backends`) by name, sorted."""
    found = {}
    for point in entry_points(group=f"xfer.{group}"):
        distribution = point.dist.name if point.dist else None
        found[point.name] = Plugin(group, point.name, point.value, distribution)
    return dict(sorted(found.items()))


def find(group: str, name: str) -> Plugin:
    """The plugin of that name; raises UsageError with the nearest names."""
    plugins = registered(group)
    if name in plugins:
        return plugins[name]
    guess = nearest(name, plugins)
    raise UsageError(f"no {group[:-1]} is called '{name}'; there are {', '.join(plugins) or 'none'}", hint=guess)


def load(target: str) -> Any:
    """The object behind `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def options(target: str | Callable[..., Any], *, leave_out: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a plugin: these are its options in a recipe."""
    function = load(target) if isinstance(target, str) else target
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in set(leave_out)}


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a person most likely meant, or None.

    >>> nearest("trian", ["train", "epochs"])
    'train'
    """
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else None
