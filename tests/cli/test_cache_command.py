"""`xfer cache`, as it is typed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from xfer.cli.main import run
from xfer.data.store import FeatureStore, StoreSpec


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FeatureStore]:
    """Three closed stores, used 0, 40 and 80 days ago, in the cache that XFER_CACHE names."""
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "cache"))
    made = []
    for days, (cut, present) in enumerate([("pooled", 40), ("layer4", 24), ("pixels", 40)]):
        key = {"cut": cut} if cut == "pixels" else {"cut": cut, "model": "torchvision/resnet18"}
        store = FeatureStore(tmp_path / "cache", StoreSpec(key, 40, (1024,), "float32", 16))
        for shard, rows in store.missing(np.arange(present)):
            store.write(shard, rows, np.ones((len(rows), 1024), np.float32))
        if cut == "layer4":
            store.mark_bad({30: "truncated file"})
        store.close()
        then = time.time() - days * 40 * 86400
        os.utime(store.folder / "used", (then, then))
        made.append(store)
    return made


def test_ls_shows_each_store(stores, capsys):
    assert run(["cache", "ls"]) == 0
    shown, told = capsys.readouterr()
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["key", "model", "cut", "rows", "size", "last", "used", "state"]
    assert [line[:4] for line in lines[1:]] == [
        [stores[0].digest[:12], "torchvision/resnet18", "pooled", "40/40"],
        [stores[1].digest[:12], "torchvision/resnet18", "layer4", "24/40"],
        [stores[2].digest[:12], "-", "pixels", "40/40"],
    ]
    assert [line[6:] for line in lines[1:]] == [
        ["just", "now", "complete"],
        ["40", "d", "ago", "partial,", "1", "bad"],
        ["80", "d", "ago", "complete"],
    ]
    assert told.startswith("3 stores, ")
    assert told.endswith(f" in {os.environ['XFER_CACHE']}\n")


def test_ls_json_is_one_document(stores, capsys):
    assert run(["cache", "ls", "--json"]) == 0
    shown, told = capsys.readouterr()
    data = json.loads(shown)
    assert told == ""
    assert data["cache"] == os.environ["XFER_CACHE"]
    assert [store["digest"] for store in data["stores"]] == [store.digest for store in stores]
    assert [(store["model"], store["cut"], store["complete"]) for store in data["stores"]][:2] == [
        ("torchvision/resnet18", "pooled", True),
        ("torchvision/resnet18", "layer4", False),
    ]


def test_ls_marks_a_store_in_use(stores, capsys):
    stores[0].missing(np.arange(40))
    run(["cache", "ls"])
    assert capsys.readouterr().out.splitlines()[1].rstrip().endswith("complete, in use")


def test_an_empty_cache(tmp_path, capsys):
    assert run(["cache", "ls", "--cache", str(tmp_path / "none")]) == 0
    assert capsys.readouterr() == ("", f"no store in {tmp_path}/none\n")
    assert run(["cache", "ls", "--json", "--cache", str(tmp_path / "none")]) == 0
    assert json.loads(capsys.readouterr().out) == {"cache": f"{tmp_path}/none", "stores": []}


def test_rm(stores, capsys):
    assert run(["cache", "rm", stores[1].digest[:10], stores[2].digest]) == 0
    shown, told = capsys.readouterr()
    first, second = shown.splitlines()
    assert first.startswith(f"removed {stores[1].digest} (torchvision/resnet18, layer4, ")
    assert second.startswith(f"removed {stores[2].digest} (-, pixels, ")
    assert told.startswith("2 stores removed, ")
    assert [store.folder.exists() for store in stores] == [True, False, False]


def test_rm_of_what_is_in_use(stores, capsys):
    stores[0].missing(np.arange(40))
    assert run(["cache", "rm", stores[0].digest, "--json"]) == 1
    shown, told = capsys.readouterr()
    assert json.loads(shown) == {"removed": [], "in_use": [stores[0].digest], "bytes": 0}
    assert told == f"error: in use by a live process, left alone: {stores[0].digest}\n"
    assert stores[0].folder.exists()


def test_rm_of_what_is_not_there(stores, capsys):
    assert run(["cache", "rm", "nothing"]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"error: no store in {os.environ['XFER_CACHE']} has a key that starts with 'nothing'\n  `xfer cache ls` shows the keys\n"
    )


def test_prune_by_age_and_size(stores, capsys):
    stores[2].missing(np.arange(40))
    os.utime(stores[2].folder / "used", (0, 0))
    assert run(["cache", "prune", "--older-than", "30d", "--json"]) == 0
    shown, told = capsys.readouterr()
    data = json.loads(shown)
    assert told == ""
    assert (data["removed"], data["in_use"]) == ([stores[1].digest], [stores[2].digest])
    assert data["bytes"] > 90_000
    assert run(["cache", "prune", "--max-size", "1kB"]) == 0
    shown, told = capsys.readouterr()
    assert shown.startswith(f"removed {stores[0].digest} ")
    first, second = told.splitlines()
    assert first == f"left {stores[2].digest}: in use"
    assert second.startswith("1 store removed, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: say what to remove: --older-than AGE, --max-size SIZE, or both\n"),
        (
            ["--max-size", "much"],
            "error: --max-size must be a size such as '50GB', '512MiB' or a whole number of bytes, not 'much'\n",
        ),
        (["--older-than", "30"], "error: --older-than must be a duration such as '30s', '5min' or '2h', not '30'\n"),
    ],
)
def test_prune_says_what_is_wrong_before_it_removes_anything(stores, capsys, arguments, message):
    assert run(["cache", "prune", *arguments]) == 2
    assert capsys.readouterr().err == message
    assert all(store.folder.exists() for store in stores)
