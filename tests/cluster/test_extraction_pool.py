"""Extraction over a Ray: the store of a local run byte for byte, whatever is killed on the way, and nothing twice but the shard in work."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from xfer.cluster import crew
from xfer.cluster.extraction_pool import Figures, fill
from xfer.cluster.storage import Storage
from xfer.engine.reporter import Silent
from xfer.errors import DataError, InterruptedRun, UsageError, XferError
from xfer.plan.plan import Plan

GOOD, BAD, SHARD_ROWS = 98, 2, 10
SLOW_DATASET = '''
"""The images of `folder`, decoded no faster than one in `pause` seconds by each thread."""

import threading
import time
from dataclasses import replace

from xfer.data.datasets.folder import folder


def slow(name, *, path, pause):
    dataset = folder(name, path=path)

    def read(row):
        if threading.current_thread().name.startswith("xfer-decode"):  # not where contents are hashed
            time.sleep(pause)
        return dataset.read(row)

    return replace(dataset, read=read)


xfer_plugins = {"datasets": {"slow": slow}}
'''


class Told(Silent):
    """Keeps what it is told; `at` says what to do once so many rows are done."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.started: list[tuple[str, int]] = []
        self.warned: list[str] = []
        self.rows, self.at = 0, dict(at or {})

    def start(self, task: str, total: int, *, unit: str = "images") -> None:
        self.started.append((task, total))

    def advance(self, n: int) -> None:
        self.rows += n
        for rows in [rows for rows in sorted(self.at) if self.rows >= rows]:
            self.at.pop(rows)()

    def warn(self, text: str) -> None:
        self.warned.append(text)


def go(plan: Plan, storage: Storage | None, **options: Any) -> dict[str, Figures]:
    settings = {"reporter": Told(), "stop": lambda: False, **options}
    return fill(plan, storage=storage, **settings)


def moved(plan: Plan, cache: Path) -> Plan:
    return plan.model_copy(update={"runtime": plan.runtime.model_copy(update={"cache": str(cache)})})


def content(folder: Path) -> dict[str, bytes]:
    """Shards and bad rows of a store."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".npy" or path.name == "bad.json"}


LOCALLY = """
import os, sys
from pathlib import Path
from xfer.cluster.extractor import Assignment, Extractor
from xfer.cluster.wanted import wanted
from xfer.plan.plan import Plan

plan = Plan.read(Path(sys.argv[1]))
alone = Extractor(Assignment(plan.model_dump_json(), None, None, os.environ.get("XFER_CACHE"), 1))
alone.start()
bad = {}
for each in wanted(plan):
    alone.open(each, alone.contents(), bad)
    alone.compute([shard for shard, _ in alone.absent()])
    bad.update(alone.bad())
"""


def locally(plan: Plan, cache: Path) -> dict[str, dict[str, bytes]]:
    """The stores' files after extraction in one process, by digest; in a new one, with the one thread that the pool's processes have:
    another number of them adds in another order, on TensorFlow where the processor has no AVX-512."""
    cache.mkdir()
    moved(plan, cache).write(cache / "plan.json")
    subprocess.run([sys.executable, "-c", LOCALLY, str(cache / "plan.json")], check=True, cwd=cache)
    return stores(cache)


def stores(cache: Path) -> dict[str, dict[str, bytes]]:
    return {folder.name: content(folder) for folder in sorted((cache / "features").iterdir())}


def shards(found: dict[str, dict[str, bytes]]) -> dict[str, dict[str, bytes]]:
    return {digest: {name: data for name, data in files.items() if name.endswith(".npy")} for digest, files in found.items()}


def shared(storage: Storage) -> dict[str, dict[str, bytes]]:
    folder = Path(storage.location.removeprefix("file://")) / "store"
    return shards({each.name: content(each) for each in sorted(folder.iterdir())})


def workers(node: Any) -> list[psutil.Process]:
    """Extracting processes of a node of the test's own Ray."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    found = []
    for child in raylet.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "Extractor" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.of(f"file://{tmp_path}/shared")


@pytest.fixture
def slow_plan(make_plan: Callable[..., Plan], pictures: Path, tmp_path: Path) -> Plan:
    """Some seconds of work, with a dataset that is a local plugin."""
    (tmp_path / "slow.py").write_text(SLOW_DATASET)
    return make_plan(f"target={{dataset: slow, path: {pictures}, pause: 0.08, image_size: 64, max_bad: 0.1}}", "plugins=[./slow.py]")


