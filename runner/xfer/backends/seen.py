"""What a method's step is given: implements `xfer.methods.method.Seen` over one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from xfer.ops.arrays import Array


@dataclass(frozen=True)
class Computed:
    """Implements `Activations`."""

    features: Array
    logits: Array
    taps: Mapping[str, Array]


class Look:
    """One batch as a step sees it. The network is computed at once, the teacher when it is asked for."""

    def __init__(
        self,
        labels: Array,
        computed: Computed,
        *,
        progress: Array,
        tensors: Mapping[str, Mapping[str, Array]],
        teach: Callable[[], Computed],
        cross_entropy: Callable[[Array, Array], Array],
    ) -> None:
        """`tensors` holds the mappings 'own', 'trained', 'source' and 'head'; `cross_entropy` takes logits and labels, with the recipe's
        class weights and label smoothing in it."""
        self.labels, self.progress = labels, progress
        self.features, self.logits, self.taps = computed.features, computed.logits, computed.taps
        self.own, self.trained, self.source, self.head = (tensors[name] for name in ("own", "trained", "source", "head"))
        self._teach, self._cross_entropy = teach, cross_entropy

    @cached_property
    def teacher(self) -> Computed:
        return self._teach()

    def task_loss(self) -> Array:
        return self._cross_entropy(self.logits, self.labels)
