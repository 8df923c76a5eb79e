"""Runs spread by Ray Train, as `xfer run --workers 2` starts them, against the same run in one process."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from xfer.cli.main import run
from xfer.cluster.launch import Launch, run_on_cluster
from xfer.cluster.mirror import Mirror
from xfer.cluster.seats import Node
from xfer.cluster.storage import EVERYWHERE, Storage
from xfer.compile.compiler import compile_plan
from xfer.compile.data_facts import open_dataset
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.errors import InterruptedRun, StoreError, UsageError, XferError
from xfer.recipe.loader import read

ON_TORCH = {"model": "torchvision/squeezenet1_1", "weights": "none", "preprocess": {"resize": 40, "crop": 40}}
ON_KERAS = {"model": "keras/MobileNetV2", "weights": "none"}
TOLERANCE = 2e-4  # float32: gradients are added in another order


@pytest.fixture
def recipe(tmp_path, pictures):
    """Head first, then the last stage with normalisation as it is, over 100 pictures of which two can't be read."""

    def make(source: dict, **changes) -> Path:
        size = 40 if source is ON_TORCH else 32
        made = {
            "name": "spread",
            "source": source,
            "target": {
                "dataset": "folder",
                "path": str(pictures),
                "image_size": size,
                "batch_size": 16,
                "max_bad": 0.1,
                "splits": {"val": 0.1, "test": 0.2},
            },
            "transfer": {"type": "model"},
            "freeze": [{"train": "head", "epochs": 1}, {"train": ["last 1 stages", "head"], "epochs": 2, "norm": "frozen"}],
            "optimizer": {"name": "sgd", "lr": 0.002},
            "runtime": {"precision": "float32", "device": "cpu", "checkpoint": 2},
            **changes,
        }
        file = tmp_path / "spread.yaml"
        file.write_text(yaml.safe_dump(made))
        return file

    return make


def result_of(file: Path, folder: Path, *options: str) -> dict:
    assert run(["run", str(file), f"runtime.cache={folder.with_suffix('.cache')}", "--out", str(folder), "--quiet", *options]) == 0
    return json.loads((folder / "result.json").read_text())


def same(one: Path, other: Path, *, tolerance: float = TOLERANCE) -> None:
    """Weights, and the metrics of each epoch."""
    weights = [load_file(folder / "model" / "weights.safetensors") for folder in (one, other)]
    for name, values in weights[0].items():
        np.testing.assert_allclose(weights[1][name], values, rtol=tolerance, atol=tolerance, err_msg=name)
    records = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)]
    for before, after in zip(*records, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], abs=tolerance)
        assert (after["phase"], after["epoch"], after["split"]) == (before["phase"], before["epoch"], before["split"])


@pytest.mark.parametrize("source", [ON_TORCH, ON_KERAS], ids=["torch", "tensorflow"])
def test_two_workers_are_one_process(recipe, tmp_path, one_node, source):
    file = recipe(source)
    alone, spread = result_of(file, tmp_path / "alone"), result_of(file, tmp_path / "spread", "--workers", "2")
    same(tmp_path / "alone", tmp_path / "spread")
    assert spread["status"] == "finished"
    assert [phase["frozen_changed"] for phase in spread["phases"]] == [0, 0]
    assert [phase["frozen_tensors"] for phase in spread["phases"]] == [phase["frozen_tensors"] for phase in alone["phases"]]
    assert spread["data"] == alone["data"]
    assert spread["data"]["quarantined"] == 2
    told = json.loads((tmp_path / "spread" / "cluster.json").read_text())
    assert told["groups"] == [2]
    assert sum(sum(figures["computed"].values()) for figures in told["extraction"].values()) == spread["data"]["computed"]
    assert (tmp_path / "spread" / "report.html").exists()


def test_more_than_there_is(recipe, tmp_path, one_node, capsys):
    assert run(["run", str(recipe(ON_TORCH)), "--workers", "16", "--gpus-per-worker", "1", "--out", str(tmp_path / "b")]) == 2
    wanted = r"cluster\.workers: 16 workers with 1 CPU and 1 GPU each were asked for, and the cluster has: \S+ 2 CPU\n"
    assert re.search(wanted, capsys.readouterr().err)


def test_no_shared_storage(recipe, tmp_path, two_nodes, capsys):
    assert run(["run", str(recipe(ON_TORCH)), "--workers", "2", "--out", str(tmp_path / "b")]) == 2
    assert "cluster.storage: it is not set, and the 2 nodes that this run would be spread over need one place" in capsys.readouterr().err
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert (result["status"], result["data"]["computed"], result["phases"]) == ("failed", 0, [])
    assert result["error"].startswith("cluster.storage: it is not set")
    assert (tmp_path / "b" / "report.html").exists()


