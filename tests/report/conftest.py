"""A bundle as a run of the flower example leaves it: real images, simulated logits, every figure from the real metric functions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image, ImageDraw

from xfer.ops import metrics
from xfer.plan.model_map import Cut, Group, ModelMap, Tensor
from xfer.plan.plan import (
    DataPlan,
    HeadPlan,
    InputPlan,
    MethodPlan,
    OptimizerPlan,
    PhasePlan,
    Plan,
    RuntimePlan,
    SourcePlan,
    WeightsPlan,
)
from xfer.plan.preprocess import Preprocess

FLOWERS = ("daisy", "dandelion", "rose", "sunflower", "tulip")
COLOURS = {"daisy": "#f4f1e4", "dandelion": "#e8c21c", "rose": "#b3203a", "sunflower": "#e39a12", "tulip": "#c94b8c"}
GROUPS = ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1")


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def model_map() -> ModelMap:
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    groups = tuple(
        Group(name=name, stage=f"stage{place // 2}", tensors=(Tensor(name=f"{name}.weight", shape=(width, width, 3, 3), kind="parameter"),))
        for place, (name, width) in enumerate(zip(GROUPS, widths, strict=True))
    )
    cuts = (
        Cut(name="pixels", groups_before=0, shape=(3, 224, 224), layout="pixels"),
        Cut(name="layer3.1", groups_before=7, shape=(256, 14, 14), layout="chw"),
        Cut(name="pooled", groups_before=9, shape=(512,), layout="vector"),
    )
    return ModelMap(
        model="torchvision/resnet18",
        backend="torch",
        library="torchvision 0.29.1",
        input_size=224,
        image_size=224,
        groups=groups,
        cuts=cuts,
    )


def phase(name: str, index: int, **changes: Any) -> PhasePlan:
    values: dict[str, Any] = {
        "name": name,
        "index": index,
        "train": ("head",),
        "trainable": ("head.output.weight", "head.output.bias"),
        "frozen": tuple(f"{group}.weight" for group in GROUPS),
        "epochs": 10,
        "until": None,
        "learning_rates": {"head": 0.001},
        "norm": "train",
        "optimizer": OptimizerPlan(name="sgd", lr=0.001, momentum=0.9, weight_decay=0.0, schedule="constant"),
        "optimizer_state": "carry",
        "reestimate_norm": False,
        "input": InputPlan(
            cut="pooled",
            mode="stored",
            reason="3.8 MB of a budget of 50 GB",
            shape=(512,),
            dtype="bfloat16",
            bytes=3_758_080,
            layout="vector",
        ),
        "shuffle": "full",
        "trainable_parameters": 2565,
    }
    return PhasePlan(**(values | changes))


@pytest.fixture
def make_plan(model_map: ModelMap) -> Callable[..., Plan]:
    """A plan of the flower example; keywords replace its fields."""

    def make(**changes: Any) -> Plan:
        counts = {
            "train": {"daisy": 443, "dandelion": 628, "rose": 449, "sunflower": 489, "tulip": 559},
            "val": {"daisy": 63, "dandelion": 90, "rose": 64, "sunflower": 70, "tulip": 80},
            "test": {"daisy": 127, "dandelion": 180, "rose": 128, "sunflower": 140, "tulip": 160},
        }
        values: dict[str, Any] = {
            "name": "flowers-resnet18",
            "seed": 0,
            "backend": "torch",
            "source": SourcePlan(
                model="torchvision/resnet18",
                name="resnet18",
                target="xfer.sources.torchvision:TorchvisionSource",
                backend="torch",
                weights=WeightsPlan(
                    kind="tag",
                    location="IMAGENET1K_V1",
                    file="/cache/hub/checkpoints/resnet18.pth",
                    url="https://models.example/resnet18.pth",
                    provider="torchvision",
                ),
                preprocess=Preprocess(resize=256, crop=224),
            ),
            "model": model_map,
            "data": DataPlan(
                dataset="folder",
                target="xfer.data.datasets.folder:folder",
                options={"path": "data/flowers"},
                classes=FLOWERS,
                images=3670,
                counts=counts,
                listing="0" * 32,
                val=0.1,
                test=0.2,
                split_seed=0,
                max_bad=0.01,
                batch_size=32,
            ),
            "method": MethodPlan(type="feature", name="probe", target="xfer.methods.probe:Probe", options={}),
            "head": HeadPlan(at="pooled", layout="vector", inputs=512, hidden=(), dropout=0.0, outputs=5),
            "phases": (phase("head", 0),),
            "baseline": phase("head", 0).input,
            "runtime": RuntimePlan(
                device="cpu",
                precision="bfloat16",
                cache="/cache/xfer",
                cache_budget=50_000_000_000,
                checkpoint="5min",
                keep=2,
                extraction_batch=32,
            ),
            "never_trained": GROUPS,
            "total_parameters": model_map.n_parameters + 2565,
        }
        return Plan(**(values | changes))

    return make


@pytest.fixture
def two_phases() -> tuple[PhasePlan, ...]:
    """The head first, then the last two groups as well, at falling rates, with a stop rule."""
    from xfer.plan.plan import UntilPlan

    second = phase(
        "fine-tune",
        1,
        train=("layer4.0", "layer4.1", "head"),
        frozen=tuple(f"{group}.weight" for group in GROUPS[:-2]),
        epochs=None,
        until=UntilPlan(metric="val.accuracy", mode="max", patience=3, min_delta=0.0, max_epochs=20),
        learning_rates={"layer4.0": 2.5e-5, "layer4.1": 5e-5, "head": 1e-4},
        norm="frozen",
        input=InputPlan(
            cut="layer3.1",
            mode="streamed",
            reason="368 MB would pass the budget of 100 MB",
            shape=(256, 14, 14),
            dtype="bfloat16",
            bytes=0,
            layout="chw",
        ),
        trainable_parameters=4_721_157,
    )
    return phase("head", 0, epochs=8), second


def draw_flower(path: Path, name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 240), (int(generator.integers(40, 90)), int(generator.integers(90, 130)), 50))
    pen = ImageDraw.Draw(image)
    x, y = 160 + generator.integers(-30, 30), 120 + generator.integers(-15, 15)
    for angle in np.linspace(0, 2 * np.pi, 9)[:-1]:
        px, py = x + 48 * np.cos(angle), y + 48 * np.sin(angle)
        pen.ellipse((px - 30, py - 30, px + 30, py + 30), fill=COLOURS.get(name, "#888888"))
    pen.ellipse((x - 26, y - 26, x + 26, y + 26), fill="#6b4a1a")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=85)


def simulate(labels: np.ndarray, n_classes: int, skill: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(len(labels), n_classes)) * 1.3
    logits[np.arange(len(labels)), labels] += skill
    if n_classes > 4:
        logits[:, 4] += 0.8 * (labels == 2)  # roses look like tulips
    return softmax(logits)


def write_predictions(bundle: Path, paths: list[str], labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> None:
    table = pyarrow.table(
        {
            "path": paths,
            "split": ["test"] * len(paths),
            "label": [classes[label] for label in labels],
            "predicted": [classes[place] for place in probabilities.argmax(axis=1)],
            "probabilities": pyarrow.array(probabilities.tolist(), pyarrow.list_(pyarrow.float32())),
        }
    )
    pyarrow.parquet.write_table(table, bundle / "predictions.parquet")
    (bundle / "model").mkdir(exist_ok=True)
    (bundle / "model" / "labels.json").write_text(json.dumps(list(classes)))


@pytest.fixture
def make_bundle(tmp_path: Path, make_plan: Callable[..., Plan], two_phases: tuple[PhasePlan, ...]) -> Callable[..., Path]:
    """Writes a finished two-phase bundle with its images and returns its folder."""

    def make(*, images: bool = True, name: str = "flowers-resnet18") -> Path:
        bundle, data = tmp_path / "runs" / name / "20261124-101502-3f9a", tmp_path / "data" / "flowers"
        bundle.mkdir(parents=True)
        plan = make_plan(phases=two_phases, never_trained=GROUPS[:-2])
        plan = plan.model_copy(update={"data": plan.data.model_copy(update={"options": {"path": str(data)}})})
        plan.write(bundle / "plan.json")
        n = plan.data.counts["test"]
        labels = np.repeat(np.arange(5), [n[flower] for flower in FLOWERS])
        paths = [f"{FLOWERS[label]}/{place:04d}.jpg" for place, label in enumerate(labels)]
        probabilities = simulate(labels, 5, 4.2, seed=1)
        write_predictions(bundle, paths, labels, probabilities, FLOWERS)
        if images:
            wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
            for row in wrong[np.argsort(-probabilities[wrong].max(axis=1))][:12]:
                draw_flower(data / paths[row], FLOWERS[labels[row]], seed=int(row))
        _write_records(bundle)
        _write_rest(bundle, probabilities, labels)
        return bundle

    return make


def _write_records(bundle: Path) -> None:
    labels = np.repeat(np.arange(5), 70)
    lines = []
    for index, (name, epochs, start) in enumerate((("head", 8, 0.5), ("fine-tune", 6, 3.0))):
        for epoch in range(epochs):
            for split, bonus in (("train", 0.35), ("val", 0.0)):
                skill = start + bonus * (1 + index) + (2.2 if index == 0 else 1.1) * (1 - np.exp(-0.5 * (epoch + 1)))
                found = metrics.classification(simulate(labels, 5, skill, seed=100 * index + epoch), labels)
                record = {"phase": name, "phase_index": index, "epoch": epoch, "split": split, **found}
                record |= {"lr": {"head": 0.001}, "seconds": 0.05, "images_per_second": 52_000.0}
                lines.append(json.dumps(record))
    (bundle / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _write_rest(bundle: Path, probabilities: np.ndarray, labels: np.ndarray) -> None:
    test: dict[str, Any] = dict(metrics.classification(probabilities, labels))
    test["interval"] = {name: list(bounds) for name, bounds in metrics.intervals(probabilities, labels, seed=0).items()}
    val_labels = np.repeat(np.arange(5), 73)
    result = {
        "status": "finished",
        "backend": "torch",
        "metrics": {"val": metrics.classification(simulate(val_labels, 5, 4.3, seed=2), val_labels), "test": test},
        "baseline": {"majority": 180 / 735, "probe": 0.881},
        "phases": [
            {
                "name": "head", "train": ["head"], "epochs": 8, "seconds": 0.43, "images_per_second": 52_310.0, "trainable_parameters": 2565,
                "frozen_tensors": 9, "frozen_changed": 0, "input": {"cut": "pooled", "mode": "stored"},
            },
            {
                "name": "fine-tune", "train": ["layer4.0", "layer4.1", "head"], "epochs": 6, "seconds": 212.7, "images_per_second": 74.2,
                "trainable_parameters": 4_721_157, "frozen_tensors": 7, "frozen_changed": 0, "input": {"cut": "layer3.1", "mode": "streamed"},
            },
        ],
        "timing": {"total_seconds": 259.1, "extract_seconds": 35.6, "train_seconds": 213.13},
        "data": {"images": 3668, "classes": 5, "quarantined": 2},
        "error": None,
    }  # fmt: skip
    (bundle / "result.json").write_text(json.dumps(result))
    with (bundle / "quarantine.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "reason"])
        writer.writerow(["rose/0907.jpg", "truncated: the file ends before the image does"])
        writer.writerow(["tulip/<script>alert(1)</script>.png", "not an image"])
    lock = {"versions": {"python": "3.11.9", "torch": "2.14.1", "xfer-runner": "0.1.0"}, "device": "cpu", "threads": 2, "seed": 0}
    (bundle / "lock.json").write_text(json.dumps(lock))
    (bundle / "recipe.yaml").write_text(
        "# The classic flower example.\nsource: {model: torchvision/resnet18}\ntarget: {dataset: folder, path: data/flowers}\n"
        "transfer: {type: feature}\n"
    )
