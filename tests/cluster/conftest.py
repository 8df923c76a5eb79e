"""Rays for the tests of this folder: each is started once, by the first test that needs it, and tests connect to it in turn."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfer.compile.compiler import compile_plan
from xfer.plan.plan import Plan
from xfer.recipe.loader import read

RECIPE = """
name: stripes
source: {model: torchvision/squeezenet1_1, weights: none, preprocess: {resize: 64, crop: 64}}
target: {dataset: folder, path: %(data)s, image_size: 64, batch_size: 8, max_bad: 0.1, splits: {val: 0.2, test: 0.2}}
transfer: {type: feature}
freeze:
  - {train: head, epochs: 2}
optimizer: {name: adamw, lr: 3e-2}
runtime: {cache: %(cache)s, precision: float32, device: cpu}
"""
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_EC2_METADATA_DISABLED": "true"}
ENVIRONMENT = {
    **S3_ENVIRONMENT,
    "RAY_AUTH_MODE": "disabled",  # nothing is written to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def ray_environment() -> Iterator[None]:
    """Only while a Ray of this folder is started or used: other tests have settings of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


class S3:
    """A server of S3's protocol on this machine; what it holds outlasts `stop`. It must run in this process: that is where it keeps it."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    def bucket(self, folder: str = "") -> str:
        """The URL of a folder in a new bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")).close()
        return f"s3://{name}{folder}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


@dataclass
class Nodes:
    """A Ray of several nodes on this machine, each a raylet of its own with XFER_CACHE of its own (`caches`, the head's first)."""

    cluster: Any
    caches: list[Path] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cache: Path, *, cpus: int = 1, **resources: float) -> Any:
        """Another node; the first is the head."""
        cache.mkdir(parents=True, exist_ok=True)
        with ray_environment():
            node = self.cluster.add_node(
                num_cpus=cpus,
                resources=resources,
                include_dashboard=False,
                object_store_memory=80 * 2**20,
                env_vars={"XFER_CACHE": str(cache), **ENVIRONMENT},
            )
        self.nodes.append(node)
        self.caches.append(cache)
        return node

    @contextmanager
    def joined(self, cache: Path) -> Iterator[None]:
        """A node more for a while, from whatever thread: Ray's own `add_node` wants the main one."""
        command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={self.address}", "--block", "--num-cpus=1"]
        ports = [f"--{name}=0" for name in ("min-worker-port", "max-worker-port", "dashboard-agent-listen-port", "metrics-export-port")]
        with ray_environment():
            environment = {**os.environ, "XFER_CACHE": str(cache)}
            process = subprocess.Popen([*command, *ports, "--object-store-memory=80000000"], env=environment, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            process.wait(120)

    def forget(self) -> None:
        """Clears the caches of what other tests left there."""
        for cache in self.caches:
            shutil.rmtree(cache / "features", ignore_errors=True)

    @contextmanager
    def connected(self) -> Iterator[Nodes]:
        import ray

        with ray_environment():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            try:
                yield self
            finally:
                ray.shutdown()


@contextmanager
def started(*caches: Path, cpus: int) -> Iterator[Nodes]:
    """A Ray with so many nodes, of `cpus` processors each (no more than words: they share this machine's)."""
    from ray.cluster_utils import Cluster

    with ray_environment():
        nodes = Nodes(Cluster(shutdown_at_exit=True))
    try:
        for cache in caches:
            nodes.add(cache, cpus=cpus)
        yield nodes
    finally:
        with ray_environment():
            nodes.cluster.shutdown()


@pytest.fixture(scope="session")
def in_ray() -> Callable[..., Any]:
    """The environment of a test that starts a Ray of another kind."""
    return ray_environment


@pytest.fixture(scope="session")
def start_nodes() -> Callable[..., Any]:
    """Starts a Ray of its own for a test that kills nodes."""
    return started


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return _s3


@pytest.fixture(scope="session")
def _one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with started(tmp_path_factory.mktemp("node"), cpus=2) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def _two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with started(tmp_path_factory.mktemp("head"), tmp_path_factory.mktemp("second"), cpus=1) as nodes:
        yield nodes


@pytest.fixture
def one_node(_one_node: Nodes) -> Iterator[Nodes]:
    """Connected to a Ray with one node of two processors, and an empty cache. Actors and jobs end with the test."""
    _one_node.forget()
    with _one_node.connected():
        yield _one_node


@pytest.fixture
def two_nodes(_two_nodes: Nodes) -> Iterator[Nodes]:
    """Connected to a Ray with two nodes, each of one processor and with an empty cache of its own."""
    _two_nodes.forget()
    with _two_nodes.connected():
        yield _two_nodes


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images of two classes in a folder, of which two can't be read."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (folder / name).mkdir()
        for index in range(50):
            pixels = generator.integers(0, 120, size=(48, 56, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    for broken in ("blue/007.png", "red/031.png"):
        (folder / broken).write_bytes(b"no image")
    return folder


@pytest.fixture
def make_recipe(pictures: Path, tmp_path: Path) -> Callable[[], Path]:
    """A recipe over `pictures`; its cache is a folder of the test."""

    def make() -> Path:
        recipe = tmp_path / "stripes.yaml"
        recipe.write_text(RECIPE % {"data": pictures, "cache": tmp_path / "cache"})
        return recipe

    return make


@pytest.fixture
def make_plan(make_recipe: Callable[[], Path]) -> Callable[..., Plan]:
    """The plan of that recipe with overrides, in shards of ten rows."""

    def make(*overrides: str, shard_rows: int = 10, batch: int = 8) -> Plan:
        plan = compile_plan(read(make_recipe(), overrides))
        runtime = plan.runtime.model_copy(update={"shard_rows": shard_rows, "extraction_batch": batch})
        return plan.model_copy(update={"runtime": runtime})

    return make
