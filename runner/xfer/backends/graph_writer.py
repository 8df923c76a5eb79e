"""Writing down a portable graph, whichever backend's network it is made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from xfer.ops.windows import missing_behind
from xfer.plan import portable as graph
from xfer.plan.model_map import Tensor
from xfer.plan.portable import IMAGES, NO_SIDES, Names, NotPortableError, Operation, Pair, Portable, Sides
from xfer.plan.preprocess import Preprocess


def pair(value: Any) -> Pair:
    """Height and width, from one number or two.

    >>> pair(3), pair((2, 1)), pair([7])
    ((3, 3), (2, 1), (7, 7))
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return (int(numbers[0]), int(numbers[-1]))


def even(padding: Any) -> Sides:
    """The same before and after, from one number or two."""
    height, width = pair(padding)
    return ((height, height), (width, width))


@dataclass(frozen=True)
class Value:
    """What an operation gives: its name, and the shape of a row, by the portable graph's axes."""

    name: str
    row: tuple[int, ...]


@dataclass
class Writer:
    """Operations and tensors as they are written. `model` is for messages."""

    model: str
    names: Names = field(default_factory=Names)
    operations: list[Any] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def images(self, size: int) -> Value:
        return Value(IMAGES, (3, size, size))

    def refuse(self, place: str, operation: str, reason: str | None = None) -> NotPortableError:
        """The error for what has no portable form; to be raised."""
        return NotPortableError(
            f"both backends can't hold {self.model}: {operation} at '{place}' is not portable" + (f": {reason}" if reason else ""),
            hint="xfer parity knows convolutions, dense layers, normalisations, poolings, activations and what joins them",
        )

    def once(self, place: str, operation: str) -> None:
        """A portable operation has tensors of its own: raises NotPortableError where those at `place` were used before."""
        if place in self._used:
            raise self.refuse(place, operation, "it is used twice, with the same weights")
        self._used.add(place)

    def add(
        self,
        kind: type[Operation],
        name: str,
        inputs: Value | Sequence[Value],
        gives: Sequence[int],
        *,
        weights: Mapping[str, np.ndarray | None] | None = None,
        buffers: Collection[str] = (),
        **attributes: Any,
    ) -> Value:
        """One more operation; `gives` is the shape of its rows. `weights` are its tensors by role, those of `buffers` no parameters."""
        read = (inputs,) if isinstance(inputs, Value) else tuple(inputs)
        name = self.names.free(name)
        values = {role: np.asarray(value, np.float32) for role, value in (weights or {}).items() if value is not None}
        made = tuple(
            Tensor(name=f"{name}.{role}", shape=value.shape, kind="buffer" if role in buffers else "parameter")
            for role, value in values.items()
        )
        self.operations.append(kind(name=name, inputs=tuple(value.name for value in read), tensors=made, **attributes))
        self.tensors.update({f"{name}.{role}": value for role, value in values.items()})
        return Value(name, tuple(int(n) for n in gives))

    # what both frameworks say in several ways

    def activation(self, name: str, x: Value, function: str, slope: float | None = None) -> Value:
        return self.add(graph.Activation, name, x, x.row, function=function, slope=slope)

    def reshape(self, name: str, x: Value, row: Sequence[int]) -> Value:
        return x if tuple(row) == x.row else self.add(graph.Reshape, name, x, row, row=tuple(row))

    def transpose(self, name: str, x: Value, order: Sequence[int]) -> Value:
        """New axis i is old axis order[i]."""
        if list(order) == sorted(order):
            return x
        return self.add(graph.Transpose, name, x, [x.row[axis] for axis in order], order=tuple(order))

    def slice(self, name: str, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """`start` and `stop` lie within the axis."""
        if (start, stop, step) == (0, x.row[axis], 1):
            return x
        row = [*x.row[:axis], len(range(start, stop, step)), *x.row[axis + 1 :]]
        return self.add(graph.Slice, name, x, row, axis=axis, start=start, stop=stop, step=step)

    def reduce(self, name: str, x: Value, by: str, axes: Iterable[int], *, keep: bool) -> Value:
        over = tuple(sorted(axes))
        row = [1 if axis in over else n for axis, n in enumerate(x.row) if keep or axis not in over]
        return self.add(graph.Reduce, name, x, row, by=by, axes=over, keep=keep)

    def dropout(self, name: str, x: Value, rate: float, of: str = "values") -> Value:
        return self.add(graph.Dropout, name, x, x.row, rate=float(rate), of=of) if rate else x

    def pad(self, name: str, x: Value, sides: Sequence[Pair]) -> Value:
        if not any(map(any, sides)):
            return x
        row = [n + sum(pair) for n, pair in zip(x.row, sides, strict=True)]
        return self.add(graph.Pad, name, x, row, sides=tuple(sides))

    def pool(
        self,
        name: str,
        x: Value,
        by: str,
        row: Sequence[int],
        *,
        window: Pair,
        stride: Pair,
        padding: Sides,
        counts_padding: bool,
    ) -> Value:
        """A pooling that gives `row`: where that is more than fits (torch's ceil_mode), what is missing is padded behind."""
        counts = by == "average" and counts_padding and padding != NO_SIDES
        sides: list[Pair] = []
        for axis in (0, 1):
            before, after = padding[axis]
            more = missing_behind(
                x.row[axis + 1], window=window[axis], stride=stride[axis], padding=padding[axis], wanted=int(row[axis + 1])
            )
            if more and counts:
                raise self.refuse(name, "an average", "it counts its padding, and not what ceil_mode adds")
            sides.append((before, after + more))
        return self.add(graph.Pool, name, x, row, by=by, window=window, stride=stride, padding=tuple(sides), counts_padding=counts)

    def adaptive_average(self, name: str, x: Value, size: Pair) -> Value:
        """As its simplest form: a mean, windows, or windows that overlap."""
        sides: Pair = (x.row[1], x.row[2])
        if size == sides:
            return x
        if size == (1, 1):
            return self.reduce(name, x, "mean", (1, 2), keep=True)
        row = (x.row[0], *size)
        if sides[0] % size[0] == 0 and sides[1] % size[1] == 0:
            window = (sides[0] // size[0], sides[1] // size[1])
            return self.pool(name, x, "average", row, window=window, stride=window, padding=NO_SIDES, counts_padding=False)
        return self.add(graph.AdaptiveAverage, name, x, row, size=size)

    def finish(
        self,
        features: Value,
        *,
        averaged: Sequence[int],
        backend: Literal["torch", "tensorflow"],
        input_size: int,
        image_size: int,
        preprocess: Preprocess,
    ) -> Portable:
        """The whole, up to `features`, averaged over those axes (none for a vector)."""
        if averaged:
            features = self.reduce("pooled_features", features, "mean", averaged, keep=False)
        assert features.row == (math.prod(features.row),)
        return Portable(
            model=self.model,
            backend=backend,
            input_size=input_size,
            image_size=image_size,
            preprocess=preprocess,
            operations=tuple(self.operations),
            features=features.name,
            width=features.row[0],
        )
