"""A network without a graph: it is run as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from xfer.backends.tensorflow.calling import refusals
from xfer.backends.tensorflow.graph import NamedTensor, named_tensors
from xfer.backends.tensorflow.names import chosen_names
from xfer.backends.tensorflow.shapes import Row
from xfer.errors import UsageError

BATCHES = (2, 3)  # two sizes tell whether the output has a row per image


def features(network: Any, *, image_size: int) -> Row:
    """One row of the network's output. It is run on few black images, which also makes the variables of a model that was never called.
    Raises
    Refused where it can't take such images."""
    shapes = []
    for n in BATCHES:
        with refusals():
            output = first_tensor(network(tf.zeros((n, image_size, image_size, 3)), training=False))
        if output is None:
            raise UsageError(f"'{network.name}' can't be used: its output holds no tensor")
        shapes.append(tuple(output.shape))
    if [shape[:1] for shape in shapes] != [(n,) for n in BATCHES] or shapes[0][1:] != shapes[1][1:]:
        raise UsageError(f"'{network.name}' can't be used: its output has no row per image")
    return tuple(int(n) for n in shapes[0][1:])


def children(network: Any, *, model: str) -> dict[str, list[NamedTensor]]:
    """Groups of a network without a graph: its direct layers that have variables, in its own order; what belongs to the network itself
    is a group of the model's name, ahead of them. A network that lists no variables has that one group, empty."""
    found: dict[str, list[NamedTensor]] = {}
    for tensor in named_tensors(network):
        found.setdefault("" if tensor.owner is None else tensor.name.partition("/")[0], []).append(tensor)
    if not found or "" in found:
        found = {"": found.pop("", []), **found}
    names = chosen_names([[name or model.rpartition("/")[2]] for name in found])
    return dict(zip(names, found.values(), strict=True))


def first_tensor(value: Any) -> Any:
    """The value itself, or the first tensor inside it; None where there is none."""
    if tf.is_tensor(value):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((tensor for tensor in map(first_tensor, items) if tensor is not None), None)
