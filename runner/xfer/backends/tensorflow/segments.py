"""The part of a network between two cuts, as something to call on tensors; it shares the network's own layers and variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from xfer.backends.tensorflow.derive import Derived, DerivedCut, derive
from xfer.backends.tensorflow.graph import Call
from xfer.backends.tensorflow.shapes import layout_of
from xfer.backends.tensorflow.signature import of_calls, of_layer
from xfer.backends.tensorflow.untraced import children, first_tensor
from xfer.errors import UsageError
from xfer.plan.model_map import POOLED, Layout, ModelMap

Training = bool | Callable[[str | None, Any], bool]

# The dimensions of a batch that pooling averages over, by layout.
AVERAGED: dict[str, tuple[int, ...]] = {"hwc": (1, 2), "tokens": (1,)}


class Segments:
    """Segments of one network, by the cuts of its ModelMap (made for the same image size).

    `network` is the flattened network. `group_of` gives the group's name for the name of each operation (`operation.name`) that the
    pooled features need: one without weights belongs to the group that it lies in. What lies above a group's cut lies in the next.
    Of a network without a graph the direct layers with variables are listed, and the network itself where it has its own.
    """

    def __init__(self, network: Any, model_map: ModelMap) -> None:
        self.model_map = model_map
        self._made: dict[tuple[str, str], Segment] = {}
        self.derived: Derived | None = None
        self.network = network
        if model_map.traced:
            self.derived = derive(network, input_size=model_map.input_size, image_size=model_map.image_size)
            self.network = self.derived.graph.network
            self.group_of = _group_of(self.derived)
        else:
            groups = children(network, model=model_map.model)
            self.group_of = {(t.owner or network).name: name for name, inside in groups.items() for t in inside}

    def between(self, start: str, end: str) -> Segment:
        """What turns the rows of cut `start` into those of cut `end`.

        Reads images as the network itself does, float [B, H, W, 3], at 'pixels', and gives [B, D] at 'pooled'. Raises UsageError for a
        cut that the network hasn't got, or where `end` lies below `start`.
        """
        order = [cut.name for cut in self.model_map.cuts]
        for name in (start, end):
            if name not in order:
                raise UsageError(f"{self.model_map.model} has no cut '{name}'; its cuts are {', '.join(order)}")
        if order.index(end) < order.index(start):
            raise UsageError(f"{self.model_map.model}: the cut '{end}' lies below '{start}'")
        if (start, end) not in self._made:
            self._made[start, end] = self._make(start, end)
        return self._made[start, end]

    def _make(self, start: str, end: str) -> Segment:
        if start == end:
            return Segment()
        if self.derived is None:
            return WholeSegment(self.network, self.group_of)
        cuts = {cut.name: cut for cut in self.derived.cuts}
        return GraphSegment(self.derived, cuts[start], cuts[end], self.group_of)


class Segment:
    """Rows as they are: the segment between a cut and itself."""

    is_identity = True

    def __call__(self, x: Any, training: Training = False) -> Any:
        """`x` is [B, *row] at the first cut; gives [B, *row] at the second. `training` is asked for each operation that takes it, with
        the name of its group."""
        return x

    def signature(self) -> str:
        """The graph as text: operations, their settings and their order, not the numbers; the same in every process."""
        return ""


class GraphSegment(Segment):
    """The calls that `end` needs beyond `start`."""

    is_identity = False

    def __init__(self, derived: Derived, start: DerivedCut, end: DerivedCut, group_of: dict[str, str]) -> None:
        self._start, self._end, self._group_of = start.tensor, end.tensor, group_of
        self.calls = _beyond(derived.flow.calls, start.tensor, end.tensor)
        self._averaged = end.layout if end.name == POOLED else "vector"
        last_use = {id(read): index for index, call in enumerate(self.calls) for read in call.reads}
        self._done: list[list[int]] = [[] for _ in self.calls]  # ids of tensors that nothing reads after a call
        for key, index in last_use.items():
            if key != id(end.tensor):
                self._done[index].append(key)

    def __call__(self, x: Any, training: Training = False) -> Any:
        values = {id(self._start): x}
        for call, done in zip(self.calls, self._done, strict=True):
            args, kwargs = call.node.arguments.fill_in(values)
            if isinstance(call.operation, keras.Layer):
                asked = training(self._group_of.get(call.operation.name), call.operation) if callable(training) else training
                kwargs = {**kwargs, "training": asked}
            given = call.operation(*args, **kwargs)
            values.update(zip(map(id, call.gives), tree.flatten(given), strict=True))
            for key in done:
                del values[key]
        return averaged(values[id(self._end)], self._averaged)

    def signature(self) -> str:
        return of_calls(self.calls, start=self._start, end=self._end, averaged=self._averaged)


class WholeSegment(Segment):
    """A network without a graph, from images to its output: all of it in one mode, train mode where any of its groups asks for it."""

    is_identity = False

    def __init__(self, network: Any, group_of: dict[str, str]) -> None:
        self._network, self._group_of = network, group_of

    def __call__(self, x: Any, training: Training = False) -> Any:
        if callable(training):
            inside = [layer for layer in (self._network, *self._network._layers) if layer.name in self._group_of]
            training = any(training(self._group_of[layer.name], layer) for layer in inside)
        output = first_tensor(self._network(x, training=training))
        return averaged(output, layout_of(tuple(output.shape[1:])) or "vector")

    def signature(self) -> str:
        return of_layer(self._network)


def averaged(x: Any, layout: Layout) -> Any:
    """[B, D] from any layout."""
    dimensions = AVERAGED.get(layout)
    return tf.reduce_mean(x, axis=dimensions) if dimensions else x


def _beyond(calls: tuple[Call, ...], start: Any, end: Any) -> tuple[Call, ...]:
    """Calls that `end` needs, in order, from the one that gives it back to `start`."""
    makers = {id(tensor): call for call in calls for tensor in call.gives}
    found: set[int] = set()
    todo = [end]
    while todo:
        tensor = todo.pop()
        call = makers.get(id(tensor))
        if call is not None and id(call) not in found and tensor is not start:
            found.add(id(call))
            todo.extend(call.reads)
    return tuple(call for call in calls if id(call) in found)


def _group_of(derived: Derived) -> dict[str, str]:
    """Groups by the names of operations. Operations between two groups belong to the one below, up to its cut."""
    cuts = {cut.name: cut.position for cut in derived.cuts}
    found: dict[str, str] = {}
    for index, group in enumerate(derived.groups):
        part = group.part
        first = 0 if index == 0 else derived.groups[index - 1].part.last + 1
        following = derived.groups[index + 1].name if index + 1 < len(derived.groups) else group.name
        cut = cuts.get(group.name, part.last)
        for position in range(min(first, part.first), part.last + 1):
            name = derived.flow.calls[position].operation.name
            found.setdefault(name, group.name if position <= max(cut, part.core) else following)
    return found
