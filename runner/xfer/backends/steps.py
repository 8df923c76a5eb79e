"""What a phase's training does alike on both backends: which steps update what, where taps lie, and losses that are no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from xfer.backends.backend import StepRecord
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
