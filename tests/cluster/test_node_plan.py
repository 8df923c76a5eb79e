"""A plan on other nodes: absolute paths, and the node's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfer.cluster.node_plan import for_workers, on_this_node
from xfer.plan.plan import Plan


@pytest.fixture
def plan(make_plan) -> Plan:
    made: Plan = make_plan()
    return made


def test_paths_of_the_data_are_made_absolute(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("")
    (tmp_path / "train").write_text("")
    options = {
        "path": "images",  # not there: what is said of it names the place that was meant
        "root": "~/pictures",
        "image_root": ".",
        "list": "lists/a.csv",
        "split": "train",  # a word, though a file is called so
        "url": "s3://bucket/images",
        "packed": "pkg://package/images",
        "limit": 5,
        "absolute": "/data/images",
    }
    made = for_workers(plan.model_copy(update={"data": plan.data.model_copy(update={"options": options})}))
    assert made.data.options == {
        **options,
        "path": str(tmp_path / "images"),
        "root": str(Path.home() / "pictures"),
        "image_root": str(tmp_path),
        "list": str(tmp_path / "lists" / "a.csv"),
    }


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
