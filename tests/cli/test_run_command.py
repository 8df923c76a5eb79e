"""`xfer run` as a command: what is left when it ends."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from xfer.cli.main import run

RECIPE = """
name: digits
source: {model: torchvision/squeezenet1_1, weights: none, preprocess: {resize: 32, crop: 32}}
target: {dataset: sklearn/digits, image_size: 32, splits: {val: 0.1, test: 0.2}}
transfer: {type: feature}
freeze:
  - {train: head, epochs: 1}
runtime: {cache: cache, precision: float32}
"""


def test_the_report_has_pictures_of_images_that_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    assert run(["run", "digits.yaml", "--out", "bundle", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'bundle'}\n"
    assert json.loads((tmp_path / "bundle" / "result.json").read_text())["metrics"]["test"]["accuracy"] < 0.9
    assert (tmp_path / "bundle" / "report.html").read_text().count("data:image/jpeg") == 12


def test_what_the_dataset_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.zeros((12, 8, 8), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(12) % 2, x_test=images, y_test=np.arange(12) % 2)
    (tmp_path / "set.yaml").write_text(RECIPE.replace("dataset: sklearn/digits", "dataset: arrays, path: set.npz"))
    assert run(["plan", "set.yaml"]) == 0
    assert "left out, because of their names: 'x_test', 'y_test'" in " ".join(capsys.readouterr().out.split())
    assert run(["run", "set.yaml", "--out", "bundle", "--quiet"]) == 0
    warning = "warning: target: left out, because of their names: 'x_test', 'y_test'\n"
    assert capsys.readouterr().err == f"bundle: {tmp_path / 'bundle'}\n{warning}"


def test_a_run_that_fails_before_its_data_are_open_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    assert run(["run", "digits.yaml", "--out", "bundle", "--quiet"]) == 0
    plan = json.loads((tmp_path / "bundle" / "plan.json").read_text())
    plan["data"]["listing"] = "0" * 32
    (tmp_path / "bundle" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "bundle" / "result.json").unlink()
    assert run(["run", "--resume", "bundle", "--quiet"]) != 0
    page = (tmp_path / "bundle" / "report.html").read_text()
    assert "The run stopped with an error." in page
    assert "the dataset changed since the plan was made" in page


def interrupted(bundle: Path) -> Path:
    """As if the run had been stopped before its first phase."""
    (bundle / "result.json").write_text('{"status": "interrupted"}')
    for checkpoint in (bundle / "checkpoints").glob("0*"):
        shutil.rmtree(checkpoint)
    gc.collect()  # a run holds its bundle until nothing refers to it
    return bundle


def test_other_weights_than_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint holds what trains alone: what is frozen would be another network's."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    (tmp_path / "digits.yaml").write_text(RECIPE.replace("none", "weights.pth"))
    assert run(["run", "digits.yaml", "--out", "bundle", "--quiet"]) == 0
    torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    capsys.readouterr()
    assert run(["run", "--resume", str(interrupted(tmp_path / "bundle")), "--quiet"]) == 2
    assert capsys.readouterr().err == (
        f"bundle: {tmp_path / 'bundle'}\nerror: {file} changed since the run began, so it can't go on from the same weights\n"
        "  put the file back that the run had, or start a new run with the recipe\n"
    )


def test_a_bundle_has_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it was copied from may change, and the bundle move. Where it is the copy that changed, the tensors fit, and what is computed
    with them is something else."""
    from xfer.sources import keras_library

    keras = keras_library.keras()
    monkeypatch.chdir(tmp_path)
    file, bundle = tmp_path / "model.keras", tmp_path / "bundle"

    def save(activation: str) -> None:
        layers = [keras.layers.Conv2D(4, 3, activation=activation, name="conv"), keras.layers.GlobalAveragePooling2D()]
        keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2, name="out")]).save(file)

    save("relu")
    network = "torchvision/squeezenet1_1, weights: none, preprocess: {resize: 32, crop: 32}"
    (tmp_path / "digits.yaml").write_text(RECIPE.replace(network, "file:model.keras").replace("32,", "8,"))
    assert run(["run", "digits.yaml", "--out", "bundle", "--quiet"]) == 0
    capsys.readouterr()
    assert run(["eval", "bundle"]) == 0
    before = capsys.readouterr().out
    save("tanh")
    shutil.copytree("bundle", "moved")
    assert run(["eval", "moved"]) == 0
    assert capsys.readouterr().out == before
    assert run(["run", "digits.yaml", "source.model=run:moved", "--out", "next", "--quiet"]) == 0
    copy = tmp_path / "moved" / "model" / "source" / "model.keras"
    hint = "put the file back that the run had, or start a new run with the recipe"
    assert (tmp_path / "next" / "model" / "source" / "model.keras").read_bytes() == copy.read_bytes()
    shutil.copyfile(file, copy)
    capsys.readouterr()
    changed = f"{copy} changed since the run in {tmp_path / 'moved'} began, and the model in it is built from that file"
    Image.new("RGB", (8, 8)).save("image.png")
    for command in (["eval", "moved"], ["predict", "moved", "image.png"]):
        assert run(command) == 2
        assert capsys.readouterr().err == f"error: {changed}\n  {hint}\n"
    assert run(["run", "digits.yaml", "source.model=run:moved"]) == 2
    assert f"command line: source.model=run:moved: {changed}" in capsys.readouterr().err
    assert run(["run", "--resume", str(interrupted(bundle)), "--quiet"]) == 2
    assert capsys.readouterr().err == (
        f"bundle: {bundle}\nerror: {file} changed since the run in {bundle} began, and the model in it is built from that file\n  {hint}\n"
    )


def test_a_place_where_no_bundle_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A filesystem that is mounted to be read, for one, raises an OSError of no class of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    name = "n" * 300
    assert run(["run", "digits.yaml", "--out", name, "--quiet"]) == 2
    expected = f"error: the bundle can't be written to {tmp_path / name}: file name too long\n  give another folder with --out\n"
    assert capsys.readouterr() == ("", expected)


def test_without_ray_a_spread_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *package: None if name == "ray" else find(name, *package))
    assert run(["run", "digits.yaml", "--out", "bundle", "--workers", "2"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: a run over several workers needs Ray, which is not installed",
        "  pip install 'xfer-runner[cluster]'",
    ]
    assert not (tmp_path / "bundle").exists()


def test_what_has_no_meaning_without_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle that does not go where it was sent would be lost with the machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    assert run(["run", "digits.yaml", "--storage", "/mnt/shared", "--workers", "1", "--gpus-per-worker", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: --gpus-per-worker and --storage: nothing for a run in one process, and this is one\n"
        "  say --workers 2 or more, or --address, beside it; here --out is the bundle's folder, and runtime.cache the features'\n"
    )
    assert not (tmp_path / "runs").exists()