def test_a_run_goes_on_from_what_its_workers_did_elsewhere(recipe, tmp_path, monkeypatch):
    """Its first rank writes on another node, and what it did comes by way of the storage: after a stop, and at the next start."""
    storage = Storage.of((tmp_path / "bucket").as_uri())
    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2", f"cluster.storage={storage}"]))
    mirrored, bundle = storage.inside("runs"), Bundle.create(tmp_path / "here", plan, recipe="", resolved="")
    started_from: list[list[int]] = []

    def train(self: Launch, *_: object) -> list[int]:
        elsewhere = tmp_path / f"node-{len(started_from)}"
        mirror = Mirror(elsewhere, mirrored)
        assert mirror.fetch()
        worked = Bundle(elsewhere)
        started_from.append(worked._checkpoints())
        worked.checkpoint({}, {})
        mirror.push()
        raise InterruptedRun("stopped")

    monkeypatch.setattr(Launch, "_gather", lambda self: ([Node("1", "node", 2.0, 0.0)], 0.0))
    monkeypatch.setattr(Launch, "_train", train)
    monkeypatch.setattr("xfer.cluster.launch.fill", lambda *_, **__: {})
    for n_done in (1, 2):
        with pytest.raises(InterruptedRun):
            Launch(bundle, plan.cluster, mirrored=mirrored, reporter=Silent(), stop=lambda: False).run()
        assert bundle._checkpoints()[-1] == n_done
        for folder in (tmp_path / "here", tmp_path / "bucket" / "runs"):  # no worker said so
            result = json.loads((folder / "result.json").read_text())
            assert (result["status"], result["error"]) == ("interrupted", "stopped")
    shutil.rmtree(tmp_path / "here" / "checkpoints" / "000002")  # as if the driver had been killed: it heard of the first only
    with pytest.raises(InterruptedRun):
        Launch(bundle, plan.cluster, mirrored=mirrored, reporter=Silent(), stop=lambda: False).run()
    assert started_from == [[], [1], [1, 2]]
    bundle.write_result({**bundle.result(), "status": "finished", "error": None})
    bundle.ended(XferError("after its end"))
    assert (bundle.result()["status"], bundle.result()["error"]) == ("finished", None)


@pytest.mark.parametrize("ending", [
    (InterruptedRun("stopped while features were extracted"), "interrupted", "stopped while features were extracted"),
    (KeyboardInterrupt(), "interrupted", "ended at once, by a second signal"),
    (ConnectionError("the desk is gone"), "failed", "ConnectionError: the desk is gone"),
])  # fmt: skip
def test_whatever_ends_a_run_is_in_its_bundle(recipe, tmp_path, monkeypatch, ending):
    """Here, where its storage is out of reach then; and what stands there is left as its workers put it."""
    error, status, words = ending
    storage = Storage.of((tmp_path / "bucket").as_uri())
    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2", f"cluster.storage={storage}"]))
    mirrored, bundle = storage.inside("runs"), Bundle.create(tmp_path / "here", plan, recipe="", resolved="")

    def ends(*_: object, **__: object) -> None:
        def out_of_reach(*_: object) -> None:
            raise StoreError("out of reach")

        monkeypatch.setattr(Mirror, "fetch", out_of_reach)
        raise error

    monkeypatch.setattr(Launch, "_gather", lambda self: ([Node("1", "node", 2.0, 0.0)], 0.0))
    monkeypatch.setattr("xfer.cluster.launch.fill", ends)
    with pytest.raises(type(error)):
        Launch(bundle, plan.cluster, mirrored=mirrored, reporter=Silent(), stop=lambda: False).run()
    assert (bundle.result()["status"], bundle.result()["error"]) == (status, words)
    assert not (tmp_path / "bucket" / "runs" / "result.json").exists()
    if isinstance(error, InterruptedRun):
        assert error.hint == f"go on with: xfer run --resume {bundle.folder}"


@pytest.mark.parametrize("reached", [True, False])
def test_storage_that_is_out_of_reach_in_the_middle(recipe, tmp_path, monkeypatch, reached):
    """The way on is told; what else a storage error advises stands."""
    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2"]))
    bundle = Bundle.create(tmp_path / "b", plan, recipe="", resolved="")

    def fail(self: Launch) -> dict:
        raise StoreError("s3://bucket/x: y can't be written: no answer", hint="start a new run" if reached else EVERYWHERE)

    monkeypatch.setattr(Launch, "_run", fail)
    with pytest.raises(StoreError) as caught:
        Launch(bundle, plan.cluster, mirrored=None, reporter=Silent(), stop=lambda: False).run()
    way_on = f"what was done is kept; when it can be reached again, go on with: xfer run --resume {tmp_path / 'b'}"
    assert caught.value.hint == ("start a new run" if reached else way_on)


