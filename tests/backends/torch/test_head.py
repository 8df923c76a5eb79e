"""The head alone: shapes, pooling, and dropout that depends on the image, not on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.backends.torch.head import Head, pool
from xfer.plan.plan import HeadPlan


def head(hidden=(), dropout=0.0):
    return Head(HeadPlan(at="pooled", layout="vector", inputs=6, hidden=hidden, dropout=dropout, outputs=3), seed=1)


def test_names_are_the_plan_s():
    plan = HeadPlan(at="pooled", layout="vector", inputs=6, hidden=(4, 5), dropout=0.0, outputs=3)
    module = Head(plan, seed=0)
    assert [(f"head.{name}", tuple(p.shape)) for name, p in module.named_parameters()] == [(t.name, t.shape) for t in plan.tensors]


def test_forward_is_linear_relu_linear():
    module, x = head((4,)), torch.randn(5, 6)
    expected = torch.relu(x @ module.hidden[0].weight.T + module.hidden[0].bias) @ module.output.weight.T + module.output.bias
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_dropout_masks_are_keyed_by_image():
    module = head((4,), dropout=0.5)
    rows = np.array([7, 3, 11])
    together = module.masks(rows, phase=0, epoch=2)
    for index, row in enumerate(rows):
        alone = module.masks(np.array([row]), phase=0, epoch=2)
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together, strict=True))
    other = module.masks(rows, phase=0, epoch=3)
    assert any(not torch.equal(a, b) for a, b in zip(together, other, strict=True))


def test_dropout_keeps_its_share_and_scales():
    masks = head(dropout=0.25).masks(np.arange(20_000), phase=0, epoch=0)
    assert len(masks) == 1
    assert masks[0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert masks[0].mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "layout", "dims"), [((2, 3, 4, 5), "chw", (2, 3)), ((2, 4, 5, 3), "hwc", (1, 2)), ((2, 7, 3), "tokens", (1,))]
)
def test_pooling_averages_over_places(shape, layout, dims):
    x = torch.randn(shape)
    assert torch.equal(pool(x, layout), x.mean(dims))


def test_vectors_pass():
    x = torch.randn(2, 3)
    assert torch.equal(pool(x, "vector"), x)
