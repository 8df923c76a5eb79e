"""Frozen means that not one bit changes: whole runs over four kinds of networks, their tensors compared with the source's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from xfer.backends.backend import Batch
from xfer.backends.torch.backend import TorchBackend
from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.ops.initial import head_start
from xfer.plan.model_map import PIXELS
from xfer.recipe.loader import read

SIDE, BATCH = 32, 8
Prefixes = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What a person reads in a network's own code: which tensors each selector means, written down by hand as beginnings of names."""

    model: str
    make: Callable[[], nn.Module]
    classifier: str
    stages: tuple[Prefixes, ...]
    selectors: dict[str | tuple[str, ...], Prefixes]

    @property
    def everything(self) -> Prefixes:
        return tuple(prefix for stage in self.stages for prefix in stage)


NETWORKS = {
    "BatchNorm": Known(
        "torchvision/resnet18",
        torchvision.models.resnet18,
        "fc",
        (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
        {
            "layer3.1": ("layer3.1",),
            "layer4": ("layer4",),
            "stage2": ("layer2",),
            "last 2 stages": ("layer3", "layer4"),
            "layer?.1": ("layer1.1", "layer2.1", "layer3.1", "layer4.1"),
            ("conv1", "layer2.0"): ("conv1", "layer2.0"),
            "layer1": ("layer1",),
        },
    ),
    "no normalisation": Known(
        "torchvision/squeezenet1_1",
        torchvision.models.squeezenet1_1,
        "classifier",
        (("features.0",), ("features.3", "features.4"), ("features.6", "features.7"), tuple(f"features.{n}" for n in (9, 10, 11, 12))),
        {
            "features.6": ("features.6",),
            "features": ("features",),
            "stage2": ("features.6", "features.7"),
            "last stage": ("features.9", "features.10", "features.11", "features.12"),
            "features.1*": ("features.10", "features.11", "features.12"),
            ("features.0", "stage2"): ("features.0", "features.6", "features.7"),
        },
    ),
    "LayerNorm": Known(
        "timm/vit_tiny_patch16_224",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=SIDE),
        "head",
        (
            ("patch_embed", "cls_token", "pos_embed"),
            *(tuple(f"blocks.{n}" for n in range(first, first + 3)) for first in (0, 3, 6)),
            ("blocks.9", "blocks.10", "blocks.11", "norm"),
        ),
        {
            "blocks.5": ("blocks.5",),
            "blocks": ("blocks",),
            "stage3": ("blocks.6", "blocks.7", "blocks.8"),
            "last 2 stages": ("blocks.6", "blocks.7", "blocks.8", "blocks.9", "blocks.10", "blocks.11", "norm"),
            "blocks.1*": ("blocks.1", "blocks.10", "blocks.11"),
            ("pos_embed", "norm"): ("pos_embed", "norm"),
        },
    ),
    "stochastic depth": Known(
        "torchvision/efficientnet_b0",
        torchvision.models.efficientnet_b0,
        "classifier",
        (
            ("features.0", "features.1"),
            ("features.2",),
            ("features.3",),
            ("features.4", "features.5"),
            ("features.6", "features.7", "features.8"),
        ),
        {
            "features.3.1": ("features.3.1",),
            "features.6": ("features.6",),
            "stage3": ("features.4", "features.5"),
            "last 2 stages": ("features.4", "features.5", "features.6", "features.7", "features.8"),
            "features.*.0": tuple(f"features.{n}.0" for n in range(1, 8)),
            ("features.0", "features.8"): ("features.0", "features.8"),
        },
    ),
}


def schedules(known: Known) -> dict[str, tuple[Any, list[Prefixes]]]:
    """By a name for people: what the recipe says, and which tensors of the source train in each phase of it."""
    every, last = known.everything, known.stages[-1]
    made: dict[str, tuple[Any, list[Prefixes]]] = {"head": ("head", [()]), "all": ("all", [every])}
    for selector, prefixes in known.selectors.items():
        words = [selector] if isinstance(selector, str) else list(selector)
        made[", ".join(words)] = ([*words, "head"], [prefixes])
    down = [tuple(p for stage in known.stages[len(known.stages) - n :] for p in stage) for n in range(len(known.stages) + 1)]
    made["policy head"] = ({"policy": "head", "epochs": 1}, [()])
    made["policy all"] = ({"policy": "all", "epochs": 1}, [every])
    made["policy last"] = ({"policy": "last", "epochs": 1}, [last])
    made["policy gradual"] = ({"policy": "gradual"}, down)
    made["policy lp_ft"] = ({"policy": "lp_ft", "probe_epochs": 1, "epochs": 1}, [(), every])
    return made


