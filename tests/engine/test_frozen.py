"""Frozen means that not one bit changes: whole runs over four kinds of networks on each backend, their tensors compared with the
source's own."""

from __future__ import annotations

import json
import sys
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
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from xfer import plugins
from xfer.backends.backend import Batch
from xfer.backends.tensorflow.backend import TensorflowBackend
from xfer.backends.tensorflow.graph import named_variables
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
PLUGIN = Path(__file__).with_name("small_keras.py")
small_keras: Any = sys.modules[plugins.load_local(PLUGIN.read_text(), stem=PLUGIN.stem)]
Prefixes = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What a person reads in a network's own code: which tensors each selector means, written down by hand as beginnings of names. In
    Keras' flat names those of a block end with '_'."""

    model: str
    make: Callable[[], Any]
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
    "Keras, BatchNorm": Known(
        "small/batch_norm",
        small_keras.batch_norm,
        "fc",
        (("stem", "stem_", "block_1_"), ("block_2_", "block_3_"), ("inner", "last", "last_")),
        {
            "block_2": ("block_2_",),
            "block_?": ("block_1_", "block_2_", "block_3_"),
            "stage1": ("block_2_", "block_3_"),
            "last 2 stages": ("block_2_", "block_3_", "inner", "last", "last_"),
            "inner": ("inner",),
            ("stem", "block_3"): ("stem", "stem_", "block_3_"),
        },
    ),
    "Keras, no normalisation": Known(
        "small/plain",
        small_keras.plain,
        "fc",
        (("early",), ("middle_1", "middle_2"), ("late", "dense")),
        {
            "middle_1": ("middle_1",),
            "middle_*": ("middle_1", "middle_2"),
            "stage0": ("early",),
            "last stage": ("late", "dense"),
            ("early", "dense"): ("early", "dense"),
        },
    ),
    "Keras, LayerNorm": Known(
        "small/layer_norm",
        small_keras.layer_norm,
        "fc",
        (("patches", "positions"), *((f"block_{n}_",) for n in (1, 2, 3)), ("block_4_", "norm")),
        {
            "block_3": ("block_3_",),
            "block_*": tuple(f"block_{n}_" for n in (1, 2, 3, 4)),
            "stage2": ("block_2_",),
            "last 2 stages": ("block_3_", "block_4_", "norm"),
            ("positions", "norm"): ("positions", "norm"),
        },
    ),
    "Keras, dropout": Known(
        "small/dropout",
        small_keras.dropout,
        "fc",
        (("early", "block_1_"), ("block_2_",), ("inner", "dense")),
        {
            "block_1": ("block_1_",),
            "block_*": ("block_1_", "block_2_"),
            "stage0": ("early", "block_1_"),
            "last stage": ("inner", "dense"),
            ("early", "inner"): ("early", "inner"),
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
    ("Keras, BatchNorm", "policy gradual", "train"),
    ("Keras, BatchNorm", "inner", "frozen"),
    ("Keras, no normalisation", "early, dense", "train"),
    ("Keras, LayerNorm", "positions, norm", "frozen"),
    ("Keras, dropout", "early, inner", "train"),
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
        self.weights = "none"
        make = self._keras if known.model.startswith("small/") else self._torch
        tensors, norms, buffers = make(known, folder / known.model.replace("/", "-"), in_a_file)
        self.tensors = {name: value for name, value in tensors.items() if not within(name, [known.classifier])}
        self.norm, self.buffers = norms & set(self.tensors), buffers & set(self.tensors)

    def _torch(self, known: Known, file: Path, in_a_file: bool) -> tuple[dict[str, np.ndarray], set[str], set[str]]:
        """Tensors, and which of them belong to normalisation layers, and which are buffers."""
        torch.manual_seed(7 if in_a_file else 0)
        network = known.make()
        if in_a_file:
            self.weights = str(file.with_suffix(".pth"))
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.ndim < 2:
                        parameter.add_(torch.randn_like(parameter), alpha=0.02)
                for module in network.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.momentum = 1.0  # statistics of one batch: with those that it starts with, gradients vanish
                network.train()(torch.randn(BATCH, 3, SIDE, SIDE))
            torch.save(network.state_dict(), self.weights)
        tensors = {name: value.numpy() for name, value in network.state_dict().items()}
        norms = tuple(path for path, module in network.named_modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm))
        return tensors, {name for name in tensors if within(name, norms)}, {name for name, _ in network.named_buffers()}

    def _keras(self, known: Known, file: Path, in_a_file: bool) -> tuple[dict[str, np.ndarray], set[str], set[str]]:
        small_keras.keras.utils.set_random_seed(7 if in_a_file else 0)
        network = known.make()
        random = np.random.default_rng(7)
        if in_a_file:
            for variable in network.weights:
                if variable.name == "moving_variance":
                    variable.assign(random.uniform(0.1, 0.4, variable.shape))
                elif len(variable.shape) < 2:
                    variable.assign(variable + 0.02 * random.normal(size=variable.shape))
            self.weights = str(file.with_suffix(".weights.h5"))
            network.save_weights(self.weights)
        tensors = {name: variable.numpy() for name, variable in named_variables(network).items()}
        return tensors, {name for name in tensors if "norm" in name}, {name for name in tensors if "moving_" in name}


def within(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(prefix if prefix[-1] == "_" else (f"{prefix}.", f"{prefix}/")) for prefix in prefixes)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str], Source]:
    made: dict[str, Source] = {}
    folder = tmp_path_factory.mktemp("sources")

    def of(kind: str) -> Source:
        if kind not in made:
            made[kind] = Source(NETWORKS[kind], folder, in_a_file="LayerNorm" not in kind)
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
            "plugins": [str(PLUGIN)] if model.startswith("small/") else [],
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**content, **sections}))
        return file

    return write


