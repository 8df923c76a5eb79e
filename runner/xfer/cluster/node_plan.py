"""A Plan on its way to other nodes: each has a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

from xfer.plan.plan import Plan

CACHE_VARIABLE = "XFER_CACHE"


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
