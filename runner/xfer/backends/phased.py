"""What a network does alike on both backends while a run goes through its phases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from xfer.backends.backend import Batch, StepRecord, Team
from xfer.backends.steps import under
from xfer.plan.plan import PhasePlan

MODEL = "model/"  # before the names of the network's own tensors in a state


class Parts(Protocol):
    """The tensors of a network by their names in the plan."""

    changing: list[str]

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]: ...

    def put(self, tensors: Mapping[str, np.ndarray]) -> None: ...

    def distances(self) -> dict[str, float]: ...


class Optimizer(Protocol):
    """A phase's optimizer: its numbers by tensor name."""

    def state(self) -> dict[str, np.ndarray]: ...

    def load_state(self, saved: dict[str, np.ndarray]) -> None: ...


class Trainer(Protocol):
    """One phase's training."""

    @property
    def optimizer(self) -> Optimizer: ...

    average: Any  # None, or averaged weights whose `swap` puts them in the place of the live ones and back

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord: ...

    def reestimate(self, batches: Iterable[np.ndarray]) -> None: ...

    def state(self) -> dict[str, np.ndarray]: ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...


P = TypeVar("P", bound=Parts)
T = TypeVar("T", bound=Team)


class PhasedNetwork(Generic[P, T]):
    """Implements the part of `xfer.backends.backend.Network` that speaks of phases and of state."""

    def __init__(self, parts: P, team: T | None) -> None:
        self.parts, self.team = parts, team
        self.trainer: Trainer | None = None

    def make_trainer(self, phase: PhasePlan, *, steps_per_epoch: int, class_weights: np.ndarray | None, team: T | None) -> Trainer:
        """The training of a phase, its optimizer without a past; with a `team`, each rank trains on its part of the batches."""
        raise NotImplementedError

    def weights_changed(self) -> None:
        """Said after weights were put in from outside, or a phase has ended."""

    def begin_phase(self, phase: PhasePlan, *, steps_per_epoch: int, class_weights: np.ndarray | None, together: bool = False) -> None:
        assert self.team is not None or not together, "training together needs a team: Backend.join comes first"
        carried: dict[str, np.ndarray] = {}
        if self.trainer is not None:
            self.trainer.close()
            carried = self.trainer.optimizer.state() if phase.optimizer_state == "carry" else {}
        team = self.team if together else None
        self.trainer = self.make_trainer(phase, steps_per_epoch=steps_per_epoch, class_weights=class_weights, team=team)
        self.trainer.optimizer.load_state(carried)

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord:
        assert self.trainer is not None
        return self.trainer.train(batches, epoch=epoch, first_step=first_step, scale=scale)

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        average = self.trainer.average if self.trainer is not None else None
        if average is None:
            yield
            return
        average.swap()
        try:
            yield
        finally:
            average.swap()

    def end_phase(self, *, best: Mapping[str, np.ndarray], statistics: Iterable[np.ndarray] | None) -> None:
        assert self.trainer is not None
        if self.trainer.average is not None:
            self.trainer.average.swap()
            self.trainer.average = None
        self.parts.put(best)
        if statistics is not None:
            self.trainer.reestimate(statistics)
        self.weights_changed()

    def distances(self) -> dict[str, float]:
        return self.parts.distances()

    def tensors(self) -> dict[str, np.ndarray]:
        return self.parts.arrays(self.parts.changing)

    def load_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.parts.put(tensors)
        self.weights_changed()

    def state(self) -> dict[str, np.ndarray]:
        state = {f"{MODEL}{name}": value for name, value in self.tensors().items()}
        return state | (self.trainer.state() if self.trainer is not None else {})

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.load_tensors(under(state, MODEL))
        if self.trainer is not None:
            self.trainer.load_state(state)
