"""Recipes that a benchmark writes for itself, and what comes out of running one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from material import lite0_weights, resnet18_weights
from process import Done, run, xfer

SEEN_AT_224 = {"resize": 256, "crop": 224, "interpolation": "bilinear"}
MODELS = {
    "resnet18": {
        "model": "torchvision/resnet18",
        "weights": resnet18_weights,
        "preprocess": {**SEEN_AT_224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    },
    "tf_efficientnet_lite0": {
        "model": "timm/tf_efficientnet_lite0",
        "weights": lite0_weights,
        "preprocess": {**SEEN_AT_224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    },
}


@dataclass(frozen=True)
class Run:
    """One run of xfer: the process, and the bundle's result.json."""

    done: Done
    bundle: Path
    result: dict[str, Any]
    stored_bytes: int  # what the cache held at the end

    @property
    def images(self) -> int:
        return int(self.result["data"]["images"])

    @property
    def extract_seconds(self) -> float:
        return float(self.result["timing"]["extract_seconds"])


def probe(work: Path, model: str, target: dict[str, Any], *, epochs: int) -> dict[str, Any]:
    """The recipe of a linear probe with SGD, as the plain scripts train it."""
    return one_phase(work, model, target, transfer="feature", train="head", epochs=epochs)


def fine_tuning(work: Path, model: str, target: dict[str, Any], *, train: str | list[str], epochs: int) -> dict[str, Any]:
    """The recipe that trains these layers of the source model and the head in one phase, as the plain scripts do."""
    return one_phase(work, model, target, transfer="model", train=train, epochs=epochs)


def one_phase(work: Path, model: str, target: dict[str, Any], *, transfer: str, train: str | list[str], epochs: int) -> dict[str, Any]:
    """One phase, SGD with momentum, batches of 32."""
    known = MODELS[model]
    return {
        "name": f"bench-{model}",
        "source": {"model": known["model"], "weights": str(known["weights"](work)), "preprocess": dict(known["preprocess"])},
        "target": {"batch_size": 32, **target},
        "transfer": {"type": transfer},
        "freeze": [{"train": train, "epochs": epochs}],
        "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
    }


def run_cold(
    work: Path,
    recipe: dict[str, Any],
    *,
    precision: str,
    device: str = "cpu",
    watch_memory: bool = False,
    environment: dict[str, str] | None = None,
) -> Run:
    """Run it with an empty cache, which is removed afterwards; on the CPU, as the plain scripts, if nothing is said."""
    file = work / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    cache, bundle = work / "cache", work / "bundle"
    for folder in (cache, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    chosen = [f"runtime.precision={precision}", f"runtime.device={device}", f"runtime.cache={cache}"]
    command = xfer("run", str(file), *chosen, "--out", str(bundle))
    done = run(command, watch_memory=watch_memory, environment=environment)
    made = Path(done.last_line)
    result = json.loads((made / "result.json").read_text())
    stored_bytes = sum(file.stat().st_size for file in (cache / "features").rglob("*") if file.is_file())
    shutil.rmtree(cache, ignore_errors=True)
    return Run(done, made, result, stored_bytes)
