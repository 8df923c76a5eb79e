"""Faults that need more than the schema: names, options, selectors, the model, the data. Each message is compared whole."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from xfer.compile.compiler import check, compile_plan
from xfer.errors import RecipeError
from xfer.plan.plan import ClusterPlan
from xfer.recipe.loader import read

GOOD = """\
source:
  model: torchvision/resnet18
  weights: none
target:
  dataset: folder
  path: data
transfer:
  type: feature
freeze:
  - train: head
    epochs: 2
runtime:
  cache: cache
"""
PROVIDERS = "file, keras, run, savedmodel, timm, torchvision"


@pytest.fixture(scope="module")
def known_models(tmp_path_factory):
    """What is known of models is found out once for all tests: a process that imports a framework takes seconds."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def place(tmp_path, known_models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(known_models)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path


def faults(place, text, *overrides, **options):
    (place / "r.yaml").write_text(text)
    return [str(fault) for fault in check(read("r.yaml", overrides), **options)]


RESNET = "torchvision/resnet18 has conv1, bn1, layer1, layer2, layer3, layer4, stage0, stage1, stage2, stage3, stage4, head"
CASES = {
    "unknown provider": (
        ("torchvision/resnet18", "torchvison/resnet18"),
        [f"r.yaml:2:3: source.model: no provider is called 'torchvison'; there are {PROVIDERS}; did you mean 'torchvision'?"],
    ),
    "no provider at all": (
        ("torchvision/resnet18", "resnet18"),
        [
            "r.yaml:2:3: source.model: 'resnet18' must be provider/name, e.g. torchvision/resnet18, or run:path/to/bundle; "
            f"providers: {PROVIDERS}"
        ],
    ),
    "unknown model": (
        ("torchvision/resnet18", "torchvision/resnet81"),
        ["r.yaml:2:3: source.model: torchvision has no model 'resnet81'; did you mean 'resnet18'?"],
    ),
    "unknown dataset": (
        ("dataset: folder", "dataset: foldr"),
        [
            "r.yaml:5:3: target.dataset: no dataset is called 'foldr'; there are arrays, folder, keras, sklearn, table, torchvision; "
            "did you mean 'folder'?"
        ],
    ),
    "misspelt dataset option": (
        ("  path: data", "  pth: data"),
        [
            "r.yaml:4:1: target.path: required by dataset folder",
            "r.yaml:6:3: target.pth: unknown key; dataset folder takes path; did you mean 'path'?",
        ],
    ),
    "wrong option type": (
        ("  path: data", "  path: [data]"),
        ["r.yaml:6:3: target.path: must be text, not ['data']"],
    ),
    "misspelt section key among options": (
        ("  path: data", "  path: data\n  batch_sise: 8"),
        ["r.yaml:7:3: target.batch_sise: unknown key; dataset folder takes path; did you mean 'batch_size'?"],
    ),
    "unknown method": (
        ("  type: feature", "  type: feature\n  method: probing"),
        ["r.yaml:9:3: transfer.method: no feature method is called 'probing'; there are probe; did you mean 'probe'?"],
    ),
    "option of a method without any": (
        ("  type: feature", "  type: feature\n  beta: 1"),
        ["r.yaml:9:3: transfer.beta: unknown key"],
    ),
    "selector without match": (
        ("train: head", "train: [head, layer5]"),
        [f"r.yaml:10:19: freeze[0].train[1]: no group matches 'layer5'; {RESNET}; did you mean 'layer4'?"],
    ),
    "feature transfer that trains the source": (
        ("train: head", "train: [head, layer4]"),
        [
            "r.yaml:10:5: freeze[0].train: a feature transfer keeps the source frozen, and this trains layer4.0, layer4.1; "
            "write 'head', or transfer.type: model"
        ],
    ),
    "the head is never trained": (
        ("train: head", "train: layer4"),
        [
            "r.yaml:10:5: freeze[0]: no phase trains the head, so its random start would be the result; add 'head' to train",
            "r.yaml:10:5: freeze[0].train: a feature transfer keeps the source frozen, and this trains layer4.0, layer4.1; "
            "write 'head', or transfer.type: model",
        ],
    ),
    "unknown policy": (
        ("freeze:\n  - train: head\n    epochs: 2", "freeze: {policy: hed}"),
        ["r.yaml:9:10: freeze.policy: no policy is called 'hed'; there are all, gradual, head, last, lp_ft; did you mean 'head'?"],
    ),
    "misspelt policy option": (
        ("freeze:\n  - train: head\n    epochs: 2", "freeze: {policy: head, epoch: 3}"),
        ["r.yaml:9:24: freeze.epoch: unknown key; policy head takes epochs; did you mean 'epochs'?"],
    ),
    "empty schedule": (
        ("freeze:\n  - train: head\n    epochs: 2", "freeze: []"),
        ["r.yaml:9:1: freeze: must not be empty"],
    ),
    "at a place that is not there": (
        ("  type: feature", "  type: feature\n  at: stage9"),
        [f"r.yaml:9:3: transfer.at: no group matches 'stage9'; {RESNET}; did you mean 'stage4'?"],
    ),
    "stop rule without validation": (
        ("    epochs: 2", "    until: {metric: val.loss}"),
        ["r.yaml:11:5: freeze[0].until: needs a validation split to watch, and there is none; set target.splits.val above 0"],
    ),
    "a password in an address": (
        ("weights: none", "weights: https://me:word@models.example/w.pth"),
        [
            "r.yaml:3:3: source.weights: the address holds a password, and a bundle keeps the recipe; download the file and give its path, "
            "or let the storage library read its own settings"
        ],
    ),
    "a signed query in an address": (
        ("  path: data", "  path: https://data.example/a.zip?sig=0123"),
        None,
    ),
    "unknown weights tag": (
        ("weights: none", "weights: IMAGENET1K_V3"),
        None,
    ),
    "data that is not there": (
        ("  path: data", "  path: dta"),
        None,
    ),
    "a weight file that is not there": (
        ("weights: none", "weights: ./nothing.pth"),
        None,
    ),
    "a bundle that is none": (
        ("torchvision/resnet18\n  weights: none", "run:nowhere"),
        None,
    ),
    "a plugin that is not there": (
        ("runtime:", "plugins: [./mine.py]\nruntime:"),
        None,
    ),
}


