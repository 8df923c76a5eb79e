"""Recipes over a few small images with methods of the tests' own, run in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.plan.plan import Plan
from xfer.recipe.loader import read

SIDE, N_IMAGES = 32, 30


@dataclass(frozen=True)
class Finished:
    """What a run left: its plan, result.json, the exported tensors, and the training records of metrics.jsonl."""

    folder: Path
    plan: Plan
    result: dict[str, Any]
    tensors: dict[str, Any]
    train: list[dict[str, Any]]


class Place:
    """A folder with images, local plugins and recipes."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self.folder, self.pictures = folder, pictures

    def plugin(self, name: str, text: str) -> str:
        """Writes a plugin file; returns what a recipe calls it."""
        (self.folder / f"{name}.py").write_text(text)
        return f"./{name}.py"

    def recipe(self, name: str = "recipe", **sections: Any) -> Path:
        """A recipe file: `sections` are merged over one that trains everything of a small network for an epoch."""
        content: dict[str, Any] = {
            "source": {"model": "torchvision/squeezenet1_1", "weights": "none"},
            "target": {
                "dataset": "arrays", "path": str(self.pictures), "image_size": SIDE, "batch_size": 8, "splits": {"val": 0.2, "test": 0.2},
            },
            "transfer": {"type": "model"},
            "freeze": [{"train": "all", "epochs": 1}],
            "optimizer": {"name": "sgd", "lr": 1e-2},
            "runtime": {"precision": "float32", "device": "cpu"},
        }  # fmt: skip
        for key, value in sections.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) and isinstance(content.get(key), dict) else value
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    def plan(self, **sections: Any) -> Plan:
        return compile_plan(read(self.recipe(**sections)))

    def run(self, name: str = "bundle", **sections: Any) -> Finished:
        """A run to its end."""
        folder = self.folder / name
        reading = read(self.recipe(name, **sections))
        bundle = Bundle.create(folder, compile_plan(reading), recipe=reading.text, resolved=reading.text)
        result = Run(bundle, reporter=Silent(), stop=lambda: False).execute()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        train = [line for line in lines if line["split"] == "train"]
        return Finished(folder, bundle.plan, result, load_file(folder / "model" / "weights.safetensors"), train)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of three classes, each with a channel of its own."""
    random, labels = np.random.default_rng(0), np.arange(N_IMAGES) % 3
    images = random.integers(0, 120, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    images[np.arange(N_IMAGES), ..., labels] += 100
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def place(tmp_path: Path, pictures: Path) -> Place:
    return Place(tmp_path, pictures)


@pytest.fixture
def distance_of() -> Callable[[Finished], float]:
    """How far the source's groups moved in the last phase that was recorded, taken together."""

    def total(finished: Finished) -> float:
        return sum(distance**2 for distance in finished.result["phases"][-1]["distance"].values()) ** 0.5

    return total