def execute(file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
    start = head_start([(tensor, saved[tensor].shape) for tensor in sorted(head)], seed=0)
    assert [tensor for tensor in head if np.array_equal(saved[tensor], start[tensor])] == []

    held = source.norm if norm == "frozen" else set()
    for entry, prefixes in zip(result["phases"], phases, strict=True):
        frozen = {tensor for tensor in source.tensors if not within(tensor, prefixes) or tensor in held}
        assert (entry["frozen_tensors"], entry["frozen_changed"]) == (len(frozen), 0)
        moving = set(source.tensors) - frozen - source.buffers
        n_parameters = sum(source.tensors[tensor].size for tensor in moving) + sum(saved[tensor].size for tensor in head)
        assert entry["trainable_parameters"] == n_parameters
    trained = {tensor for tensor in source.tensors if any(within(tensor, prefixes) for prefixes in phases) and tensor not in held}
    assert all(saved[tensor].dtype == value.dtype for tensor, value in source.tensors.items())
    moved = {tensor for tensor, value in source.tensors.items() if saved[tensor].tobytes() != value.tobytes()}
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
        ("classifier.1", {"classifier.0": True, "classifier.3": False}),
        ("features.10", {"classifier.0": False, "classifier.3": False}),
        ("classifier.4", {"classifier.3": True}),
    ],
)
def test_dropout_between_groups_belongs_to_the_one_after_it(recipe, train, expected):
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


class WatchedKeras:
    """The same of a Keras network: what its layers are told while the step's graph is traced."""

    def __init__(self, file: Path) -> None:
        self.plan = compile_plan(read(file))
        self.phase = self.plan.phases[0]
        self.network = TensorflowBackend().build(self.plan)
        self.network.begin_phase(self.phase, steps_per_epoch=2, class_weights=None)
        rows = np.random.default_rng(1).integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
        if self.phase.input.cut != PIXELS:
            rows = self.network.compute(rows, start=PIXELS, end=self.phase.input.cut, pooled=self.phase.input.pooled)
        self.batch = Batch(np.arange(BATCH), rows, np.arange(BATCH) % 3)

    def watch(self, *kinds: type) -> dict[str, list[bool]]:
        """By path, the modes in which each layer of these kinds was called."""
        told: dict[str, list[bool]] = {}

        def watched(path: str, layer: Any) -> Callable[..., Any]:
            call = layer.call

            def calling(inputs: Any, training: Any = None, **given: Any) -> Any:
                told.setdefault(path, []).append(bool(training) and layer.trainable)  # Keras: not trainable means inference mode
                return call(inputs, training=training, **given)

            return calling

        for top in self.network.parts.segments.network.layers:
            for layer in top._flatten_layers():
                if isinstance(layer, kinds):
                    path = top.name if layer is top else f"{top.name}/{layer.name}"
                    layer.call = watched(path, layer)
        return told

    def train(self) -> None:
        self.network.train([self.batch], epoch=0, first_step=0, scale=1.0)

    def evaluate(self) -> None:
        self.network.logits(self.batch.inputs, start=self.phase.input.cut, pooled=self.phase.input.pooled)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (["block_1", "inner", "head"], {"block_1_drop": True, "block_2_drop": False, "inner/drop": True}),
        pytest.param(["block_1", "head"], {"block_1_drop": True, "block_2_drop": False, "inner/drop": False}, marks=pytest.mark.slow),
        pytest.param(["block_2", "head"], {"block_2_drop": True, "inner/drop": False}, marks=pytest.mark.slow),
    ],
)
def test_dropout_of_keras_layers_is_on_in_trained_groups_alone(recipe, train, expected):
    watched = WatchedKeras(recipe("small/dropout", "none", [{"train": train, "epochs": 1}]))
    told = watched.watch(small_keras.StochasticDepth, small_keras.keras.layers.Dropout)
    watched.train()
    assert {path: modes for path, modes in told.items() if path in expected} == {path: [on] for path, on in expected.items()}
    told.clear()
    watched.evaluate()
    assert set(told) >= set(expected)
    assert not any(any(modes) for modes in told.values())


