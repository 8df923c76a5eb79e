"""The part of a network between two cuts, as a module that shares the network's own layers and tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from xfer.backends.torch.derive import Derived, DerivedCut, derive
from xfer.backends.torch.layouts import layout_of
from xfer.backends.torch.shapes import Known, Literal
from xfer.backends.torch.untraced import Whole, observe
from xfer.errors import UsageError
from xfer.plan.model_map import POOLED, Layout, ModelMap

# The dimensions of a batch that pooling averages over, by layout.
AVERAGED: dict[str, tuple[int, ...]] = {"chw": (2, 3), "hwc": (1, 2), "tokens": (1,)}


class Segments:
    """Segments of one network, by the cuts of its ModelMap (made for the same image size). The network is traced once."""

    def __init__(self, network: nn.Module, model_map: ModelMap) -> None:
        self.network, self.model_map = network, model_map
        self._made: dict[tuple[str, str], nn.Module] = {}
        self.derived: Derived | None = None
        self._classifier: str | None = None
        if model_map.traced:
            self.derived = derive(network, input_size=model_map.input_size, image_size=model_map.image_size)
        else:
            self._classifier = observe(network, image_size=model_map.image_size).classifier

    def between(self, start: str, end: str) -> nn.Module:
        """What turns the rows of cut `start` into those of cut `end`.

        Reads normalised images, float [B, 3, H, W], at 'pixels', and gives [B, D] at 'pooled'. Layers are the network's own, so
        each obeys its own `.training`; `train()` and `eval()` on the segment set them for its layers. Raises UsageError for a cut
        that the network hasn't got, or where `end` lies below `start`.
        """
        order = [cut.name for cut in self.model_map.cuts]
        for name in (start, end):
            if name not in order:
                raise UsageError(f"{self.model_map.model} has no cut '{name}'; its cuts are {', '.join(order)}")
        if order.index(end) < order.index(start):
            raise UsageError(f"{self.model_map.model}: the cut '{end}' lies below '{start}'")
        if (start, end) not in self._made:
            self._made[start, end] = self._make(start, end)
        segment = self._made[start, end]
        for graph_module in segment.modules():
            if isinstance(graph_module, fx.GraphModule):
                _share(graph_module, self.network)
        return segment

    def _make(self, start: str, end: str) -> nn.Module:
        if start == end:
            return nn.Identity()
        if self.derived is None:
            return nn.Sequential(Whole(self.network, self._classifier), Averaged())
        derived, cuts = self.derived, {cut.name: cut for cut in self.derived.cuts}
        made = [_graph_module(self.network, derived, nodes, cuts[start], cuts[end]) for nodes in _modes(derived)]
        return made[0] if len(made) == 1 else TwoModes(*made)


class TwoModes(nn.Module):
    """A segment whose top level passes other plain arguments in train mode than in eval mode."""

    def __init__(self, in_eval: fx.GraphModule, in_train: fx.GraphModule) -> None:
        super().__init__()
        self.in_eval, self.in_train = in_eval, in_train

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.in_train(x) if self.training else self.in_eval(x)  # type: ignore[no-any-return]


class Averaged(nn.Module):
    """Features as vectors: averaged over positions where there are any."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return averaged(x, layout_of(tuple(x.shape[1:])) or "vector")


def averaged(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[B, D] from any layout.

    >>> averaged(torch.ones(2, 8, 3, 3), "chw").shape, averaged(torch.ones(2, 3, 3, 8), "hwc").shape
    (torch.Size([2, 8]), torch.Size([2, 8]))
    """
    dimensions = AVERAGED.get(layout)
    return x.mean(dim=dimensions) if dimensions else x


def _modes(derived: Derived) -> list[Sequence[fx.Node]]:
    same = derived.trace.train_nodes is derived.trace.nodes
    return [derived.trace.nodes] if same else [derived.trace.nodes, derived.trace.train_nodes]


def _graph_module(network: nn.Module, derived: Derived, nodes: Sequence[fx.Node], start: DerivedCut, end: DerivedCut) -> fx.GraphModule:
    """Copies the nodes that `end` needs beyond `start` into a graph of their own."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    copied: dict[fx.Node, Any] = {nodes[start.position]: x}
    if start.overwritten:  # whoever holds the rows must find them unchanged
        copied[nodes[start.position]] = graph.call_method("clone", (x,))
    known: Known = {nodes[i]: derived.known[node] for i, node in enumerate(derived.trace.nodes) if node in derived.known}
    for node in _beyond(nodes, start.position, end.position, known):
        literal = known.get(node)
        copied[node] = _written(graph, x, literal) if isinstance(literal, Literal) else _copy(graph, node, copied)
    result = copied[nodes[end.position]]
    if end.name == POOLED and (dimensions := AVERAGED.get(end.layout)):
        result = graph.call_method("mean", (result,), {"dim": dimensions})
    graph.output(result)
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    constants = derived.trace.constants
    segment = fx.GraphModule({t: constants[t] if t in constants else _attribute(network, t) for t in targets}, graph, class_name="Segment")
    segment._non_persistent_buffers_set.update(targets & constants.keys())
    return segment


def _beyond(nodes: Sequence[fx.Node], start: int, end: int, known: Known) -> list[fx.Node]:
    """Nodes to copy, in order: from `end` back to `start`, never behind a literal, which is written down."""
    found, todo = {nodes[end]}, [nodes[end]]
    while todo:
        node = todo.pop()
        for argument in () if isinstance(known.get(node), Literal) else node.all_input_nodes:
            if argument not in found and argument is not nodes[start]:
                found.add(argument)
                todo.append(argument)
    return [node for node in nodes if node in found]


def _copy(graph: fx.Graph, node: fx.Node, copied: dict[fx.Node, Any]) -> fx.Node:
    """The node again. `view` becomes `reshape`: rows may come in another memory format (channels last) than the one for which the
    network was written, and where a view is possible reshape makes one."""
    made = graph.node_copy(node, copied.__getitem__)
    if made.op == "call_method" and made.target == "view" and not any(isinstance(argument, torch.dtype) for argument in made.args):
        made.target = "reshape"
    return made


def _written(graph: fx.Graph, x: fx.Node, literal: Literal) -> Any:
    if not literal.per_image:
        return literal.value
    n = graph.call_method("size", (x, 0))
    return n if literal.per_image == 1 else graph.call_function(operator.mul, (n, literal.per_image))


def _attribute(network: nn.Module, target: str) -> Any:
    return operator.attrgetter(target)(network)


def _share(segment: fx.GraphModule, network: nn.Module) -> None:
    """A network that was moved to another device has new buffers: a segment made before must read those."""
    for node in segment.graph.nodes:
        if node.op == "get_attr" and not str(node.target).startswith("_tensor_constant"):
            path, _, name = str(node.target).rpartition(".")
            setattr(segment.get_submodule(path), name, _attribute(network, str(node.target)))
