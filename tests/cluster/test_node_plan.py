"""A plan on other nodes: the node's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfer.cluster.node_plan import on_this_node
from xfer.plan.plan import Plan


@pytest.fixture
def plan(make_plan) -> Plan:
    made: Plan = make_plan()
    return made


def test_a_nodes_own_cache_counts(plan, monkeypatch):
    planned = plan.runtime.cache
    monkeypatch.setenv("XFER_CACHE", "/nvme/xfer")
    assert on_this_node(plan, drivers_cache=None).runtime.cache == "/nvme/xfer"
    assert on_this_node(plan, drivers_cache="/home/me/xfer").runtime.cache == "/nvme/xfer"
    # The plan was made with the same in view: what the recipe says stands, as it does on one machine.
    assert on_this_node(plan, drivers_cache="/nvme/xfer").runtime.cache == planned
    monkeypatch.setenv("XFER_CACHE", "~/xfer")
    assert on_this_node(plan, drivers_cache=None).runtime.cache == str(Path.home() / "xfer")
    monkeypatch.delenv("XFER_CACHE")
    assert on_this_node(plan, drivers_cache="/nvme/xfer") == plan
