"""Runs over GPUs by NCCL: `make gpu-check` runs what the machine has the devices for, and says what it does not run."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from torch import distributed

from xfer.backends.torch.backend import TorchBackend
from xfer.backends.torch.shared_statistics import SharedStatistics
from xfer.cli.main import run

needs_one = pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="not run: needs two CUDA devices")


@needs_one
def test_an_exchange_over_nccl(monkeypatch):
    """A team of one rank: NCCL between processes of one device is refused by NCCL itself."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(held.getsockname()[1]))
    team = TorchBackend().join(0, 1, device="cuda")
    try:
        assert distributed.get_backend() == "nccl"
        gradient = torch.arange(4.0, device="cuda")
        team.sum_together([gradient])
        assert gradient.tolist() == [0, 1, 2, 3]
        assert team.sum(np.array([5], np.int64)).tolist() == [5]
        layer, x = torch.nn.BatchNorm2d(3).cuda(), torch.randn(4, 3, 5, 5, device="cuda")
        plain = layer(x)
        with SharedStatistics(team, 1.0):
            torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-4)
    finally:
        distributed.destroy_process_group()


@needs_two
@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_two_devices_are_one(tmp_path, norm):
    recipe = tmp_path / "two.yaml"
    made = {
        "source": {"model": "torchvision/resnet18", "weights": "none"},
        "target": {"dataset": "sklearn/digits", "image_size": 64, "batch_size": 64, "splits": {"val": 0.1, "test": 0.2}},
        "transfer": {"type": "model"},
        "freeze": [{"train": "head", "epochs": 1}, {"train": ["layer4", "head"], "epochs": 2, "norm": norm}],
        "optimizer": {"name": "sgd", "lr": 0.002},
        "runtime": {"device": "cuda", "precision": "float32"},
    }
    recipe.write_text(yaml.safe_dump(made))
    for name, options in (("one", []), ("two", ["--workers", "2", "--gpus-per-worker", "1"])):
        bundle = str(tmp_path / name)
        assert run(["run", str(recipe), f"runtime.cache={tmp_path / f'cache-{name}'}", *options, "--out", bundle, "--quiet"]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[1]["metrics"]["test"]["accuracy"] == pytest.approx(results[0]["metrics"]["test"]["accuracy"], abs=0.01)
    assert [phase["frozen_changed"] for phase in results[1]["phases"]] == [0, 0]
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("one", "two"))
    assert max(float(np.abs(two[name] - values).max()) for name, values in one.items() if values.dtype.kind == "f") < 0.02
