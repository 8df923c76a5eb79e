"""Cuts of a traced network: the nodes that are alone in what is still needed later."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from xfer.backends.torch.classifier import data_nodes, is_dropout
from xfer.backends.torch.layouts import layout_at
from xfer.backends.torch.shapes import Known, Literal, Shape
from xfer.backends.torch.trace import Trace
from xfer.plan.model_map import Layout

Span = tuple[int, int]  # first and last position in the order of nodes


@dataclass(frozen=True)
class Flow:
    """How a network's values flow, by position in `nodes`, the order of what the pooled features need.

    `shapes` and `layouts` are of those with a row per image. `data` are the positions of nodes that depend on the images and
    are no mere literals; `alone` the positions at which exactly one tensor with a row per image is still needed; `random` the
    positions of dropout that is switched on; `spans` for each module and tensor the stretches in which it is in use, one a call.
    """

    nodes: list[fx.Node]
    shapes: dict[int, Shape]
    layouts: dict[int, Layout]
    data: set[int]
    alone: tuple[int, ...]
    random: set[int]
    spans: dict[str, list[Span]]

    def between(self, low: int, high: int) -> list[int]:
        """Positions of cuts from `low`, included, up to `high`, not included."""
        return [position for position in self.alone if low <= position < high]


def flow(trace: Trace, known: Known, network: nn.Module) -> Flow:
    """What a trace and its shapes say about cuts; positions count `trace.nodes`."""
    nodes = trace.nodes
    position = {node: index for index, node in enumerate(nodes)}
    fixed = {node for node, value in known.items() if isinstance(value, Literal) and not value.per_image}
    depends = data_nodes(trace.graph, fixed)
    data = {position[node] for node in needed(trace, known) if node in depends and not isinstance(known.get(node), Literal)}
    shapes = {position[node]: shape for node, shape in known.items() if node in position and isinstance(shape, Shape)}
    layouts = {index: found for index, shape in shapes.items() if (found := layout_at(shape.row, nodes[index], network))}
    alone, last_use = [], {}
    for index in sorted(data):
        for argument in nodes[index].all_input_nodes:
            last_use[position[argument]] = index
    last_use[len(nodes) - 1] = len(nodes)
    live: set[int] = set()
    for index in sorted(data):
        live = {earlier for earlier in live if last_use[earlier] > index} | {index}
        shape = shapes.get(index)
        if len(live) == 1 and shape is not None and shape.floating and index in layouts:
            alone.append(index)
    random = {index for index in data if is_dropout(nodes[index], network) and _probability(nodes[index], network) != 0}
    return Flow(nodes, shapes, layouts, data, tuple(alone), random, _spans(nodes, position, data))


def needed(trace: Trace, known: Known) -> set[fx.Node]:
    """What the pooled features need when literals are written down instead of computed."""
    found, todo = {trace.pooled.node}, [trace.pooled.node]
    while todo:
        node = todo.pop()
        for argument in () if isinstance(known.get(node), Literal) else node.all_input_nodes:
            if argument not in found:
                found.add(argument)
                todo.append(argument)
    return found


def _probability(node: fx.Node, network: nn.Module) -> float | None:
    """The share that a dropout drops, None where it can't be told."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        found = [getattr(module, name) for name in ("p", "drop_prob") if isinstance(getattr(module, name, None), int | float)]
        return float(found[0]) if found else None
    value = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else None)
    return float(value) if isinstance(value, int | float) else None


def _spans(nodes: list[fx.Node], position: dict[fx.Node, int], data: set[int]) -> dict[str, list[Span]]:
    """Where modules and tensors are in use. What doesn't depend on the images (weights, tables made of weights) counts where
    something that does depend on them first reads it, because each segment makes it anew."""
    calls: dict[tuple[str, int], Span] = {}
    for index in sorted(data):
        for call in nodes[index].meta["stack"]:
            first, last = calls.get(call, (index, index))
            calls[call] = (min(first, index), max(last, index))
    spans: dict[str, list[Span]] = {}
    for (path, _), span in calls.items():
        spans.setdefault(path, []).append(span)
    for index, node in enumerate(nodes):
        if node.op in ("get_attr", "call_module") and index not in data:
            readers = _readers(node, position, data)
            owners = [path for path, _ in node.meta["stack"]] if node.op == "call_module" else []
            for path in {str(node.target), *_parents(str(node.target)), *owners}:
                inside = spans.setdefault(path, [])
                new = [(reader, reader) for reader in readers if not any(a <= reader <= b for a, b in inside)]
                inside.extend(new if path == str(node.target) else new[:1])
    return {path: sorted(found) for path, found in spans.items() if found}


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _readers(node: fx.Node, position: dict[fx.Node, int], data: set[int]) -> list[int]:
    """Positions of the nodes with images in them that read this one, directly or through others without."""
    found, seen, todo = set(), {node}, [node]
    while todo:
        for user in todo.pop().users:
            index = position.get(user)
            if index is None or user in seen:
                continue
            seen.add(user)
            if index in data:
                found.add(index)
            else:
                todo.append(user)
    return sorted(found)
