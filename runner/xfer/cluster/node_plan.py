"""A Plan on its way to other nodes: paths that hold there too, and the cache that each node has of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xfer.cluster.storage import scheme_of
from xfer.plan.plan import Plan

CACHE_VARIABLE = "XFER_CACHE"
PATH_OPTIONS = ("path", "root")  # what datasets call the options that are paths; their names may end so, too


def for_workers(plan: Plan) -> Plan:
    """The plan with the data's relative paths made absolute: workers have working directories of their own."""
    options = {name: _absolute(name, value) for name, value in plan.data.options.items()}
    return plan.model_copy(update={"data": plan.data.model_copy(update={"options": options})})


def on_this_node(plan: Plan, *, drivers_cache: str | None) -> Plan:
    """The plan with this node's cache. `drivers_cache` is XFER_CACHE where the plan was made.

    A cache is a property of a node: where XFER_CACHE says something else here than there, it counts. Where it says the same, the
    plan was made with it in view, and its path stands.
    """
    own = os.environ.get(CACHE_VARIABLE)
    if not own or own == drivers_cache:
        return plan
    cache = str(Path(own).expanduser().absolute())
    return plan.model_copy(update={"runtime": plan.runtime.model_copy(update={"cache": cache})})


def _absolute(name: str, value: Any) -> Any:
    """A relative path made absolute: by its option's name, or because it has several parts and is there."""
    if not isinstance(value, str) or not value or scheme_of(value) is not None:
        return value
    named = name in PATH_OPTIONS or name.endswith(tuple(f"_{option}" for option in PATH_OPTIONS))
    if named or (os.sep in value and os.path.exists(os.path.expanduser(value))):
        return os.path.abspath(os.path.expanduser(value))
    return value