def made(name):
    (old, new), expected = CASES[name]
    assert old in GOOD
    text = GOOD.replace(old, new)
    if name == "stop rule without validation":
        text = text.replace("  path: data", "  path: data\n  splits: {val: 0}").replace("r.yaml:11", "r.yaml:12")
    return text, expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] is not None])
def test_each_fault_in_full(place, name):
    text, expected = made(name)
    if name == "stop rule without validation":
        expected = [line.replace("r.yaml:11", "r.yaml:12") for line in expected]
    assert faults(place, text) == expected


ONLY_ON_TORCH = {"unknown model", "unknown provider", "no provider at all", "a bundle that is none"}  # they name the provider itself


def alike(line: str) -> str:
    """A fault without the names of groups, which each network has its own of."""
    line = re.sub(r"; did you mean '[^']*'\?", "", line)
    line = re.sub(r"matches '[^']*'; \S+ has .*$", "matches ITS; MODEL has GROUPS", line)
    return re.sub(r"this trains [^;]*;", "this trains GROUPS;", line)


def test_each_fault_is_the_same_on_keras(place):
    """The same recipe with a Keras network in the place of torch's: the same faults, at the same places, in the same words."""
    compared = 0
    for name, (_, expected) in CASES.items():
        if expected is None or name in ONLY_ON_TORCH:
            continue
        text, expected = made(name)
        if name == "stop rule without validation":
            expected = [line.replace("r.yaml:11", "r.yaml:12") for line in expected]
        for old, new in (("torchvision/resnet18", "keras/MobileNet"), ("layer5", "conv_pw_99"), ("layer4", "conv_pw_13")):
            text = text.replace(old, new)
        assert [alike(line) for line in faults(place, text)] == [alike(line) for line in expected], name
        compared += 1
    assert compared == len(CASES) - sum(1 for name, case in CASES.items() if case[1] is None or name in ONLY_ON_TORCH)
    assert compared >= 14


def test_what_no_cluster_can_do(place):
    spread = GOOD.replace("runtime:", "cluster: {workers: 64}\nruntime:")
    assert faults(place, spread) == ["r.yaml:12:11: cluster.workers: 64 workers can't share batches of 32 images (target.batch_size)"]
    elastic = GOOD.replace("torchvision/resnet18", "keras/MobileNet").replace("runtime:", "cluster: {workers: {min: 1, max: 4}}\nruntime:")
    assert faults(place, elastic) == [
        "r.yaml:12:11: cluster.workers: an elastic number of workers is for PyTorch; with Keras give one number, such as 4"
    ]
    halves = elastic.replace("{workers: {min: 1, max: 4}}", "{workers: 2, gpus_per_worker: 0.5}")
    assert faults(place, halves) == ["r.yaml:12:23: cluster.gpus_per_worker: Keras workers need a GPU each, or none: write 1 or 0, not 0.5"]


