"""`xfer run` as a command: what is left when it ends."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

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
