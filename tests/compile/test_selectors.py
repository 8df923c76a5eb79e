"""Selectors over a small map: each form, and what is said when nothing matches."""

from __future__ import annotations

import pytest

from xfer.compile.selectors import NoMatch, lower
from xfer.plan.model_map import Cut, Group, ModelMap, Tensor


def group(name, stage):
    return Group(name=name, stage=stage, tensors=(Tensor(name=f"{name}.weight", shape=(2,), kind="parameter"),))


MAP = ModelMap(
    model="torchvision/small",
    backend="torch",
    library="torchvision 1",
    input_size=8,
    image_size=8,
    groups=(
        group("conv1", "stage0"),
        group("layer1.0", "stage1"),
        group("layer1.1", "stage1"),
        group("layer2.0", "stage2"),
        group("layer20", "stage2"),
    ),
    cuts=(
        Cut(name="pixels", groups_before=0, shape=(8, 8, 3), layout="pixels"),
        Cut(name="pooled", groups_before=5, shape=(4,), layout="vector"),
    ),
)
ALL = ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer20")


@pytest.mark.parametrize(("selector", "names"), [
    ("head", ("head",)),
    ("all", (*ALL, "head")),
    ("conv1", ("conv1",)),
    ("layer1", ("layer1.0", "layer1.1")),
    ("layer2", ("layer2.0",)),
    ("stage2", ("layer2.0", "layer20")),
    ("last stage", ("layer2.0", "layer20")),
    ("last 2 stages", ("layer1.0", "layer1.1", "layer2.0", "layer20")),
    ("layer?.0", ("layer1.0", "layer2.0")),
    ("*", ALL),
])  # fmt: skip
def test_each_form(selector, names):
    assert lower(selector, MAP) == names


@pytest.mark.parametrize(("selector", "message", "suggestion"), [
    ("layer5", "no group matches 'layer5'; torchvision/small has conv1, layer1, layer2, layer20, stage0, stage1, stage2, head", "layer2"),
    ("heads", "no group matches 'heads'; torchvision/small has conv1, layer1, layer2, layer20, stage0, stage1, stage2, head", "head"),
    ("zz*", "no group matches 'zz*'; torchvision/small has conv1, layer1, layer2, layer20, stage0, stage1, stage2, head", None),
    ("last 9 stages", "'last 9 stages': torchvision/small has 3 stages: stage0, stage1, stage2", None),
    ("last 0 stages", "'last 0 stages': torchvision/small has 3 stages: stage0, stage1, stage2", None),
])  # fmt: skip
def test_no_match(selector, message, suggestion):
    with pytest.raises(NoMatch) as caught:
        lower(selector, MAP)
    assert (str(caught.value), caught.value.suggestion) == (message, suggestion)
