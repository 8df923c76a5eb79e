"""Recipes over a few small images with methods of the tests' own, run in process."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.errors import Fault, RecipeError
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


class Mine:
    """A folder with images and recipes over them that use the one method of a plugin file. All recipes have `model`, `lr` and further
    `plugins` unless they say otherwise; `load` reads the tensors of a bundle."""

    def __init__(
        self, folder: Path, pictures: Path, *, model: str, lr: float, load: Callable[[Path], dict[str, Any]], plugins: Sequence[str] = ()
    ) -> None:
        self.folder, self.pictures, self.model, self.lr, self.load, self.plugins = folder, pictures, model, lr, load, plugins

    def recipe(self, method: str, phases: Any, *, model: str | None = None, options: dict[str, Any] | None = None, **sections: Any) -> Path:
        """A recipe with the one method that the plugin file `method` defines, called 'mine'."""
        (self.folder / "mine.py").write_text(method)
        content: dict[str, Any] = {
            "source": {"model": model or self.model, "weights": "none"},
            "target": {"dataset": "arrays", "path": str(self.pictures), "image_size": SIDE, "batch_size": 8},
            "transfer": {"type": "model", "method": "mine", **(options or {})},
            "freeze": phases,
            "optimizer": {"lr": self.lr},
            "runtime": {"precision": "float32", "device": "cpu"},
            "plugins": ["./mine.py", *self.plugins],
        }
        for name, section in sections.items():
            content[name] = {**content[name], **section}
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    def run(self, file: Path, *, out: str = "bundle") -> tuple[dict[str, Any], dict[str, Any]]:
        """result.json and the exported tensors."""
        bundle = self.folder / out
        assert run(["run", str(file), "--out", str(bundle), "--quiet"]) == 0
        return json.loads((bundle / "result.json").read_text()), self.exported(out)

    def exported(self, out: str) -> dict[str, Any]:
        """The tensors of a bundle's model."""
        return self.load(self.folder / out / "model" / "weights.safetensors")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`xfer` in a process of its own."""
        command = [sys.executable, "-m", "xfer.cli", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    def finish(self, *arguments: str) -> None:
        running = self.start(*arguments)
        _, err = running.communicate(timeout=300)
        assert running.returncode == 0, err

    def faults(self, file: Path) -> tuple[Fault, ...]:
        """Of a recipe that is refused; found in this process, which has its framework already."""
        with pytest.raises(RecipeError) as refused:
            compile_plan(read(file))
        return refused.value.faults

    def kill_after(self, lines: int, *arguments: str, out: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """`xfer`, killed once so many records are in the bundle's metrics; state and progress of its newest checkpoint."""
        metrics = self.folder / out / "metrics.jsonl"
        running = self.start(*arguments)
        while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        saved = Bundle(self.folder / out).latest()
        assert saved is not None
        return saved

    def numbers(self, out: str) -> list[dict[str, Any]]:
        """What a finished run told, but for times."""
        bundle = self.folder / out
        lines = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
        told = [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")} for line in lines]
        result = json.loads((bundle / "result.json").read_text())
        assert result["status"] == "finished"
        return [*told, result["metrics"], [phase["distance"] for phase in result["phases"]]]


@pytest.fixture
def mine(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mine]:
    monkeypatch.chdir(tmp_path)
    return functools.partial(Mine, tmp_path, pictures)


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
