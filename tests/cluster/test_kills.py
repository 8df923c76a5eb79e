"""Workers and nodes that go away, or come, in the middle of a phase: the run ends as if nothing had happened. `pytest -s` prints the
figures."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from xfer.cli.main import run

pytestmark = pytest.mark.slow

SOURCES = {
    "torch": {"model": "torchvision/squeezenet1_1", "weights": "none", "preprocess": {"resize": 40, "crop": 40}},
    "tensorflow": {"model": "keras/MobileNetV2", "weights": "none"},
}
EPOCHS, INTERVAL = 12, 3  # of the phase in which something is killed; steps between checkpoints
LONG = 1200  # epochs: some minutes, on a quick machine too
NOTICE_SECONDS = 8
TOLERANCE = 2e-3  # after 108 steps with momentum in float32: the order of additions is another


@pytest.fixture
def recipe(tmp_path, pictures):
    def make(backend: str, cluster: dict[str, Any]) -> Path:
        size = 40 if backend == "torch" else 32
        data = {"dataset": "folder", "path": str(pictures), "image_size": size, "batch_size": 8, "max_bad": 0.1}
        made = {
            "name": "killed",
            "source": SOURCES[backend],
            "target": {**data, "splits": {"val": 0.1, "test": 0.2}, "augment": "standard"},
            "transfer": {"type": "model"},
            "freeze": [{"train": ["last 1 stages", "head"], "epochs": EPOCHS, "norm": "frozen"}],
            "optimizer": {"name": "sgd", "lr": 0.002, "momentum": 0.9},
            "runtime": {"precision": "float32", "device": "cpu", "checkpoint": INTERVAL},
            "cluster": cluster,
        }
        file = tmp_path / f"killed-{backend}.yaml"
        file.write_text(yaml.safe_dump(made))
        return file

    return make


@contextmanager
def when(ready: Callable[[], bool], act: Callable[[], None]) -> Iterator[list[float]]:
    """Calls `act` once it is `ready`."""
    done: list[float] = []

    def watch() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if ready():
                act()
                done.append(time.monotonic())
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield done
    thread.join(5)


def when_saved(folder: Path, act: Callable[[], None], *, after: int) -> Any:
    """Calls `act` once the bundle has its checkpoint number `after`."""
    return when(lambda: max(saved(folder), default=0) >= after, act)


def saved(folder: Path) -> list[int]:
    """Numbers of the bundle's checkpoints."""
    return [int(path.name) for path in (folder / "checkpoints").glob("0*")]


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def train_workers() -> list[psutil.Process]:
    """Ray Train's worker processes that descend from this test's own nodes, by age."""
    mine = psutil.Process().children(recursive=True)
    found = []
    for process in mine:
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def undisturbed(file: Path, folder: Path) -> None:
    options = ["cluster.workers=1", f"runtime.cache={folder.with_suffix('.cache')}"]
    assert run(["run", str(file), *options, "--out", str(folder), "--quiet"]) == 0


def check(alone: Path, folder: Path, *, groups: list[int]) -> None:
    result, told = json.loads((folder / "result.json").read_text()), json.loads((folder / "cluster.json").read_text())
    assert result["status"] == "finished"
    assert [phase["frozen_changed"] for phase in result["phases"]] == [0]
    assert result["phases"][0]["frozen_tensors"] > 0
    assert told["groups"] == groups
    before, after = (load_file(each / "model" / "weights.safetensors") for each in (alone, folder))
    furthest = max(float(np.abs(after[name] - values).max()) for name, values in before.items() if values.size)
    assert furthest < TOLERANCE
    records = [[json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (alone, folder)]
    assert [(r["epoch"], r["split"]) for r in records[0]] == [(r["epoch"], r["split"]) for r in records[1]]
    for one, other in zip(*records, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=TOLERANCE)
    assert all(figures["repeated"] == 0 for figures in told["extraction"].values())
    print(f"\ngroups {groups}; weights at most {furthest:.1e} apart; at most {INTERVAL} steps taken twice for each group that was lost")


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_a_worker_is_killed(recipe, tmp_path, one_node, backend):
    """SIGKILL to the second of two, after the third checkpoint: both begin anew from the last one."""
    file, folder = recipe(backend, {"workers": 2}), tmp_path / "killed"
    undisturbed(file, tmp_path / "alone")

    def kill() -> None:
        os.kill(train_workers()[-1].pid, signal.SIGKILL)

    with when_saved(folder, kill, after=3) as killed:
        assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(folder), "--quiet"]) == 0
    assert killed
    check(tmp_path / "alone", folder, groups=[2, 2])