def test_two_nodes_give_the_store_of_one(two_nodes, make_plan, storage, tmp_path):
    """Each with a cache of its own, over a shared folder that is written as a URL; views are computed too."""
    plan = make_plan("target.augment={policy: standard, views: 1}")
    told = Told()
    figures = go(plan, storage, reporter=told)
    expected = locally(plan, tmp_path / "local")
    assert len(expected) == 2
    assert shared(storage) == shards(expected)
    titles = ["pooled", "pooled, standard view 0 on 96"]
    assert list(figures) == titles
    clean, view = figures.values()
    assert (clean.rows, clean.bad, clean.repeated, clean.lost) == (GOOD + BAD, BAD, 0, 0)
    assert sum(clean.computed.values()) == GOOD
    assert len(clean.computed) == 2  # both nodes had a share
    assert (view.rows, sum(view.computed.values()), view.bad) == (58, 58, 0)
    assert [text for text, _ in told.started] == [f"extracting features at {title} with 2 workers" for title in titles]
    assert told.rows == sum(total for _, total in told.started) == GOOD + BAD + 58
    assert told.warned == []
    # What each node keeps for itself is a part of the same files.
    for cache in two_nodes.caches:
        for digest, files in stores(cache).items():
            for name, data in files.items():
                assert name == "bad.json" or data == expected[digest][name]
    assert not list((tmp_path / "shared").rglob(".*"))  # neither marks nor temporary files


def test_several_nodes_without_a_shared_place(two_nodes, make_plan):
    with pytest.raises(UsageError, match=r"^cluster.storage: it is not set, and the 2 nodes that this run would be spread over"):
        go(make_plan(), None)


def test_more_than_the_cluster_has(two_nodes, make_plan, storage):
    with pytest.raises(UsageError) as caught:
        go(make_plan(), storage, gpus_per_actor=1.0)
    assert caught.value.message == "cluster: no node has what one extraction worker needs, 1 CPU and 1 GPU; there are: 2 of 1 CPU"


@pytest.mark.slow
def test_a_device_class_that_no_node_has(two_nodes, make_plan, storage):
    with pytest.raises(UsageError, match=r"^cluster: no node computes on cuda sm90; there are\n  cpu .*: node .* \(\w{8}\), .* \(\w{8}\)$"):
        go(make_plan(), storage, only="cuda sm90")


@pytest.mark.slow
def test_two_workers_on_one_node_share_its_cache(one_node, make_plan, tmp_path):
    figures = go(make_plan(), None, actors=2, cpus_per_actor=1)["pooled"]
    assert (sum(figures.computed.values()), figures.repeated, figures.bad) == (GOOD, 0, BAD)
    expected = locally(make_plan(), tmp_path / "local")
    assert {digest: stores(one_node.caches[0])[digest] for digest in expected} == expected


@pytest.mark.slow
def test_tensorflow_too(two_nodes, make_plan, storage, tmp_path):
    """The store of TensorFlow's own features."""
    plan = make_plan("source={model: keras/MobileNetV2, weights: none}", "target.image_size=64")
    figures = go(plan, storage)["pooled"]
    assert (sum(figures.computed.values()), figures.repeated) == (GOOD, 0)
    assert shared(storage) == shards(locally(plan, tmp_path / "local"))


@pytest.mark.slow
def test_a_worker_that_is_killed(one_node, slow_plan, tmp_path):
    """Its shards go to others, a new process takes its place, and no more than the shard in work is computed twice."""
    killed = []

    def kill() -> None:
        victim = workers(one_node.nodes[0])[0]
        killed.append(victim.pid)
        victim.send_signal(signal.SIGKILL)

    told = Told({30: kill})
    figures = go(slow_plan, None, actors=2, cpus_per_actor=1, reporter=told)["pooled"]
    assert len(killed) == 1
    assert figures.lost == 1
    assert figures.repeated <= 2 * SHARD_ROWS
    assert GOOD <= sum(figures.computed.values()) <= GOOD + 2 * SHARD_ROWS
    assert told.rows == GOOD + BAD
    [warning] = told.warned
    assert warning.startswith("an extraction worker on node ")
    assert warning.endswith("; others take over its shards")
    expected = locally(slow_plan, tmp_path / "local")
    assert {digest: stores(one_node.caches[0])[digest] for digest in expected} == expected


@pytest.mark.slow
def test_too_many_workers_are_lost(one_node, slow_plan):
    def kill() -> None:
        workers(one_node.nodes[0])[0].send_signal(signal.SIGKILL)

    with pytest.raises(XferError) as caught:
        go(slow_plan, None, actors=2, cpus_per_actor=1, max_failures=0, reporter=Told({20: kill}))
    assert caught.value.message.startswith("1 extraction workers were lost, and cluster.max_failures is 0; the last one, on node ")
    assert caught.value.hint == "what is in the store is kept, and the next start goes on from there"
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_a_node_that_is_lost(start_nodes, slow_plan, storage, tmp_path):
    """Its cache goes with it: what it had put into the shared place is kept, the rest is computed on the node that is left."""
    with start_nodes(tmp_path / "head", tmp_path / "second", cpus=1) as nodes, nodes.connected():
        lost = nodes.nodes[1]
        thread = threading.Thread(target=nodes.cluster.remove_node, args=(lost,), kwargs={"allow_graceful": False})
        told = Told({30: thread.start})
        figures = go(slow_plan, storage, reporter=told)["pooled"]
        thread.join()
    assert figures.lost == 1
    assert figures.repeated <= 2 * SHARD_ROWS
    assert sum(figures.computed.values()) <= GOOD + 2 * SHARD_ROWS
    assert len(figures.computed) == 2
    assert shared(storage) == shards(locally(slow_plan, tmp_path / "local"))


