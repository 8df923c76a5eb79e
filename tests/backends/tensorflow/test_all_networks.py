"""Every network of keras.applications: `make test-all`."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from typing import Any

import keras
import pytest

from xfer.backends.tensorflow.describe import describe
from xfer.plan.model_map import ModelMap

SIDE = 64
OTHER_SIDES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}  # the smallest that Keras builds
EVERY = sorted(name for name, value in vars(keras.applications).items() if inspect.isfunction(value))
# One of each family, small enough to run: at every cut; of the others, which are built alike, maps alone are made.
RUN = [
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2"),
    *("MobileNetV3Large", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "Xception"),
]
GROUPS = {
    "ConvNeXtTiny": 23,
    "DenseNet121": 63,
    "EfficientNetB0": 18,
    "EfficientNetV2B0": 23,
    "InceptionResNetV2": 49,
    "InceptionV3": 16,
    "MobileNet": 27,
    "MobileNetV2": 20,
    "MobileNetV3Large": 17,
    "MobileNetV3Small": 13,
    "NASNetMobile": 17,
    "ResNet50": 17,
    "ResNet50V2": 18,
    "VGG16": 5,
    "Xception": 16,
}
NO_CUT_INSIDE = {"NASNetLarge": 3, "NASNetMobile": 3}  # each cell reads the two before it


def test_the_lists_are_whole() -> None:
    assert len(EVERY) == 40
    assert set(RUN) == set(GROUPS) <= set(EVERY)


def mapped(network: Any, size: int) -> ModelMap:
    return describe(network, model="own", library="own 1", input_size=224, image_size=size)


@pytest.mark.slow
@pytest.mark.parametrize("model", EVERY)
def test_groups_and_cuts(model: str, build_keras: Callable[..., Any], assert_covers: Any) -> None:
    size = OTHER_SIDES.get(model, SIDE)
    network = build_keras(model, size)
    found = mapped(network, size)
    assert_covers(network, found)
    assert found.traced
    assert found.note is None
    assert 5 <= len(found.groups) <= 110
    assert len(found.groups) == GROUPS.get(model, len(found.groups))
    assert len(found.cuts) == NO_CUT_INSIDE.get(model, len(found.groups) + 1)
    assert 4 <= len(found.stages) <= 6
    assert all(cut.layout == "hwc" for cut in found.cuts[1:-1])
    del network
    keras.backend.clear_session()
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("model", RUN)
@pytest.mark.parametrize("whole", [False, True])
def test_prefix_and_suffix_equal_the_whole(
    model: str, whole: bool, build_keras: Callable[..., Any], assert_covers: Any, assert_segments_equal_whole: Any
) -> None:
    size = OTHER_SIDES.get(model, SIDE)
    network = build_keras(model, size, include_top=whole)
    found = mapped(network, size)
    assert_covers(network, found)
    assert bool(found.classifier) == whole
    assert len(found.groups) == GROUPS[model] + {"VGG16": 2, "MobileNetV3Small": 1, "MobileNetV3Large": 1}.get(model, 0) * whole
    assert_segments_equal_whole(network, found, at_most=2 if whole else 6)
    del network
    keras.backend.clear_session()
    gc.collect()
