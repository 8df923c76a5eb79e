"""The exponential moving average of the weights, and of the statistics beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf


class Average:
    """Averages of `tensors` (name to the live variable); whole numbers are taken over as they are."""

    def __init__(self, tensors: Mapping[str, Any], decay: float) -> None:
        self.decay, self.live = decay, dict(tensors)
        self.kept = {name: tf.Variable(variable, trainable=False) for name, variable in tensors.items()}

    def update(self, weight: Any) -> None:
        """Inside a step's graph: kept = (1 - weight) · kept + weight · live."""
        for name, kept in self.kept.items():
            live = self.live[name]
            if kept.dtype.is_floating:
                kept.assign_add((live - kept) * tf.cast(weight, kept.dtype))
            else:
                kept.assign(live)

    def swap(self) -> None:
        """Live and kept values change places."""
        for name, live in self.live.items():
            before = tf.identity(live)
            live.assign(self.kept[name])
            self.kept[name].assign(before)

    def state(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.kept.items()}

    def load_state(self, saved: Mapping[str, np.ndarray]) -> None:
        for name, value in saved.items():
            if name in self.kept:
                self.kept[name].assign(value)
