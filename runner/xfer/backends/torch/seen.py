"""What a method's step is given, on torch: implements `xfer.methods.method.Seen` over one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Computed:
    """Implements `Activations`."""

    features: torch.Tensor
    logits: torch.Tensor
    taps: Mapping[str, torch.Tensor]


class Look:
    """One batch as a step sees it. The network is computed at once, the teacher when it is asked for."""

    def __init__(
        self,
        labels: torch.Tensor,
        computed: Computed,
        *,
        progress: float,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        teach: Callable[[], Computed],
        class_weights: torch.Tensor | None,
        label_smoothing: float,
    ) -> None:
        """`tensors` holds the mappings 'own', 'trained', 'source' and 'head'."""
        self.labels, self.progress = labels, progress
        self.features, self.logits, self.taps = computed.features, computed.logits, computed.taps
        self.own, self.trained, self.source, self.head = (tensors[name] for name in ("own", "trained", "source", "head"))
        self._teach, self._class_weights, self._label_smoothing = teach, class_weights, label_smoothing

    @cached_property
    def teacher(self) -> Computed:
        return self._teach()

    def task_loss(self) -> torch.Tensor:
        return functional.cross_entropy(self.logits, self.labels, weight=self._class_weights, label_smoothing=self._label_smoothing)
