"""Groups of a graph: which runs of calls belong together, and in what order they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xfer.backends.tensorflow.cuts import Flow
from xfer.backends.tensorflow.layers import holds_attention, is_linear, is_norm
from xfer.backends.tensorflow.names import Prefixes, chosen_names

MOST_LAYERS = 40  # with weights: a run of branches that holds more is divided where it is narrowest
FEWEST_LAYERS = 4  # what is divided off and holds fewer joins what follows


@dataclass(frozen=True)
class Part:
    """A run of calls, `first` to `last` by position, that becomes a group. `core` is where the last call with weights, or the last
    merging of branches, lies; `layers` are the layers with weights that are first called here. `branches` is True where more than
    one tensor is alive inside."""

    first: int
    last: int
    core: int
    layers: tuple[Any, ...]
    branches: bool
    key: str | None = None
    name: str = ""

    @property
    def kind(self) -> str:
        """What it consists of: the same for all blocks that are built alike."""
        return " ".join(type(layer).__name__ for layer in self.layers)


def parts(flow: Flow) -> list[Part]:
    """The groups, input end first, with their names; none for a network without weights."""
    found = [piece for unit in _units(flow) for piece in _divided(unit, flow)]
    found = _stateless_joined(found)
    if not found:
        return []
    prefixes = Prefixes([call.name for call in flow.calls if id(call.operation) in flow.uses and call.named])

    def keyed(part: Part) -> Part:
        return replace(part, key=prefixes.key(_own_names(part, flow), block=part.branches))

    found = _inputs_joined(found)
    found = _merged(found, lambda one, other: _norm_behind(one, other))
    found = _merged([keyed(part) for part in found], lambda one, other: one.key is not None and one.key == other.key)
    found = _merged(found, lambda one, other: _norm_before(one, other, flow), key=keyed)
    found = _merged(found, lambda one, other: _attends(one, other, flow), key=keyed)
    names = chosen_names([list(_candidates(part, flow, prefixes)) for part in found])
    return [replace(part, name=name) for part, name in zip(found, names, strict=True)]


def _units(flow: Flow) -> list[Part]:
    """Runs of calls between two places where one tensor is needed."""
    units, first, seen = [], 0, set[int]()
    for position, width in enumerate(flow.widths):
        if width == 1:
            units.append(_part(first, position, flow, seen))
            first = position + 1
    return units


def _part(first: int, last: int, flow: Flow, seen: set[int]) -> Part:
    layers = []
    for position in range(first, last + 1):
        key = id(flow.calls[position].operation)
        if key in flow.uses and key not in seen:
            seen.add(key)
            layers.append(flow.calls[position].operation)
    return Part(first, last, last, tuple(layers), branches=last > first)


def _divided(unit: Part, flow: Flow) -> list[Part]:
    """A unit that holds very many layers, at the narrowest places behind a merging of branches: no cut lies there, but whoever wants
    to train its upper half can say so."""
    if len(unit.layers) <= MOST_LAYERS:
        return [unit]
    merging = [position for position in range(unit.first, unit.last) if len(flow.calls[position].reads) > 1]
    if not merging:
        return [unit]
    width = min(flow.widths[position] for position in merging)
    ends = [position for position in merging if flow.widths[position] == width]
    outside = {key for key, calls in flow.uses.items() if calls[0] < unit.first}
    pieces: list[Part] = []
    first = unit.first
    for end in [*ends, unit.last]:
        piece = _part(first, end, flow, outside)
        if len(piece.layers) >= FEWEST_LAYERS or end == unit.last:
            pieces.append(piece)
            first = end + 1
        else:
            outside -= {id(layer) for layer in piece.layers}
    if len(pieces) > 1 and len(pieces[-1].layers) < FEWEST_LAYERS:
        pieces[-2:] = [_together(pieces[-2], pieces[-1])]
    return [smaller for piece in pieces for smaller in ([piece] if len(pieces) == 1 else _divided(piece, flow))]


def _stateless_joined(found: Sequence[Part]) -> list[Part]:
    """What has no weights joins what stands before it; at the input end, what stands behind."""
    joined: list[Part] = []
    for part in found:
        if part.layers or not joined:
            joined.append(part)
        else:
            joined[-1] = replace(joined[-1], last=part.last)
    if len(joined) > 1 and not joined[0].layers:
        joined[:2] = [replace(joined[1], first=joined[0].first)]
    return [part for part in joined if part.layers]


def _inputs_joined(found: list[Part]) -> list[Part]:
    """The mean and variance of the input, which nothing trains, join the first part that has parameters."""
    while len(found) > 1 and not any(layer._trainable_variables or layer._layers for layer in found[0].layers):
        found = [_together(found[0], found[1]), *found[2:]]
    return found


def _merged(found: Sequence[Part], joins: Callable[[Part, Part], bool], *, key: Callable[[Part], Part] | None = None) -> list[Part]:
    """Neighbours that belong together, as one. A part that was made of two keeps the key that both had, or gets a new one."""
    merged: list[Part] = []
    for part in found:
        if merged and joins(merged[-1], part):
            both = _together(merged[-1], part)
            merged[-1] = both if key is None else key(both)
        else:
            merged.append(part)
    return merged


def _together(one: Part, other: Part) -> Part:
    key = one.key if one.key == other.key else None
    return Part(one.first, other.last, other.core, one.layers + other.layers, one.branches or other.branches, key)


def _norm_behind(one: Part, other: Part) -> bool:
    """A normalisation (or an activation with weights) behind a single convolution, or behind branches that have none themselves."""
    alone = any(is_norm(layer) for layer in one.layers) if one.branches else len(_computing(one)) != 1 or _is_only(one, _adapts)
    return _is_only(other, _adapts) and not alone


def _norm_before(one: Part, other: Part, flow: Flow) -> bool:
    """A normalisation with no convolution before it, ahead of a single one on maps or tokens."""
    shapes = (flow.shape(one.core), flow.shape(other.core))
    maps = all(shape is not None and shape.layout in ("hwc", "tokens") for shape in shapes) and one.key == other.key
    return maps and _is_only(one, is_norm) and not other.branches and len(_computing(other)) == 1


def _attends(one: Part, other: Part, flow: Flow) -> bool:
    """The two halves of a transformer's block: attention with its shortcut, then the layers of each position with theirs."""
    halves = one.branches and other.branches and one.key == other.key
    shapes = (flow.shape(one.core), flow.shape(other.core))
    return (
        halves
        and shapes[0] == shapes[1] is not None
        and any(holds_attention(layer) for layer in one.layers)
        and not any(holds_attention(layer) for layer in other.layers)
        and sum(is_linear(layer) for layer in other.layers) >= 2
    )