QUICK = [
    ("BatchNorm", "layer1", "train"),
    ("BatchNorm", "conv1, layer2.0", "frozen"),
    ("BatchNorm", "policy last", "train"),
    ("no normalisation", "policy gradual", "train"),
    ("no normalisation", "features.1*", "frozen"),
    ("LayerNorm", "stage3", "train"),
    ("LayerNorm", "policy lp_ft", "frozen"),
    ("LayerNorm", "pos_embed, norm", "frozen"),
    ("stochastic depth", "features.*.0", "train"),
    ("stochastic depth", "all", "frozen"),
]
WHOLE = [
    (kind, name, norm)
    for kind, known in NETWORKS.items()
    for name in schedules(known)
    for norm in ("train", "frozen")
    if (name, norm) != ("policy head", "frozen")  # it has no such option
]


def test_the_quick_ones_are_of_the_whole_matrix():
    assert set(QUICK) < set(WHOLE)


# sources, data, runs


class Source:
    """A network's tensors: drawn from the run's seed, or, with `in_a_file`, from another one, with statistics and biases that no layer
    starts with."""

    def __init__(self, known: Known, folder: Path, *, in_a_file: bool) -> None:
        torch.manual_seed(7 if in_a_file else 0)
        network = known.make()
        self.weights = "none"
        if in_a_file:
            self.weights = str(folder / f"{known.model.replace('/', '-')}.pth")
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.ndim < 2:
                        parameter.add_(torch.randn_like(parameter), alpha=0.02)
                for module in network.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.momentum = 1.0  # statistics of one batch: with those that it starts with, gradients vanish
                network.train()(torch.randn(BATCH, 3, SIDE, SIDE))
            torch.save(network.state_dict(), self.weights)
        self.tensors = {name: value for name, value in network.state_dict().items() if not name.startswith(f"{known.classifier}.")}
        norms = tuple(path for path, module in network.named_modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm))
        self.norm = {name for name in self.tensors if within(name, norms)}
        self.buffers = {name for name, _ in network.named_buffers()} & set(self.tensors)


def within(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str], Source]:
    made: dict[str, Source] = {}
    folder = tmp_path_factory.mktemp("sources")

    def of(kind: str) -> Source:
        if kind not in made:
            made[kind] = Source(NETWORKS[kind], folder, in_a_file=kind != "LayerNorm")
        return made[kind]

    return of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    random, labels = np.random.default_rng(0), np.arange(24) % 3
    images = random.integers(0, 120, (24, SIDE, SIDE, 3), dtype=np.uint8)
    images[np.arange(24), ..., labels] += 100
    path: Path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def recipe(pictures, tmp_path) -> Callable[..., Path]:
    """Writes a recipe; returns its file."""

    def write(model: str, weights: str, freeze: Any, **sections: Any) -> Path:
        content = {
            "source": {"model": model, "weights": weights},
            "target": {"dataset": "arrays", "path": str(pictures), "image_size": SIDE, "batch_size": BATCH} | sections.pop("target", {}),
            "transfer": {"type": "model"},
            "freeze": freeze,
            "runtime": {"cache": str(tmp_path / "cache"), "precision": "float32", "device": "cpu"},
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**content, **sections}))
        return file

    return write


