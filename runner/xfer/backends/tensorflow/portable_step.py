"""One call of a Keras graph while it is written as a portable one, and how Keras's axes and the portable graph's are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xfer.backends.graph_writer import Value, Writer
from xfer.backends.tensorflow.graph import Call
from xfer.plan import portable as graph
from xfer.plan.portable import NotPortableError

Order = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """What a symbolic tensor is in the portable graph; `order` tells for each place of Keras's row which axis of `value` lies there."""

    value: Value
    order: Order

    def axis(self, place: int) -> int:
        """The axis at a place of the tensor, the batch counted, from behind where below 0."""
        return self.order[place % (len(self.order) + 1) - 1]


def last(rank: int) -> Order:
    """The order of a row with the channels last.

    >>> last(3), last(1)
    ((1, 2, 0), (0,))
    """
    return (*range(1, rank), 0)


@dataclass(frozen=True)
class Step:
    """A call that is being written: where to, under which name, what it reads; `row` is Keras's row of what it gives."""

    writer: Writer
    call: Call
    name: str
    reads: tuple[Held, ...]

    @property
    def layer(self) -> Any:
        return self.call.operation

    @property
    def kind(self) -> str:
        return type(self.call.operation).__name__

    @property
    def row(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.call.gives[0].shape[1:])

    def laid(self, held: Held, order: Order) -> Value:
        """The value with its axes so that they lie at Keras's places in that order."""
        axes = [held.order[order.index(axis)] for axis in range(len(order))]
        return self.writer.transpose(f"{self.name}_order", held.value, axes)

    def first(self, held: Held) -> Value:
        """Channels first, which is how convolutions and poolings are written."""
        return self.laid(held, last(len(held.order)))

    def plain(self, held: Held) -> Value:
        """The axes as Keras has them."""
        return self.laid(held, tuple(range(len(held.order))))

    def given(self, order: Order) -> tuple[int, ...]:
        """The shape of the row that it gives, by the portable graph's axes."""
        return tuple(self.row[order.index(axis)] for axis in range(len(order)))

    def refuse(self, reason: str | None = None) -> NotPortableError:
        return self.writer.refuse(self.call.name, self.kind, reason)


Handler = Callable[[Step], Held]


def kind_of(operation: Any) -> str:
    """The class's name behind the part of Keras that it comes from: 'layers.Add', 'ops.Add', 'applications.LayerScale'."""
    kind = type(operation)
    parts = kind.__module__.split(".")
    home = parts[2] if parts[:2] == ["keras", "src"] else "own" if parts[-1] == "portable_layers" else parts[0]
    return f"{home}.{kind.__name__}"


def scaled(step: Step, x: Value, factor: float, offset: float = 0.0, *, name: str | None = None) -> Value:
    """x * factor + offset."""
    return step.writer.add(graph.Rescale, name or step.name, x, x.row, factor=(float(factor),), offset=(float(offset),))
