"""Runs spread by Ray Train, as `xfer run --workers 2` starts them, against the same run in one process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from xfer.cli.main import run

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
    assert not (tmp_path / "b" / "result.json").exists()


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


@pytest.mark.slow
def test_two_nodes_with_a_folder_in_common(recipe, tmp_path, two_nodes):
    file, storage = recipe(ON_TORCH), tmp_path / "shared"
    storage.mkdir()
    result_of(file, tmp_path / "alone")
    result_of(file, tmp_path / "spread", "--workers", "2", "--storage", str(storage))
    same(tmp_path / "alone", tmp_path / "spread")
    told = json.loads((tmp_path / "spread" / "cluster.json").read_text())
    assert len(told["nodes"]) == 2