def execute(file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """result.json and the exported tensors of a run that goes to its end."""
    reading = read(file)
    bundle = Bundle.create(folder, compile_plan(reading), recipe=reading.text, resolved=reading.text)
    Run(bundle, reporter=Silent(), stop=lambda: False).execute()
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model" / "weights.safetensors")


def written(schedule: Any, norm: str) -> Any:
    """The recipe's `freeze`."""
    if isinstance(schedule, dict):
        return schedule | ({} if schedule["policy"] == "head" else {"norm": norm})
    return [{"train": schedule, "epochs": 1, "norm": norm}]


def assert_run_keeps_what_is_frozen(kind: str, name: str, norm: str, source: Source, recipe: Callable[..., Path], folder: Path) -> None:
    known = NETWORKS[kind]
    schedule, phases = schedules(known)[name]
    result, saved = execute(recipe(known.model, source.weights, written(schedule, norm)), folder)

    head = {tensor for tensor in saved if tensor.startswith("head.") and tensor not in source.tensors}
    assert head == {"head.output.weight", "head.output.bias"}
    assert set(saved) - head == set(source.tensors)
    start = head_start([(tensor, tuple(saved[tensor].shape)) for tensor in sorted(head)], seed=0)
    assert [tensor for tensor in head if np.array_equal(saved[tensor].numpy(), start[tensor])] == []

    held = source.norm if norm == "frozen" else set()
    for entry, prefixes in zip(result["phases"], phases, strict=True):
        frozen = {tensor for tensor in source.tensors if not within(tensor, prefixes) or tensor in held}
        assert (entry["frozen_tensors"], entry["frozen_changed"]) == (len(frozen), 0)
        moving = set(source.tensors) - frozen - source.buffers
        n_parameters = sum(source.tensors[tensor].numel() for tensor in moving) + sum(saved[tensor].numel() for tensor in head)
        assert entry["trainable_parameters"] == n_parameters
    trained = {tensor for tensor in source.tensors if any(within(tensor, prefixes) for prefixes in phases) and tensor not in held}
    assert all(saved[tensor].dtype == value.dtype for tensor, value in source.tensors.items())
    moved = {tensor for tensor, value in source.tensors.items() if not torch.equal(saved[tensor], value)}
    assert moved == trained


@pytest.mark.parametrize(("kind", "name", "norm"), QUICK)
def test_what_is_frozen_is_the_source_s_to_the_bit_and_the_rest_moved(kind, name, norm, source, recipe, tmp_path):
    assert_run_keeps_what_is_frozen(kind, name, norm, source(kind), recipe, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "norm"), [case for case in WHOLE if case not in QUICK])
def test_every_selector_and_policy_on_every_network(kind, name, norm, source, recipe, tmp_path):
    assert_run_keeps_what_is_frozen(kind, name, norm, source(kind), recipe, tmp_path / "bundle")


# what is active while a phase trains


class Watched:
    """A network that trains on a batch of noise while hooks look at what its modules do."""

    def __init__(self, file: Path) -> None:
        self.plan = compile_plan(read(file))
        self.phase = self.plan.phases[0]
        self.network = TorchBackend().build(self.plan)
        self.network.begin_phase(self.phase, steps_per_epoch=2, class_weights=None)
        crop = self.plan.source.preprocess.crop
        pixels = np.random.default_rng(1).integers(0, 255, (BATCH, crop, crop, 3), dtype=np.uint8)
        rows = pixels
        if self.phase.input.cut != PIXELS:
            rows = self.network.compute(pixels, start=PIXELS, end=self.phase.input.cut, pooled=self.phase.input.pooled)
        self.batch = Batch(np.arange(BATCH), rows, np.arange(BATCH) % 3)

    def watch(self, kind: type[nn.Module], look: Callable[[nn.Module, torch.Tensor, torch.Tensor], Any]) -> dict[str, Any]:
        """What `look` says of each module of that kind when it computes (module, input, output), by path."""
        seen: dict[str, Any] = {}

        def hook(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
            return lambda module, inputs, output: seen.update({path: look(module, inputs[0].detach(), output.detach())})

        for path, module in self.network.parts.base.named_modules():
            if isinstance(module, kind):
                module.register_forward_hook(hook(path))
        return seen

    def train(self) -> None:
        self.network.train([self.batch], epoch=0, first_step=0, scale=1.0)

    def evaluate(self) -> None:
        self.network.logits(self.batch.inputs, start=self.phase.input.cut, pooled=self.phase.input.pooled)


def drops(module: nn.Module, before: torch.Tensor, after: torch.Tensor) -> bool:
    return not torch.equal(before, after)


def test_stochastic_depth_drops_in_trained_groups_alone(recipe):
    watched = Watched(recipe("torchvision/efficientnet_b0", "none", [{"train": ["features.4", "head"], "epochs": 1}]))
    for module in watched.network.parts.base.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.5  # its own, 0.0125 to 0.2, may drop nothing of eight images
    seen = watched.watch(StochasticDepth, drops)
    trained = {f"features.4.{n}.stochastic_depth": True for n in (1, 2)}
    frozen = dict.fromkeys(
        [f"features.5.{n}.stochastic_depth" for n in (1, 2)] + [f"features.6.{n}.stochastic_depth" for n in (1, 2, 3)], False
    )
    watched.train()
    assert seen == trained | frozen
    watched.evaluate()
    assert seen == dict.fromkeys(trained | frozen, False)
    watched.train()
    assert seen == trained | frozen


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("classifier.1", {"classifier.0": False, "classifier.3": True}),
        ("features.10", {"classifier.0": True, "classifier.3": False}),
        ("classifier.4", {"classifier.3": False}),
    ],
)
def test_dropout_between_groups_belongs_to_the_one_before_it(recipe, train, expected):
    """AlexNet: features.10, dropout, classifier.1, dropout, classifier.4."""
    file = recipe("torchvision/alexnet", "none", [{"train": [train, "head"], "epochs": 1}], target={"image_size": 64})
    watched = Watched(file)
    seen = watched.watch(nn.Dropout, drops)
    watched.train()
    assert seen == expected
    watched.evaluate()
    assert not any(seen.values())