def _computing(part: Part) -> list[Any]:
    return [layer for layer in part.layers if not _adapts(layer) and (layer._trainable_variables or layer._layers)]


def _adapts(layer: Any) -> bool:
    return is_norm(layer) or type(layer).__name__ == "PReLU"


def _is_only(part: Part, kind: Callable[[Any], bool]) -> bool:
    return not part.branches and all(kind(layer) for layer in part.layers)


def _own_names(part: Part, flow: Flow) -> list[str]:
    """Names that a person gave: of the layers with weights, and among branches of the other operations too."""
    calls = flow.calls[part.first : part.core + 1]
    return [call.name for call in calls if call.named and (part.branches or id(call.operation) in flow.uses)]


def _candidates(part: Part, flow: Flow, prefixes: Prefixes) -> Iterable[str]:
    """What a part may be called, the best first: by the prefix that its layers share, by the layer that merges its branches, by its
    main layer."""
    names = {id(call.operation): call.name for call in flow.calls}
    computing = _computing(part) or list(part.layers)
    main = names[id(computing[0])]
    if len(part.layers) > 1 and part.key is not None:
        yield part.key
    if part.branches:
        if shared := prefixes.shared(_own_names(part, flow)):
            yield shared
        end = flow.calls[part.core]
        if end.named or len(end.reads) > 1:
            yield end.name
    yield main
