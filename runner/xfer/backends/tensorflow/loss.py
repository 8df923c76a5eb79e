"""Cross entropy by torch's definition, so that the recipe's numbers mean the same on both backends."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def cross_entropy(logits: Any, labels: Any, *, class_weights: Any | None, label_smoothing: float, total: Any | None = None) -> Any:
    """A scalar from float32 logits [n, classes] and int64 labels [n], as torch.nn.functional.cross_entropy defines it.

    With weights w: sum_i w[y_i] l_i / sum_i w[y_i]; a share `label_smoothing` of each target is spread over all classes, each of which
    then counts with its own weight. `total` stands for sum_i w[y_i] where these rows are a part of a batch: its sum, times the part of
    its rows that is here, so that the mean over parts, each with its share of rows, is the loss of the whole batch.
    """
    if class_weights is None and not label_smoothing:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    log_probabilities = tf.nn.log_softmax(logits)
    classes = logits.shape[-1]
    weights = tf.ones([classes], logits.dtype) if class_weights is None else class_weights
    weighted = -log_probabilities * weights
    chosen = tf.one_hot(labels, classes, dtype=logits.dtype)
    if class_weights is None or total is None:
        total = tf.reduce_sum(chosen * weights)
    own = tf.reduce_sum(weighted * chosen) / total
    spread = tf.reduce_sum(weighted) / total / classes
    return (1 - label_smoothing) * own + label_smoothing * spread
