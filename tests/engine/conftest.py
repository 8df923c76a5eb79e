"""A small folder of images, a recipe over it, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Tests of whole runs have both backends as a parameter. On TensorFlow, where each graph of a phase is traced first, only these are quick.
QUICK_ON_TENSORFLOW = {
    "test_layer_decay_and_weight_decay[tensorflow-sgd]",
    "test_optimizer_state_from_phase_to_phase[tensorflow-adamw-carry]",
    "test_until_and_plateau_judge_the_average_and_restore_it[tensorflow]",
    "test_statistics_are_estimated_for_the_average[tensorflow]",
    "test_l2_sp_with_normalisation_and_an_average[tensorflow]",
    "test_a_signal_inside_an_epoch[tensorflow-SIGKILL]",
}
RECIPE = """
name: shapes
source: {model: torchvision/squeezenet1_1, weights: none, preprocess: {resize: 64, crop: 64}}
target: {dataset: folder, path: %(data)s, image_size: 64, batch_size: 8, splits: {val: 0.2, test: 0.3}}
transfer: {type: feature}
freeze:
  - {train: head, epochs: 12}
optimizer: {name: adamw, lr: 3e-2}
runtime: {cache: %(cache)s, precision: float32}
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs before tests are deselected by their marks."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "[tensorflow" in item.name and item.name not in QUICK_ON_TENSORFLOW:
            item.add_marker(pytest.mark.slow)


def draw_folder(folder: Path, *, per_class: int = 20, classes: tuple[str, ...] = ("blue", "green", "red"), seed: int = 0) -> Path:
    """Noise with one stronger channel per class: easy for any features, random ones too."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            pixels = generator.integers(0, 120, size=(70, 80, 3), dtype=np.uint8)
            pixels[..., label % 3] += 100
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


class Workplace:
    """A recipe, its data and a cache in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = draw_folder(folder / "data")
        self.cache = folder / "cache"
        self.bundle = folder / "bundle"
        self.recipe = folder / "shapes.yaml"
        self.recipe.write_text(RECIPE % {"data": self.data, "cache": self.cache})

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
        command = [sys.executable, "-m", "xfer.cli", *arguments]
        return subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **{"cwd": self.folder, **options}
        )

    def xfer(self, *arguments: str, code: int = 0, **options: Any) -> tuple[str, str]:
        """(stdout, stderr) of a whole process."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def run(self, *overrides: str, out: str = "bundle", **options: Any) -> Path:
        self.xfer("run", str(self.recipe), *overrides, "--out", out, **options)
        return self.folder / out


def result(bundle: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((bundle / "result.json").read_text())
    return loaded


def numbers(bundle: Path) -> dict[str, Any]:
    """What must be the same, however often a run was cut off: metrics, baselines, and the metrics of each epoch."""
    lines = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
        line.pop("images_per_second", None)
    return {"metrics": result(bundle)["metrics"], "baseline": result(bundle)["baseline"], "lines": lines}


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def make_workplace() -> type[Workplace]:
    return Workplace


@pytest.fixture
def read_result() -> Callable[[Path], dict[str, Any]]:
    return result


@pytest.fixture
def read_numbers() -> Callable[[Path], dict[str, Any]]:
    return numbers


@pytest.fixture
def draw() -> Callable[..., Path]:
    return draw_folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One run that several tests look at; its bundle is `finished.bundle`."""
    place = Workplace(tmp_path_factory.mktemp("run"))
    place.bundle = place.run()
    return place
