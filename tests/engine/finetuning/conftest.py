"""Fine-tuning once more, by hand and in float64: forward, losses, optimizers, schedules and the logic of phases, from the recipe alone.

Of xfer it takes what has tests of its own and no arithmetic: the order of an epoch, the head's start and the head's dropout numbers.
torch gives float64 tensors, convolutions and gradients; none of its optimizers, losses or normalisation layers. Runs on both backends are
compared with it: a recipe means the same on both, in torch's definitions, down to the running variance.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from xfer import plugins
from xfer.compile.compiler import compile_plan
from xfer.data.order import epoch_order, keyed_uniform
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.ops.initial import head_start
from xfer.recipe.loader import load

HERE = Path(__file__).parent
PLUGINS = {"torch": HERE / "tiny_networks.py", "tensorflow": HERE / "tiny_keras.py"}
PROVIDERS = {"torch": "tiny", "tensorflow": "tiny_keras"}
tiny, tiny_keras = (sys.modules[plugins.load_local(file.read_text(), stem=file.stem)] for file in PLUGINS.values())
BATCH, N_TRAIN, N_CLASSES = 8, 44, 3  # six steps an epoch, the last of four images
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)  # as the source's preprocessing says
GROUPS = {"plain": ("one", "two", "three", "head"), "normalised": ("one", "two", "head")}
N_FEATURES = {"plain": 7, "normalised": 6}
OPTIMIZER: dict[str, Any] = {
    "name": "adamw", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0.0, "clip_norm": None,
    "label_smoothing": 0.0, "class_weights": "none", "average": None, "norm_momentum": None,
}  # fmt: skip
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
COUNT = "num_batches_tracked"  # which Keras doesn't keep
TOLERANCE = 2e-5  # of each tensor's largest number, and of each loss: float32 against float64 (measured here: up to 5e-6)

Tensors = dict[str, torch.Tensor]


@dataclass
class Outcome:
    """What training leaves: tensors by name, and by (phase, epoch) the losses, rates and validation's metrics."""

    tensors: dict[str, np.ndarray]
    lines: dict[tuple[int, int], dict[str, Any]]
    lengths: list[tuple[int, int | None]]  # epochs, and the best one from 1


@dataclass
class Statistics:
    """How batch normalisation computes: with the batch's own numbers in `live` groups, which are kept with `momentum`, or, where
    `collected` is given, added to it and not kept."""

    live: frozenset[str] = frozenset()
    momentum: float = 0.1
    collected: dict[str, list[torch.Tensor]] | None = None


def normalise(x: torch.Tensor, w: Tensors, group: str, how: Statistics) -> torch.Tensor:
    """Ioffe & Szegedy 2015, algorithm 1. By torch's definitions a batch is normalised with the biased variance, the running variance
    follows the unbiased one, and momentum is the new value's share (torch.nn.BatchNorm2d)."""
    mean, variance = w[f"{group}.norm.running_mean"], w[f"{group}.norm.running_var"]
    if group in how.live:
        n = x.numel() // x.shape[1]
        batch_mean, batch_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        new = {"running_mean": batch_mean.detach(), "running_var": batch_variance.detach() * n / (n - 1)}
        for name, value in new.items():
            if how.collected is not None:
                how.collected.setdefault(f"{group}.norm.{name}", []).append(value)
            else:
                w[f"{group}.norm.{name}"] = (1 - how.momentum) * w[f"{group}.norm.{name}"] + how.momentum * value
        if how.collected is None:
            w[f"{group}.norm.num_batches_tracked"] = w[f"{group}.norm.num_batches_tracked"] + 1
        mean, variance = batch_mean, batch_variance
    shown = [value.view(1, -1, 1, 1) for value in (mean, variance, w[f"{group}.norm.weight"], w[f"{group}.norm.bias"])]
    return (x - shown[0]) / torch.sqrt(shown[1] + 1e-5) * shown[2] + shown[3]


