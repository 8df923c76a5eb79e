"""Cuts of a graph: the tensors that are alone in what is still needed later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xfer.backends.tensorflow.classifier import Pooled, ancestors, has_weights
from xfer.backends.tensorflow.graph import Call, Graph
from xfer.backends.tensorflow.layers import drops
from xfer.backends.tensorflow.shapes import Shape


@dataclass(frozen=True)
class Flow:
    """How values flow to the pooled features, by position in `calls`, the calls that those need.

    `widths` tells how many tensors are still needed after each call; `alone` are the positions of one tensor that can be stored
    (floating, a row per image, no mask beside it); `random` the positions of dropout; `uses` for each layer with weights the
    positions of its calls, by its id, in the order of the first.
    """

    calls: tuple[Call, ...]
    shapes: dict[int, Shape]
    widths: tuple[int, ...]
    alone: tuple[int, ...]
    random: frozenset[int]
    uses: dict[int, tuple[int, ...]]

    def tensor(self, position: int) -> Any:
        """The one tensor that is needed after a call whose width is 1 (any output of another)."""
        return next(tensor for tensor in self.calls[position].gives)

    def shape(self, position: int) -> Shape | None:
        """Of what a call gives."""
        return self.shapes.get(id(self.tensor(position)))


def flow(graph: Graph, pooled: Pooled, shapes: dict[int, Shape]) -> Flow:
    """What a graph and its shapes say about cuts."""
    makers = {id(tensor): call for call in graph.calls for tensor in call.gives}
    wanted = ancestors(pooled.tensor, makers)
    calls = tuple(call for call in graph.calls if id(call) in wanted)
    last_use = {id(read): position for position, call in enumerate(calls) for read in call.reads}
    last_use[id(pooled.tensor)] = len(calls)
    live = {id(graph.input)} & set(last_use)
    widths, alone = [], []
    uses: dict[int, list[int]] = {}
    for position, call in enumerate(calls):
        live |= {id(tensor) for tensor in call.gives if id(tensor) in last_use}
        live = {key for key in live if last_use[key] > position}
        widths.append(len(live))
        shape = shapes.get(id(call.gives[0]))
        one = len(live) == 1 and id(call.gives[0]) in live
        if one and shape is not None and shape.layout is not None and getattr(call.gives[0], "_keras_mask", None) is None:
            alone.append(position)
        if has_weights(call):
            uses.setdefault(id(call.operation), []).append(position)
    random = frozenset(position for position, call in enumerate(calls) if drops(call.operation))
    return Flow(calls, shapes, tuple(widths), tuple(alone), random, {key: tuple(found) for key, found in uses.items()})
