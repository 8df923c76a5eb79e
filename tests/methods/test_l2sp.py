"""L2-SP: its penalty against equation 3 in numpy's float64, its gradient against autograd's of the formula written out, and what it
does to a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from xfer.backends.backend import Batch
from xfer.backends.torch.backend import TorchBackend
from xfer.backends.torch.seen import Computed, Look
from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.methods.l2sp import L2SP, penalty
from xfer.recipe.loader import read

SIDE, CLASSES = 32, 3
ALPHA, BETA = 0.7, 0.03
SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "norm.weight": (4,)}
Arrays = dict[str, np.ndarray]


class Numbers:
    """Float64 numbers for one look at a batch."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.source: Arrays = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
        self.trained: Arrays = {name: value + random.normal(size=value.shape) / 3 for name, value in self.source.items()}
        self.head: Arrays = {"output.weight": random.normal(size=(CLASSES, 4)), "output.bias": random.normal(size=CLASSES)}
        self.features, self.labels = random.normal(size=(6, 4)), np.arange(6) % CLASSES

    def look(self) -> Look:
        """Whose network is the head alone; the trained tensors only enter the penalty."""
        tensors: dict[str, dict[str, torch.Tensor]] = {"own": {}, "source": {n: torch.from_numpy(v) for n, v in self.source.items()}}
        for part, values in (("trained", self.trained), ("head", self.head)):
            tensors[part] = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in values.items()}
        features = torch.from_numpy(self.features)
        computed = Computed(features, features @ tensors["head"]["output.weight"].T + tensors["head"]["output.bias"], {})
        return Look(
            torch.from_numpy(self.labels),
            computed,
            progress=0.0,
            tensors=tensors,
            teach=lambda: computed,
            class_weights=None,
            label_smoothing=0.0,
        )

    def written_out(self, alpha: float, beta: float) -> float:
        """alpha/2 · ||w_S - w_S⁰||² + beta/2 · ||w_H||², number by number."""
        total = 0.0
        for name, value in self.trained.items():
            for one, other in zip(value.flat, self.source[name].flat, strict=True):
                total += alpha / 2 * (one - other) ** 2
        for value in self.head.values():
            for one in value.flat:
                total += beta / 2 * one**2
        return total


@pytest.mark.parametrize(("alpha", "beta"), [(ALPHA, BETA), (ALPHA, 0.0), (0.0, BETA), (0.0, 0.0), (100.0, 7.0)])
def test_the_penalty_is_equation_3(alpha, beta):
    numbers = Numbers()
    assert penalty(numbers.look(), alpha=alpha, beta=beta).item() == pytest.approx(numbers.written_out(alpha, beta), rel=1e-12)


def test_at_the_source_only_the_head_costs():
    numbers = Numbers()
    numbers.trained = numbers.source
    expected = BETA / 2 * sum(float((value**2).sum()) for value in numbers.head.values())
    assert penalty(numbers.look(), alpha=1e6, beta=BETA).item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_cross_entropy_and_the_penalty():
    numbers = Numbers()
    logits = numbers.features @ numbers.head["output.weight"].T + numbers.head["output.bias"]
    chosen = logits[np.arange(6), numbers.labels] - np.log(np.exp(logits).sum(1))
    expected = -chosen.mean() + numbers.written_out(ALPHA, BETA)
    assert L2SP(alpha=ALPHA, beta=BETA).loss(numbers.look()).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_the_formula_written_out():
    numbers = Numbers()
    look = numbers.look()
    L2SP(alpha=ALPHA, beta=BETA).loss(look).backward()

    w = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in {**numbers.trained, **numbers.head}.items()}
    source = {name: torch.from_numpy(value) for name, value in numbers.source.items()}
    logits = torch.from_numpy(numbers.features) @ w["output.weight"].T + w["output.bias"]
    chosen = logits[torch.arange(6), torch.from_numpy(numbers.labels)]
    loss = (torch.logsumexp(logits, 1) - chosen).mean()
    loss = loss + ALPHA / 2 * torch.stack([(w[name] - source[name]).pow(2).sum() for name in SHAPES]).sum()
    loss = loss + BETA / 2 * (w["output.weight"].pow(2).sum() + w["output.bias"].pow(2).sum())
    loss.backward()

    found = {**look.trained, **look.head}
    assert set(found) == set(w)
    for name, parameter in w.items():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-12, atol=1e-14)
    assert all(value.grad is None for value in look.source.values())