@pytest.mark.slow
@pytest.mark.parametrize("in_common", [True, False], ids=["with a place in common", "without one"])
def test_a_node_that_comes_later(start_nodes, slow_plan, storage, tmp_path, monkeypatch, in_common):
    """It takes part where the others see what it computes."""
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.5)
    pause = 1.2 if in_common else 0.6  # on a busy machine it takes a minute until the second node computes
    plan = slow_plan.model_copy(update={"data": slow_plan.data.model_copy(update={"options": {**slow_plan.data.options, "pause": pause}})})
    begun, found = threading.Event(), []
    with start_nodes(tmp_path / "head", cpus=1) as nodes, nodes.connected():
        place, told = storage if in_common else None, Told({5: begun.set})
        thread = threading.Thread(target=lambda: found.append(go(plan, place, reporter=told)["pooled"]))
        thread.start()
        assert begun.wait(300)
        nodes.add(tmp_path / "second")  # Ray starts nodes from the main thread only
        thread.join()
    [figures] = found
    assert len(figures.computed) == (2 if in_common else 1)
    assert (sum(figures.computed.values()), figures.repeated) == (GOOD, 0)


DRIVER = """
import sys, time
import ray
from xfer.cluster.extraction_pool import fill
from xfer.cluster.storage import Storage
from xfer.engine.reporter import Silent
from xfer.plan.plan import Plan
from pathlib import Path

class Told(Silent):
    def advance(self, n):
        print(n, flush=True)

ray.init(address=sys.argv[1], log_to_driver=False)
plan = Plan.read(Path(sys.argv[2]))
fill(plan, storage=Storage(sys.argv[3]), reporter=Told(), stop=lambda: False)
print("finished", flush=True)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed(two_nodes, slow_plan, storage, tmp_path):
    """The next one goes on at the first missing shard."""
    slow_plan.write(tmp_path / "plan.json")
    command = [sys.executable, "-c", DRIVER, two_nodes.address, str(tmp_path / "plan.json"), storage.location]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    rows = 0
    while rows < 30:
        line = driver.stdout.readline()
        assert line.strip().isdigit(), line
        rows += int(line)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    deadline = time.monotonic() + 120
    while any(workers(node) for node in two_nodes.nodes):  # Ray ends the actors of a driver that is gone
        assert time.monotonic() < deadline
        time.sleep(0.2)
    figures = go(slow_plan, storage)["pooled"]
    assert GOOD - sum(figures.computed.values()) >= 10  # what whole shards had was not computed again
    assert figures.repeated == 0
    assert shared(storage) == shards(locally(slow_plan, tmp_path / "local"))


@pytest.mark.slow
def test_a_stop_and_another_start(two_nodes, slow_plan, storage, tmp_path):
    told = Told()
    with pytest.raises(InterruptedRun) as caught:
        go(slow_plan, storage, reporter=told, stop=lambda: told.rows >= 20)
    assert caught.value.message == "stopped while features were extracted; what is in the store is kept"
    figures = go(slow_plan, storage)["pooled"]
    assert sum(figures.computed.values()) <= GOOD - 20
    assert shared(storage) == shards(locally(slow_plan, tmp_path / "local"))
    # Another time there is nothing to do.
    again = go(slow_plan, storage)["pooled"]
    assert (again.rows, again.computed, again.repeated) == (0, {}, 0)


@pytest.mark.slow
def test_what_a_worker_raises(two_nodes, make_plan, storage):
    """Images that changed since the plan was made; said with the node, and not tried again."""
    plan = make_plan()
    changed = plan.model_copy(update={"data": plan.data.model_copy(update={"listing": "0" * 32})})
    with pytest.raises(DataError) as caught:
        go(changed, storage)
    assert "): the dataset changed since the plan was made: 100 images now, 100 then, or other names or labels" in caught.value.message
    assert caught.value.message.startswith("node ")


@pytest.mark.slow
def test_a_cluster_that_is_busy(one_node, make_plan, monkeypatch):
    import ray

    monkeypatch.setattr(crew, "START_SECONDS", 3.0)

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.ready.remote())
    with pytest.raises(UsageError) as caught:
        go(make_plan(), None)
    assert caught.value.message == "cluster: no extraction worker could start within 3 s; each needs 1 CPU"
    assert caught.value.hint == "do other jobs hold what the cluster has? `ray status` shows it"