@pytest.mark.parametrize("norm", ["train", "frozen"])
def test_batch_norm_of_keras_layers_learns_in_trained_groups_alone(recipe, source, norm):
    """Inside a composite layer too, which is in train mode as a whole where it trains."""
    file = recipe("small/batch_norm", source("Keras, BatchNorm").weights, [{"train": ["stem", "inner", "head"], "epochs": 1, "norm": norm}])
    watched = WatchedKeras(file)
    told = watched.watch(small_keras.keras.layers.BatchNormalization)
    before = {name: variable.numpy() for name, variable in watched.network.named.items()}
    watched.train()
    learning = {"stem_norm", "inner/norm"} if norm == "train" else set()  # by one kernel, in place of the layer's own call
    every = {name.rpartition("/")[0] for name in before if name.endswith("moving_mean")}
    assert len(every) == 10
    assert told == {path: [False] for path in every - learning}
    moved = {name for name, value in before.items() if "moving_" in name and not np.array_equal(value, watched.network.named[name].numpy())}
    assert moved == {f"{path}/moving_{what}" for path in learning for what in ("mean", "variance")}
    told.clear()
    watched.evaluate()
    assert not any(any(modes) for modes in told.values())


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
            %s
        return seen.task_loss()


xfer_plugins = {"methods": {"pulled": Pulled}}
'''
PULLING = {"torch": "weight.data.lerp_(source, self.share)", "tensorflow": "weight.assign_add((source - weight) * self.share)"}
FEATURES_12 = [f"features.12.{part}.{kind}" for part in ("squeeze", "expand1x1", "expand3x3") for kind in ("weight", "bias")]


LATE = ["late/kernel", "late/bias"]
# by backend: the model, one group of it, and that group's tensors
PULLED_IN = {"torch": ("torchvision/squeezenet1_1", "features.12", FEATURES_12), "tensorflow": ("small/plain", "late", LATE)}


def pulled(backend, recipe, tmp_path, *phases: dict[str, Any]) -> int:
    """The exit code of a run with that method; its bundle is tmp_path/bundle."""
    (tmp_path / "pulled.py").write_text(PULLED % PULLING[backend])
    transfer = {"type": "model", "method": "pulled"}
    file = recipe(PULLED_IN[backend][0], "none", list(phases), transfer=transfer, plugins=["./pulled.py", str(PLUGIN)])
    return run(["run", str(file), "--out", str(tmp_path / "bundle"), "--quiet"])


@pytest.mark.parametrize("backend", PULLED_IN)
def test_a_method_that_changes_a_frozen_tensor_fails_the_run(backend, recipe, tmp_path, capsys):
    _, group, tensors = PULLED_IN[backend]
    assert pulled(backend, recipe, tmp_path, {"train": [group, "head"], "epochs": 1}, {"train": "head", "epochs": 1}) == 1
    message = f"phase '2: head': {len(tensors)} frozen tensors changed, the first is {tensors[0]}"
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: {message}",
        "  this is a fault of xfer or of a plugin, not of your recipe: please report it with the bundle",
    ]
    result = json.loads((tmp_path / "bundle" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("failed", message)
    assert [(phase["name"], phase["frozen_changed"]) for phase in result["phases"]] == [(f"1: {group}, head", 0)]
    assert not (tmp_path / "bundle" / "model" / "weights.safetensors").exists()


@pytest.mark.parametrize("backend", PULLED_IN)
def test_the_same_method_passes_where_nothing_that_it_holds_is_frozen(backend, recipe, tmp_path):
    last = {"train": [PULLED_IN[backend][1], "head"], "epochs": 1}
    assert pulled(backend, recipe, tmp_path, last, last) == 0
