"""What a result stands beside: the majority class, and a closed-form linear probe on the source's own features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xfer.engine.inputs import Inputs
from xfer.engine.target import Target
from xfer.ops.ridge import RidgeProbe

STRENGTHS = tuple(float(10.0**exponent) for exponent in range(-2, 6))
BLOCK_ROWS = 1024
NO_VALIDATION_STRENGTH = 100.0


def vectors(inputs: Inputs, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, float32 features [k, d]) block by block, so that memory does not grow with the data."""
    for part, values in inputs.batches(rows, BLOCK_ROWS):
        yield part, as_float32(values)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Stored rows as float32; uint16 holds bfloat16, whose bits are float32's upper half."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Probe:
    """A fitted ridge probe and the strength that validation chose."""

    probe: RidgeProbe
    strength: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Class indices of float32 features [n, d]."""
        return self.probe.predict(features)


def fit_probe(inputs: Inputs, target: Target) -> Probe:
    """Fitted on the training split; its l2 strength is the best of eight on the validation split."""
    probe = RidgeProbe(inputs.place.shape[0], len(target.dataset.classes))
    for rows, features in vectors(inputs, target.rows("train")):
        probe.add(features, target.labels(rows))
    validation = target.rows("val")
    if not len(validation):
        probe.solve(NO_VALIDATION_STRENGTH)
        return Probe(probe, NO_VALIDATION_STRENGTH)
    batches = ((features, target.labels(rows)) for rows, features in vectors(inputs, validation))
    strength = float(probe.choose(STRENGTHS, batches))
    probe.solve(strength)
    return Probe(probe, strength)


@dataclass(frozen=True)
class Baselines:
    """What a result is put beside, made before anything trains and without a look at a test label: the majority class, and the
    closed-form probe's `guesses` (class by test row) with its l2 `strength`."""

    majority: int
    strength: float
    guesses: dict[int, int]


def fit_baselines(inputs: Inputs, target: Target) -> Baselines:
    """On the source's own features."""
    probe, rows = fit_probe(inputs, target), target.rows("test")
    guesses: dict[int, int] = {}
    for part, features in vectors(inputs, rows):
        guesses.update(zip(part.tolist(), probe.predict(features).tolist(), strict=True))
    return Baselines(majority_class(target), probe.strength, guesses)


def majority_class(target: Target) -> int:
    """The most frequent training label; the first of equals."""
    return int(np.bincount(target.labels(target.rows("train")), minlength=len(target.dataset.classes)).argmax())
