"""A built network: weights that are put in later count everywhere, in graphs that hold them as constants too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from xfer.backends.tensorflow import network as module
from xfer.backends.tensorflow.backend import TensorflowBackend
from xfer.backends.tensorflow.network import TensorflowNetwork
from xfer.compile.compiler import compile_plan
from xfer.recipe.loader import read

SIDE = 16
PIXELS = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture
def built(tmp_path: Path) -> TensorflowNetwork:
    """A network that begins with input normalisation, from a file of its own."""
    keras.utils.set_random_seed(1)
    x = keras.Input((SIDE, SIDE, 3))
    y = keras.layers.Normalization(mean=None, axis=-1, name="scaled")(x)
    y = keras.layers.Conv2D(5, 3, name="conv")(y)
    y = keras.layers.BatchNormalization(name="norm")(y)
    model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(y)))
    model.get_layer("scaled").adapt(PIXELS.astype(np.float32))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "images.npz", images=np.zeros((30, SIDE, SIDE, 3), np.uint8), labels=np.arange(30) % 3)
    recipe = {
        "source": {"model": f"file:{tmp_path / 'model.keras'}"},
        "target": {"dataset": "arrays", "path": str(tmp_path / "images.npz"), "image_size": SIDE, "batch_size": 8},
        "transfer": {"type": "model"},
        "freeze": [{"train": "all", "epochs": 1}],
        "runtime": {"precision": "float32", "device": "cpu"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return TensorflowBackend().build(compile_plan(read(tmp_path / "recipe.yaml")))


def by_hand(network: TensorflowNetwork, mean: Any, variance: Any) -> np.ndarray:
    """The features as the file's own model gives them, with its input normalisation done here."""
    numbers = network.tensors() | network.parts.arrays(["scaled/mean", "scaled/variance"])
    x = (PIXELS.astype(np.float64) - mean) / np.maximum(np.sqrt(variance), 1e-7)
    kernel, bias = numbers["conv/kernel"].astype(np.float64), numbers["conv/bias"]
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # [n, h, w, c, 3, 3]
    y = np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias
    deviation = np.sqrt(numbers["norm/moving_variance"] + 1e-3)
    y = (y - numbers["norm/moving_mean"]) / deviation * numbers["norm/gamma"] + numbers["norm/beta"]
    return np.maximum(y, 0).mean((1, 2))


def test_input_normalisation_follows_what_is_put_in(built):
    mean, variance = np.array([10.0, 20.0, 30.0]), np.array([100.0, 400.0, 25.0])
    before = built.compute(PIXELS, start="pixels", end="pooled", pooled=False)
    built.load_tensors({"scaled/mean": mean.astype(np.float32), "scaled/variance": variance.astype(np.float32)})
    after = built.compute(PIXELS, start="pixels", end="pooled", pooled=False)
    assert np.abs(after - before).max() > 0.1
    assert after == pytest.approx(by_hand(built, mean, variance), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("most", [0, module.MOST_CONSTANT_BYTES])
def test_frozen_graphs_follow_the_weights(built, monkeypatch, most):
    monkeypatch.setattr(module, "MOST_CONSTANT_BYTES", most)
    mean, variance = (built.parts.arrays([f"scaled/{name}"])[f"scaled/{name}"] for name in ("mean", "variance"))
    for number in range(2):
        values = {name: value * (1.5 + number) for name, value in built.tensors().items() if name.startswith("conv/")}
        built.load_tensors(values)
        found = built.compute(PIXELS, start="pixels", end="pooled", pooled=False)
        assert found == pytest.approx(by_hand(built, mean, variance), rel=1e-4, abs=1e-4)


PLACES = """
import numpy as np
from xfer.sources import keras_library

keras = keras_library.keras()
import tensorflow as tf

keras.utils.set_random_seed(0)
network = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), include_top=False, pooling="avg")
features = tf.function(lambda images: network(images, training=False))
images = np.random.default_rng(0).random((32, 64, 64, 3), dtype=np.float32)
assert np.array_equal(features(np.roll(images, 5, 0)).numpy(), np.roll(features(images).numpy(), 5, 0))
"""


def test_features_do_not_depend_on_the_place_in_a_batch():
    """In a process that nothing has loaded TensorFlow in: a kill amid an extraction shifts what comes after it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    subprocess.run([sys.executable, "-c", PLACES], check=True, env=environment)
