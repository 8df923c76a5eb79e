"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "cosine", "one_cycle", "plateau"]

ONE_CYCLE_START = 1 / 25  # share of the peak at the first step; Smith & Topin 2019, values as in torch's OneCycleLR
ONE_CYCLE_END = ONE_CYCLE_START / 1e4
ONE_CYCLE_RISE = 0.3  # share of the steps that go up


def factor(schedule: ScheduleName, step: int, *, steps: int, warmup_steps: float = 0.0) -> float:
    """What the base learning rate is multiplied with at `step` (from 0) of `steps`.

    A warm-up rises linearly to 1 and the schedule spans what is left. 'plateau' is constant here: its reductions depend
    on the metric and are multiplied in by the engine.

    >>> [round(factor("cosine", step, steps=4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> factor("constant", 0, steps=10, warmup_steps=4), factor("constant", 4, steps=10, warmup_steps=4)
    (0.25, 1.0)
    """
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    span = max(1.0, steps - warmup_steps)
    position = min(1.0, (step - warmup_steps) / span)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * position))
    if schedule == "one_cycle":
        return one_cycle(step - warmup_steps, span)
    return 1.0


def one_cycle(step: float, steps: float) -> float:
    """Cosine up to the peak, cosine down (Smith & Topin 2019; Howard's two-phase form)."""
    rise = max(1.0, ONE_CYCLE_RISE * steps - 1)
    if step <= rise:
        return _between(ONE_CYCLE_START, 1.0, step / rise)
    return _between(1.0, ONE_CYCLE_END, min(1.0, (step - rise) / max(1.0, steps - 1 - rise)))


def _between(start: float, end: float, position: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * position))


def decay_at(decay: float, step: int) -> float:
    """The decay at the phase's `step`: it rises from 1/10, so that a short run is not an average of its start (as TensorFlow's
    ExponentialMovingAverage does with `num_updates`).

    >>> decay_at(0.99, 0), round(decay_at(0.99, 10), 2), decay_at(0.99, 10_000)
    (0.1, 0.55, 0.99)
    """
    return min(decay, (1 + step) / (10 + step))
