"""A source plugin with four small Keras networks: batch normalisation, none, layer normalisation, and dropout of every kind.

Recipes name this file in `plugins:`; tests load it as they do. A tensor's name has 'norm' in it where a normalisation layer owns it,
and none has a bias that changes nothing (before a normalisation, or of attention's keys): it would not move.
"""

from __future__ import annotations

from typing import Any

import keras

from xfer.plan.preprocess import Preprocess

SIDE = 32


class Inner(keras.layers.Layer):
    """A composite layer with all that may go wrong inside one: a convolution, batch normalisation, layer normalisation, dropout."""

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(**options)
        self.conv = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name="conv")
        self.norm, self.layer_norm = keras.layers.BatchNormalization(name="norm"), keras.layers.LayerNormalization(name="layer_norm")
        self.drop = keras.layers.Dropout(0.2, name="drop")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.drop(keras.ops.relu(self.layer_norm(self.norm(self.conv(x), training=training))), training=training)


class StochasticDepth(keras.layers.Layer):
    """Drops a residual branch for whole images (Huang et al. 2016, "Deep networks with stochastic depth")."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        shape = (keras.ops.shape(x)[0], *(1 for _ in x.shape[1:]))
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return x * keras.ops.cast(kept, x.dtype) / (1 - self.rate)


class Positions(keras.layers.Layer):
    """Adds a learned table to tokens."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal", name="table")

    def call(self, x: Any) -> Any:
        return x + self.table


def conv(x: Any, filters: int, name: str, *, stride: int = 1, size: int = 3, norm: bool = False, relu: bool = True) -> Any:
    x = keras.layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=not norm, name=name)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x) if norm else x
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def residual(x: Any, filters: int, name: str, *, stride: int = 1, norm: bool = False, drop: float = 0.0) -> Any:
    y = conv(x, filters, f"{name}_a", stride=stride, norm=norm)
    y = conv(y, filters, f"{name}_b", norm=norm, relu=False)
    y = StochasticDepth(drop, name=f"{name}_drop")(y) if drop else y
    if stride > 1:  # at least 16 channels: with fewer and an odd batch, oneDNN in TensorFlow 2.21 writes where it must not
        x = conv(x, filters, f"{name}_short", stride=stride, size=1, norm=norm, relu=False)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def classified(entry: Any, x: Any) -> keras.Model:
    return keras.Model(entry, keras.layers.Dense(5, name="fc")(x))


def batch_norm() -> keras.Model:
    entry = keras.Input((SIDE, SIDE, 3))
    x = residual(conv(entry, 16, "stem", stride=2, norm=True), 16, "block_1", norm=True)
    x = residual(residual(x, 20, "block_2", stride=2, norm=True), 20, "block_3", norm=True)
    x = conv(Inner(16, name="inner")(x), 24, "last", size=1, norm=True)
    return classified(entry, keras.layers.GlobalAveragePooling2D(name="pool")(x))


def plain() -> keras.Model:
    entry = keras.Input((SIDE, SIDE, 3))
    x = conv(conv(entry, 8, "early", stride=2), 12, "middle_1", stride=2)
    x = conv(conv(x, 12, "middle_2"), 16, "late", stride=2)
    return classified(entry, keras.layers.Dense(20, activation="relu", name="dense")(keras.layers.Flatten(name="flat")(x)))


def layer_norm() -> keras.Model:
    """A vision transformer of four blocks."""
    entry, width = keras.Input((SIDE, SIDE, 3)), 12
    x = keras.layers.Conv2D(width, 8, strides=8, name="patches")(entry)
    x = Positions(name="positions")(keras.layers.Reshape((16, width), name="tokens")(x))
    for number in range(1, 5):
        name = f"block_{number}"
        y = keras.layers.LayerNormalization(name=f"{name}_norm_a")(x)
        y = keras.layers.MultiHeadAttention(2, 6, use_bias=False, name=f"{name}_attention")(y, y)
        x = keras.layers.Add(name=f"{name}_add_a")([x, y])
        y = keras.layers.LayerNormalization(name=f"{name}_norm_b")(x)
        y = keras.layers.Dense(2 * width, activation="gelu", name=f"{name}_up")(y)
        x = keras.layers.Add(name=f"{name}_add_b")([x, keras.layers.Dense(width, name=f"{name}_down")(y)])
    x = keras.layers.LayerNormalization(name="norm")(x)
    return classified(entry, keras.layers.GlobalAveragePooling1D(name="pool")(x))


def dropout() -> keras.Model:
    entry = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.SpatialDropout2D(0.2, name="early_drop")(conv(entry, 16, "early", stride=2))
    x = residual(residual(x, 16, "block_1", drop=0.3), 20, "block_2", stride=2, drop=0.3)
    x = Inner(16, name="inner")(x)
    x = keras.layers.Dropout(0.2, name="flat_drop")(keras.layers.Flatten(name="flat")(x))
    x = keras.layers.Dense(20, activation="relu", name="dense")(x)
    return classified(entry, keras.layers.Dropout(0.3, name="fc_drop")(x))


NETWORKS = {"batch_norm": batch_norm, "plain": plain, "layer_norm": layer_norm, "dropout": dropout}


class SmallSource:
    """`small/NAME`; implements `xfer.sources.source.Source`."""

    backend, provider = "tensorflow", "small"

    def library(self) -> str:
        return "small 1"

    def models(self) -> list[str]:
        return sorted(NETWORKS)

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        return NETWORKS[name]()

    def tags(self, name: str) -> list[str]:
        return []

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        return Preprocess(resize=SIDE, crop=SIDE)

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        return tensors

    def input_size(self, name: str) -> int:
        return SIDE


xfer_plugins = {"sources": {"small": SmallSource}}
