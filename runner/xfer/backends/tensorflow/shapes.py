"""What every tensor of a graph looks like, found without numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import tree

from xfer.backends.tensorflow.calling import refusals
from xfer.backends.tensorflow.graph import Graph
from xfer.plan.model_map import Layout

BATCH = 11  # tells which tensors have one row per image; a prime that is no usual number of channels or tokens

Row = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """A tensor with one row per image: the row, its layout (None where there is no word for it)."""

    row: Row
    layout: Layout | None


def shapes(graph: Graph, *, image_size: int) -> dict[int, Shape]:
    """The shapes of the tensors that have one row per image, by the id of the graph's symbolic tensor. Raises Refused where
    the network can't take such images."""
    entry = keras.KerasTensor((BATCH, image_size, image_size, 3), dtype=graph.input.dtype)
    values: dict[int, Any] = {id(graph.input): entry}
    turned: dict[int, bool] = {id(graph.input): False}
    for call in graph.calls:
        args, kwargs = call.node.arguments.fill_in(values)
        with refusals():
            if isinstance(call.operation, keras.Layer) and args:
                call.operation._assert_input_compatibility(args[0])
            given = tree.flatten(call.operation.compute_output_spec(*args, **kwargs))
        turns = turned[id(call.reads[0])] != moves_channels(call.operation, rank=len(values[id(call.reads[0])].shape))
        for tensor, value in zip(call.gives, given, strict=True):
            values[id(tensor)] = value
            turned[id(tensor)] = turns
    found = {}
    for key, value in values.items():
        sides = tuple(value.shape)
        if sides and sides[0] == BATCH and None not in sides and "float" in value.dtype:
            row = tuple(int(n) for n in sides[1:])
            found[key] = Shape(row, None if turned[key] else layout_of(row))
    return found


def moves_channels(operation: Any, *, rank: int) -> bool:
    """Whether tokens or a map have their channels elsewhere behind an operation than before it; what it does to a tensor of more
    dimensions (windows, shuffled channels) is undone when that becomes a map again."""
    if rank not in (3, 4):
        return False
    kind, last = type(operation).__name__, (-1, rank - 1)
    if kind == "Permute":
        return int(operation.dims[-1]) != rank - 1
    if kind == "Transpose":
        return operation.axes is None or operation.axes[-1] not in last
    if kind == "Swapaxes":
        return (operation.axis1 in last) != (operation.axis2 in last)
    return kind == "Moveaxis"


def layout_of(row: Row) -> Layout | None:
    """What a row is. Images are square, so a map has two equal sides, and Keras has the channels last.

    >>> layout_of((56, 56, 96)), layout_of((197, 768)), layout_of((512,)), layout_of((16, 49, 64))
    ('hwc', 'tokens', 'vector', None)
    """
    if len(row) in (1, 2):
        return "vector" if len(row) == 1 else "tokens"
    return "hwc" if len(row) == 3 and row[0] == row[1] else None

