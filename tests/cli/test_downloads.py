"""What a recipe needs from elsewhere: `check` and `plan` say it, `run` and `fetch` get it, or say what to put where."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xfer.cli.main import run
from xfer.data.announced import Download
from xfer.data.keras_files import KERAS_SETS

RECIPE = """
name: digits
source: {model: torchvision/squeezenet1_1, weights: none, preprocess: {resize: 32, crop: 32}}
target: {dataset: keras/cifar10, image_size: 32, splits: {val: 0.1}}
transfer: {type: feature}
freeze:
  - {train: head, epochs: 1}
runtime: {cache: cache, precision: float32, device: cpu}
"""
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
WEIGHTS = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipe, empty caches and a network that answers nobody."""
    for name in ("KERAS_HOME", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first call
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def near(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST of 60 images behind an address that answers; returns where it will lie."""
    rng = np.random.default_rng(0)
    arrays = {f"{kind}_{split}": values for split, n in (("train", 40), ("test", 20)) for kind, values in (
        ("x", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)), ("y", np.arange(n, dtype=np.uint8) % 10))}  # fmt: skip
    (place / "server").mkdir()
    np.savez(place / "server/mnist.npz", **arrays)
    download = Download(f"file://{place}/server/mnist.npz", "mnist.npz", 50_000)
    monkeypatch.setitem(KERAS_SETS, "mnist", replace(KERAS_SETS["mnist"], downloads=(download,)))
    return place / "keras_home/datasets/mnist.npz"


def cifar_file(place: Path) -> str:
    return f"{place}/keras_home/datasets/cifar-10-batches-py-target_archive"


def weights_file(place: Path) -> str:
    return f"{place}/torch_home/hub/checkpoints/squeezenet1_1-b8a52dc0.pth"


def test_check_says_what_will_be_downloaded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = (
        f"r.yaml: will be downloaded: the images of keras/cifar10, about 170 MB, from www.cs.toronto.edu: {CIFAR} to {cifar_file(place)}\n"
    )
    weights = (
        "r.yaml: will be downloaded: the weights IMAGENET1K_V1 of torchvision/squeezenet1_1, about 4.9 MB, from download.pytorch.org: "
        f"{WEIGHTS} to {weights_file(place)}\n"
    )
    assert run(["check", "r.yaml"]) == 0
    assert capsys.readouterr() == ("", images + "1 recipe checked, no fault\n")
    assert run(["check", "r.yaml", "source.weights=DEFAULT", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", images + weights)
    assert run(["check", "r.yaml", "source.weights=DEFAULT", "--no-data"]) == 0
    assert capsys.readouterr() == ("", "1 recipe checked, no fault\n")
    assert not (place / "keras_home").exists()
    assert not (place / "torch_home").exists()


def test_weights_of_ones_own_behind_an_address(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://models.example/a/net.pth"
    assert run(["plan", "r.yaml", "target.dataset=sklearn/digits", f"source.weights={address}", "--json"]) == 0
    (download,) = json.loads(capsys.readouterr().out)["downloads"]
    assert (download["what"], download["url"], download["bytes"]) == ("the source's weights", address, None)
    assert Path(download["file"]).is_relative_to(place / "home")


def test_torchvisions_data_are_not_downloaded_by_a_check_either(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "r.yaml", "target.dataset=torchvision/SVHN", "target.path=pictures", "target.download=true"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        *(
            f"r.yaml: will be downloaded: the images of torchvision/SVHN, about {size}, from ufldl.stanford.edu: "
            f"http://ufldl.stanford.edu/housenumbers/{name} to {place}/pictures/{name}"
            for name, size in (("train_32x32.mat", "182 MB"), ("test_32x32.mat", "64 MB"))
        ),
        "1 recipe checked, no fault",
    ]
    assert not (place / "pictures").exists()


def test_a_fault_of_the_splits_is_found_without_the_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "r.yaml", "target.splits.val=0", "freeze=[{train: head, until: {metric: val.loss}}]"]) == 2
    assert capsys.readouterr().err.endswith("needs a validation split to watch, and there is none; set target.splits.val above 0\n")


def test_a_plan_says_it_too_and_counts_what_is_announced(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["plan", "r.yaml"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[:4] == [
        "will be downloaded the images of keras/cifar10, about 170 MB",
        f"from www.cs.toronto.edu: {CIFAR}",
        f"to {cifar_file(place)}",
        "",
    ]
    assert "class train val test" in lines
    assert "all 10, as announced 45,000 5,000 10,000" in lines
    assert run(["plan", "r.yaml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["downloads"] == [{"what": "the images of keras/cifar10", "url": CIFAR, "file": cifar_file(place), "bytes": 170_498_071}]
    assert plan["data"]["listing"] is None
    assert plan["data"]["images"] == 60_000
    assert plan["data"]["counts"]["val"]["frog"] == 500
    assert not (place / "keras_home").exists()


def test_a_run_without_a_network_says_what_to_put_where(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "r.yaml", "--out", "bundle"]) == 2
    assert capsys.readouterr() == (
        "",
        f"downloading {CIFAR} to {cifar_file(place)}\n"
        "error: the images of keras/cifar10 are not on this machine and can't be downloaded: "
        f"cannot copy {CIFAR}: no connection (Connection refused)\n"
        f"  fetch {CIFAR} elsewhere and put it at {cifar_file(place)}\n",
    )
    assert not (place / "bundle").exists()


@pytest.mark.parametrize("verb", ["run", "fetch"])
def test_images_and_weights_that_cannot_be_had_are_said_together(place: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert run([verb, "r.yaml", "source.weights=DEFAULT"]) == 2
    assert capsys.readouterr().err == (
        f"downloading {CIFAR} to {cifar_file(place)}\n"
        f"downloading {WEIGHTS} to {weights_file(place)}\n"
        "error: the images of keras/cifar10 are not on this machine and can't be downloaded: "
        f"cannot copy {CIFAR}: no connection (Connection refused)\n"
        f"  fetch {CIFAR} elsewhere and put it at {cifar_file(place)}\n"
        "error: the weights IMAGENET1K_V1 are not on this machine and can't be downloaded: "
        f"cannot copy {WEIGHTS}: no connection (Connection refused)\n"
        f"  fetch {WEIGHTS} elsewhere and put it at {weights_file(place)}\n"
    )


def test_nothing_is_downloaded_for_a_recipe_with_a_fault(near: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "fetch"):
        assert run([verb, "r.yaml", "target.dataset=keras/mnist", "optimizer.lr=-1"]) == 2
        assert "downloading" not in capsys.readouterr().err
    assert not near.exists()


def test_a_run_downloads_first_and_plans_with_what_came(near: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "r.yaml", "target.dataset=keras/mnist", "--out", "bundle"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[:2] == [f"downloading file://{place}/server/mnist.npz to {near}", f"bundle: {place}/bundle"]
    assert said.out == f"{place}/bundle\n"
    plan = json.loads((place / "bundle/plan.json").read_text())
    assert plan["downloads"] == []
    assert plan["data"]["images"] == 60
    assert plan["data"]["listing"]


def test_a_resumed_run_has_its_images_again(near: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "r.yaml", "target.dataset=keras/mnist", "--out", "bundle", "--quiet"]) == 0
    near.unlink()
    (place / "bundle/result.json").unlink()
    capsys.readouterr()
    assert run(["run", "--resume", "bundle"]) == 0
    assert f"downloading file://{place}/server/mnist.npz to {near}" in capsys.readouterr().err.splitlines()


def test_eval_says_what_fetches_them(near: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "r.yaml", "target.dataset=keras/mnist", "--out", "bundle", "--quiet"]) == 0
    near.unlink()
    capsys.readouterr()
    assert run(["eval", "bundle"]) == 2
    assert capsys.readouterr().err == (
        f"error: keras/mnist: it is not in {near.parent}; looked for mnist.npz\n"
        f"  `xfer fetch RECIPE` downloads it, or fetch file://{place}/server/mnist.npz elsewhere and put it at {near}\n"
    )


def test_fetch_tells_each_file_that_came(near: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "r.yaml", "target.dataset=keras/mnist"]) == 0
    assert capsys.readouterr() == (f"{near}\n", f"downloading file://{place}/server/mnist.npz to {near}\n")
    assert run(["fetch", "r.yaml", "target.dataset=keras/mnist"]) == 0
    assert capsys.readouterr() == ("nothing to fetch: the source's weights are drawn at random\n", "")
