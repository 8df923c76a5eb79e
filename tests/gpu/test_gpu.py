"""What needs a CUDA device: `make gpu-check` runs it where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xfer.cli.main import run

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "digits_squeezenet.yaml")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def result_of(tmp_path):
    """Runs the digits recipe with overrides and an empty cache; the bundle's folder and result.json."""

    def make(name: str, *overrides: str):
        bundle = tmp_path / name
        code = run(["run", RECIPE, f"runtime.cache={tmp_path / 'cache'}", *overrides, "--out", str(bundle), "--quiet"])
        assert code == 0
        return bundle, json.loads((bundle / "result.json").read_text())

    return make


def test_the_device_is_found_and_used(result_of):
    bundle, result = result_of("cuda", "runtime.device=auto")
    assert json.loads((bundle / "lock.json").read_text())["device_kind"] == "cuda"
    assert result["metrics"]["test"]["accuracy"] > 0.9


def test_as_good_as_on_the_cpu(result_of):
    _, on_cpu = result_of("cpu", "runtime.device=cpu", "runtime.precision=float32")
    _, on_gpu = result_of("gpu", "runtime.device=cuda", "runtime.precision=float32")
    assert on_gpu["metrics"]["test"]["accuracy"] == pytest.approx(on_cpu["metrics"]["test"]["accuracy"], abs=0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_learns_and_leaves_the_source_alone(result_of, precision):
    _, result = result_of(precision, "runtime.device=cuda", f"runtime.precision={precision}")
    assert result["metrics"]["test"]["accuracy"] > 0.9
    assert [phase["frozen_changed"] for phase in result["phases"]] == [0]
    assert all(phase["frozen_tensors"] > 0 for phase in result["phases"])


def test_features_of_the_cpu_are_not_taken_for_the_gpus(result_of):
    _, on_cpu = result_of("cpu", "runtime.device=cpu", "runtime.precision=float32")
    _, on_gpu = result_of("gpu", "runtime.device=cuda", "runtime.precision=float32")
    assert on_cpu["data"]["computed"] == on_gpu["data"]["computed"] > 0


def test_a_second_run_computes_nothing_and_agrees(result_of):
    _, first = result_of("first", "runtime.device=cuda")
    _, second = result_of("second", "runtime.device=cuda")
    assert second["data"]["computed"] == 0
    assert second["metrics"]["test"]["accuracy"] == pytest.approx(first["metrics"]["test"]["accuracy"], abs=0.005)
