"""Cross entropy against torch's own, its value and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.loss import cross_entropy

CLASSES = 5
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 3.0])


def batch(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n)
    return random.normal(size=(n, CLASSES)) * 4, random.integers(0, CLASSES, n)


def ours(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, smoothing: float, dtype: str = "float64"
) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient, in a graph that knows no batch size, as the trainer's."""

    @tf.function(input_signature=[tf.TensorSpec([None, CLASSES], dtype), tf.TensorSpec([None], tf.int64)])
    def run(x, y):
        chosen = None if weights is None else tf.constant(weights, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = cross_entropy(x, y, class_weights=chosen, label_smoothing=smoothing)
        return loss, tape.gradient(loss, x)

    value, slope = run(tf.constant(logits, dtype), tf.constant(labels, tf.int64))
    return value.numpy(), slope.numpy()


def torchs(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, smoothing: float, dtype: torch.dtype = torch.float64
) -> tuple[np.ndarray, np.ndarray]:
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    chosen = None if weights is None else torch.tensor(weights, dtype=dtype)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels), weight=chosen, label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(loss, x)
    return loss.detach().numpy(), slope.numpy()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.8])
def test_it_is_torch_s(smoothing, weights):
    given = batch()
    for found, expected in zip(ours(*given, weights, smoothing), torchs(*given, weights, smoothing), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (WEIGHTS, 0.1)])
def test_in_float32_too_and_where_logits_are_far_apart(weights, smoothing):
    logits, labels = batch()
    logits[0] = [1e4, -1e4, 0, 5, 7]
    found, expected = ours(logits, labels, weights, smoothing, "float32"), torchs(logits, labels, weights, smoothing, torch.float32)
    assert found[0].dtype == np.float32
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_weights_and_smoothing_each_change_it():
    """Else the comparisons above could not fail."""
    given = batch()
    values = {float(ours(*given, weights, smoothing)[0]) for weights in (None, WEIGHTS) for smoothing in (0.0, 0.1)}
    assert len(values) == 4


def test_a_batch_of_one_and_one_class_alone():
    logits, labels = batch(1)
    for weights, smoothing in ((None, 0.0), (WEIGHTS, 0.3)):
        np.testing.assert_allclose(ours(logits, labels, weights, smoothing)[0], torchs(logits, labels, weights, smoothing)[0], rtol=1e-12)
    logits, labels = batch()
    alone = np.full_like(labels, 2)
    assert ours(logits, alone, WEIGHTS, 0.0)[0] == pytest.approx(float(ours(logits, alone, None, 0.0)[0]))  # its weight divides itself


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_a_batch_each_with_its_share_make_the_whole(smoothing):
    """As workers compute it: each divides by the whole batch's weights, times the part of its rows that it has."""
    logits, labels = batch(11)
    pieces = (slice(0, 6), slice(6, 8), slice(8, 11))
    for weights in (None, WEIGHTS):
        chosen = None if weights is None else tf.constant(weights)
        total = 0.0
        for piece in pieces:
            share = len(labels[piece]) / 11
            weighed = None if weights is None else weights[labels].sum() * share
            part = cross_entropy(
                tf.constant(logits[piece]), tf.constant(labels[piece]), class_weights=chosen, label_smoothing=smoothing, total=weighed
            )
            total += share * float(part)
        assert total == pytest.approx(float(torchs(logits, labels, weights, smoothing)[0]), rel=1e-12)
