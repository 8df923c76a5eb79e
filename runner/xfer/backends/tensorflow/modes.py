"""Train and eval mode, operation by operation: only what belongs to a trained group is in train mode, its normalisation as the phase
says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras

from xfer.backends.tensorflow.layers import batch_norms, is_norm

Mode = Callable[[str | None, Any], bool]


def mode_of(trained: Collection[str], *, norm: str) -> Mode:
    """What a segment asks for each operation: whether it is called with training=True. With norm 'frozen' normalisation layers stay in
    eval mode. Batch normalisation that may learn is told so by `statistics.live`, since it may lie inside a composite layer."""

    def trains(group: str | None, operation: Any) -> bool:
        return group in trained and not (norm == "frozen" and is_norm(operation))

    return trains


def learning_norms(network: Any, group_of: Mapping[str, str], trained: Collection[str], *, norm: str, statistics: bool) -> list[Any]:
    """The batch normalisation layers whose statistics may change: of trained groups, inner ones too, unless their normalisation is
    frozen; all of them where a method rewrites `statistics`."""
    if statistics:
        return batch_norms(network)
    return trained_batch_norms(network, group_of, trained) if norm == "train" else []


def set_layers(network: Any, learning: Sequence[Any]) -> None:
    """Batch normalisation inside a composite layer gets the mode of that layer and obeys its own `trainable`: on where its statistics
    may change, off elsewhere. What takes gradients is the trainer's list, not these flags."""
    for layer in batch_norms(network):
        layer.trainable = any(layer is other for other in learning)


def trained_batch_norms(network: Any, group_of: Mapping[str, str], trained: Collection[str]) -> list[Any]:
    """The batch normalisation layers of trained groups, inner ones too."""
    found = []
    for layer in getattr(network, "layers", [network]):  # a SavedModel's stand-in is one layer
        if group_of.get(layer.name) in trained:
            found += [each for each in layer._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
    return found
