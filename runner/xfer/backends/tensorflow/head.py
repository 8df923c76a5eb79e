"""The new head in TensorFlow: pooling where it reads a spatial cut, hidden layers with ReLU, dropout keyed by image, a linear output."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from xfer.data.order import keyed_uniform
from xfer.ops.initial import head_start
from xfer.plan.plan import HeadPlan

AVERAGED: dict[str, list[int]] = {"chw": [2, 3], "hwc": [1, 2], "tokens": [1]}  # axes of a batch, by layout


def pool(x: Any, layout: str) -> Any:
    """Global average: [B, H, W, C] (hwc), [B, C, H, W] (chw) or [B, T, D] (tokens) to [B, C]; vectors pass."""
    axes = AVERAGED.get(layout)
    return tf.reduce_mean(x, axis=axes) if axes else tf.reshape(x, [tf.shape(x)[0], int(np.prod(x.shape[1:]))])


class Head:
    """Vectors [B, inputs] to logits [B, outputs], always in float32. Weights are [out, in], as the Plan names them. Dropout masks
    depend on (seed, phase, epoch, image) only, so that they stay what they were however images are put into batches."""

    def __init__(self, plan: HeadPlan, *, seed: int) -> None:
        self.plan, self.seed, self.dropout = plan, seed, plan.dropout
        self.widths = (plan.inputs, *plan.hidden)
        start = head_start(((tensor.name, tensor.shape) for tensor in plan.tensors), seed=seed)
        self.variables = {name: tf.Variable(value, name=name.replace(".", "_")) for name, value in start.items()}

    def masks(self, rows: np.ndarray, *, phase: int, epoch: int) -> np.ndarray:
        """float32 [B, sum of the layers' widths], each 0 or 1 / (1 - dropout); [B, 0] where there is no dropout."""
        if not self.dropout:
            return np.zeros((len(rows), 0), np.float32)
        uniform = keyed_uniform(self.seed, phase, epoch, rows, sum(self.widths))
        kept: np.ndarray = (uniform >= self.dropout).astype(np.float32) / np.float32(1 - self.dropout)
        return kept

    def __call__(self, x: Any, masks: Any | None = None) -> Any:
        """Logits; `masks` as above while it trains."""
        x = tf.cast(x, tf.float32)
        parts = tf.split(masks, self.widths, axis=1) if masks is not None and masks.shape[1] else None
        for index in range(len(self.plan.hidden)):
            x = tf.nn.relu(self._linear(f"head.hidden.{index}", x if parts is None else x * parts[index]))
        return self._linear("head.output", x if parts is None else x * parts[-1])

    def _linear(self, name: str, x: Any) -> Any:
        return tf.matmul(x, self.variables[f"{name}.weight"], transpose_b=True) + self.variables[f"{name}.bias"]
