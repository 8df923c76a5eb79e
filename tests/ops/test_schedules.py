"""Schedules against torch's own schedulers, step by step."""

from __future__ import annotations

import pytest
import torch

from xfer.ops.schedules import factor


def torch_rates(make, steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torch_s():
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40), 40)
    assert [factor("cosine", step, steps=40) for step in range(40)] == pytest.approx(expected)


@pytest.mark.parametrize("steps", [10, 37, 200])
def test_one_cycle_is_torch_s(steps):
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps), steps)
    assert [factor("one_cycle", step, steps=steps) for step in range(steps)] == pytest.approx(expected, abs=1e-9)


def test_warm_up_rises_in_equal_steps_and_the_schedule_spans_the_rest():
    rates = [factor("cosine", step, steps=10, warmup_steps=5) for step in range(10)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([factor("cosine", step, steps=5) for step in range(5)])


def test_a_warm_up_of_part_of_a_step_is_none():
    assert [factor("constant", step, steps=3, warmup_steps=0.5) for step in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant(schedule):
    assert {factor(schedule, step, steps=7) for step in range(7)} == {1.0}
