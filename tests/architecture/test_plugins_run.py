"""Every built-in plugin that is registered takes part in a whole run. One without settings here fails: write them down beside it."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from xfer import plugins
from xfer.cli.main import run
from xfer.sources import keras_library

SIDE = 32
SMALL = {"model": "torchvision/squeezenet1_1", "weights": "none"}


@pytest.fixture
def pictures(tmp_path) -> np.ndarray:
    """uint8 [24, 32, 32, 3]: even ones dark, odd ones bright."""
    random = np.random.default_rng(0)
    bright = np.arange(24).reshape(-1, 1, 1, 1) % 2 * 128
    return (random.integers(0, 128, (24, SIDE, SIDE, 3)) + bright).astype(np.uint8)


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    root = tmp_path / "images"
    for index, pixels in enumerate(pictures):
        place = root / ("dark", "bright")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    return root


@pytest.fixture
def recipe(folder) -> dict[str, Any]:
    """A whole recipe, which the settings of a plugin change in one place."""
    return {
        "source": SMALL,
        "target": {"dataset": "folder", "path": str(folder), "image_size": SIDE, "splits": {"val": 0.2, "test": 0.2}},
        "transfer": {"type": "feature"},
        "freeze": [{"train": "head", "epochs": 1}],
    }


@pytest.fixture
def finished(tmp_path) -> Callable[[dict[str, Any], str], Path]:
    """Runs a recipe to the end; the bundle's folder."""

    def make(content: dict[str, Any], name: str) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        bundle = tmp_path / f"bundle-{name}"
        assert run(["run", str(file), f"runtime.cache={tmp_path / 'cache'}", "--out", str(bundle), "--quiet"]) == 0
        assert json.loads((bundle / "result.json").read_text())["status"] == "finished"
        return bundle

    return make


