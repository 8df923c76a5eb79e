"""What a method's step is given, on TensorFlow: implements `xfer.methods.method.Seen` over one batch, inside the step's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xfer.backends.tensorflow.loss import cross_entropy


@dataclass(frozen=True)
class Computed:
    """Implements `Activations`."""

    features: Any
    logits: Any
    taps: Mapping[str, Any]


class Look:
    """One batch as a step sees it. The network is computed at once, the teacher when it is asked for."""

    def __init__(
        self,
        labels: Any,
        computed: Computed,
        *,
        progress: Any,
        tensors: Mapping[str, Mapping[str, Any]],
        teach: Callable[[], Computed],
        class_weights: Any | None,
        label_smoothing: float,
    ) -> None:
        """`tensors` holds the mappings 'own', 'trained', 'source' and 'head'; `progress` is a float32 scalar."""
        self.labels, self.progress = labels, progress
        self.features, self.logits, self.taps = computed.features, computed.logits, computed.taps
        self.own, self.trained, self.source, self.head = (tensors[name] for name in ("own", "trained", "source", "head"))
        self._teach, self._class_weights, self._label_smoothing = teach, class_weights, label_smoothing

    @cached_property
    def teacher(self) -> Computed:
        return self._teach()

    def task_loss(self) -> Any:
        return cross_entropy(self.logits, self.labels, class_weights=self._class_weights, label_smoothing=self._label_smoothing)