def forward(network: str, w: Tensors, x: torch.Tensor, how: Statistics, masks: list[torch.Tensor] | None = None) -> torch.Tensor:
    """Logits. `w` gets new statistics; the head's hidden layers have ReLU, and `masks` before each of its layers."""
    for group in ("one", "two"):
        layer = group if network == "plain" else f"{group}.conv"
        x = functional.conv2d(x, w[f"{layer}.weight"], w.get(f"{layer}.bias"), stride=2, padding=1)
        x = torch.tanh(x if network == "plain" else normalise(x, w, group, how))
    x = torch.tanh(x.flatten(1) @ w["three.weight"].T + w["three.bias"]) if network == "plain" else x.mean((2, 3))
    layers = [*sorted({name.rpartition(".")[0] for name in w if name.startswith("head.hidden.")}), "head.output"]
    for number, layer in enumerate(layers):
        x = (x if masks is None else x * masks[number]) @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        x = x if layer == "head.output" else x.clamp(min=0)
    return x


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Targets are (1 - s) at the label and s / K more everywhere (Szegedy et al. 2016, section 7); class c costs w_c, and the sum is
    divided by that of the labels' weights (torch.nn.CrossEntropyLoss)."""
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    targets = torch.full_like(logits, smoothing / logits.shape[1])
    targets[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(targets * logs * weights).sum() / weights[labels].sum()


def update(kind: str, w: torch.Tensor, slope: torch.Tensor, state: dict[str, Any], rate: float, chosen: dict[str, Any]) -> torch.Tensor:
    """sgd: momentum as in torch.optim.SGD, v = m·v + g from v = g, decay in g. adam: Kingma & Ba 2015, algorithm 1, decay in g. adamw:
    Loshchilov & Hutter 2019, algorithm 2, decay beside g and, as in torch.optim.AdamW, times the rate."""
    decay = chosen["weight_decay"]
    if kind == "adamw":
        w = w - rate * decay * w
    else:
        slope = slope + decay * w
    if kind == "sgd":
        state["v"] = chosen["momentum"] * state["v"] + slope if "v" in state else slope
        return w - rate * state["v"]
    state["t"] = state.get("t", 0) + 1
    state["first"] = 0.9 * state.get("first", 0.0) + 0.1 * slope
    state["second"] = 0.999 * state.get("second", 0.0) + 0.001 * slope**2
    first, second = state["first"] / (1 - 0.9 ** state["t"]), state["second"] / (1 - 0.999 ** state["t"])
    return w - rate * first / (second.sqrt() + 1e-8)


def multipliers(schedule: str, *, steps: int, warmup: float) -> list[float]:
    """Per step of a phase. Warm-up: Goyal et al. 2017, section 2.2. Cosine: Loshchilov & Hutter 2017, equation 5, down to 0.
    One-cycle: Smith & Topin 2019, by torch's own scheduler. Each schedule spans what the warm-up leaves."""
    rising = [(step + 1) / warmup for step in range(math.ceil(warmup))]
    span = steps - warmup
    left = [step - warmup for step in range(len(rising), steps)]
    if schedule == "cosine":
        return rising + [(1 + math.cos(math.pi * step / span)) / 2 for step in left]
    if schedule == "one_cycle":
        assert span == int(span), "torch's scheduler counts whole steps"
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=int(span))
        for _ in left:
            rising.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler.last_epoch < span - 1:
                scheduler.step()
        return rising
    return rising + [1.0] * len(left)


@dataclass
class Loop:
    """One run. `recipe` is the one that xfer gets, and nothing that xfer decided is looked at."""

    recipe: dict[str, Any]
    data: dict[str, np.ndarray]
    w: Tensors = field(default_factory=dict)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = self.recipe["source"]["model"].partition("/")[2]
        self.seed = self.recipe.get("seed", 0)
        self.method = {"alpha": 0.1, "beta": 0.01, **self.recipe["transfer"]} if self.recipe["transfer"].get("method") == "l2sp" else {}
        self.head = {"hidden": [], "dropout": 0.0, **self.recipe.get("head", {})}
        self.widths = [N_FEATURES[self.network], *self.head["hidden"]]
        layers = [*(f"head.hidden.{number}" for number in range(len(self.head["hidden"]))), "head.output"]
        shapes = zip(layers, zip([*self.widths[1:], N_CLASSES], self.widths, strict=True), strict=True)
        named = [(f"{layer}.{part}", shape[:n]) for layer, shape in shapes for part, n in (("weight", 2), ("bias", 1))]
        start = {**tiny.start_of(self.network), **head_start(named, seed=self.seed)}
        self.w = {name: torch.from_numpy(np.array(value, np.float64)) for name, value in start.items()}
        self.source = dict(self.w)
        pixels = {split: self.data[f"x_{split}"].astype(np.float64) / 255 for split in ("train", "val")}
        self.x = {split: torch.from_numpy(((values - MEAN) / STD).transpose(0, 3, 1, 2).copy()) for split, values in pixels.items()}
        self.y = {split: torch.from_numpy(self.data[f"y_{split}"]) for split in ("train", "val")}

    def finish(self) -> Outcome:
        lengths, before = [], ""
        for index, phase in enumerate(self.recipe["freeze"]):
            chosen = {**OPTIMIZER, **self.recipe.get("optimizer", {}), **{name: phase[name] for name in OPTIMIZER if name in phase}}
            chosen["name"] = phase.get("optimizer", chosen["name"])
            carried = phase.get("optimizer_state", "carry") == "carry" and chosen["name"] == before
            before = chosen["name"]
            lengths.append(Phase(self, index, phase, chosen, self.state if carried else {}).finish())
        return Outcome({name: value.numpy() for name, value in self.w.items()}, self.lines, lengths)