def test_ray_is_lost_while_workers_train(recipe, tmp_path, monkeypatch, one_node):
    """What driver and workers speak by is killed, as when there is too little memory: no traceback."""
    import ray

    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2"]))
    bundle = Bundle.create(tmp_path / "b", plan, recipe="", resolved="")
    killed = SimpleNamespace(fit=lambda: None)
    monkeypatch.setattr(Launch, "_trainer", lambda self, desk, *_: (ray.kill(desk), killed)[1])
    monkeypatch.setattr(Launch, "_run", lambda self: self._train(1.0, 0.0, (0, 0.0)))
    with pytest.raises(XferError) as caught:
        Launch(bundle, plan.cluster, mirrored=None, reporter=Silent(), stop=lambda: False).run()
    why = "The actor died unexpectedly before finishing this task"
    assert caught.value.message == f"this process has lost the Ray that it was connected to: {why}"
    assert caught.value.hint == f"what was done is kept; go on with: xfer run --resume {tmp_path / 'b'}"
    assert (bundle.result()["status"], bundle.result()["error"]) == ("failed", caught.value.message)


class Heard(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def without_a_node(recipe, tmp_path, monkeypatch, one_node):
    """A run of two workers on what is left of a cluster, one node with room for one of them; `fit(desk)` is Ray Train's part."""
    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2"]))
    bundle = Bundle.create(tmp_path / "b", plan, recipe="", resolved="")
    monkeypatch.setattr("xfer.cluster.launch.ROOM_SECONDS", 0.0)
    monkeypatch.setattr("xfer.cluster.launch.live_nodes", lambda: [Node("1", "node", 4.0, 0.0)])
    monkeypatch.setattr(Launch, "_run", lambda self: {"groups": self._train(3.0, 0.0, (0, 0.0))})
    reporter, done = Heard(), threading.Event()

    def launch(fit, *, stop) -> Launch:
        monkeypatch.setattr(Launch, "_trainer", lambda self, desk, *_: SimpleNamespace(fit=lambda: (fit(desk), done.wait(60))))
        return Launch(bundle, plan.cluster, mirrored=None, reporter=reporter, stop=stop)

    yield launch, reporter, bundle
    done.set()


def test_nodes_are_lost_and_none_come(without_a_node):
    """Ray Train waits for ever: the run says so, once, and can be stopped though no worker is there to stop."""
    launch, reporter, bundle = without_a_node
    left = [8]

    def stop() -> bool:
        left[0] -= bool(reporter.warnings)
        return left[0] < 0

    with pytest.raises(InterruptedRun, match="^stopped while it waited for nodes in place of lost ones$") as caught:
        launch(lambda desk: None, stop=stop).run()
    assert caught.value.hint == f"go on with: xfer run --resume {bundle.folder}"
    assert bundle.result()["status"] == "interrupted"
    assert reporter.warnings == [
        "nodes were lost, and the others have room for 1 of 2 workers with 3 CPU each: the run waits for more; or stop it, and "
        f"share out anew what is left: xfer run --resume {bundle.folder}"
    ]


def test_a_node_is_lost_when_the_run_is_over(without_a_node):
    """Its other worker was about to leave: Ray Train starts the group again, for nothing, and waits for a node."""
    import ray

    launch, _, _ = without_a_node

    def finish(desk) -> None:
        ray.get(desk.started.remote(0, 2))
        ray.get(desk.finish.remote())

    assert launch(finish, stop=lambda: False).run() == {"groups": [2]}


def test_a_bundle_has_one_driver(recipe, tmp_path, monkeypatch):
    """Gone on with while it runs, by mistake: nothing of what the first run writes is touched."""
    plan = compile_plan(read(recipe(ON_TORCH), ["cluster.workers=2"]))
    bundle = Bundle.create(tmp_path / "b", plan, recipe="", resolved="")

    def once_more(self: Launch) -> dict:
        before = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match=f"^another process is running {bundle.folder}$"):
            run_on_cluster(Bundle(bundle.folder), mirrored=None, reporter=Silent(), stop=lambda: False)
        assert {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()} == before
        return {"status": "finished"}

    monkeypatch.setattr("xfer.cluster.launch.connected", lambda *_, **__: nullcontext("logs"))
    monkeypatch.setattr(Launch, "run", once_more)
    assert run_on_cluster(bundle, mirrored=None, reporter=Silent(), stop=lambda: False) == {"status": "finished"}


