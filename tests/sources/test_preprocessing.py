"""The recipe's word over the weights' own preprocessing."""

from __future__ import annotations

from typing import Any

import pytest

from xfer.errors import UsageError
from xfer.plan.preprocess import Preprocess
from xfer.sources.preprocessing import override

BASE = Preprocess(resize=256, crop=224, interpolation="bicubic")


def changed(*, image_size: int | None = None, base: Preprocess = BASE, **changes: Any) -> dict[str, Any]:
    """The fields that differ from `base`."""
    after = override(base, changes, image_size)
    return {name: value for name, value in after if value != getattr(base, name)}


def test_nothing_changes_without_a_word() -> None:
    assert changed() == {}
    assert changed(resize=None, mean=None, range=None) == {}
    assert changed(image_size=224) == {}


def test_the_image_size_moves_crop_and_resize_in_proportion() -> None:
    assert changed(image_size=112) == {"crop": 112, "resize": 128}
    assert changed(image_size=96) == {"crop": 96, "resize": 110}
    assert changed(image_size=8, base=Preprocess(resize=224, crop=224)) == {"crop": 8, "resize": 8}
    assert changed(image_size=112, resize=200) == {"crop": 112, "resize": 200}
    assert changed(image_size=112, crop=112) == {"crop": 112, "resize": 128}


def test_each_field() -> None:
    assert changed(crop=192) == {"crop": 192}
    assert changed(resize=300) == {"resize": 300}
    assert changed(interpolation="box") == {"interpolation": "box"}
    assert changed(mean=[0.5], std=[0.25]) == {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert changed(mean=[0.1, 0.2, 0.3]) == {"mean": (0.1, 0.2, 0.3)}


def test_ranges_bring_the_values_where_the_network_wants_them() -> None:
    for name, low, high in (("0..1", 0, 1), ("0..255", 0, 255), ("-1..1", -1, 1)):
        after = override(BASE, {"range": name})
        assert [(pixel / after.scale - after.mean[0]) / after.std[0] for pixel in (0, 255)] == [low, high]
    # the networks that came from Caffe
    after = override(BASE, {"range": "0..255", "channels": "bgr", "mean": [103.939, 116.779, 123.68]})
    assert (after.scale, after.mean, after.std, after.channels) == (1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")


def test_channels_turned_round_take_their_statistics_along() -> None:
    assert changed(channels="bgr") == {"channels": "bgr", "mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)}
    assert changed(channels="bgr", mean=[0.1, 0.2, 0.3], std=[1.0]) == {"channels": "bgr", "mean": (0.1, 0.2, 0.3), "std": (1.0,) * 3}
    assert changed(channels="rgb") == {}


@pytest.mark.parametrize(
    ("changes", "image_size", "message"),
    [
        ({"crop": 200}, 224, "source.preprocess.crop is 200 but target.image_size is 224; both are the side the network sees"),
        ({"mean": [0.5, 0.5]}, None, "source.preprocess.mean has 2 numbers; give one, or one for each of the 3 channels"),
        ({"std": []}, None, "source.preprocess.std has 0 numbers; give one, or one for each of the 3 channels"),
        ({"std": [0.0]}, None, "source.preprocess.std must be above 0"),
        (
            {"mean": [103.939, 116.779, 123.68]}, None,
            "source.preprocess.mean is [103.939, 116.779, 123.68], which is in 0..255: set 'range: 0..255' beside it",
        ),
        (
            {"crop": 300}, None,
            "source.preprocess: images are resized to 256 pixels, less than the 300 that are cut out; "
            "set resize too, or target.image_size, which moves both",
        ),
        (
            {"resize": 100}, None,
            "source.preprocess: images are resized to 100 pixels, less than the 224 that are cut out; "
            "set crop too, or target.image_size, which moves both",
        ),
    ],
)  # fmt: skip
def test_contradictions(changes: dict[str, Any], image_size: int | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        override(BASE, changes, image_size)
    assert error.value.message == message
