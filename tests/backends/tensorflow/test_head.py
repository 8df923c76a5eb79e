"""The head alone: the same numbers as torch's head from the same start and masks, pooling, and dropout that depends on the image."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.head import Head, pool
from xfer.backends.torch.head import Head as TorchHead
from xfer.backends.torch.head import pool as torch_pool
from xfer.plan.plan import HeadPlan

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
ROWS = np.array([7, 3, 11, 2, 900])


def plan(hidden: tuple[int, ...] = (), dropout: float = 0.0) -> HeadPlan:
    return HeadPlan(at="pooled", layout="vector", inputs=6, hidden=hidden, dropout=dropout, outputs=3)


def test_names_shapes_and_start_are_torch_s():
    for hidden in ((), (4, 5)):
        ours, theirs = Head(plan(hidden), seed=3), TorchHead(plan(hidden), seed=3)
        assert [(name, tuple(v.shape)) for name, v in ours.variables.items()] == [(t.name, t.shape) for t in plan(hidden).tensors]
        for name, parameter in theirs.named_parameters():
            assert np.array_equal(ours.variables[f"head.{name}"].numpy(), parameter.detach().numpy())


@pytest.mark.parametrize("hidden", [(), (4,), (9, 4)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_forward_and_gradients_are_torch_s(hidden, dropout):
    ours, theirs = Head(plan(hidden, dropout), seed=1), TorchHead(plan(hidden, dropout), seed=1)
    x = torch.from_numpy(X).requires_grad_()
    expected = theirs(x, theirs.masks(ROWS, phase=2, epoch=5))
    expected.square().sum().backward()
    masks = tf.constant(ours.masks(ROWS, phase=2, epoch=5))
    with tf.GradientTape() as tape:
        inputs = tf.constant(X)
        tape.watch(inputs)
        found = ours(inputs, masks)
        total = tf.reduce_sum(tf.square(found))
    slopes = tape.gradient(total, {**ours.variables, "x": inputs})
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes.pop("x"), x.grad, rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        np.testing.assert_allclose(slope, dict(theirs.named_parameters())[name.removeprefix("head.")].grad, rtol=1e-5, atol=1e-5)


def test_without_masks_nothing_is_dropped():
    ours, theirs = Head(plan((4,), dropout=0.5), seed=1), TorchHead(plan((4,), dropout=0.5), seed=1)
    np.testing.assert_allclose(ours(tf.constant(X)), theirs(torch.from_numpy(X)).detach(), rtol=1e-5, atol=1e-6)


def test_masks_are_torch_s_to_the_bit_and_keyed_by_image():
    head = Head(plan((4,), dropout=0.3), seed=1)
    together = head.masks(ROWS, phase=0, epoch=2)
    parts = TorchHead(plan((4,), dropout=0.3), seed=1).masks(ROWS, phase=0, epoch=2)
    assert parts is not None
    assert np.array_equal(together, np.concatenate([part.numpy() for part in parts], axis=1))
    for index, row in enumerate(ROWS):
        assert np.array_equal(head.masks(np.array([row]), phase=0, epoch=2)[0], together[index])
    assert not np.array_equal(head.masks(ROWS, phase=0, epoch=3), together)
    assert not np.array_equal(head.masks(ROWS, phase=1, epoch=2), together)
    assert Head(plan((4,)), seed=1).masks(ROWS, phase=0, epoch=2).shape == (5, 0)


def test_dropout_keeps_its_share_and_scales():
    masks = Head(plan(dropout=0.25), seed=1).masks(np.arange(20_000), phase=0, epoch=0)
    assert masks.dtype == np.float32
    assert np.unique(masks).tolist() == pytest.approx([0.0, 4 / 3])
    assert masks.mean() == pytest.approx(1.0, abs=0.01)


def test_it_computes_in_float32():
    head = Head(plan((4,)), seed=1)
    half = tf.constant(X, tf.bfloat16)
    assert head(half).dtype == tf.float32
    np.testing.assert_array_equal(head(half), head(tf.cast(half, tf.float32)))


@pytest.mark.parametrize(("layout", "shape"), [("chw", (2, 3, 4, 5)), ("hwc", (2, 4, 5, 3)), ("tokens", (2, 7, 3)), ("vector", (2, 3))])
def test_pooling_is_torch_s(layout, shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = torch_pool(torch.from_numpy(x), layout)
    assert expected.shape == (2, 3)
    np.testing.assert_allclose(pool(tf.constant(x), layout), expected, rtol=1e-6, atol=1e-6)


def test_a_map_that_is_no_map_of_features_is_written_as_a_vector():
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 2)).astype(np.float32)
    assert np.array_equal(pool(tf.constant(x), "vector"), x.reshape(2, 12))
