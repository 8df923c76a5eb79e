"""The moving average against torch's over the same numbers, and the exchange of live and kept values."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.average import Average
from xfer.backends.torch.average import Average as TorchAverage
from xfer.ops.schedules import decay_at

MOST_STEPS = 60
FLOATS = ("conv/kernel", "conv/bias", "norm/moving_variance")


def numbers() -> dict[str, np.ndarray]:
    """Weights, a shift, statistics and a count."""
    random = np.random.default_rng(0)
    shapes = {"conv/kernel": (3, 3, 2, 4), "conv/bias": (4,), "norm/moving_variance": (4,)}
    return {**{name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, "seen/count": np.array(3, np.int64)}


def moved(step: int) -> dict[str, np.ndarray]:
    """What a step adds."""
    random = np.random.default_rng(step + 1)
    floats = {name: (random.normal(size=value.shape) / 10).astype(np.float32) for name, value in numbers().items() if value.ndim}
    return {**floats, "seen/count": np.array(1, np.int64)}


class Live:
    """Variables that change as an optimizer changes them, and their average, updated in a graph as in the trainer's."""

    def __init__(self, decay: float) -> None:
        self.variables = {name: tf.Variable(value) for name, value in numbers().items()}
        self.average = Average(self.variables, decay)
        self.update = tf.function(self.average.update, autograph=False, input_signature=[tf.TensorSpec([], tf.float32)])

    def step(self, step: int) -> None:
        for name, more in moved(step).items():
            self.variables[name].assign_add(more)
        self.update(tf.constant(1 - decay_at(self.average.decay, step), tf.float32))

    def bits(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Of live and of kept values."""
        return {n: v.numpy().tobytes() for n, v in self.variables.items()}, {n: v.tobytes() for n, v in self.average.state().items()}


@pytest.mark.parametrize("decay", [0.05, 0.9, 0.9999])
def test_it_is_torch_s_and_the_recursion_in_float64(decay):
    live, tensors = Live(decay), {name: torch.from_numpy(value.copy()) for name, value in numbers().items()}
    theirs, expected = TorchAverage(tensors, decay), {name: value.astype(np.float64) for name, value in numbers().items()}
    for step in range(MOST_STEPS):
        live.step(step)
        for name, more in moved(step).items():
            tensors[name].add_(torch.from_numpy(more))
        theirs.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = {name: d * kept + (1 - d) * live.variables[name].numpy().astype(np.float64) for name, kept in expected.items()}
    kept = live.average.state()
    for name in FLOATS:
        np.testing.assert_allclose(kept[name], theirs.kept[name].numpy(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(kept[name], expected[name], rtol=0, atol=2e-6)
        assert np.abs(kept[name] - live.variables[name].numpy()).max() > 1e-3
    assert kept["seen/count"] == 3 + MOST_STEPS  # whole numbers are taken over


def test_it_begins_at_what_is_there_and_holds_copies():
    live = Live(0.9)
    for name, more in moved(0).items():
        live.variables[name].assign_add(more)
    assert {name: value.tobytes() for name, value in live.average.state().items()} == {n: v.tobytes() for n, v in numbers().items()}
    assert not any(kept.trainable for kept in live.average.kept.values())


def test_swapped_twice_nothing_has_changed_by_one_bit():
    """Numbers with more than one form of their bits, or that arithmetic would lose, too."""
    live = Live(0.9)
    live.step(0)
    live.variables["conv/bias"].assign([-0.0, float("nan"), float("-inf"), 1e-45])
    live.average.kept["conv/bias"].assign([0.0, 1e38, -1e-40, float("inf")])
    shown, kept = live.bits()
    assert shown != kept
    live.average.swap()
    assert live.bits() == (kept, shown)
    live.average.swap()
    assert live.bits() == (shown, kept)
    assert all(live.average.live[name] is variable for name, variable in live.variables.items())


def test_what_is_saved_comes_back_and_goes_on_to_the_same_bits():
    whole, parted = Live(0.95), Live(0.95)
    for step in range(6):
        whole.step(step)
        parted.step(step)
    saved = parted.average.state()
    held = {name: value.copy() for name, value in saved.items()}
    parted.step(99)
    assert all(np.array_equal(saved[name], held[name]) for name in held)  # copies
    after = Live(0.95)
    for name, variable in after.variables.items():
        variable.assign(whole.variables[name])
    after.average.load_state({**saved, "of/another/phase": np.zeros(3)})
    for step in range(6, 12):
        whole.step(step)
        after.step(step)
    assert after.bits() == whole.bits()
    assert set(after.average.kept) == set(numbers())