def test_the_defaults_are_the_papers():
    method = L2SP()
    assert (method.alpha, method.beta) == (0.1, 0.01)


# in a run


@pytest.fixture
def recipe(tmp_path) -> Callable[..., Path]:
    random, labels = np.random.default_rng(0), np.arange(30) % CLASSES
    images = random.integers(0, 120, (30, SIDE, SIDE, 3), dtype=np.uint8)
    images[np.arange(30), ..., labels] += 100
    np.savez(tmp_path / "pictures.npz", images=images, labels=labels)

    def write(name: str, transfer: dict[str, Any], train: Any, **optimizer: Any) -> Path:
        content = {
            "source": {"model": "torchvision/squeezenet1_1", "weights": "none"},
            "target": {"dataset": "arrays", "path": str(tmp_path / "pictures.npz"), "image_size": SIDE, "batch_size": 8},
            "transfer": {"type": "model", **transfer},
            "freeze": [{"train": train, "epochs": 3}],
            "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.0, **optimizer},
            "runtime": {"cache": str(tmp_path / "cache"), "precision": "float32", "device": "cpu"},
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def distances(file: Path) -> dict[str, float]:
    """What a run says of how far each group went."""
    bundle = file.with_suffix("")
    assert run(["run", str(file), "--out", str(bundle), "--quiet"]) == 0
    found: dict[str, float] = json.loads((bundle / "result.json").read_text())["phases"][0]["distance"]
    return found


def test_a_large_alpha_keeps_each_group_nearer_to_the_source(recipe):
    plain = distances(recipe("plain", {"method": "finetune"}, "all"))
    none = distances(recipe("none", {"method": "l2sp", "alpha": 0.0, "beta": 0.0}, "all"))
    near = distances(recipe("near", {"method": "l2sp", "alpha": 25.0, "beta": 0.0}, "all"))
    assert set(plain) == set(near) == {f"features.{n}" for n in (0, 3, 4, 6, 7, 9, 10, 11, 12)}
    assert all(value > 0 for value in plain.values())
    assert none == pytest.approx(plain, rel=1e-6)
    # Each step takes half of the way back: two steps' worth of moving is left of twelve.
    print({g: near[g]/plain[g] for g in plain})
    assert all(near[group] < 0.6 * plain[group] for group in plain), (near, plain)


def test_what_is_frozen_costs_nothing(recipe):
    """The penalty of the real network: only over what trains."""
    plan = compile_plan(read(recipe("part", {"method": "l2sp", "alpha": ALPHA, "beta": BETA}, ["features.12", "head"])))
    network = TorchBackend().build(plan)
    phase = plan.phases[0]
    network.begin_phase(phase, steps_per_epoch=1, class_weights=None)
    pixels = np.random.default_rng(1).integers(0, 255, (4, SIDE, SIDE, 3), dtype=np.uint8)
    rows = network.compute(pixels, start="pixels", end=phase.input.cut, pooled=phase.input.pooled)
    with torch.no_grad():
        for name, tensor in network.named.items():
            if name.startswith("features."):  # frozen ones too, as if an earlier phase had moved them
                tensor.add_(0.1)
    head = torch.cat([network.named[f"head.output.{kind}"].detach().double().flatten() for kind in ("weight", "bias")])
    n_trained = sum(tensor.numel() for name, tensor in network.named.items() if name.startswith("features.12."))
    expected = ALPHA / 2 * n_trained * 0.1**2 + BETA / 2 * float(head @ head)
    labels = np.arange(4) % CLASSES
    start = network.logits(rows, start=phase.input.cut, pooled=phase.input.pooled).astype(np.float64)
    task = float((np.log(np.exp(start).sum(1)) - start[np.arange(4), labels]).mean())
    record = network.train([Batch(np.arange(4), rows, labels)], epoch=0, first_step=0, scale=1.0)
    assert record.losses[0] == pytest.approx(task + expected, rel=1e-5)
