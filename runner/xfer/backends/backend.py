"""What a backend has to offer: the same verbs on torch and on TensorFlow. The engine speaks only this, in numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load, save

from xfer import plugins
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import PhasePlan, Plan


@dataclass(frozen=True)
class Batch:
    """One step's data. `rows` are dataset rows (they key the randomness), `inputs` [n, *shape] at the phase's cut in the
    stored dtype (bfloat16 as uint16), `labels` int64 [n].

    In a team they are one rank's part of a global batch; `share` is then its weight (n over the global number of rows; one over the
    number of ranks where each computes the whole batch), and `labels_all` holds the global batch's labels."""

    rows: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    share: float = 1.0
    labels_all: np.ndarray | None = None

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return len(self.labels if self.labels_all is None else self.labels_all)

    @property
    def is_part(self) -> bool:
        """Whether other ranks have other rows of the global batch."""
        return len(self.labels) < self.total

    @property
    def row_weight(self) -> float:
        """What each of these rows counts in sums over the ranks: less than one only where every rank computes them all."""
        return 1.0 if self.is_part else self.share


@dataclass
class StepRecord:
    """What each step of an epoch gave, in order: kept per step, so that an epoch that was interrupted sums to the same number."""

    losses: list[float] = field(default_factory=list)  # mean over the batch
    correct: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return float(np.dot(self.losses, self.counts) / max(1, sum(self.counts)))

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / max(1, sum(self.counts))


@dataclass(frozen=True)
class Device:
    """Where it is computed. `kind` goes into the store's key: 'cpu avx512_bf16', 'cuda sm90'."""

    name: str
    kind: str
    fast_bfloat16: bool
    threads: int


def installed(libraries: Sequence[str]) -> dict[str, str]:
    """The versions of those libraries that are installed."""
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


class Team(Protocol):
    """The ranks that train together, a process each. All of them call the same methods in the same order."""

    rank: int
    size: int

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Over the ranks, of float32, float64 or int64 of one shape."""
        ...

    def broadcast_bytes(self, data: bytes) -> bytes:
        """The first rank's."""
        ...

    def broadcast(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first rank's, to the bit, whatever names and shapes the others hold."""
        packed = b"" if self.rank else save({name: np.array(value, order="C") for name, value in arrays.items()})
        return load(self.broadcast_bytes(packed))


class Network(Protocol):
    """A built network with its head, on a device."""

    def compute(self, inputs: np.ndarray, *, start: str, end: str, pooled: bool) -> np.ndarray:
        """The frozen part from cut `start` to cut `end`, eval mode, no gradient: [n, *shape] in the plan's stored dtype.
        n must always be the plan's extraction batch, so that stored and streamed rows are the same bits."""
        ...

    def signature(self, start: str, end: str) -> str:
        """A digest of the graph (not the tensors) between two cuts."""
        ...

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """A digest of each tensor's bits."""
        ...

    def begin_phase(self, phase: PhasePlan, *, steps_per_epoch: int, class_weights: np.ndarray | None, together: bool = False) -> None:
        """Set what trains, make the optimizer (carrying state where the phase says so). `together`: each rank of the team trains on its
        part of the batches; else it computes by itself, though others do the same."""
        ...

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord:
        """Train on the batches; `first_step` is the phase's step of the first one, `scale` multiplies all learning rates."""
        ...

    def evaluated(self) -> AbstractContextManager[None]:
        """Within it the weights are those that the phase would leave now: averaged ones, where the phase averages."""
        ...

    def end_phase(self, *, best: Mapping[str, np.ndarray], statistics: Iterable[np.ndarray] | None) -> None:
        """Leave the averages, or the `best` tensors where there are any; then, with `statistics` (training inputs at the phase's cut),
        estimate normalisation statistics anew."""
        ...

    def distances(self) -> dict[str, float]:
        """Per source group that some phase trains, ||w - w⁰|| / ||w⁰||: how far it is from the source."""
        ...

    def logits(self, inputs: np.ndarray, *, start: str, pooled: bool) -> np.ndarray:
        """Eval mode, from cut `start` through the head: float32 [n, classes]."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Every tensor that a resume needs: those that may have changed, the head, and the optimizer's."""
        ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> None: ...

    def tensors(self) -> dict[str, np.ndarray]:
        """Trained weights by name (those of `state` without the optimizer's), to keep the best of a phase."""
        ...

    def load_tensors(self, tensors: Mapping[str, np.ndarray]) -> None: ...

    def save(self, folder: Path) -> None:
        """Write the model's weights into a bundle's `model/`."""
        ...


class Backend(Protocol):
    """Registered under xfer.backends; a class without constructor arguments."""

    name: str

    def versions(self) -> dict[str, str]: ...

    def device(self, wanted: str) -> Device:
        """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' means here; raises UsageError where there is none."""
        ...

    def is_memory_full(self, error: BaseException) -> bool:
        """Whether that is how the framework says that the device has too little memory."""
        ...

    def describe(self, source: Any, *, model: str, name: str, pretrained: bool, image_size: int) -> ModelMap: ...

    def build(self, plan: Plan, *, threads: int | None = None) -> Network:
        """The network with its weights and a fresh head; raises WeightsError."""
        ...

    def load(self, plan: Plan, folder: Path) -> Network:
        """The network of a bundle's `model/` folder."""
        ...

    def join(self, rank: int, size: int, *, device: str = "auto", threads: int | None = None) -> Team:
        """Meet the other ranks, in a process that a launcher has told where they are. Comes before all else; networks that are built
        afterwards belong to the team."""
        ...


def backend_named(name: str) -> Backend:
    """The backend of that name, a new one; imports its framework. Raises what `plugins.find` and `plugins.load` raise."""
    found: Backend = plugins.load(plugins.find("backends", name).target)()
    return found
