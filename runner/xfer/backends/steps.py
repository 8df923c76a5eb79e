"""What a phase's training does alike on both backends: which steps update and see what, where taps lie, losses of parts of a batch,
and losses that are no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xfer.backends.backend import Batch, StepRecord
from xfer.errors import DivergedError
from xfer.methods.method import EVERYTHING, NETWORK, Step
from xfer.plan.model_map import HEAD, OWN
from xfer.plan.plan import PhasePlan, Plan


def stops(plan: Plan, phase: PhasePlan) -> list[tuple[str, tuple[str, ...]]]:
    """The cuts at which the way from the phase's input to the head stops, in order, each with the taps that lie there."""
    order = [cut.name for cut in plan.model.cuts]
    cuts = sorted({phase.input.cut, *plan.method.taps.values(), plan.head.at}, key=order.index)
    return [(stop, tuple(tap for tap, cut in plan.method.taps.items() if cut == stop)) for stop in cuts]


def updated_by(step: Step, names: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    """Those of the trained tensors that a method's step updates."""
    wanted = set(step.updates)
    kinds = {name: groups[name] if groups[name] == HEAD or name.startswith(f"{OWN}.") else NETWORK for name in names}
    return [name for name, kind in kinds.items() if EVERYTHING in wanted or kind in wanted]


def tensors_seen(
    trained: Mapping[str, Any], *, own: Mapping[str, Any], source: Mapping[str, Any], groups: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    """The mappings that a `Look` takes, from the trained tensors, the method's own, and the source's values."""
    moved = {name: tensor for name, tensor in trained.items() if name in source}
    head = {name.removeprefix(f"{HEAD}."): tensor for name, tensor in trained.items() if groups[name] == HEAD}
    return {"own": own, "trained": moved, "source": {name: source[name] for name in moved}, "head": head}


def labels_weigh(batch: Batch, class_weights: np.ndarray) -> float:
    """What the sum of these rows' weighted losses is divided by: the global batch's sum of the weights of its labels, times the part of its
    rows that is here, so that the mean over parts, each with its share of rows, is the loss of the whole batch."""
    labels = batch.labels if batch.labels_all is None else batch.labels_all
    return float(class_weights[labels].sum(dtype=np.float64)) * len(batch.labels) / batch.total


def refuse_divergence(record: StepRecord, phase: PhasePlan, *, epoch: int) -> None:
    """Raises DivergedError where a loss is not a finite number."""
    if not np.isfinite(record.losses).all():
        raise DivergedError(
            f"phase '{phase.name}', epoch {epoch + 1}: the loss is not a finite number any more",
            hint=f"lower the learning rate (now {phase.optimizer.lr:g}), or set optimizer.clip_norm; then start a new run",
        )


def under(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
