"""What `xfer parity` prints, and its exit codes. What it compares is tested in tests/engine/test_parity.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xfer.cli import parity_command
from xfer.cli.main import run
from xfer.engine.parity import Check, Document
from xfer.errors import UsageError

RECIPE = """
name: shapes
source: {model: torchvision/squeezenet1_1, weights: none}
target: {dataset: folder, path: nowhere}
transfer: {type: feature}
"""
TABLE = """\
                               torch  tensorflow  difference  allowed
images and splits                                          0        0  within
pooled features                                      2.3e-06   0.0001  within
training loss                 0.5000      0.5010       0.001    0.005  within
test accuracy                 0.7500      0.8000        0.05    0.005  differs
test predictions that differ                            0.05           reported
pooled features: 9.2e-06 of numbers up to 4, in b/7.png; relative to an image's norm 3.0e-06
training loss: phase 1: head, epoch 3

torchvision/squeezenet1_1: both backends had the same weights, images, order and head, and computed in float32. Input and features are \
those of the first 64 training images: their difference is the largest of any number, over the largest number where that is above 1. \
Losses may differ by 0.005, metrics by 0.5 points.
torch: runs/shapes/1/torch
tensorflow: runs/shapes/1/tensorflow
NOT everything judged is within its tolerance
"""


def document(*, accuracy: float = 0.8, fine_tuned: bool = False) -> Document:
    place = "9.2e-06 of numbers up to 4, in b/7.png; relative to an image's norm 3.0e-06"
    checks = (
        Check(what="images and splits", difference=0.0, tolerance=0.0),
        Check(what="pooled features", difference=2.3e-6, tolerance=1e-4, where=place),
        Check(
            what="training loss", difference=0.001, tolerance=0.005, torch=0.5, tensorflow=0.501, where="phase 1: head, epoch 3"
        ),
        Check(what="test accuracy", difference=abs(accuracy - 0.75), tolerance=0.005, torch=0.75, tensorflow=accuracy),
        Check(what="test predictions that differ", difference=0.05, tolerance=None),
    )  # fmt: skip
    return Document(
        recipe="shapes.yaml",
        network="torchvision/squeezenet1_1",
        images=64,
        fine_tuned=fine_tuned,
        bundles={backend: f"runs/shapes/1/{backend}" for backend in ("torch", "tensorflow")},
        checks=checks,
    )


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "shapes.yaml").write_text(RECIPE)
    return tmp_path / "shapes.yaml"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Document], list[Any]]:
    """Stands for the comparison itself; gives what it was asked."""

    def by(found: Document) -> list[Any]:
        asked: list[Any] = []
        monkeypatch.setattr(parity_command, "run", lambda *arguments, say: (asked.append(arguments), found)[1])
        return asked

    return by


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_table(recipe: Path, answered: Callable[[Document], list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    asked = answered(document())
    assert run(["parity", "shapes.yaml", "optimizer.lr=0.1", "--out", "here"]) == 1
    assert lines(capsys.readouterr().out) == lines(TABLE)
    assert asked == [(Path("shapes.yaml"), ("optimizer.lr=0.1",), recipe.parent / "here")]


def test_within(recipe: Path, answered: Callable[[Document], list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answered(document(accuracy=0.754, fine_tuned=True))
    assert run(["parity", "shapes.yaml"]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[-1] == "everything judged is within its tolerance"
    assert shown[-4] == (
        "The source was trained too: from the first step on the smallest differences grow, "
        "so losses and metrics are reported and not judged."
    )


def test_json(recipe: Path, answered: Callable[[Document], list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answered(document())
    assert run(["parity", "shapes.yaml", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"recipe", "network", "images", "fine_tuned", "bundles", "checks", "within"}
    assert told["within"] is False
    assert told["checks"][3] == {
        "what": "test accuracy",
        "difference": pytest.approx(0.05),
        "tolerance": 0.005,
        "torch": 0.75,
        "tensorflow": 0.8,
        "where": None,
        "verdict": "differs",
    }


def test_the_folder_lies_with_the_recipes_runs(
    recipe: Path, answered: Callable[[Document], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_RUNS", "elsewhere")
    asked = answered(document())
    run(["parity", "shapes.yaml"])
    folder = asked[0][2]
    assert folder.parent == recipe.parent / "elsewhere" / "shapes"
    assert folder.name.startswith("parity-")


def test_a_recipe_that_is_none(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("- a list\n")
    assert run(["parity", "shapes.yaml"]) == 2
    assert capsys.readouterr().err.startswith("shapes.yaml:1:1: ")


def test_what_can_not_be_compared_is_a_usage_error(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*arguments: Any, say: Any) -> Document:
        raise UsageError("both backends can't hold it", hint="take another")

    monkeypatch.setattr(parity_command, "run", refuses)
    assert run(["parity", "shapes.yaml"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: both backends can't hold it\n  take another\n")