def test_local_plugins_are_there_when_a_run_is_gone_on_with(recipe, tmp_path, monkeypatch):
    """Its driver is another process than the one that compiled it, and opens the dataset at the end."""
    (tmp_path / "mine.py").write_text(
        "from xfer.data.datasets.folder import folder\n\n\ndef mine(name, *, path):\n    return folder(name, path=path)\n\n\n"
        "xfer_plugins = {'datasets': {'mine': mine}}\n"
    )
    file = recipe(ON_TORCH, plugins=["./mine.py"])
    plan = compile_plan(read(file, ["target.dataset=mine", "cluster.workers=2"]))
    bundle = Bundle.create(tmp_path / "b", plan, recipe="", resolved="")
    del sys.modules[plan.data.target.partition(":")[0]]
    monkeypatch.setattr("xfer.cluster.launch.connected", lambda *_, **__: nullcontext("logs"))
    monkeypatch.setattr(Launch, "run", lambda self: {"status": "finished"})
    assert run_on_cluster(bundle, mirrored=None, reporter=Silent(), stop=lambda: False) == {"status": "finished"}
    assert len(open_dataset(plan.data.target, plan.data.dataset, plan.data.options).keys) == plan.data.images


@pytest.mark.slow
def test_an_error_of_ours_ends_the_run_without_another_try(recipe, tmp_path, one_node, capsys):
    """A learning rate that makes the loss infinite, found on both workers at the same step."""
    file = recipe(ON_TORCH)
    assert run(["run", str(file), "freeze.1.lr=1e9", "--workers", "2", "--out", str(tmp_path / "b")]) == 1
    assert "the loss is not a finite number any more" in capsys.readouterr().err
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert (result["status"], result["phases"][0]["frozen_changed"]) == ("failed", 0)


@pytest.mark.slow
def test_storage_that_is_no_file_system(recipe, tmp_path, one_node):
    """The bundle is mirrored at a URL, features go through it too, and both ends of the run are whole."""
    file, storage = recipe(ON_TORCH), tmp_path / "bucket"
    storage.mkdir()
    result_of(file, tmp_path / "alone")
    result_of(file, tmp_path / "spread", "--workers", "2", "--storage", storage.as_uri())
    same(tmp_path / "alone", tmp_path / "spread")
    (there,) = (storage / "runs" / "spread").iterdir()
    assert json.loads((there / "result.json").read_text())["status"] == "finished"
    assert list((storage / "store").rglob("*.npy"))
    driver = tmp_path / "spread"
    for name in ("report.html", "cluster.json", "ray.log"):
        assert (there / name).read_bytes() == (driver / name).read_bytes()


@pytest.mark.slow
def test_storage_that_is_a_bucket(recipe, tmp_path, one_node, s3):
    """A second run, of another node by its cache, finds all features there."""
    file, storage = recipe(ON_TORCH), s3.bucket("/xfer")
    result_of(file, tmp_path / "alone")
    assert result_of(file, tmp_path / "spread", "--workers", "2", "--storage", storage)["data"]["computed"] > 0
    assert result_of(file, tmp_path / "again", "--workers", "2", "--storage", storage)["data"]["computed"] == 0
    for name in ("spread", "again"):
        same(tmp_path / "alone", tmp_path / name)
    there = Storage(**json.loads((tmp_path / "spread" / "mirrored.json").read_text()))
    assert json.loads(there.read("result.json") or b"")["status"] == "finished"
    assert {"report.html", "cluster.json", "ray.log", "predictions.parquet"} <= there.sizes().keys()


@pytest.mark.slow
def test_storage_that_is_out_of_reach_for_a_while(recipe, tmp_path, one_node, capsys):
    """A file stands where the bucket was, for some seconds in the midst of training."""
    file, storage = recipe(ON_TORCH), tmp_path / "bucket"
    storage.mkdir()
    result_of(file, tmp_path / "alone")

    def interrupt() -> None:
        while not list(storage.glob("runs/spread/*/checkpoints/[0-9]*")):
            time.sleep(0.02)
        storage.rename(tmp_path / "aside")
        storage.write_text("")
        time.sleep(4)
        storage.unlink()
        (tmp_path / "aside").rename(storage)

    outage = threading.Thread(target=interrupt)
    outage.start()
    result_of(file, tmp_path / "spread", "--workers", "2", "--storage", storage.as_uri())
    outage.join()
    same(tmp_path / "alone", tmp_path / "spread")
    (there,) = (storage / "runs" / "spread").iterdir()
    assert (there / "result.json").read_bytes() == (tmp_path / "spread" / "result.json").read_bytes()
    said = capsys.readouterr().err
    assert "it is tried again for 300 s" in said
    assert "can be reached again" in said


@pytest.mark.slow
def test_two_nodes_with_a_folder_in_common(recipe, tmp_path, two_nodes):
    file, storage = recipe(ON_TORCH), tmp_path / "shared"
    storage.mkdir()
    result_of(file, tmp_path / "alone")
    result_of(file, tmp_path / "spread", "--workers", "2", "--storage", str(storage))
    same(tmp_path / "alone", tmp_path / "spread")
    told = json.loads((tmp_path / "spread" / "cluster.json").read_text())
    assert len(told["nodes"]) == 2