class Phase:
    """One phase; changes the loop's tensors and leaves its own optimizer state there."""

    def __init__(self, loop: Loop, index: int, phase: dict[str, Any], chosen: dict[str, Any], carried: dict[str, dict[str, Any]]) -> None:
        self.loop, self.index, self.phase, self.chosen = loop, index, phase, chosen
        train = phase["train"]
        self.groups = GROUPS[loop.network] if train == "all" else tuple(train) if isinstance(train, list) else (train,)
        frozen_norm = phase.get("norm", "train") == "frozen"
        inside = [name for name in loop.w if name.partition(".")[0] in self.groups and not name.endswith(STATISTICS)]
        self.names = [name for name in inside if not (frozen_norm and ".norm." in name)]
        self.live = frozenset() if frozen_norm else frozenset(self.groups)
        loop.state = {name: carried.get(name, {}) for name in self.names}
        n = len(self.groups)
        self.rates = {g: chosen["lr"] * (phase.get("layer_decay") or 1.0) ** (n - 1 - place) for place, g in enumerate(self.groups)}
        counts = np.bincount(loop.data["y_train"], minlength=N_CLASSES)
        balanced = N_TRAIN / (N_CLASSES * counts)  # scikit-learn's class_weight="balanced"
        self.weights = torch.from_numpy(balanced if chosen["class_weights"] == "balanced" else np.ones(N_CLASSES))
        self.until = phase.get("until", {})
        self.epochs = self.until["max_epochs"] if self.until else phase["epochs"]
        self.per_epoch = -(-N_TRAIN // BATCH)
        warmup = chosen["warmup_epochs"] * self.per_epoch
        self.multipliers = multipliers(chosen["schedule"], steps=self.epochs * self.per_epoch, warmup=warmup)
        self.kept = dict(loop.w)  # the moving average, where there is one
        self.scale, self.lowest, self.worse = 1.0, math.inf, 0  # of plateau
        self.best: tuple[float, int, Tensors] | None = None

    def finish(self) -> tuple[int, int | None]:
        epoch = -1
        for epoch in range(self.epochs):
            self.epoch(epoch)
            if self.until and self.best is not None and epoch - self.best[1] >= self.until["patience"]:
                break
        if self.chosen["average"]:
            self.loop.w = self.kept
        if self.best is not None:
            self.loop.w = dict(self.best[2])
        if self.phase.get("reestimate_norm"):
            self.reestimate()
        return epoch + 1, None if self.best is None else self.best[1] + 1

    def epoch(self, epoch: int) -> None:
        loop = self.loop
        order = epoch_order(np.arange(N_TRAIN), seed=loop.seed, phase=self.index, epoch=epoch, mode="full", shard_rows=512)
        multiplier = self.scale * self.multipliers[epoch * self.per_epoch]
        losses = []
        for number, first in enumerate(range(0, N_TRAIN, BATCH)):
            rows = order[first : first + BATCH]
            step = epoch * self.per_epoch + number
            losses.append(self.step(rows, epoch, self.scale * self.multipliers[step]) * len(rows))
            # TensorFlow's ExponentialMovingAverage with num_updates; its decay rises from a tenth.
            decay = min(self.chosen["average"] or 0.0, (1 + step) / (10 + step))
            whole = ("num_batches_tracked",)
            self.kept = {n: v if n.endswith(whole) else decay * self.kept[n] + (1 - decay) * v for n, v in loop.w.items()}
        line = {"loss": sum(losses) / N_TRAIN, "lr": {group: rate * multiplier for group, rate in self.rates.items()}}
        loop.lines[self.index, epoch] = {**line, **self.judge(epoch)}

    def step(self, rows: np.ndarray, epoch: int, multiplier: float) -> float:
        loop = self.loop
        masks = None
        if loop.head["dropout"]:
            drawn = keyed_uniform(loop.seed, self.index, epoch, rows, sum(loop.widths))
            kept = torch.from_numpy((drawn >= loop.head["dropout"]) / (1 - loop.head["dropout"]))
            masks = list(kept.split(loop.widths, dim=1))
        leaves = {name: loop.w[name].clone().requires_grad_() for name in self.names}
        w = {**loop.w, **leaves}
        momentum = 0.1 if self.chosen["norm_momentum"] is None else self.chosen["norm_momentum"]
        logits = forward(loop.network, w, loop.x["train"][rows], Statistics(self.live, momentum), masks)
        loss = cross_entropy(logits, loop.y["train"][rows], self.weights, self.chosen["label_smoothing"])
        slopes = dict(zip(self.names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        total = float(loss.detach())
        for name in self.names if loop.method else ():  # Li, Grandvalet & Davoine 2018, equation 3; its gradient by hand
            is_head = name.startswith("head.")
            strength = loop.method["beta"] if is_head else loop.method["alpha"]
            away = loop.w[name] if is_head else loop.w[name] - loop.source[name]
            slopes[name] = slopes[name] + strength * away
            total += strength / 2 * float((away**2).sum())
        if self.chosen["clip_norm"]:  # Pascanu, Mikolov & Bengio 2013, algorithm 1, over all that trains
            norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes.values()))
            slopes = {name: slope * min(1.0, self.chosen["clip_norm"] / (norm + 1e-6)) for name, slope in slopes.items()}
        loop.w = {name: value.detach() for name, value in w.items()}
        for name in self.names:
            rate = self.rates[name.partition(".")[0]] * multiplier
            loop.w[name] = update(self.chosen["name"], loop.w[name], slopes[name], loop.state[name], rate, self.chosen)
        return total

    def judge(self, epoch: int) -> dict[str, Any]:
        """Validation of the weights that the phase would leave now, and what follows from it."""
        loop = self.loop
        w = self.kept if self.chosen["average"] else loop.w
        logits = forward(loop.network, dict(w), loop.x["val"], Statistics())
        loss = float(cross_entropy(logits, loop.y["val"], torch.ones(N_CLASSES, dtype=torch.float64), 0.0))
        accuracy = float((logits.argmax(1) == loop.y["val"]).double().mean())
        if self.chosen["schedule"] == "plateau":  # a tenth, after three epochs in turn that were not better
            self.worse = 0 if loss < self.lowest else self.worse + 1
            self.lowest = min(self.lowest, loss)
            if self.worse == 3:
                self.scale, self.worse = self.scale / 10, 0
        if self.until:
            value = loss if self.until["metric"] == "val.loss" else -accuracy
            if self.best is None or self.best[0] - value > self.until["min_delta"]:
                self.best = (value, epoch, dict(w))
        return {"val": {"loss": loss, "accuracy": accuracy}}

    def reestimate(self) -> None:
        """Wu & Johnson 2021, section 3.1: the mean of the batches' own statistics, over the training images in the dataset's order."""
        loop, how = self.loop, Statistics(self.live, collected={})
        assert how.collected is not None
        for first in range(0, N_TRAIN, BATCH):
            forward(loop.network, dict(loop.w), loop.x["train"][first : first + BATCH], how)
        loop.w.update({name: torch.stack(values).mean(0) for name, values in how.collected.items()})
        for group in self.live - {"head"}:
            loop.w[f"{group}.norm.num_batches_tracked"] = torch.tensor(float(self.per_epoch), dtype=torch.float64)


class Workbench:
    """Data, weights and a cache in a folder; runs recipes there on one backend, by xfer and by hand. Tensors have torch's names and
    layouts on both."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend, self.data = folder, backend, tiny.images()
        np.savez(folder / "images.npz", **self.data)
        for network in GROUPS:
            start = tiny.start_of(network)
            save_file(start if backend == "torch" else tiny_keras.to_keras(start), folder / f"{network}.safetensors")
        self.n_runs = 0

    def recipe(self, network: str, phases: list[dict[str, Any]], optimizer: dict[str, Any], **parts: Any) -> dict[str, Any]:
        """A whole recipe; `parts` are further sections of it."""
        return {
            "source": {"model": f"{PROVIDERS[self.backend]}/{network}", "weights": str(self.folder / f"{network}.safetensors")},
            "target": {"dataset": "arrays", "path": str(self.folder / "images.npz"), "image_size": tiny.SIDE, "batch_size": BATCH},
            "transfer": {"type": "model"},
            "freeze": phases,
            "optimizer": optimizer,
            "runtime": {"cache": str(self.folder / "cache"), "precision": "float32", "device": "cpu"},
            "plugins": [str(PLUGINS[self.backend])],
            **parts,
        }

    def start(self, network: str) -> dict[str, np.ndarray]:
        """The source's own tensors."""
        return self._kept(tiny.start_of(network))

    def by_hand(self, recipe: dict[str, Any]) -> Outcome:
        done = Loop(recipe, self.data).finish()
        return Outcome(self._kept(done.tensors), done.lines, done.lengths)

    def _kept(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those that the backend has."""
        return {name: value for name, value in tensors.items() if self.backend == "torch" or not name.endswith(COUNT)}

    def by_xfer(self, recipe: dict[str, Any]) -> Outcome:
        """What is in the bundle of a whole run; only its page is left out."""
        self.n_runs += 1
        file, bundle = self.folder / f"{self.n_runs}.yaml", self.folder / f"bundle-{self.n_runs}"
        file.write_text(yaml.safe_dump(recipe))
        made = Bundle.create(bundle, compile_plan(load(file)), recipe=file.read_text(), resolved="")
        assert Run(made, reporter=Silent(), stop=lambda: False).execute()["status"] == "finished"
        lines: dict[tuple[int, int], dict[str, Any]] = {}
        for line in map(json.loads, (bundle / "metrics.jsonl").read_text().splitlines()):
            kept = lines.setdefault((line["phase_index"], line["epoch"]), {})
            kept.update({"loss": line["loss"], "lr": line["lr"]} if line["split"] == "train" else {"val": line})
        result = json.loads((bundle / "result.json").read_text())
        lengths = [(phase["epochs"], phase["best_epoch"]) for phase in result["phases"]]
        saved = load_file(bundle / "model" / "weights.safetensors")
        if self.backend == "tensorflow":
            saved = tiny_keras.from_keras(recipe["source"]["model"].partition("/")[2], saved)
        return Outcome(saved, lines, lengths)


def differences(found: Outcome, expected: Outcome) -> dict[str, float]:
    """Of each tensor the largest difference by its largest number, and of the losses the largest by their size; infinite for other
    names, lengths, rates or accuracies."""
    away = {name: float(np.abs(found.tensors[name] - value).max() / np.abs(value).max()) for name, value in expected.tensors.items()}
    same = (set(found.tensors), found.lengths, list(found.lines)) == (set(expected.tensors), expected.lengths, list(expected.lines))
    for key, line in expected.lines.items() if same else ():
        other = found.lines[key]
        same = same and other["lr"] == pytest.approx(line["lr"], rel=1e-9)
        same = same and other["val"]["accuracy"] == pytest.approx(line["val"]["accuracy"])
        losses = {"train.loss": (other["loss"], line["loss"]), "val.loss": (other["val"]["loss"], line["val"]["loss"])}
        for name, (one, two) in losses.items():
            away[name] = max(away.get(name, 0.0), abs(one - two) / two)
    return away if same else {**away, "lengths, rates or accuracies": math.inf}


def changed(recipe: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The recipe with other values at 'dotted.places'."""
    made = copy.deepcopy(recipe)
    for place, value in change.items():
        *path, last = place.split(".")
        inside: Any = made
        for key in path:
            inside = inside[int(key)] if isinstance(inside, list) else inside[key]
        inside[last] = value
    return made


@pytest.fixture(scope="module", params=PLUGINS)
def workbench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("finetuning"), request.param)


@pytest.fixture(scope="module")
def assert_counted(workbench: Workbench) -> Callable[..., None]:
    """How many batches the normalisation of each group has counted, where the backend counts them."""

    def check(found: Outcome, **expected: int) -> None:
        if workbench.backend == "torch":
            assert {group: int(found.tensors[f"{group}.norm.{COUNT}"]) for group in expected} == expected
        assert (f"one.norm.{COUNT}" in found.tensors) == (workbench.backend == "torch")

    return check


@pytest.fixture(scope="module")
def compared(workbench: Workbench) -> Callable[..., tuple[Outcome, Outcome]]:
    """Runs a recipe in both ways and asserts that they agree; then that they would not, were the recipe read with any of `without`
    in it: what is tested must show in the tensors, or in how long a phase is. Returns what xfer left, and what the loop did."""

    def compare(
        network: str, phases: list[dict[str, Any]], optimizer: dict[str, Any], *, without: tuple[dict[str, Any], ...], **parts: Any
    ) -> tuple[Outcome, Outcome]:
        recipe = workbench.recipe(network, phases, optimizer, **parts)
        found, expected = workbench.by_xfer(recipe), workbench.by_hand(recipe)
        away = differences(found, expected)
        assert {name: value for name, value in away.items() if value > TOLERANCE} == {}
        for change in without:
            other = workbench.by_hand(changed(recipe, change))
            moved = max(value for name, value in differences(found, other).items() if name in found.tensors)
            assert moved > 100 * TOLERANCE or found.lengths != other.lengths, change
        return found, expected

    return compare
