"""An earlier run's model as a source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from xfer.errors import BundleError, WeightsError
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import DataPlan, HeadPlan, InputPlan, MethodPlan, Plan, RuntimePlan, SourcePlan, WeightsPlan
from xfer.plan.preprocess import Preprocess
from xfer.sources.run import RunSource, bundle_plugins, open_bundle_source
from xfer.sources.source import Tag
from xfer.sources.weights import load

MODEL, HEAD = "squeezenet1_1", "classifier"


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.squeezenet1_1()


@pytest.fixture
def bundle(tmp_path: Path, network: torch.nn.Module, mapped: Callable[..., ModelMap], monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/a/1, as a finished run leaves it, and the working directory above it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/a/1"
    (folder / "model").mkdir(parents=True)
    source = SourcePlan(
        model=f"torchvision/{MODEL}", name=MODEL, target="xfer.sources.torchvision:TorchvisionSource", backend="torch",
        weights=WeightsPlan(kind="tag", location="IMAGENET1K_V1", file="/absent.pth", provider="torchvision"),
        preprocess=Preprocess(resize=100, crop=90),
    )  # fmt: skip
    data = DataPlan(
        dataset="arrays", target="x:y", options={}, classes=("a", "b"), images=4, counts={}, listing="", val=0.1, test=0.2, split_seed=0,
        max_bad=0.0, batch_size=2,
    )  # fmt: skip
    head = HeadPlan(at="pooled", layout="vector", inputs=512, hidden=(), dropout=0.0, outputs=2)
    runtime = RuntimePlan(
        device="cpu", precision="float32", cache="c", cache_budget=1, checkpoint="5min", keep=2, extraction_batch=8
    )  # fmt: skip
    baseline = InputPlan(cut="pooled", mode="stored", reason="", shape=(512,), dtype="float32", bytes=1, layout="vector")
    Plan(
        name="a", seed=0, backend="torch", source=source, model=mapped(network, HEAD), data=data,
        baseline=baseline, head=head, runtime=runtime, phases=(),
        method=MethodPlan(type="feature", name="probe", target="x:y", options={}), never_trained=(), total_parameters=1,
    ).write(folder / "plan.json")  # fmt: skip
    (folder / "result.json").write_text('{"status": "finished"}')
    body = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(HEAD)}
    save_file({**body, "head.output.weight": torch.ones(2, 512), "head.output.bias": torch.ones(2)}, folder / "model/weights.safetensors")
    return folder


def test_a_bundle_is_its_runs_source_with_its_own_tensors(bundle: Path) -> None:
    source = open_bundle_source("runs/a/1")
    assert source == open_bundle_source("run:runs/a/1")
    assert (source.model, source.name, source.target) == ("torchvision/squeezenet1_1", MODEL, "xfer.sources.torchvision:TorchvisionSource")
    assert source.preprocess == Preprocess(resize=100, crop=90)
    assert source.weights == WeightsPlan(
        kind="bundle", location="run:runs/a/1", file=str(bundle / "model/weights.safetensors"), provider="torchvision", pretrained=True
    )


def test_its_tensors_fit_without_its_head(bundle: Path, network: torch.nn.Module, mapped: Callable[..., ModelMap]) -> None:
    found = load(open_bundle_source("runs/a/1"), model_map=mapped(network, HEAD))
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in found.items())
    assert not any(name.startswith(("head.", HEAD)) for name in found)
    damaged = mapped(models.squeezenet1_0(), HEAD)
    with pytest.raises(WeightsError, match=f"^{bundle}/model/weights.safetensors does not fit test/network: "):
        load(open_bundle_source("runs/a/1"), model_map=damaged)


def test_a_networks_own_head_stays(bundle: Path, mapped: Callable[..., ModelMap]) -> None:
    """A network may have a group called head, whose normalisation comes before the classifier."""
    network = torch.nn.Sequential()
    network.add_module("head", torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4), "fc": torch.nn.Linear(4, 2)}))
    save_file({"head.norm.weight": torch.ones(4), "head.norm.bias": torch.ones(4), "head.output.weight": torch.ones(3, 4)},
              bundle / "model/weights.safetensors")  # fmt: skip
    found = load(open_bundle_source("runs/a/1"), model_map=mapped(network, "head.fc"))
    assert list(found) == ["head.norm.weight", "head.norm.bias"]


@pytest.mark.usefixtures("bundle")
def test_the_provider_answers_for_the_bundle() -> None:
    source = RunSource()
    assert (source.backend, source.provider, source.models(), source.tags("runs/a/1")) == ("torch", "run", [], ["bundle"])
    assert source.library().startswith("xfer-runner ")
    assert isinstance(source.build("runs/a/1", pretrained=False), models.SqueezeNet)
    assert source.input_size("runs/a/1") == 224
    assert source.preprocess("runs/a/1", None) == Preprocess(resize=100, crop=90)
    assert source.tag("runs/a/1", "DEFAULT") == Tag("bundle", None, str(Path("runs/a/1/model/weights.safetensors").absolute()))
    with pytest.raises(WeightsError) as error:
        source.tag("runs/a/1", "IMAGENET1K_V1")
    assert error.value.message == "run:runs/a/1 brings its own weights, so there is no tag 'IMAGENET1K_V1'; leave source.weights out"


def test_a_bundle_of_a_bundle_is_built_as_the_first_was(bundle: Path) -> None:
    written = json.loads((bundle / "plan.json").read_text())
    written["source"]["weights"] = {"kind": "bundle", "location": "run:gone", "file": "/gone", "pretrained": True}
    (bundle / "plan.json").write_text(json.dumps(written))
    assert open_bundle_source("runs/a/1").weights.pretrained
    written["source"]["weights"] = {"kind": "none", "location": "none"}
    (bundle / "plan.json").write_text(json.dumps(written))
    assert not open_bundle_source("runs/a/1").weights.pretrained


def test_what_the_run_had_of_plugin_files(bundle: Path) -> None:
    assert bundle_plugins("runs/a/1") == {}
    written = json.loads((bundle / "plan.json").read_text())
    (bundle / "plan.json").write_text(json.dumps({**written, "plugins": {"xfer_local_0a_layers": "xfer_plugins = {}"}}))
    assert bundle_plugins("run:runs/a/1") == {"xfer_local_0a_layers": "xfer_plugins = {}"}


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (lambda b: (b / "plan.json").unlink(), "{b} is not a bundle: it has no plan.json; a bundle is a folder that 'xfer run' made, runs/NAME/ID", None),  # noqa: E501
        (lambda b: (b / "plan.json").write_text("{"), "{b}/plan.json is damaged: it is not a plan that xfer wrote", None),
        (lambda b: (b / "plan.json").write_text("[]"), "{b}/plan.json is damaged: it is not a plan that xfer wrote", None),
        (lambda b: (b / "plan.json").write_bytes(b"\xff\xfe\x00"), "{b}/plan.json is damaged: it is not a plan that xfer wrote", None),
        (lambda b: (b / "plan.json").write_text('{"format": 99}'), "the bundle {b} was made by a newer xfer (plan format 99, this one reads 2)", None),  # noqa: E501
        (lambda b: (b / "result.json").write_text("x"), "{b}/result.json is damaged: it is not JSON", None),
        (lambda b: (b / "model/weights.safetensors").unlink(), "the bundle {b} has no model/weights.safetensors: its model was taken out; put the file back, or run it again", None),  # noqa: E501
        *(
            (lambda b, text=text: (b / "result.json").write_text(text), f"the run in {{b}} has not finished (its status is '{status}'), so its model can't be a source yet", "finish it first: xfer run --resume {b}")  # noqa: E501
            for text, status in (('{"status": "interrupted"}', "interrupted"), ('{"status": "failed"}', "failed"), ("[]", "unknown"))
        ),
        (lambda b: (b / "result.json").unlink(), "the run in {b} has not finished (its status is 'unknown'), so its model can't be a source yet", "finish it first: xfer run --resume {b}"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_no_finished_bundle(bundle: Path, spoil: Callable[[Path], Any], message: str, hint: str | None) -> None:
    spoil(bundle)
    with pytest.raises(BundleError) as error:
        open_bundle_source("runs/a/1")
    assert error.value.message == message.format(b=bundle)
    assert error.value.hint == (hint.format(b=bundle) if hint else None)


def test_no_such_folder(bundle: Path) -> None:
    with pytest.raises(BundleError) as error:
        open_bundle_source("runs/a/2/x")
    assert error.value.message == f"run:runs/a/2/x: no file or folder {bundle.parent}/2/x; the part of it that exists is {bundle.parent}"
    (bundle.parent / "file").write_text("x")
    with pytest.raises(BundleError) as error:
        open_bundle_source("runs/a/file")
    assert error.value.message.startswith(f"{bundle.parent}/file is not a bundle")
