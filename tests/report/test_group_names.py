"""Runs of groups, and learning rates by group."""

from __future__ import annotations

import pytest

from xfer.report.group_names import compressed, rates


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("layer4.0", "layer4.1", "head"), "layer4.0 … layer4.1, head"),
        (("conv1", "layer1.0", "layer1.1", "layer4.1"), "conv1 … layer1.1, layer4.1"),
        (("layer1.1", "layer1.0", "conv1"), "conv1 … layer1.1"),
        (("head",), "head"),
        (("layer4.1", "head", "method.bottleneck"), "layer4.1, head, method.bottleneck"),
        ((), ""),
    ],
)
def test_neighbours_are_drawn_together(model_map, names, text):
    assert compressed(names, model_map) == text


@pytest.mark.parametrize(
    ("by_group", "text"),
    [
        ({"layer4.0": 1e-3, "layer4.1": 1e-3, "head": 1e-3}, "0.001"),
        ({"layer4.0": 1e-5, "layer4.1": 1e-5, "head": 1e-3}, "layer4.0 … layer4.1: 1e-05, head: 0.001"),
        (
            {"layer3.1": 1.25e-4, "layer4.0": 2.5e-4, "layer4.1": 5e-4, "head": 1e-3},
            "head: 0.001, times 0.5 for each group below it, layer3.1: 0.000125",
        ),
        (
            {"layer3.1": 1.25e-4, "layer4.0": 2.5e-4, "layer4.1": 5e-4, "head": 1e-3, "method.critic": 0.1},
            "head: 0.001, times 0.5 for each group below it, layer3.1: 0.000125, method.critic: 0.1",
        ),
        (
            {"layer3.1": 1.25e-4, "layer4.0": 2.5e-4, "layer4.1": 5e-4, "head": 2e-3},
            "layer3.1: 0.000125, layer4.0: 0.00025, layer4.1: 0.0005, head: 0.002",
        ),
        ({"layer3.1": 0.0, "layer4.0": 0.0, "layer4.1": 0.0, "head": 1e-3}, "layer3.1 … layer4.1: 0, head: 0.001"),
        ({"layer3.1": 1e-6, "layer4.0": 1e-5, "layer4.1": 1e-5}, "layer3.1: 1e-06, layer4.0 … layer4.1: 1e-05"),
    ],
)
def test_groups_with_one_rate_are_drawn_together(model_map, two_phases, by_group, text):
    assert rates(two_phases[1].model_copy(update={"learning_rates": by_group}), model_map) == text
