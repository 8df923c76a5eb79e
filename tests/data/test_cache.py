"""The cache folder from outside: listing, removing, pruning; never what a live process uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xfer.data.cache import cache_entries, prune, remove
from xfer.data.store import FeatureStore, StoreSpec
from xfer.errors import StoreError, UsageError

USE = """
import sys
from pathlib import Path
import numpy as np
from xfer.data.store import FeatureStore
from xfer.data.store_folder import read_manifest
folder = Path(sys.argv[1])
store = FeatureStore(folder.parent.parent, read_manifest(folder)[0])
print(len(store.missing(np.arange(store.spec.rows))), flush=True)
sys.stdin.readline()
"""


def make(root: Path, cut: str, *, rows: int = 40, present: int = 40, days_ago: float = 0) -> Path:
    """A store of 4 kB rows in shards of 16, closed; its folder."""
    store = FeatureStore(root, StoreSpec({"model": "torchvision/resnet18", "cut": cut}, rows, (1024,), "float32", 16))
    for shard, some in store.missing(np.arange(present)):
        store.write(shard, some, np.ones((len(some), 1024), np.float32))
    store.close()
    then = time.time() - days_ago * 86400
    os.utime(store.folder / "used", (then, then))
    return store.folder


@pytest.fixture
def user():
    """Starts a process that has the store open."""
    started: list[subprocess.Popen] = []

    def start(folder: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", USE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "0\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_empty_or_absent_cache(tmp_path):
    assert cache_entries(tmp_path / "none") == []
    assert prune(tmp_path / "none", max_bytes=1).removed == ()
    (tmp_path / "features").mkdir()
    assert cache_entries(tmp_path) == []


def test_what_a_store_holds(tmp_path):
    old = make(tmp_path, "layer1", days_ago=3)
    new = make(tmp_path, "pooled", present=20)
    store = FeatureStore(tmp_path, StoreSpec({"model": "torchvision/resnet18", "cut": "layer1"}, 40, (1024,), "float32", 16))
    store.mark_bad({3: "truncated"})
    store.close()
    first, second = cache_entries(tmp_path)
    assert (first.folder, second.folder) == (new, old)
    assert (first.present, first.rows, first.complete, first.bad) == (20, 40, False, 0)
    assert (second.present, second.rows, second.complete, second.bad) == (40, 40, True, 1)
    assert (first.label("model"), first.label("cut"), first.in_use) == ("torchvision/resnet18", "pooled", False)
    assert abs(second.last_used - (time.time() - 3 * 86400)) < 60
    assert 160_000 < second.bytes < 230_000
    assert first.bytes < second.bytes
    assert first.as_dict() == {
        "digest": new.name,
        "folder": str(new),
        "spec": first.spec.layout,
        "present": 20,
        "bad": 0,
        "bytes": first.bytes,
        "last_used": first.last_used,
        "in_use": False,
        "model": "torchvision/resnet18",
        "cut": "pooled",
        "rows": 40,
        "complete": False,
    }


def test_listing_does_not_count_as_use(tmp_path):
    folder = make(tmp_path, "pooled", days_ago=3)
    before = (folder / "used").stat().st_mtime
    cache_entries(tmp_path)
    assert (folder / "used").stat().st_mtime == before


def test_damaged_stores_are_listed_and_can_go(tmp_path):
    no_manifest, cut_short = make(tmp_path, "a"), make(tmp_path, "b")
    (no_manifest / "manifest.json").write_text("{")
    os.truncate(cut_short / "00001.npy", 100)
    entries = {entry.folder: entry for entry in cache_entries(tmp_path)}
    assert entries[no_manifest].spec is None
    assert (entries[no_manifest].label("model"), entries[no_manifest].complete) == ("?", False)
    assert entries[cut_short].present == 24
    assert len(prune(tmp_path, max_bytes=1).removed) == 2
    assert list((tmp_path / "features").iterdir()) == []


def test_what_is_not_a_store_is_left_alone(tmp_path):
    """`--cache .` in a project that has a folder called features."""
    make(tmp_path, "a")
    (tmp_path / "features" / "images").mkdir()
    (tmp_path / "features" / "images" / "a.jpg").write_text("mine")
    (tmp_path / "features" / "notes.txt").write_text("mine")
    assert len(cache_entries(tmp_path)) == 1
    prune(tmp_path, max_bytes=1, older_than_seconds=1)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["images", "notes.txt"]
    assert (tmp_path / "features" / "images" / "a.jpg").exists()


def test_remove_by_the_beginning_of_a_key(tmp_path):
    folders = sorted([make(tmp_path, f"layer{number}") for number in range(17)], key=lambda folder: folder.name)
    digests = [folder.name for folder in folders]
    shared = next(digit for digit in "0123456789abcdef" if sum(name.startswith(digit) for name in digests) > 1)
    several = [name for name in digests if name.startswith(shared)]
    with pytest.raises(UsageError) as caught:
        remove(tmp_path, [digests[0], shared])
    assert caught.value.message == f"'{shared}' fits several stores: {', '.join(several)}"
    assert caught.value.hint == "give more of the key"
    with pytest.raises(UsageError) as caught:
        remove(tmp_path, [digests[0], "xyz"])
    assert caught.value.message == f"no store in {tmp_path} has a key that starts with 'xyz'"
    assert caught.value.hint == "`xfer cache ls` shows the keys"
    with pytest.raises(UsageError):
        remove(tmp_path, [""])
    assert len(cache_entries(tmp_path)) == 17  # nothing went
    outcome = remove(tmp_path, [digests[0], digests[0][:20], digests[1]])
    assert [entry.digest for entry in outcome.removed] == digests[:2]
    assert outcome.bytes > 300_000
    assert [folder.exists() for folder in folders[:3]] == [False, False, True]


def test_prune_by_age(tmp_path):
    young, old, older = make(tmp_path, "a", days_ago=1), make(tmp_path, "b", days_ago=31), make(tmp_path, "c", days_ago=40)
    outcome = prune(tmp_path, older_than_seconds=30 * 86400)
    assert [entry.folder for entry in outcome.removed] == [older, old]
    assert [folder.exists() for folder in (young, old, older)] == [True, False, False]


def test_prune_by_size_takes_the_oldest_first(tmp_path):
    folders = [make(tmp_path, cut, days_ago=days) for cut, days in (("a", 2), ("b", 5), ("c", 1), ("d", 9))]
    each = cache_entries(tmp_path)[0].bytes
    outcome = prune(tmp_path, max_bytes=2 * each + 1000)
    assert [entry.folder for entry in outcome.removed] == [folders[3], folders[1]]
    assert prune(tmp_path, max_bytes=2 * each + 1000).removed == ()
    assert prune(tmp_path, max_bytes=each, older_than_seconds=1.5 * 86400).removed[0].folder == folders[0]
    assert folders[2].exists()


def test_a_store_in_use_stays_until_its_user_is_gone(tmp_path, user):
    used, free = make(tmp_path, "a", days_ago=90), make(tmp_path, "b", days_ago=80)
    process = user(used)
    assert [entry.in_use for entry in cache_entries(tmp_path) if entry.folder == used] == [True]
    outcome = prune(tmp_path, older_than_seconds=86400, max_bytes=1)
    assert [entry.folder for entry in outcome.removed] == [free]
    assert [entry.folder for entry in outcome.in_use] == [used]
    assert [entry.folder for entry in remove(tmp_path, [used.name]).in_use] == [used]
    process.kill()
    process.wait()
    assert [entry.folder for entry in remove(tmp_path, [used.name]).removed] == [used]


def test_our_own_open_store_is_in_use_too(tmp_path):
    make(tmp_path, "a", days_ago=90)
    store = FeatureStore(tmp_path, StoreSpec({"model": "torchvision/resnet18", "cut": "a"}, 40, (1024,), "float32", 16))
    assert store.missing(np.arange(40)) == []
    assert prune(tmp_path, max_bytes=1).removed == ()
    store.close()
    assert len(prune(tmp_path, max_bytes=1).removed) == 1


def test_prune_clears_what_killed_processes_left(tmp_path):
    folder = make(tmp_path, "a")
    (folder / "00001.npy.0123456789ab.tmp").write_bytes(b"half")
    half_removed = tmp_path / "features" / ".removed-0123456789ab"
    shutil.copytree(folder, half_removed)
    assert len(cache_entries(tmp_path)) == 1
    assert prune(tmp_path, older_than_seconds=86400).removed == ()
    assert list(folder.glob("*.tmp")) == []
    assert not half_removed.exists()


CHURN = """
import sys, time
from pathlib import Path
import numpy as np
from xfer.data.store import FeatureStore, StoreSpec
spec = StoreSpec({"model": "m", "cut": "churn"}, 40, (1024,), "float32", 16)
rounds, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    with FeatureStore(Path(sys.argv[1]), spec) as store:
        for shard, rows in store.missing(np.arange(40)):
            store.write(shard, rows, np.repeat(rows[:, None], 1024, axis=1).astype(np.float32))
        assert (store.take(np.arange(40))[:, 5] == np.arange(40)).all()
    rounds += 1
print(rounds)
"""


def test_pruning_all_the_time_never_breaks_a_run(tmp_path):
    """Two processes fill, read and close a store over and over while a third removes whatever it may."""
    writers = [subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    n_removed = 0
    while any(writer.poll() is None for writer in writers):
        n_removed += len(prune(tmp_path, max_bytes=1).removed)
    rounds = [int(writer.communicate()[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert min(rounds) > 0
    assert n_removed > 0


def test_an_unreadable_cache(tmp_path):
    (tmp_path / "features").write_text("")
    with pytest.raises(StoreError) as caught:
        cache_entries(tmp_path)
    assert caught.value.message == f"the cache can't be read: {tmp_path}/features: Not a directory"
