"""The contract of a transfer method: what it declares before a run, and what each of its steps is given while it trains.

A method is written once, with the operations of `xfer.ops.arrays`, and runs on both backends.

Own tensors (a discriminator, a regressor) are groups of their own, `method.<first part of the name>`, and always train. Steps are
taken in turn on each batch; each names what it updates, so that a discriminator and a network can alternate. Taps are places inside
the network whose activations the steps see, of the network that trains and, with `teacher`, of a copy that keeps the source's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from xfer.ops.arrays import Array

NETWORK, HEAD, EVERYTHING = "network", "head", "everything"  # what a step may update, beside an own group


@dataclass(frozen=True)
class Facts:
    """What the shapes of own tensors may depend on: `features` is the width of the vectors that the head reads, `taps` one row's
    shape at each tap, in the backend's own layout."""

    classes: int
    features: int
    taps: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class OwnTensor:
    """A tensor that the method brings: `name` as in 'discriminator.weight'. It starts at zero, or with `fan_in` uniform in
    ±1/sqrt(fan_in)."""

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None


class Activations(Protocol):
    """What one network computed of a batch: `features` float32 [n, features], `logits` float32 [n, classes], and `taps` by the
    selectors that the method gave."""

    @property
    def features(self) -> Array: ...

    @property
    def logits(self) -> Array: ...

    @property
    def taps(self) -> Mapping[str, Array]: ...


class Seen(Activations, Protocol):
    """What a step is given. Everything but `labels`, `source` and the teacher's activations carries gradients."""

    labels: Array  # int64 [n]
    progress: Array  # a scalar, 0 at the phase's first step, 1 at its end; where a step is a graph, a tensor

    @property
    def own(self) -> Mapping[str, Array]:
        """The method's own tensors, by the names that it gave."""
        ...

    @property
    def trained(self) -> Mapping[str, Array]:
        """The source network's parameters that train in this phase, by name."""
        ...

    @property
    def source(self) -> Mapping[str, Array]:
        """The values that the parameters of `trained` had in the source."""
        ...

    @property
    def head(self) -> Mapping[str, Array]:
        """The head's parameters, where they train in this phase."""
        ...

    @property
    def teacher(self) -> Activations:
        """Of the copy with the source's weights; `logits` are those of the new head on the copy's features."""
        ...

    def task_loss(self) -> Array:
        """Cross entropy of `logits` with the recipe's label smoothing and class weights: what fine-tuning minimises."""
        ...


@dataclass(frozen=True)
class Step:
    """One update. `loss` is minimised over what `updates` names: 'everything', 'network', 'head', or own groups ('method.critic')."""

    name: str
    loss: Callable[[Any], Array]
    updates: tuple[str, ...] = (EVERYTHING,)


class Method:
    """What every method inherits, with the answers of the plainest one. Keyword-only constructor arguments are its options."""

    type: ClassVar[str]  # feature | model | knowledge | domain
    trains_source: ClassVar[bool] = True
    default_policy: ClassVar[str] = "lp_ft"
    freezes_head: ClassVar[bool] = False  # then a schedule may leave the head out
    rewrites_statistics: ClassVar[bool] = False  # normalisation statistics of frozen groups follow the batches
    teacher: ClassVar[bool] = False  # the steps see a copy with the source's weights

    def taps(self) -> tuple[str, ...]:
        """Selectors of places in the network: the end of a group or a stage ('stage2')."""
        return ()

    def tensors(self, facts: Facts) -> tuple[OwnTensor, ...]:
        """The method's own tensors."""
        return ()

    def steps(self) -> tuple[Step, ...]:
        """What is done with each batch, in order."""
        return (Step("task", self.loss),)

    def loss(self, seen: Seen) -> Array:
        """A scalar."""
        return seen.task_loss()
