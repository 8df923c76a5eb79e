"""`xfer fetch`: what a recipe needs from elsewhere, ahead of time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import fsspec
import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights

from xfer.cli.main import run

RECIPE = """
source: {model: torchvision/squeezenet1_1}
target: {dataset: sklearn/digits, image_size: 32}
transfer: {type: feature}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return "r.yaml"


def test_weights_behind_a_url_are_copied_and_their_path_told(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = io.BytesIO()
    torch.save({"w": torch.ones(1)}, content)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/net.pth", content.getvalue())
    try:
        assert run(["fetch", recipe, "source.weights=memory://bucket/net.pth"]) == 0
        said = capsys.readouterr()
        file = Path(said.out.strip())
        assert said.err == f"downloading memory://bucket/net.pth to {file}\n"
        assert file.is_relative_to(tmp_path / "home")
        assert file.read_bytes() == content.getvalue()
    finally:
        memory.rm("/bucket", recursive=True)
    assert run(["fetch", recipe, "source.weights=memory://bucket/net.pth"]) == 0
    assert capsys.readouterr() == (f"{file}\n", "")


def test_nothing_to_fetch(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", recipe, "source.weights=none"]) == 0
    assert capsys.readouterr().out == "nothing to fetch: the source's weights are drawn at random\n"
    url = SqueezeNet1_1_Weights.DEFAULT.url
    file = tmp_path / "torch/hub/checkpoints" / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"there already")
    assert run(["fetch", recipe]) == 0
    assert capsys.readouterr() == (f"{file}\n", "")
    assert run(["fetch", recipe, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(file)]}
    assert run(["fetch", recipe, "source.weights=none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": []}


def test_what_cannot_be_fetched_says_what_to_put_where(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", recipe, "source.weights=http://127.0.0.1:9/net.pth"]) == 2
    told, error, advice = capsys.readouterr().err.splitlines()
    file = told.removeprefix("downloading http://127.0.0.1:9/net.pth to ")
    assert error == (
        "error: the weights http://127.0.0.1:9/net.pth are not on this machine and can't be downloaded: "
        "cannot copy http://127.0.0.1:9/net.pth: no connection (Connection refused)"
    )
    assert advice == f"  fetch http://127.0.0.1:9/net.pth elsewhere and put it at {file}"
    assert Path(file).is_relative_to(tmp_path / "home")
