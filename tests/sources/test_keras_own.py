"""EfficientNet's files: with Keras's own weights the network has one layer more, and whoever trained on from there has it too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from xfer.backends.backend import backend_named
from xfer.compile.compiler import compile_plan
from xfer.recipe.loader import read
from xfer.sources.keras import KerasSource

NAME, SIDE = "EfficientNetB0", 32
Saved = Callable[..., Path]


@pytest.fixture
def classifier() -> Callable[..., Any]:
    """Two classes on a nested EfficientNet of random values."""
    from xfer.sources import keras_library

    keras = keras_library.keras()

    def make(*, own: bool) -> Any:
        base = KerasSource().build(NAME, pretrained=own, image_size=SIDE)
        image = keras.Input((SIDE, SIDE, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(base(image))
        return keras.Model(image, keras.layers.Dense(2)(pooled))

    return make


@pytest.mark.parametrize("ending", [".h5", ".keras"])
@pytest.mark.parametrize("own", [True, False], ids=["with the layer", "without it"])
def test_the_model_in_a_file_says_so(classifier, tmp_path, ending, own):
    file = tmp_path / f"whole{ending}"
    classifier(own=own).save(file)
    for part in ("efficientnetb0", None):
        assert KerasSource().is_for_own(NAME, file, part) is own
    assert KerasSource().is_for_own("MobileNetV2", file, None) is False


def test_weights_alone_don_t(classifier, tmp_path):
    classifier(own=True).save_weights(tmp_path / "only.weights.h5")
    assert KerasSource().is_for_own(NAME, tmp_path / "only.weights.h5", None) is False
    (tmp_path / "other.pth").write_bytes(b"no file of Keras's")
    assert KerasSource().is_for_own(NAME, tmp_path / "other.pth", None) is False
    assert KerasSource().is_for_own(NAME, tmp_path / "absent.h5", None) is False


def test_a_file_that_keras_publishes(tmp_path, monkeypatch):
    """Told by its digest, wherever it lies."""
    from keras.src.applications import efficientnet

    file = tmp_path / "mine.h5"
    file.write_bytes(b"published")
    assert KerasSource().is_for_own(NAME, file, None) is False
    digest = hashlib.md5(b"published", usedforsecurity=False).hexdigest()
    monkeypatch.setitem(efficientnet.WEIGHTS_HASHES, "b0", ("0" * 32, digest))
    assert KerasSource().is_for_own(NAME, file, None) is True


@pytest.mark.parametrize("own", [True, False], ids=["with the layer", "without it"])
def test_features_are_those_of_the_network_that_was_saved(classifier, tmp_path, own):
    whole = classifier(own=own)
    whole.save(tmp_path / "whole.h5")
    recipe = {
        "source": {"model": f"keras/{NAME}", "weights": {"path": str(tmp_path / "whole.h5"), "part": "efficientnetb0"}},
        "target": {"dataset": "sklearn/digits", "image_size": SIDE},
        "transfer": {"type": "feature"},
        "runtime": {"precision": "float32", "device": "cpu", "cache": str(tmp_path / "cache")},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    plan = compile_plan(read(tmp_path / "r.yaml"))
    assert plan.source.weights.pretrained is own
    network = backend_named("tensorflow").build(plan)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32)
    expected = np.asarray(whole.get_layer("efficientnetb0")(pixels, training=False)).mean((1, 2))
    found = network.compute(pixels, start=plan.model.cuts[0].name, end=plan.model.cuts[-1].name, pooled=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
