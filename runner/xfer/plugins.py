"""A name in a recipe becomes an object, through entry points.

Built-in plugins are declared in pyproject.toml exactly as anyone else's are. Looking a name up imports nothing; only `load` does.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from xfer.errors import UsageError, XferError

GROUPS = ("sources", "datasets", "methods", "freezes", "backends")


@dataclass(frozen=True)
class Plugin:
    """A registered plugin: `target` is `module:attribute`, what the Plan stores, because workers must not discover plugins."""

    group: str
    name: str
    target: str
    distribution: str | None = None


LOCAL_NAME = "xfer_plugins"  # what a local plugin file assigns: {"methods": {"mine": Mine}, "freezes": {...}}
# What someone else's file may raise while it is loaded.
LOADING_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError),
    *(RuntimeError, SyntaxError, SystemExit, TypeError, ValueError, XferError),
)
_local: dict[str, dict[str, Plugin]] = {group: {} for group in GROUPS}


def registered(group: str) -> Mapping[str, Plugin]:
    """All plugins of a group (`sources`, `datasets`, `methods`, `freezes`, `backends`) by name, sorted, local ones too."""
    return dict(sorted((installed(group) | _local[group]).items()))


@cache
def installed(group: str) -> dict[str, Plugin]:
    """The plugins that installed distributions declare."""
    found = {}
    for point in entry_points(group=f"xfer.{group}"):
        distribution = point.dist.name if point.dist else None
        found[point.name] = Plugin(group, point.name, point.value, distribution)
    return found


def find(group: str, name: str) -> Plugin:
    """The plugin of that name; raises UsageError with the nearest names."""
    plugins = registered(group)
    if name in plugins:
        return plugins[name]
    guess = nearest(name, plugins)
    raise UsageError(f"no {group[:-1]} is called '{name}'; there are {', '.join(plugins) or 'none'}", hint=guess)


def provide(group: str, name: str, target: str) -> None:
    """Let a name mean `module:attribute` in this process alone, as a local plugin's does."""
    _local[group][name] = Plugin(group, name, target)


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

    >>> nearest("trian", ["train", "epochs"]), nearest("vgg16", ["VGG16", "VGG19"])
    ('train', 'VGG16')
    """
    names = list(candidates)
    found = [candidate for candidate in names if candidate.casefold() == name.casefold()]
    found = found or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None


def stem(module: str) -> str:
    """The name of the file that a local plugin's module was made from.

    >>> stem("xfer_local_0a1b2c3d4e5f_my_layers")
    'my_layers'
    """
    return module.split("_", 3)[3]


def load_local(source: str, *, stem: str) -> str:
    """Load a plugin file that lies beside a recipe, under a module name made from its digest; returns that name.

    Raises UsageError where the file can't be loaded or registers nothing.
    """
    digest = hashlib.blake2b(source.encode(), digest_size=6).hexdigest()
    name = f"xfer_local_{digest}_{stem}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        sys.modules[name] = module
        try:
            exec(compile(source, f"{stem}.py", "exec"), module.__dict__)
        except LOADING_ERRORS as error:
            del sys.modules[name]
            at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == f"{stem}.py"]
            line = f"line {at[-1]}: " if at else ""
            raise UsageError(f"the plugin file {stem}.py can't be loaded: {line}{type(error).__name__}: {error}") from error
    declared = getattr(sys.modules[name], LOCAL_NAME, None)
    if not isinstance(declared, dict) or not set(declared) <= set(GROUPS):
        raise UsageError(
            f"the plugin file {stem}.py must assign {LOCAL_NAME} = {{group: {{name: object}}}} with groups of {', '.join(GROUPS)}"
        )
    for group, members in declared.items():
        for plugin, value in members.items():
            _local[group][plugin] = Plugin(group, plugin, f"{name}:{value.__name__}")
    return name