def test_a_spread_run_is_planned(place):
    (place / "r.yaml").write_text(GOOD.replace("runtime:", "cluster: {workers: {min: 1, max: 4}, storage: shared}\nruntime:"))
    cluster = compile_plan(read("r.yaml")).cluster
    assert cluster is not None
    assert (cluster.workers, cluster.storage, cluster.gpus_per_worker) == ((1, 4), str(place / "shared"), None)
    assert cluster.startup_seconds == 0
    (place / "r.yaml").write_text(GOOD.replace("runtime:", "cluster: {workers: 2, startup_timeout: 2min}\nruntime:"))
    assert compile_plan(read("r.yaml")).cluster == ClusterPlan(workers=(2, 2), startup_seconds=120)
    (place / "r.yaml").write_text(GOOD)
    assert compile_plan(read("r.yaml")).cluster is None


def test_the_good_one_has_none(place):
    assert faults(place, GOOD) == []
    assert compile_plan(read("r.yaml")).head.outputs == 2


def test_all_at_once_schema_and_names_together(place):
    text = GOOD.replace("resnet18", "resnet81").replace("epochs: 2", "epochs: 0").replace("dataset: folder", "dataset: foldr")
    found = faults(place, text)
    assert [line.split(" ")[1] for line in found] == ["source.model:", "target.dataset:", "freeze[0].epochs:"]


def test_places_outside_the_recipe(place):
    for name, start in {
        "data that is not there": "r.yaml:6:",
        "a weight file that is not there": "r.yaml:3:3: source.weights: ",
        "a bundle that is none": "r.yaml:2:3: source.model: ",
        "a plugin that is not there": f"r.yaml:12:11: plugins[0]: can't read {place / 'mine.py'}: no such file or directory",
        "unknown weights tag": "r.yaml:3:3: source.weights: ",
        "a signed query in an address": "r.yaml:6:3: target.path: the address holds a signed query, ",
    }.items():
        found = faults(place, made(name)[0])
        assert len(found) == 1, found
        assert found[0].startswith(start), found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"names = 'caf\xe9'", "can't read {file}: it is not UTF-8 text (byte 12)"),
        (b"import os\n\ndef f():\n    return os.environ['NO_SUCH_THING']\n\nf()\n", "line 4: KeyError: 'NO_SUCH_THING'"),
        (b"1 / 0", "the plugin file mine.py can't be loaded: line 1: ZeroDivisionError: division by zero"),
        (b"raise SystemExit(3)", "the plugin file mine.py can't be loaded: line 1: SystemExit: 3"),
        (b"def f(:", "the plugin file mine.py can't be loaded: SyntaxError: "),
    ],
)
def test_a_plugin_may_fail_in_any_way(place, content, said):
    (place / "mine.py").write_bytes(content)
    (found,) = faults(place, GOOD + "plugins: [mine.py]\n")
    assert found.startswith("r.yaml:14:11: plugins[0]: ")
    assert said.format(file=place / "mine.py") in found


def test_a_plugin_may_be_long(place):
    """Longer than what Linux takes as an argument of a process."""
    (place / "mine.py").write_text("xfer_plugins = {}\n" + "# a long word\n" * 20_000)
    assert faults(place, GOOD + "plugins: [mine.py]\n") == []


def test_no_data_looks_at_neither_data_nor_weight_files(place):
    text = GOOD.replace("path: data", "path: dta").replace("weights: none", "weights: ./nothing.pth")
    assert faults(place, text, data=False) == []


def test_shallow_knows_names_but_no_model(place):
    text = GOOD.replace("torchvision/resnet18", "torchvision/resnet81").replace("dataset: folder", "dataset: foldr")
    assert len(faults(place, text, depth="shallow", data=False)) == 1


@pytest.mark.parametrize(("change", "message"), [
    (("type: feature", "type: knowledge"),
     "r.yaml:8:3: transfer.type: 'knowledge' is not available yet; this version runs: feature, model"),
])  # fmt: skip
def test_later_sections_pass_the_check_and_are_refused_when_run(place, change, message):
    text = GOOD.replace(*change)
    assert faults(place, text) == []
    with pytest.raises(RecipeError) as caught:
        compile_plan(read("r.yaml"))
    assert caught.value.message == message


def test_float16_on_a_cpu(place):
    (place / "r.yaml").write_text(GOOD + "  precision: float16\n  device: cpu\n")
    with pytest.raises(RecipeError) as caught:
        compile_plan(read("r.yaml"))
    assert caught.value.message == (
        "r.yaml:14:3: runtime.precision: float16 needs a GPU, and this runs on the CPU; use bfloat16, float32 or auto"
    )
