"""Layers that a portable graph asks for and Keras has not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from xfer.ops.windows import adaptive_average, inside

Sides = Sequence[Sequence[int]]


class Weighted(keras.layers.Layer):
    """x * weight, or x + weight; `weight` has the rank of a row."""

    def __init__(self, *, by: str, shape: Sequence[int], is_parameter: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.by, self.shape, self.is_parameter = by, tuple(shape), is_parameter

    def build(self, input_shape: Any) -> None:
        self.weight = self.add_weight(name="weight", shape=self.shape, trainable=self.is_parameter)

    def call(self, inputs: Any) -> Any:
        return inputs * self.weight if self.by == "multiply" else inputs + self.weight

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "by": self.by, "shape": self.shape, "is_parameter": self.is_parameter}


class GeluTanh(keras.layers.Layer):
    """GELU by its approximation with tanh (Hendrycks and Gimpel 2016)."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.gelu(inputs, approximate=True)


class PaddedPool(keras.layers.Layer):
    """The largest, or the average, of windows over [B, H, W, C] padded as `sides` says; the padding counts in neither."""

    def __init__(self, *, by: str, window: Sequence[int], stride: Sequence[int], sides: Sides, **settings: Any) -> None:
        super().__init__(**settings)
        self.by, self.window, self.stride = by, tuple(window), tuple(stride)
        self.sides = [(int(before), int(after)) for before, after in sides]

    def call(self, inputs: Any) -> Any:
        largest = self.by == "max"
        x = keras.ops.pad(inputs, [(0, 0), *self.sides, (0, 0)], constant_values=-float("inf") if largest else 0.0)
        pool = keras.ops.max_pool if largest else keras.ops.average_pool
        found = pool(x, self.window, strides=self.stride, padding="valid", data_format="channels_last")
        return found if largest else found / keras.ops.convert_to_tensor(self._shares(inputs), dtype=found.dtype)

    def _shares(self, inputs: Any) -> np.ndarray:
        """How much of each window is no padding: [1, places, places, 1]."""
        rows, columns = (
            inside(int(inputs.shape[axis + 1]), window=self.window[axis], stride=self.stride[axis], padding=self.sides[axis])
            for axis in (0, 1)
        )
        shares: np.ndarray = np.outer(rows, columns)[None, :, :, None]
        return shares

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "by": self.by, "window": self.window, "stride": self.stride, "sides": self.sides}


class AdaptiveAverage(keras.layers.Layer):
    """[B, H, W, C] to [B, *size, C] by averages over windows as torch places them."""

    def __init__(self, *, size: Sequence[int], **settings: Any) -> None:
        super().__init__(**settings)
        self.size = tuple(size)

    def call(self, inputs: Any) -> Any:
        rows, columns = (
            keras.ops.convert_to_tensor(adaptive_average(int(inputs.shape[axis + 1]), self.size[axis]), dtype=inputs.dtype)
            for axis in (0, 1)
        )
        return keras.ops.einsum("bhwc,ih,jw->bijc", inputs, rows, columns)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}
