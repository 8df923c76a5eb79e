"""Loss scaling for float16: gradients too small for it are lifted before they are computed, by torch's rule (GradScaler)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

START, GROWTH, BACKOFF, GROWTH_STEPS = 2.0**16, 2.0, 0.5, 2000


class Scaler:
    """Does nothing unless `enabled` (Micikevicius et al. 2018, "Mixed precision training", section 3.2)."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = tf.Variable(START, dtype=tf.float32, trainable=False)
        self.good = tf.Variable(0, dtype=tf.int64, trainable=False)  # steps since the scale last changed

    def scaled(self, loss: Any) -> Any:
        return loss * self.scale if self.enabled else loss

    def unscaled(self, gradients: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """The gradients of the loss itself, and whether all are finite; a bool tensor, or True where nothing is scaled."""
        if not self.enabled:
            return dict(gradients), True
        plain = {name: gradient / self.scale for name, gradient in gradients.items()}
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in plain.values()])
        return plain, finite

    def update(self, finite: Any) -> None:
        """Halved after a step that overflowed, doubled after many that did not."""
        if not self.enabled:
            return
        good = tf.where(finite, self.good + 1, tf.zeros_like(self.good))
        grows = good >= GROWTH_STEPS
        grown = self.scale * GROWTH
        grown = tf.where(grows & tf.math.is_finite(grown), grown, self.scale)
        self.scale.assign(tf.where(finite, grown, self.scale * BACKOFF))
        self.good.assign(tf.where(grows, tf.zeros_like(good), good))

    def state(self) -> dict[str, np.ndarray]:
        return {"scaler/scale": self.scale.numpy().astype(np.float64), "scaler/growth": self.good.numpy()} if self.enabled else {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        if self.enabled and "scaler/scale" in state:
            self.scale.assign(float(state["scaler/scale"]))
            self.good.assign(int(state["scaler/growth"]))
