"""Batch normalisation that learns, against torch's own layer: what it computes, what it keeps, and when."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.statistics import live

SHAPE = (6, 5, 5, 3)


def images(step: int, n: int = 6) -> np.ndarray:
    return (np.random.default_rng(step).normal(size=(n, *SHAPE[1:])) * 2 + 1).astype(np.float32)


def pair(momentum: float = 0.9, **options: Any) -> tuple[Any, torch.nn.BatchNorm2d]:
    """A layer of each, with the same numbers, none that a layer begins with."""
    ours = keras.layers.BatchNormalization(momentum=momentum, epsilon=1e-5, **options)
    ours.build((None, *SHAPE[1:]) if ours.axis in (-1, 3) else (None, 3, 5, 5))
    random = np.random.default_rng(9)
    drawn = [random.normal(size=3).astype(np.float32) + 1 for _ in range(3)] + [random.uniform(0.5, 2, size=3).astype(np.float32)]
    theirs = torch.nn.BatchNorm2d(3, momentum=1 - momentum, affine=ours.scale)
    affine = [(ours.gamma, theirs.weight.data), (ours.beta, theirs.bias.data)] if ours.scale else []
    running = [(ours.moving_mean, theirs.running_mean), (ours.moving_variance, theirs.running_var)]
    for (variable, tensor), value in zip(affine + running, drawn[-len(affine + running) :], strict=True):
        variable.assign(value)
        assert tensor is not None
        tensor.copy_(torch.from_numpy(value))
    return ours, theirs


def statistics(layer: Any) -> list[np.ndarray]:
    if isinstance(layer, torch.nn.Module):
        return [layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()]
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def in_a_graph(layer: Any, *, learns: bool, times: int = 1) -> Any:
    """As the trainer traces a step: within `live`, run outside of it."""

    def run(x):
        with live([layer] if learns else []):
            for _ in range(times):
                y = layer(x, training=False)
        return y

    return tf.function(run, autograph=False, input_signature=[tf.TensorSpec([None, *SHAPE[1:]], tf.float32)])


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.5, 0.0])
def test_what_it_computes_and_keeps_is_torch_s(momentum):
    ours, theirs = pair(momentum)
    step = in_a_graph(ours, learns=True)
    for number, n in enumerate((6, 6, 2, 1)):
        x = images(number, n)
        found, expected = step(x), theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
        for one, other in zip(statistics(ours), statistics(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"axis": 1}], ids=["in one kernel", "by Keras"])
@pytest.mark.parametrize("affine", [True, False])
def test_its_gradients_are_torch_s(options, affine):
    ours, theirs = pair(**options, scale=affine, center=affine)
    x, weights = images(0), images(1)
    there = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    (theirs(there) * torch.from_numpy(weights).permute(0, 3, 1, 2)).sum().backward()
    inward, outward = ((0, 3, 1, 2), (0, 2, 3, 1)) if options else ((0, 1, 2, 3), (0, 1, 2, 3))
    here = tf.constant(x.transpose(inward))
    watched = [here, *(variable.value for variable in ours.trainable_variables)]
    with tf.GradientTape() as tape, live([ours]):
        tape.watch(watched)
        loss = tf.reduce_sum(ours(here) * weights.transpose(inward))
    expected = [there.grad, *([theirs.weight.grad, theirs.bias.grad] if affine else [])]
    for found, wanted in zip(tape.gradient(loss, watched), expected, strict=True):
        assert wanted is not None
        maps = found.numpy().transpose(outward) if found.shape.rank == 4 else found
        np.testing.assert_allclose(maps, wanted.permute(0, 2, 3, 1) if wanted.ndim == 4 else wanted, rtol=1e-4, atol=2e-5)


def test_maps_take_one_kernel():
    ours, _ = pair()
    names = [operation.type for operation in in_a_graph(ours, learns=True).get_concrete_function().graph.get_operations()]
    assert names.count("FusedBatchNormV3") == 1


def test_a_layer_of_one_s_own_is_called_as_it_is():
    class Doubled(keras.layers.BatchNormalization):
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return super().call(2 * inputs, training=training, mask=mask)

    doubled, plain = Doubled(), keras.layers.BatchNormalization()
    x = images(0)
    with live([doubled, plain]):
        found, expected = doubled(x), plain(2 * x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics(doubled)[1], statistics(plain)[1], rtol=2e-6)


def test_keras_itself_keeps_something_else():
    """Else the test above could not fail."""
    ours, theirs = pair()
    x = images(0, 1)
    ours(x, training=True)
    theirs(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert np.abs(statistics(ours)[1] - statistics(theirs)[1]).max() > 1e-3


def test_channels_may_come_first():
    ours, theirs = pair(axis=1)
    x = images(0, 2).transpose(0, 3, 1, 2).copy()
    with live([ours]):
        ours(x)
    theirs(torch.from_numpy(x))
    np.testing.assert_allclose(statistics(ours)[1], statistics(theirs)[1], rtol=2e-6)


def test_vectors_have_a_row_each():
    ours, theirs = keras.layers.BatchNormalization(momentum=0.9), torch.nn.BatchNorm1d(4)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with live([ours]):
        ours(x)
    theirs(torch.from_numpy(x))
    np.testing.assert_allclose(statistics(ours)[1], statistics(theirs)[1], rtol=2e-6)


def test_a_layer_that_is_called_twice_keeps_both():
    ours, theirs = pair()
    x = images(0, 2)
    in_a_graph(ours, learns=True, times=2)(x)
    for _ in range(2):
        theirs(torch.from_numpy(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(statistics(ours)[1], statistics(theirs)[1], rtol=2e-6)


def test_one_number_alone_has_no_variance_and_leaves_no_infinity():
    """torch refuses it; the engine makes no such batch where it can help it."""
    ours, _ = pair()
    before = statistics(ours)
    with live([ours]):
        ours(images(0, 1)[:, :1, :1])
    np.testing.assert_allclose(statistics(ours)[1], 0.9 * before[1], rtol=1e-6)


def test_momentum_may_be_a_tensor():
    """Statistics are estimated anew with the shares 0, 1/2, 2/3: the plain mean over batches, which torch's momentum=None is."""
    ours, theirs = pair()
    theirs.reset_running_stats()
    theirs.momentum = None  # type: ignore[assignment]

    def run(x, share):
        ours.momentum = share
        with live([ours]):
            ours(x)

    step = tf.function(run, autograph=False, reduce_retracing=True)
    for number in range(4):
        x = images(number)
        step(x, tf.constant(number / (number + 1), tf.float32))
        theirs(torch.from_numpy(x).permute(0, 3, 1, 2))
    for one, other in zip(statistics(ours), statistics(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_it_ends_with_the_context():
    """Graphs that are traced before and after it compute with the stored statistics and leave them, and one traced in it goes on."""
    ours, _ = pair()
    x = images(0)
    before, inside, after = (in_a_graph(ours, learns=learns) for learns in (False, True, False))
    expected, kept = before(x), statistics(ours)
    np.testing.assert_array_equal(after(x), expected)
    assert [a.tobytes() for a in statistics(ours)] == [a.tobytes() for a in kept]
    inside(x)
    moved = statistics(ours)
    assert not any(np.array_equal(one, other) for one, other in zip(kept, moved, strict=True))
    after(x)
    before(x)
    assert [a.tobytes() for a in statistics(ours)] == [a.tobytes() for a in moved]
    assert "call" not in vars(ours)


def test_it_ends_where_tracing_fails():
    ours, _ = pair()
    with pytest.raises(ValueError, match="incompatible"), live([ours]):
        ours(np.zeros((2, 5, 5, 4), np.float32))
    assert "call" not in vars(ours)


def test_in_half_precision_its_statistics_are_kept_in_float32():
    ours, _ = pair(dtype="mixed_bfloat16")
    with live([ours]):
        y = ours(tf.cast(images(0), tf.bfloat16))
    assert (y.dtype, ours.moving_variance.dtype) == (tf.bfloat16, "float32")
    full, _ = pair()
    with live([full]):
        full(tf.cast(tf.cast(images(0), tf.bfloat16), tf.float32))
    np.testing.assert_allclose(statistics(ours)[1], statistics(full)[1], rtol=1e-5)


def test_batch_renormalisation_keeps_what_keras_keeps():
    one, other = (keras.layers.BatchNormalization(renorm=True, momentum=0.9) for _ in range(2))
    with live([one]):
        one(images(0))
    other(images(0), training=True)
    assert [v.numpy().tobytes() for v in one.variables] == [v.numpy().tobytes() for v in other.variables]