def normalises_with(module: nn.Module, before: torch.Tensor, after: torch.Tensor) -> str:
    """Whose mean and variance a BatchNorm layer used. The stored ones are asked for after they were updated: those of a layer that
    updates them tell nothing, and then the batch's must fit."""
    assert isinstance(module, nn.BatchNorm2d)
    stored = functional.batch_norm(before, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
    own = functional.batch_norm(before, None, None, module.weight, module.bias, training=True, eps=module.eps)
    fits = [name for name, value in (("stored", stored), ("batch", own)) if torch.allclose(value, after, atol=1e-4)]
    assert len(fits) == 1
    return fits[0]


@pytest.mark.parametrize("norm", ["train", "frozen"])
def test_batch_norm_of_frozen_groups_uses_its_stored_statistics(recipe, source, norm):
    file = recipe(
        "torchvision/resnet18", source("BatchNorm").weights, [{"train": ["layer1", "layer3.0", "head"], "epochs": 1, "norm": norm}]
    )
    watched = Watched(file)
    seen = watched.watch(nn.BatchNorm2d, normalises_with)
    before = {name: tensor.clone() for name, tensor in watched.network.named.items()}
    watched.train()
    assert len(seen) == 19  # all but bn1, which lies below the phase's cut
    expected = {path: "batch" if norm == "train" and within(path, ("layer1", "layer3.0")) else "stored" for path in seen}
    assert seen == expected
    watched.evaluate()
    assert set(seen.values()) == {"stored"}
    moved = {name for name, value in before.items() if "running" in name and not torch.equal(value, watched.network.named[name])}
    assert moved == {f"{path}.running_{what}" for path, used in expected.items() if used == "batch" for what in ("mean", "var")}


# the proof at the end of a phase finds what a plugin did by mistake

PULLED = '''
from xfer.methods.method import Method


class Pulled(Method):
    """Draws the weights back to the source by a step of its own instead of a loss. Its mistake: it looks at what trains in its first
    step only, and a later phase may freeze that."""

    type = "model"

    def __init__(self, *, share: float = 0.01):
        self.share, self.weights = share, None

    def loss(self, seen):
        if self.weights is None:
            self.weights = [(weight, seen.source[name]) for name, weight in seen.trained.items()]
        for weight, source in self.weights:
            weight.data.lerp_(source, self.share)
        return seen.task_loss()


xfer_plugins = {"methods": {"pulled": Pulled}}
'''
FEATURES_12 = [f"features.12.{part}.{kind}" for part in ("squeeze", "expand1x1", "expand3x3") for kind in ("weight", "bias")]


def pulled(recipe, tmp_path, *phases: dict[str, Any]) -> int:
    """The exit code of a run with that method; its bundle is tmp_path/bundle."""
    (tmp_path / "pulled.py").write_text(PULLED)
    transfer = {"type": "model", "method": "pulled"}
    file = recipe("torchvision/squeezenet1_1", "none", list(phases), transfer=transfer, plugins=["./pulled.py"])
    return run(["run", str(file), "--out", str(tmp_path / "bundle"), "--quiet"])


def test_a_method_that_changes_a_frozen_tensor_fails_the_run(recipe, tmp_path, capsys):
    last = {"train": ["features.12", "head"], "epochs": 1}
    assert pulled(recipe, tmp_path, last, {"train": "head", "epochs": 1}) == 1
    message = f"phase '2: head': {len(FEATURES_12)} frozen tensors changed, the first is {FEATURES_12[0]}"
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: {message}",
        "  this is a fault of xfer or of a plugin, not of your recipe: please report it with the bundle",
    ]
    result = json.loads((tmp_path / "bundle" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("failed", message)
    assert [(phase["name"], phase["frozen_changed"]) for phase in result["phases"]] == [("1: features.12, head", 0)]
    assert not (tmp_path / "bundle" / "model" / "weights.safetensors").exists()


def test_the_same_method_passes_where_nothing_that_it_holds_is_frozen(recipe, tmp_path):
    last = {"train": ["features.12", "head"], "epochs": 1}
    assert pulled(recipe, tmp_path, last, last) == 0
