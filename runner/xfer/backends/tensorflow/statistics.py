"""Batch normalisation that learns from batches: which statistics it computes with, and how it keeps them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf


@contextlib.contextmanager
def live(layers: Sequence[Any]) -> Iterator[None]:
    """Within it these batch normalisation layers compute with the batch's own statistics and keep them, in whatever mode the layer
    around them is called. A step's graph is traced within it; graphs that were traced outside are as they were.

    What is kept is what torch keeps: a running variance that follows the unbiased variance of batches (torch.nn.BatchNorm2d), where
    Keras' follows the biased one.
    """
    for layer in layers:
        layer.call = _learning(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call  # its class's own comes to the fore


def _learning(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    def learning(inputs: Any, training: Any = None, **given: Any) -> Any:
        before = tf.identity(layer.moving_variance.value)
        outputs = call(inputs, training=True, **given)
        if not layer.renorm and given.get("mask") is None:  # then Keras keeps something else, or counts otherwise
            after = tf.identity(layer.moving_variance.value)
            n = tf.cast(tf.size(inputs), tf.float32) / float(inputs.shape[layer.axis])  # numbers of each channel
            added = after - before * layer.momentum  # the new value's share of the biased variance v; v n / (n - 1) = v + v / (n - 1)
            layer.moving_variance.assign(after + added / tf.maximum(n - 1, 1))
        return outputs

    return learning
