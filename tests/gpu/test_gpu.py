"""What needs a CUDA device: `make gpu-check` runs it where there is one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

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
    assert json.loads((bundle / "lock.json").read_text())["device_kind"].startswith("cuda sm")
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


FINE_TUNING = """
source: {model: torchvision/resnet18, weights: none}
target: {dataset: sklearn/digits, image_size: 64, splits: {val: 0.1, test: 0.2}, batch_size: 64}
transfer: {type: model}
freeze:
  - {train: [layer4, head], epochs: 2}
  - {train: all, epochs: 3}
optimizer: {name: sgd, lr: 0.02, clip_norm: 5.0}
runtime: {device: cuda, keep: 9, checkpoint: 7}
"""


@pytest.fixture
def fine_tuned(tmp_path):
    """Runs two phases of fine-tuning in a precision; the bundle's folder and result.json."""

    def make(name: str, *overrides: str):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(FINE_TUNING)
        code = run(["run", str(recipe), f"runtime.cache={tmp_path / 'cache'}", *overrides, "--out", str(tmp_path / name), "--quiet"])
        assert code == 0
        return tmp_path / name, json.loads((tmp_path / name / "result.json").read_text())

    return make


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_fine_tuning_in_every_precision(fine_tuned, precision):
    bundle, result = fine_tuned(precision, f"runtime.precision={precision}")
    assert result["metrics"]["test"]["accuracy"] > 0.9
    assert [phase["frozen_changed"] for phase in result["phases"]] == [0, 0]
    assert result["phases"][0]["frozen_tensors"] > 60
    assert result["phases"][1]["distance"]["layer1.0"] > 0
    saved = load_file(sorted((bundle / "checkpoints").glob("0*"))[-2] / "state.safetensors")
    assert ("scaler/scale" in saved) == (precision == "float16")


def test_float16_gradients_that_overflow_are_left_out(fine_tuned):
    """The scale begins at 2**16: where gradients overflow, the step is skipped, the scale halved, and the run goes on."""
    _, result = fine_tuned("overflow", "runtime.precision=float16", "freeze.0.lr=0.5", "optimizer.clip_norm=1.0")
    assert result["status"] == "finished"
    assert all(math.isfinite(value) for value in (result["metrics"]["test"]["loss"], result["metrics"]["val"]["loss"]))


def test_a_checkpoint_goes_on_from_the_gpu(fine_tuned, tmp_path):
    """From a checkpoint in the middle, as if the run had been killed there: the same as undisturbed, but for the GPU's own rounding."""
    bundle, whole = fine_tuned("whole", "runtime.precision=float32")
    checkpoints = sorted((bundle / "checkpoints").glob("0*"))
    middle = next(folder for folder in checkpoints if json.loads((folder / "progress.json").read_text())["phase"] == 1)
    for later in checkpoints[checkpoints.index(middle) + 1 :]:
        shutil.rmtree(later)
    (bundle / "result.json").unlink()
    assert run(["run", "--resume", str(bundle), "--quiet"]) == 0
    resumed = json.loads((bundle / "result.json").read_text())
    assert resumed["metrics"]["test"]["accuracy"] == pytest.approx(whole["metrics"]["test"]["accuracy"], abs=0.03)
    assert [phase["epochs"] for phase in resumed["phases"]] == [2, 3]
