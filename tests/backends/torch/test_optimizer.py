"""State that goes from one phase's optimizer to the next, against torch.optim without its fused step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xfer.backends.torch.optimizer import PhaseOptimizer
from xfer.plan.plan import OptimizerPlan, PhasePlan

SHAPES = {"body.conv.weight": (4, 3, 2, 2), "body.norm.weight": (4,), "body.norm.bias": (4,)}
CARRIED = "body.conv.weight"
GROUP_OF = dict.fromkeys(SHAPES, "body")
OPTIMIZERS: list[dict[str, Any]] = [{"name": "sgd"}, {"name": "adam"}, {"name": "adamw"}]


def optimizer(parameters: dict[str, nn.Parameter], **options: Any) -> PhaseOptimizer:
    plan = OptimizerPlan(**{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "schedule": "constant", **options})
    phase = PhasePlan.model_construct(optimizer=plan, epochs=4, until=None, learning_rates={"body": plan.lr})
    return PhaseOptimizer(phase, parameters, GROUP_OF, steps_per_epoch=1)


def start() -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}


def give_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    random = torch.Generator().manual_seed(step + 1)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=random)


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: options["name"])
def test_a_group_of_which_only_a_part_has_a_state(options):
    """So it is after a phase with 'norm: frozen': the convolutions of a group have momenta, its normalisation has none yet."""
    random = np.random.default_rng(0)
    fields = ("momentum_buffer",) if options["name"] == "sgd" else ("exp_avg", "exp_avg_sq")
    before = {f"{CARRIED}/{field}": random.random(SHAPES[CARRIED], np.float32) for field in fields}
    before |= {} if options["name"] == "sgd" else {f"{CARRIED}/step": np.array(3, np.float32)}
    ours, theirs = start(), start()
    made = optimizer(ours, **options)
    made.load_state(before)
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options["name"]]
    extra = {"momentum": 0.9} if options["name"] == "sgd" else {}
    reference = plain(list(theirs.values()), lr=0.1, weight_decay=0.1, fused=False, foreach=False, **extra)
    reference.state[theirs[CARRIED]] = {name.rpartition("/")[2]: torch.from_numpy(value.copy()) for name, value in before.items()}
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        made.step(step, scale=1.0)
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6)


def test_a_phase_without_momentum_passes_none_on():
    """As on TensorFlow: the phase after it starts anew, not from what the weights did two phases before."""
    made = optimizer(start(), name="sgd", momentum=0.0)
    made.load_state({f"{CARRIED}/momentum_buffer": np.ones(SHAPES[CARRIED], np.float32)})
    give_gradients(made.parameters, 0)
    made.step(0, scale=1.0)
    assert made.state() == {}
