"""Groups, stages and cuts of a traced network, with the graph's nodes: what a ModelMap is made of and what segments are cut by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from xfer.backends.stages import Sized, stages
from xfer.backends.torch.cuts import Flow, flow
from xfer.backends.torch.groups import Part, parts, spans_of
from xfer.backends.torch.layouts import layout_at
from xfer.backends.torch.shapes import RUN_ERRORS, Known, Shape, propagate
from xfer.backends.torch.tensors import NamedTensor, assign, state_tensors
from xfer.backends.torch.trace import Trace, Untraceable, modes_kept, trace
from xfer.plan.model_map import PIXELS, POOLED, Layout


@dataclass(frozen=True)
class DerivedGroup:
    """A group, its stage and its tensors."""

    name: str
    stage: str
    tensors: tuple[NamedTensor, ...]
    part: Part


@dataclass(frozen=True)
class DerivedCut:
    """A cut: `position` is its node's place in the trace's `nodes`, `row` one row's shape before any averaging."""

    name: str
    groups_before: int
    position: int
    row: tuple[int, ...]
    layout: Layout
    overwritten: bool = False


@dataclass(frozen=True)
class Derived:
    """All that a network's graph says about it. `known` is for the image size asked for; groups and stages never depend on that."""

    trace: Trace
    known: Known
    groups: tuple[DerivedGroup, ...]
    cuts: tuple[DerivedCut, ...]
    classifier: tuple[NamedTensor, ...]


def derive(network: nn.Module, *, input_size: int, image_size: int, channels: int = 3) -> Derived:
    """Raises Untraceable for a network without a graph, one of RUN_ERRORS for an image size that it can't take."""
    seen = native = _seen(network, image_size, channels)
    if image_size != input_size:
        try:
            native = _seen(network, input_size, channels, None if seen.trace.specialised else seen.trace)
        except RUN_ERRORS:  # it was built for this size, which takes the place of the native one
            input_size = image_size
    ordered = parts(network, native.paths)
    tensors, read = state_tensors(network), _read_by(native.trace, network)
    classifier = tuple(tensor for tensor in tensors if tensor.names & (native.trace.used - read) and not tensor.names & read)
    groups = tuple(_groups(ordered, assign(tensors, ordered, left_out=classifier), native.paths, input_size))
    cuts = _cuts(groups, seen, network)
    return Derived(seen.trace, seen.known, groups, tuple(cuts), classifier)


@dataclass(frozen=True)
class _Seen:
    """A network at one image size."""

    trace: Trace
    known: Known
    paths: Flow


def _seen(network: nn.Module, image_size: int, channels: int, traced: Trace | None = None) -> _Seen:
    found = traced or trace(network, image_size=image_size, channels=channels)
    with modes_kept(network):
        network.eval()
        known = propagate(network, found.graph, found.constants, image_size=image_size, channels=channels)
    if not isinstance(known.get(found.pooled.node), Shape):
        raise Untraceable("its features have no row per image")
    return _Seen(found, known, flow(found, known, network))


def _read_by(found: Trace, network: nn.Module) -> set[str]:
    """Names of the tensors that the pooled features are computed from, in either mode."""
    read: set[str] = set()
    for node in [*found.nodes, *found.train_nodes]:
        if node.op == "get_attr":
            read.add(str(node.target))
        elif node.op == "call_module":
            inside = state_tensors(network.get_submodule(str(node.target)), f"{node.target}.")
            read.update(name for tensor in inside for name in tensor.names)
    return read


def _groups(ordered: Sequence[Part], tensors: dict[str, list[NamedTensor]], paths: Flow, input_size: int) -> list[DerivedGroup]:
    kept = [part for part in ordered if tensors.get(part.name)]
    sized = []
    for part in kept:
        row, layout = _given(part, paths)
        parameters = sum(tensor.size for tensor in tensors[part.name] if tensor.kind == "parameter")
        sized.append(Sized(part.kind, parameters, row, layout))
    named = stages(sized, input_size=input_size)
    return [DerivedGroup(part.name, stage, tuple(tensors[part.name]), part) for part, stage in zip(kept, named, strict=True)]


def _given(part: Part, paths: Flow) -> tuple[tuple[int, ...] | None, Layout | None]:
    """One row of what a module gives at its first call, with its layout; neither for a tensor, which has no place in the image."""
    if part.kind == "tensor" or not part.spans:
        return None, None
    first, last = part.spans[0]
    for position in range(last, first - 1, -1):
        if position in paths.layouts:
            return paths.shapes[position].row, paths.layouts[position]
    return None, None


def _cuts(groups: Sequence[DerivedGroup], seen: _Seen, network: nn.Module) -> list[DerivedCut]:
    """'pixels', then for each number of groups below it the deepest cut there is, then 'pooled'."""
    found, sizes = seen.trace, seen.paths.shapes
    start = next(index for index, node in enumerate(found.nodes) if node.op == "placeholder")
    cuts = [DerivedCut(PIXELS, 0, start, sizes[start].row, "pixels")]
    used = [(index, spans) for index, group in enumerate(groups) if (spans := spans_of(group.part.path, seen.paths))]
    by_count: dict[int, list[int]] = {}
    for position in seen.paths.alone:
        later = [index for index, spans in used if spans[0][0] > position]
        if len(later) == len(used):
            continue  # nothing but the images, perhaps shifted
        count = min(later) if later else len(groups)
        straddled = any(first <= position < last for _, spans in used for first, last in spans)
        if count < len(groups) and not straddled:
            by_count.setdefault(count, []).append(position)
    everywhere = [span for _, spans in used for span in spans]
    for count, positions in sorted(by_count.items()):
        position = _deepest(positions, everywhere, seen.paths.random, sizes)
        shape, layout = sizes[position], seen.paths.layouts[position]
        cuts.append(DerivedCut(groups[count - 1].name, count, position, shape.row, layout, shape.overwritten))
    last = len(found.nodes) - 1
    end = layout_at(sizes[last].row, found.nodes[last], network)
    if end is None:
        raise Untraceable(f"its features have the shape {list(sizes[last].row)}")
    return [*cuts, DerivedCut(POOLED, len(groups), last, sizes[last].row, end, sizes[last].overwritten)]


def _deepest(positions: Sequence[int], spans: Sequence[tuple[int, int]], random: set[int], sizes: dict[int, Shape]) -> int:
    """The deepest of some cuts between the same groups, with two exceptions. Dropout that belongs to neither group regularises
    what follows, so it stays above. And a map that is only written as a vector stays a map, which a head can average."""
    stray = sorted(position for position in random if not any(first <= position <= last for first, last in spans))
    below = max((last for _, last in spans if last <= positions[0]), default=-1)
    allowed = [position for position in positions if not any(below < dropout <= position for dropout in stray)] or positions[:1]
    deepest = allowed[-1]
    row = sizes[deepest].row
    maps = [p for p in allowed if len(sizes[p].row) > 1 and math.prod(sizes[p].row) == math.prod(row)]
    return maps[-1] if len(row) == 1 and maps else deepest
