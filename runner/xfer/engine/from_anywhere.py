"""A Plan whose relative paths are made absolute: a run may be gone on with in another working directory, and workers have their own."""

from __future__ import annotations

import os
from typing import Any

from xfer import plugins
from xfer.plan.plan import Plan

PATH_OPTIONS = ("path", "root")  # what datasets call the options that are paths; their names may end so, too


def from_anywhere(plan: Plan) -> Plan:
    """The plan with the paths of its data, and of a model that is named by its path, as they are meant here."""
    options = {name: _absolute(name, value) for name, value in plan.data.options.items()}
    source, provider = plan.source, plugins.load(plan.source.target)
    if getattr(provider, "named_by_path", False):
        source = source.model_copy(update={"name": provider().located(source.name)})
    return plan.model_copy(update={"source": source, "data": plan.data.model_copy(update={"options": options})})


def _absolute(name: str, value: Any) -> Any:
    """A relative path made absolute: by its option's name, or because it has several parts and is there."""
    if not isinstance(value, str) or not value or "://" in value:
        return value
    named = name in PATH_OPTIONS or name.endswith(tuple(f"_{option}" for option in PATH_OPTIONS))
    if named or (os.sep in value and os.path.exists(os.path.expanduser(value))):
        return os.path.abspath(os.path.expanduser(value))
    return value
