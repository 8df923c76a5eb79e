"""The moving average against its recursion in float64, and the exchange of live and kept values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from xfer.backends.torch.average import Average
from xfer.ops.schedules import decay_at

MOST_STEPS = 60


def live_tensors() -> dict[str, torch.Tensor]:
    """A convolution's weights as they lie in memory while it trains, a shift that takes gradients, statistics and a count."""
    torch.manual_seed(0)
    return {
        "conv.weight": nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)),
        "conv.bias": nn.Parameter(torch.randn(4)),
        "norm.running_var": torch.rand(4),
        "norm.num_batches_tracked": torch.tensor(3),
    }


def move(live: dict[str, torch.Tensor], step: int) -> None:
    """As an optimizer and a normalisation layer change them: in place."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in live.values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
            else:
                tensor.add_(1)


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.99])
def test_decay_rises_from_a_tenth_to_the_given_one(decay: float) -> None:
    """min(decay, (1 + n) / (10 + n)) after n updates: tf.train.ExponentialMovingAverage with `num_updates`."""
    found = [decay_at(decay, step) for step in range(2000)]
    assert found == [min(decay, (1 + step) / (10 + step)) for step in range(2000)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (min(decay, 0.1), decay)


@pytest.mark.parametrize("decay", [0.05, 0.9, 0.9999])
def test_it_is_the_recursion_in_float64(decay: float) -> None:
    live = live_tensors()
    average = Average(live, decay)
    expected = {name: tensor.detach().double() for name, tensor in live.items()}
    for step in range(MOST_STEPS):
        move(live, step)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = {name: d * kept + (1 - d) * live[name].detach().double() for name, kept in expected.items()}
    for name in ("conv.weight", "conv.bias", "norm.running_var"):
        assert torch.allclose(average.kept[name].double(), expected[name], rtol=0, atol=2e-6), name
        assert not torch.allclose(average.kept[name], live[name].detach(), atol=1e-3), name
    assert average.kept["norm.num_batches_tracked"] == 3 + MOST_STEPS


def test_it_begins_at_what_is_there_and_holds_copies() -> None:
    live = live_tensors()
    average = Average(live, 0.9)
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    move(live, 0)
    assert all(torch.equal(average.kept[name], before[name]) for name in live)
    assert not any(kept.requires_grad for kept in average.kept.values())
    average.update(10_000)
    assert all(torch.equal(average.kept[n], before[n].lerp(live[n].detach(), 1 - 0.9)) for n in ("conv.weight", "conv.bias"))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_swapped_twice_nothing_has_changed_by_one_bit() -> None:
    """Numbers with more than one form of their bits, or that arithmetic would lose, too."""
    live = live_tensors()
    average = Average(live, 0.9)
    move(live, 0)
    average.update(0)
    with torch.no_grad():
        live["conv.bias"].copy_(torch.tensor([-0.0, float("nan"), float("-inf"), 1e-45]))
        average.kept["conv.bias"].copy_(torch.tensor([0.0, 1e38, -1e-40, float("inf")]))
    shown = {name: bits(tensor) for name, tensor in live.items()}
    kept = {name: bits(tensor) for name, tensor in average.kept.items()}
    assert shown != kept
    average.swap()
    assert ({name: bits(tensor) for name, tensor in live.items()}, {n: bits(t) for n, t in average.kept.items()}) == (kept, shown)
    average.swap()
    assert ({name: bits(tensor) for name, tensor in live.items()}, {n: bits(t) for n, t in average.kept.items()}) == (shown, kept)


def test_swapping_keeps_the_live_tensors_themselves() -> None:
    """Optimizer, network and average hold the same objects, in the same memory and its layout; gradients go on."""
    live = live_tensors()
    average = Average(live, 0.9)
    places = {name: (id(tensor), tensor.data_ptr(), tensor.stride(), tensor.requires_grad) for name, tensor in live.items()}
    move(live, 0)
    average.update(0)
    average.swap()
    average.swap()
    assert {name: (id(t), t.data_ptr(), t.stride(), t.requires_grad) for name, t in average.live.items()} == places
    assert average.kept["conv.weight"].stride() == live["conv.weight"].stride()
    live["conv.weight"].sum().backward()
    assert live["conv.weight"].grad is not None


def test_what_is_saved_comes_back_and_goes_on_to_the_same_bits() -> None:
    whole, parted = live_tensors(), live_tensors()
    first, before = Average(whole, 0.95), Average(parted, 0.95)
    for step in range(6):
        for live, average in ((whole, first), (parted, before)):
            move(live, step)
            average.update(step)
    saved = before.state()
    assert all(isinstance(value, np.ndarray) for value in saved.values())
    held = {name: value.copy() for name, value in saved.items()}
    before.update(6)
    assert all(np.array_equal(saved[name], held[name]) for name in held)  # a copy, not a view of what goes on
    after = Average(parted, 0.95)
    after.load_state({**saved, "of.another.phase": np.zeros(3)})
    for step in range(6, 12):
        for live, average in ((whole, first), (parted, after)):
            move(live, step)
            average.update(step)
    assert {name: bits(tensor) for name, tensor in after.kept.items()} == {name: bits(tensor) for name, tensor in first.kept.items()}
    assert set(after.kept) == set(whole)
