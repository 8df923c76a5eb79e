"""The networks of tiny_networks.py once more in Keras, and how their tensors are called and laid out there.

Recipes name this file in `plugins:`; conftest.py loads it as they do.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from xfer.plan.preprocess import Preprocess
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

SIDE, NORM = 8, {"epsilon": 1e-5, "momentum": 0.9}  # torch's defaults


def convolution(filters: int, name: str, **options: Any) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(filters, 3, strides=2, name=name, **options)


def padded(x: Any, name: str) -> Any:
    """On both sides, as torch pads; padding='same' would pad an even image on one side."""
    return keras.layers.ZeroPadding2D(1, name=f"{name}_pad")(x)


def plain() -> keras.Model:
    """Two convolutions and a linear layer with tanh between them: groups one, two and three."""
    x = entry = keras.Input((SIDE, SIDE, 3))
    for name, filters in (("one", 4), ("two", 6)):
        x = keras.layers.Activation("tanh", name=f"{name}_tanh")(convolution(filters, name)(padded(x, name)))
    x = keras.layers.Dense(7, activation="tanh", name="three")(keras.layers.Flatten(name="flat")(x))
    return keras.Model(entry, keras.layers.Dense(5, name="fc")(x))


class Block(keras.layers.Layer):
    """A composite layer: a convolution without shift, and its normalisation."""

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(**options)
        self.pad, self.conv = keras.layers.ZeroPadding2D(1), convolution(filters, "conv", use_bias=False)
        self.norm = keras.layers.BatchNormalization(name="norm", **NORM)

    def call(self, x: Any, training: bool = False) -> Any:
        return keras.ops.tanh(self.norm(self.conv(self.pad(x)), training=training))


def normalised() -> keras.Model:
    """Two convolutions with batch normalisation, averaged over positions: group one of single layers, two a composite one."""
    x = entry = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.BatchNormalization(name="one_norm", **NORM)(convolution(4, "one", use_bias=False)(padded(x, "one")))
    x = Block(6, name="two")(keras.layers.Activation("tanh", name="one_tanh")(x))
    return keras.Model(entry, keras.layers.Dense(5, name="fc")(keras.layers.GlobalAveragePooling2D(name="pool")(x)))


NETWORKS = {"plain": plain, "normalised": normalised}
STATISTICS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
NAMES = {
    **{f"{layer}.weight": f"{layer}/kernel" for layer in ("one", "two", "three")},
    **{f"{layer}.bias": f"{layer}/bias" for layer in ("one", "two", "three")},
    **{f"one.norm.{name}": f"one_norm/{ours}" for name, ours in STATISTICS.items()},
    **{f"two.norm.{name}": f"two/norm/{ours}" for name, ours in STATISTICS.items()},
    "one.conv.weight": "one/kernel",
    "two.conv.weight": "two/conv/kernel",
}  # fmt: skip
FLAT = (7, 6, 2, 2)  # what three reads, channels first as torch writes them one after the other


def to_keras(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and layouts of torch to those of Keras; batches are not counted there."""
    made = {}
    for name, value in tensors.items():
        if name == "three.weight":
            value = value.reshape(FLAT).transpose(2, 3, 1, 0).reshape(-1, FLAT[0])
        elif value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        if not name.endswith("num_batches_tracked"):
            made[NAMES[name]] = np.ascontiguousarray(value)
    return made


def from_keras(network: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The way back; the new head has the same names and layouts on both."""
    norms = network == "normalised"
    names = {ours: name for name, ours in NAMES.items() if (".norm." in name or ".conv." in name) == norms}
    made = {}
    for ours, value in tensors.items():
        name = names.get(ours, ours)
        if name == "three.weight":
            value = value.reshape(2, 2, 6, 7).transpose(3, 2, 0, 1).reshape(FLAT[0], -1)
        elif value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        made[name] = value
    return made


class TinyKeras:
    """`tiny_keras/NAME`; implements `xfer.sources.source.Source`."""

    backend = "tensorflow"
    provider = "tiny_keras"

    def library(self) -> str:
        return "tiny_keras 1"

    def models(self) -> list[str]:
        return sorted(NETWORKS)

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        return NETWORKS[name]()

    def tags(self, name: str) -> list[str]:
        return []

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        raise unknown_tag(self.provider, name, tag, [])

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        return Preprocess(resize=SIDE, crop=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        return tensors

    def input_size(self, name: str) -> int:
        return SIDE


xfer_plugins = {"sources": {"tiny_keras": TinyKeras}}
