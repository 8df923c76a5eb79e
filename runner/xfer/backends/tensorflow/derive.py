"""Groups, stages and cuts of a Keras network's graph: what a ModelMap is made of and what segments are cut by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xfer.backends.stages import Sized, stages
from xfer.backends.tensorflow.calling import Refused
from xfer.backends.tensorflow.classifier import Pooled, find_pooled
from xfer.backends.tensorflow.cuts import Flow, flow
from xfer.backends.tensorflow.graph import Graph, NamedTensor, flatten, functional, graph_of, named_tensors
from xfer.backends.tensorflow.groups import Part, parts
from xfer.backends.tensorflow.shapes import Row, layout_of, shapes
from xfer.errors import UsageError
from xfer.plan.model_map import PIXELS, POOLED, Layout

Span = tuple[int, int]


class Untraceable(Exception):
    """A network without a graph of its own; the message says why."""


def _why(network: Any) -> str:
    """Why a network has no graph; a source that wraps something says so itself."""
    if isinstance(note := getattr(network, "note", None), str):
        return f"it is {note}"
    return f"it is a {type(network).__name__}, which has no graph of layers"


@dataclass(frozen=True)
class DerivedGroup:
    """A group, its stage and its tensors."""

    name: str
    stage: str
    tensors: tuple[NamedTensor, ...]
    part: Part


@dataclass(frozen=True)
class DerivedCut:
    """A cut: its symbolic tensor, `position` the place in the flow's `calls` of the one that gives it (-1 for the images), `row` one
    row's shape before any averaging."""

    name: str
    groups_before: int
    position: int
    tensor: Any
    row: Row
    layout: Layout


@dataclass(frozen=True)
class Derived:
    """All that a network's graph says about it, for the image size asked for; groups and stages never depend on that."""

    graph: Graph
    flow: Flow
    groups: tuple[DerivedGroup, ...]
    cuts: tuple[DerivedCut, ...]
    classifier: tuple[NamedTensor, ...]
    notes: tuple[str, ...]


def derive(network: Any, *, input_size: int, image_size: int) -> Derived:
    """Raises Untraceable for a network without a graph, UsageError for one that doesn't read one RGB image, Refused for an image size
    that it can't take."""
    flat = flatten(network, image_size=image_size)
    if functional(flat) is None:
        raise Untraceable(_why(network))
    graph = graph_of(flat)
    pooled = find_pooled(graph)
    seen = native = flow(graph, pooled, shapes(graph, image_size=image_size))
    if image_size != input_size:
        try:
            native = flow(graph, pooled, shapes(graph, image_size=input_size))
        except Refused:  # it was built for this size, which takes the place of the native one
            input_size = image_size
    ordered = parts(native)
    tensors = named_tensors(graph.network)
    owned = {id(layer): part for part in ordered for layer in part.layers}
    groups = tuple(_groups(ordered, tensors, native, input_size))
    if not groups:
        raise UsageError(f"'{network.name}' has no weights below its features: there is nothing to transfer")
    cuts = tuple(_cuts(groups, seen, graph, pooled, image_size))
    notes = list(pooled.notes)
    if not pooled.classifiers and cuts[-1].layout != "hwc":
        notes.append("it has no classifying layer: its output is taken as the features")
    if len(cuts) == 2 and len(groups) > 1:
        notes.append(f"nowhere between its groups a single tensor passes, so the only cuts are {PIXELS} and {POOLED}")
    return Derived(graph, seen, groups, cuts, tuple(t for t in tensors if id(t.owner) not in owned), tuple(notes))


def _groups(ordered: Sequence[Part], tensors: Iterable[NamedTensor], paths: Flow, input_size: int) -> list[DerivedGroup]:
    by_owner: dict[int, list[NamedTensor]] = {}
    for tensor in tensors:
        by_owner.setdefault(id(tensor.owner), []).append(tensor)
    kept = [(part, tuple(t for layer in part.layers for t in by_owner.get(id(layer), ()))) for part in ordered]
    kept = [(part, inside) for part, inside in kept if inside]  # a layer whose variables are all another's has none of its own
    sized = []
    for part, inside in kept:
        shape = paths.shape(part.core)
        parameters = sum(tensor.size for tensor in inside if tensor.kind == "parameter")
        sized.append(Sized(part.kind, parameters, shape.row if shape else None, shape.layout if shape else None))
    named = stages(sized, input_size=input_size)
    return [DerivedGroup(part.name, stage, inside, part) for (part, inside), stage in zip(kept, named, strict=True)]


def _cuts(groups: Sequence[DerivedGroup], paths: Flow, graph: Graph, pooled: Pooled, image_size: int) -> list[DerivedCut]:
    """'pixels', then for each number of groups below it the deepest cut there is, then 'pooled'."""
    cuts = [DerivedCut(PIXELS, 0, -1, graph.input, (image_size, image_size, 3), "pixels")]
    used = [[paths.uses[id(layer)] for layer in group.part.layers] for group in groups]
    starts = [min(calls[0] for calls in inside) for inside in used]
    whole = [(min(calls[0] for calls in inside), max(calls[-1] for calls in inside)) for inside in used]
    spans = [(first, max(last, group.part.core)) for (first, last), group in zip(whole, groups, strict=True)]
    by_count: dict[int, list[int]] = {}
    for position in paths.alone:
        count = sum(start <= position for start in starts)
        straddled = any(first <= position < last for first, last in whole)
        if 0 < count < len(groups) and not straddled:
            by_count.setdefault(count, []).append(position)
    for count, positions in sorted(by_count.items()):
        position = _deepest(positions, spans, paths)
        shape = paths.shape(position)
        assert shape is not None
        assert shape.layout is not None
        cuts.append(DerivedCut(groups[count - 1].name, count, position, paths.tensor(position), shape.row, shape.layout))
    end = paths.shapes.get(id(pooled.tensor))
    row = end.row if end is not None else tuple(int(n or 0) for n in pooled.tensor.shape[1:])
    layout = layout_of(row) if end is not None else None
    if layout is None:
        raise Untraceable(f"its features have the shape {list(row)}")
    return [*cuts, DerivedCut(POOLED, len(groups), len(paths.calls) - 1, pooled.tensor, row, layout)]


def _deepest(positions: Sequence[int], spans: Sequence[Span], paths: Flow) -> int:
    """The deepest of some cuts between the same groups, with three exceptions. Dropout that belongs to neither group regularises
    what follows, so it stays above. Padding only makes rows larger, so it does too. And a map that is only written as a vector
    stays a map, which a head can average."""
    stray = sorted(position for position in paths.random if not any(first <= position <= last for first, last in spans))
    below = max((last for _, last in spans if last <= positions[0]), default=-1)
    allowed = [position for position in positions if not any(below < dropout <= position for dropout in stray)] or list(positions[:1])
    rows = {position: shape.row for position in allowed if (shape := paths.shape(position)) is not None}
    smallest = min(map(math.prod, rows.values()))
    best = [position for position in allowed if math.prod(rows[position]) == smallest]
    maps = [position for position in best if len(rows[position]) > 1]
    return (maps or best)[-1]