def target(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    left = {key: value for key, value in recipe["target"].items() if key != "path"}
    return {**recipe, "target": {**left, **changes}}


def arrays(recipe, pictures, tmp_path, **_) -> dict[str, Any]:
    np.savez(tmp_path / "pictures.npz", images=pictures, labels=np.arange(24) % 2)
    return target(recipe, dataset="arrays", path=str(tmp_path / "pictures.npz"))


def table(recipe, folder, tmp_path, **_) -> dict[str, Any]:
    with (tmp_path / "pictures.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows([path.relative_to(tmp_path).as_posix(), path.parent.name] for path in sorted(folder.rglob("*.png")))
    return target(recipe, dataset="table", path=str(tmp_path / "pictures.csv"))


def cifar(recipe, pictures, tmp_path, *, dataset: str, **_) -> dict[str, Any]:
    """The pictures in the format of the CIFAR-10 archive."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rows = pictures.transpose(0, 3, 1, 2).reshape(24, -1)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (root / name).write_bytes(pickle.dumps({b"data": rows, b"labels": [index % 2 for index in range(24)]}))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"dark", b"bright"]}))
    return target(recipe, dataset=dataset, path=str(tmp_path))


def earlier_run(recipe, finished, **_) -> dict[str, Any]:
    return {**recipe, "source": {"model": f"run:{finished(recipe, 'earlier')}"}}


def keras_model() -> Any:
    keras = keras_library.keras()
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Conv2D(4, 3, strides=2), keras.layers.BatchNormalization()])


def keras_file(recipe, tmp_path, **_) -> dict[str, Any]:
    keras_model().save(tmp_path / "model.keras")
    return {**recipe, "source": {"model": f"file:{tmp_path / 'model.keras'}"}}


def saved_model(recipe, tmp_path, **_) -> dict[str, Any]:
    keras_model().export(tmp_path / "saved", verbose=False)
    return {**recipe, "source": {"model": f"savedmodel:{tmp_path / 'saved'}", "trust": True}}


def model(recipe, **transfer) -> dict[str, Any]:
    return {**recipe, "transfer": {"type": "model", **transfer}}


# What each policy's settings make of the network: how many of its stages train, and for how long, phase by phase.
PHASES = {
    "head": [(0, 2)],
    "all": [(4, 2)],
    "last": [(2, 1)],
    "gradual": [(0, 1), (1, 1), (2, 1)],
    "lp_ft": [(0, 2), (4, 1)],
}
SETTINGS: dict[tuple[str, str], Callable[..., dict[str, Any]]] = {
    ("sources", "torchvision"): lambda recipe, **_: recipe,
    ("sources", "timm"): lambda recipe, **_: {**recipe, "source": {"model": "timm/mobilenetv3_small_050", "weights": "none"}},
    ("sources", "keras"): lambda recipe, **_: {**recipe, "source": {"model": "keras/MobileNetV3Small", "weights": "none"}},
    ("sources", "file"): keras_file,
    ("sources", "savedmodel"): saved_model,
    ("sources", "run"): earlier_run,
    ("datasets", "folder"): lambda recipe, **_: recipe,
    ("datasets", "arrays"): arrays,
    ("datasets", "table"): table,
    ("datasets", "torchvision"): lambda **given: cifar(dataset="torchvision/CIFAR10", **given),
    ("datasets", "keras"): lambda **given: cifar(dataset="keras/cifar10", **given),
    ("datasets", "sklearn"): lambda recipe, **_: target(recipe, dataset="sklearn/digits"),
    ("methods", "probe"): lambda recipe, **_: {**recipe, "transfer": {"type": "feature", "method": "probe"}},
    ("methods", "finetune"): lambda recipe, **_: model({**recipe, "freeze": [{"train": "last 1 stages"}, {"train": "all", "epochs": 1}]}),
    ("methods", "l2sp"): lambda recipe, **_: model(recipe, method="l2sp", alpha=0.01),
    ("freezes", "head"): lambda recipe, **_: {**recipe, "freeze": {"policy": "head", "epochs": 2}},
    ("freezes", "all"): lambda recipe, **_: model({**recipe, "freeze": {"policy": "all", "epochs": 2}}),
    ("freezes", "last"): lambda recipe, **_: model({**recipe, "freeze": {"policy": "last", "stages": 2, "epochs": 1}}),
    ("freezes", "gradual"): lambda recipe, **_: model({**recipe, "freeze": {"policy": "gradual", "every": 1, "epochs": 3}}),
    ("freezes", "lp_ft"): lambda recipe, **_: model({**recipe, "freeze": {"policy": "lp_ft", "probe_epochs": 2, "epochs": 1}}),
    ("backends", "torch"): lambda recipe, **_: recipe,
    ("backends", "tensorflow"): keras_file,
}


def built_in() -> list[plugins.Plugin]:
    return [p for group in plugins.GROUPS for p in plugins.registered(group).values() if p.distribution == "xfer-runner"]


def test_settings_are_of_plugins_that_there_are():
    assert set(SETTINGS) == {(plugin.group, plugin.name) for plugin in built_in()}


@pytest.mark.parametrize("plugin", built_in(), ids=lambda plugin: f"{plugin.group}-{plugin.name}")
def test_each_takes_part_in_a_run(plugin, recipe, pictures, folder, finished, tmp_path):
    content = SETTINGS[plugin.group, plugin.name](recipe=recipe, pictures=pictures, folder=folder, finished=finished, tmp_path=tmp_path)
    bundle = finished(content, plugin.name)
    plan = json.loads((bundle / "plan.json").read_text())
    used = {
        "sources": plugin.target if plugin.name == "run" else plan["source"]["target"],  # a run's source is the one that the run had
        "datasets": plan["data"]["target"],
        "methods": plan["method"]["target"],
        "freezes": plugin.target,  # a policy is lowered to phases: what it said shows in them
        "backends": plugins.find("backends", plan["backend"]).target,
    }
    assert used[plugin.group] == plugin.target
    if plugin.group == "freezes":
        stage = {group["name"]: group["stage"] for group in plan["model"]["groups"]}
        shown = [(len({stage[name] for name in phase["train"] if name != "head"}), phase["epochs"]) for phase in plan["phases"]]
        assert shown == PHASES[plugin.name]
        assert all("head" in phase["train"] for phase in plan["phases"])
    if plugin.name == "run":
        assert plan["source"]["weights"]["kind"] == "bundle"
