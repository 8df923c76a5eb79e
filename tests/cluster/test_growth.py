"""Room for workers, and a cluster that grows: Ray's own autoscaler, whose nodes are processes on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from xfer.cli.main import run
from xfer.cluster.growth import gather, share
from xfer.cluster.seats import Node
from xfer.cluster.storage import Storage
from xfer.engine.reporter import Silent
from xfer.errors import InterruptedRun, UsageError, XferError
from xfer.plan.plan import ClusterPlan


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node("a", "10.0.0.a", cpus, gpus)


class TestShare:
    @pytest.mark.parametrize(
        ("nodes", "workers", "gpus", "expected"),
        [
            ([node(8)], (1, 1), 0.0, (1, 8.0)),
            ([node(8)], (2, 2), 0.0, (2, 4.0)),
            ([node(8), node(4)], (3, 3), 0.0, (3, 4.0)),
            ([node(1), node(1)], (2, 2), 0.0, (2, 1.0)),
            ([node(32, 4)], (1, 8), 1.0, (4, 8.0)),  # all four devices work, though eight were allowed
            ([node(32, 4), node(32, 4)], (1, 8), 1.0, (8, 8.0)),
            ([node(64), node(8, 2)], (2, 2), 1.0, (2, 4.0)),
            ([node(8, 1)], (2, 2), 0.5, (2, 4.0)),
            ([node(3)], (1, 8), 0.0, (3, 1.0)),
        ],
    )
    def test_first_workers_then_cpus(self, nodes, workers, gpus, expected):
        assert share(nodes, ClusterPlan(workers=workers), gpus) == expected

    def test_too_few(self):
        with pytest.raises(UsageError, match="4 workers with 1 CPU and 1 GPU each were asked for, .* has: 10.0.0.a 8 CPU and 2"):
            share([node(8, 2)], ClusterPlan(workers=(4, 4)), 1.0)
        with pytest.raises(UsageError, match="1 worker with 1 CPU each were asked for, and the cluster has: no node"):
            share([], ClusterPlan(workers=(1, 2)), 0.0)


NODE_TYPES = {
    "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands", "head_setup_commands")
LISTS += ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
LAUNCHER = {
    "cluster_name": "growing",
    "available_node_types": NODE_TYPES,
    "head_node_type": "head",
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1.0,
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "auth": {},
    "docker": {},
    **{name: [] for name in LISTS},
}


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def growing(in_ray: Callable[..., Any], free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """The address of a Ray of one node with one CPU, to which its autoscaler may add one like it. Each test has its own: with this
    provider the autoscaler takes its nodes for dead after a while, and does not always come to taking an idle one away."""
    from ray.util import get_node_ip_address

    folder = Path(tempfile.mkdtemp(prefix="x", dir="/tmp" if os.access("/tmp", os.W_OK) else None))  # sockets want short paths
    (port,) = free_ports(1)
    address = f"{get_node_ip_address()}:{port}"
    provider = {"type": "fake_multinode", "gcs_address": address}  # Ray's own, for tests: its nodes are raylets on this machine
    (folder / "launcher.json").write_text(json.dumps({**LAUNCHER, "provider": provider}))
    ports = [f"--port={port}"]
    ports += [f"--{name}=0" for name in ("dashboard-agent-listen-port", "metrics-export-port", "min-worker-port", "max-worker-port")]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats", *ports]
    command += ["--include-dashboard=false", f"--temp-dir={folder / 'ray'}", "--num-cpus=1", "--num-gpus=0"]
    command += ["--object-store-memory=100000000", f"--autoscaling-config={folder / 'launcher.json'}"]
    with in_ray(), (folder / "head.log").open("wb") as log:
        environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        await_head(folder / "head.log", process)
        yield address
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=3)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


def await_head(log: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while "ray start --address=" not in (said := log.read_text(errors="replace")):
        assert process.poll() is None, said
        assert time.monotonic() < until, said
        time.sleep(0.2)


@pytest.fixture
def connected(growing: str, in_ray: Callable[..., Any]) -> Iterator[str]:
    """Within it this process speaks with that Ray."""
    import ray

    with in_ray():
        ray.init(address=growing, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield growing
        finally:
            ray.shutdown()


class TestGrowth:
    def asked(self, address: str, workers: int, **changes: Any) -> ClusterPlan:
        return ClusterPlan(workers=(workers, workers), address=address, **{"startup_seconds": 300.0, **changes})

    def test_nodes_that_come_are_waited_for(self, connected, tmp_path):
        """What has room is used at once; the rest is asked for, and said."""
        heard = Heard()
        storage = Storage.of(str(tmp_path))
        alone, _ = gather(self.asked(connected, 1), storage, reporter=heard, stop=lambda: False)
        assert (len(alone), heard.notes) == (1, [])
        with pytest.raises(UsageError, match=r"2 workers with 1 CPU each were asked for, and the cluster has: \S+ 1 CPU$"):
            gather(self.asked(connected, 2, startup_seconds=0.0), storage, reporter=heard, stop=lambda: False)
        with pytest.raises(UsageError, match="cluster.storage: it is not set, and the 2 nodes"):
            gather(self.asked(connected, 2), None, reporter=heard, stop=lambda: False)
        grown, gpus = gather(self.asked(connected, 2), storage, reporter=heard, stop=lambda: False)
        assert (len(grown), gpus) == (2, 0.0)
        assert heard.notes[0] == "the cluster has room for 1 of 2 workers with 1 CPU each; waiting for it to grow"
        assert re.match(r"the cluster has grown, in \d+ s: \S+ .*1 CPU, \S+ .*1 CPU$", heard.notes[1])
        # Last, since what is asked here may bring a node before it is given up.
        with pytest.raises(InterruptedRun, match="stopped while the cluster was to grow"):
            gather(self.asked(connected, 3), storage, reporter=heard, stop=lambda: True)
        with pytest.raises(XferError, match=r"did not get room for 3 workers with 1 CPU each within cluster.startup_timeout, 2 s; it"):
            gather(self.asked(connected, 3, startup_seconds=2.0), storage, reporter=heard, stop=lambda: False)

    @pytest.mark.slow
    def test_a_cluster_that_does_not_grow_in_time(self, connected, make_recipe, tmp_path, capsys):
        """It may have one node more, and three are asked for: exit 1, and the bundle can be gone on with."""
        storage, out = tmp_path / "shared", tmp_path / "out"
        storage.mkdir()
        options = [f"cluster.storage={storage}", "cluster.startup_timeout=3s", f"runtime.cache={tmp_path / 'cache'}"]
        assert run(["run", str(make_recipe()), *options, "--workers", "3", "--address", connected, "--out", str(out), "--quiet"]) == 1
        said = capsys.readouterr().err
        assert "error: the cluster did not get room for 3 workers with 1 CPU each within cluster.startup_timeout, 3 s; it has: " in said
        assert f"or that there is none; go on with: xfer run --resume {out}" in said
        result = json.loads((out / "result.json").read_text())
        assert (result["status"], result["error"]) == ("failed", said.partition("error: ")[2].splitlines()[0])
        assert (out / "report.html").exists()

    @pytest.mark.slow
    def test_a_run_on_a_cluster_that_is_too_small(self, connected, make_recipe, tmp_path):
        """`xfer run` asks for two workers where there is room for one: a node comes, and takes its part."""
        storage = tmp_path / "shared"
        storage.mkdir()
        options = [f"cluster.storage={storage}", "cluster.startup_timeout=10min", f"runtime.cache={tmp_path / 'cache'}"]
        command = ["run", str(make_recipe()), *options, "--workers", "2", "--address", connected, "--out", str(tmp_path / "out"), "--quiet"]
        assert run(command) == 0
        told = json.loads((tmp_path / "out" / "cluster.json").read_text())
        assert (told["groups"], [node["cpus"] for node in told["nodes"]]) == ([2], [1.0, 1.0])
        assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "finished"