def test_a_node_is_lost(recipe, tmp_path, start_nodes):
    """One of two nodes goes, and nothing takes its place: the run goes on with one worker and the same batches."""
    storage, folder = tmp_path / "shared", tmp_path / "lost"
    storage.mkdir()
    file = recipe("torch", {"workers": {"min": 1, "max": 2}, "storage": str(storage)})
    undisturbed(file, tmp_path / "alone")
    with start_nodes(tmp_path / "head", tmp_path / "second", cpus=1) as nodes, nodes.connected():
        second = nodes.nodes[1]
        with when_saved(folder, lambda: nodes.cluster.remove_node(second, allow_graceful=False), after=3) as removed:
            assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(folder), "--quiet"]) == 0
        assert removed
    check(tmp_path / "alone", folder, groups=[2, 1])


def test_a_node_is_about_to_be_taken_away(recipe, tmp_path, start_nodes):
    """A preemption notice: the run saves at once, though no checkpoint was due, and goes on from there when the node has gone. That is
    none of the failures that `max_failures` counts."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    storage, folder = tmp_path / "shared", tmp_path / "preempted"
    storage.mkdir()
    file = recipe("torch", {"workers": {"min": 1, "max": 2}, "storage": str(storage), "max_failures": 0})
    file.write_text(file.read_text().replace(f"epochs: {EPOCHS}", "epochs: 120").replace("lr: 0.002", "lr: 0.0002"))
    undisturbed(file, tmp_path / "alone")
    with start_nodes(tmp_path / "head", tmp_path / "second", cpus=1) as nodes, nodes.connected():
        second, at_notice = nodes.nodes[1], []

        def take_away() -> None:
            deadline = int((time.time() + NOTICE_SECONDS) * 1000)
            accepted, why = GcsClient(address=nodes.address).drain_node(second.node_id, DRAIN_NODE_REASON_PREEMPTION, "spot", deadline)
            assert accepted, why
            while not saved(folder):
                time.sleep(0.05)
            at_notice.append(time.time())
            time.sleep(max(0, deadline / 1000 - time.time()))
            nodes.cluster.remove_node(second, allow_graceful=False)

        with when(lambda: lines(folder) >= 4, take_away) as removed:
            options = ["runtime.checkpoint=100000", f"runtime.cache={tmp_path / 'cache'}"]
            assert run(["run", str(file), *options, "--out", str(folder), "--quiet"]) == 0
        assert removed
    assert at_notice
    check(tmp_path / "alone", folder, groups=[2, 1])


def test_a_node_comes(recipe, tmp_path, start_nodes):
    """An elastic run that began with one worker goes on with two: the same batches, from the last checkpoint. Ray looks for more room
    once a minute."""
    storage, folder = tmp_path / "shared", tmp_path / "grown"
    storage.mkdir()
    file = recipe("torch", {"workers": {"min": 1, "max": 2}, "storage": str(storage), "max_failures": 0})
    file.write_text(file.read_text().replace(f"epochs: {EPOCHS}", f"epochs: {LONG}").replace("lr: 0.002", "lr: 0.0002"))
    undisturbed(file, tmp_path / "alone")
    with start_nodes(tmp_path / "head", cpus=1) as nodes, nodes.connected(), ExitStack() as later:
        with when_saved(folder, lambda: later.enter_context(nodes.joined(tmp_path / "second")), after=1) as came:
            assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(folder), "--quiet"]) == 0
        assert came
    check(tmp_path / "alone", folder, groups=[1, 2])


def test_more_are_lost_than_allowed(recipe, tmp_path, one_node, capsys):
    """With max_failures 0 the run ends with exit 1 and says how to go on, and it does go on to the same end."""
    file, folder = recipe("torch", {"workers": 2, "max_failures": 0}), tmp_path / "killed"
    undisturbed(file, tmp_path / "alone")
    with when_saved(folder, lambda: os.kill(train_workers()[-1].pid, signal.SIGKILL), after=3) as killed:
        assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(folder), "--quiet"]) == 1
    assert killed
    said = capsys.readouterr().err
    assert "error: the workers were lost more often than cluster.max_failures = 0 allows: " in said
    assert f"go on with: xfer run --resume {folder}" in said
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].startswith("the workers were lost more often than cluster.max_failures = 0 allows: ")
    assert run(["run", "--resume", str(folder), "--quiet"]) == 0
    check(tmp_path / "alone", folder, groups=[2])


def test_stopping_and_going_on(recipe, tmp_path, one_node):
    """SIGINT at the driver: the workers finish their step and save, exit 130, and the rest follows after --resume."""
    file, folder = recipe("torch", {"workers": 2}), tmp_path / "stopped"
    undisturbed(file, tmp_path / "alone")
    with when_saved(folder, lambda: os.kill(os.getpid(), signal.SIGINT), after=3) as stopped:
        assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(folder), "--quiet"]) == 130
    assert stopped
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert run(["run", "--resume", str(folder), "--quiet"]) == 0
    check(tmp_path / "alone", folder, groups=[2])
