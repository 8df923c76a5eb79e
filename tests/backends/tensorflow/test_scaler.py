"""Loss scaling by torch.amp.GradScaler's documented rule: it begins at 2**16, is halved by a step that overflows, which is left out, and
doubled after 2000 in turn that don't. (torch's own scaler has no CPU kernels of float16 here to compare with on every machine.)"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.scaler import BACKOFF, GROWTH, GROWTH_STEPS, START, Scaler

BAD = (float("inf"), float("-inf"), float("nan"))


def updates(scaler: Scaler):
    return tf.function(scaler.update, autograph=False, input_signature=[tf.TensorSpec([], tf.bool)])


def numbers(scaler: Scaler) -> tuple[float, int]:
    return float(scaler.scale), int(scaler.good)


def test_its_constants_are_torch_s():
    theirs = torch.amp.GradScaler("cpu").state_dict()
    rule = [theirs[name] for name in ("scale", "growth_factor", "backoff_factor", "growth_interval")]
    assert rule == [START, GROWTH, BACKOFF, GROWTH_STEPS]
    assert numbers(Scaler(enabled=True)) == (theirs["scale"], theirs["_growth_tracker"])


def test_it_follows_torch_s_rule_over_many_steps():
    """The rule of GradScaler.update, by torch's own kernel for it."""
    scaler, random = Scaler(enabled=True), np.random.default_rng(0)
    finite = np.array([step > GROWTH_STEPS or random.uniform() > 0.002 for step in range(3 * GROWTH_STEPS)])

    def step(each):
        scaler.update(each)
        return scaler.scale.read_value(), scaler.good.read_value()

    kinds = (tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int64))
    run = tf.function(lambda each: tf.map_fn(step, each, kinds, parallel_iterations=1))
    found = list(zip(*(values.numpy().tolist() for values in run(tf.constant(finite))), strict=True))

    scale, tracker = torch.full((), START), torch.zeros((), dtype=torch.int32)
    expected = []
    for each in finite:
        torch._amp_update_scale_(scale, tracker, torch.tensor(0.0 if each else 1.0), GROWTH, BACKOFF, GROWTH_STEPS)
        expected.append((scale.item(), tracker.item()))
    assert found == expected
    assert len(set(expected)) > GROWTH_STEPS
    assert min(expected)[0] < START < max(expected)[0] * 4


def test_a_scale_that_would_be_infinite_stays():
    scaler = Scaler(enabled=True)
    scaler.scale.assign(2.0**127)
    scaler.good.assign(GROWTH_STEPS - 1)
    updates(scaler)(tf.constant(True))
    assert numbers(scaler) == (2.0**127, 0)


@pytest.mark.parametrize("enabled", [False, True])
def test_gradients_too_small_for_float16_survive(enabled):
    """On the way back they pass a cast to float16, whose smallest number is 6e-8; what is given back are those of the loss itself."""
    scaler, weight = Scaler(enabled=enabled), tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(tf.cast(weight, tf.float16), tf.float32)) * 1e-8
        scaled = scaler.scaled(loss)
    plain, finite = scaler.unscaled({"w": tape.gradient(scaled, weight)})
    assert bool(finite)
    np.testing.assert_allclose(plain["w"], [1e-8, 1e-8] if enabled else [0, 0], rtol=1e-3)


@pytest.mark.parametrize("bad", BAD)
def test_one_number_that_is_not_finite_is_found(bad):
    scaler = Scaler(enabled=True)
    good = {"a": tf.constant([1.0, 2.0]) * START, "b": tf.constant(3.0) * START}
    plain, finite = scaler.unscaled(good)
    assert bool(finite)
    assert (plain["a"].numpy().tolist(), float(plain["b"])) == ([1.0, 2.0], 3.0)
    _, finite = scaler.unscaled({**good, "c": tf.constant([0.0, bad])})
    assert not bool(finite)


def test_where_nothing_is_scaled_nothing_happens():
    scaler = Scaler(enabled=False)
    loss = tf.constant(3.0)
    assert scaler.scaled(loss) is loss
    gradients = {"a": tf.constant(float("inf"))}
    assert scaler.unscaled(gradients) == (gradients, True)
    scaler.update(True)
    assert scaler.state() == {}
    scaler.load_state({"scaler/scale": np.array(4.0), "scaler/growth": np.array(5)})
    assert numbers(scaler) == (START, 0)


def test_its_state_comes_back():
    scaler = Scaler(enabled=True)
    update = updates(scaler)
    for finite in (True, False, True, True):
        update(tf.constant(finite))
    other = Scaler(enabled=True)
    other.load_state(scaler.state())
    assert numbers(other) == numbers(scaler) == (START / 2, 2)
