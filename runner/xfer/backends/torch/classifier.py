"""Where a network's pooled features are: the input of its own last classifying layer."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from xfer.backends.torch.layers import is_linear

_LINEAR_CALLS = {functional.linear, functional.conv2d, torch.conv2d, torch.matmul, torch.mm, torch.addmm}
_DROPOUTS = {functional.dropout, functional.dropout1d, functional.dropout2d, functional.alpha_dropout, functional.feature_alpha_dropout}


@dataclass(frozen=True)
class Pooled:
    """`node` gives the features (not yet averaged where spatial); `classifiers` are the nodes of the network's own classifying
    layers, none for a network without one; `note` says what a person should know about the choice."""

    node: fx.Node
    classifiers: tuple[fx.Node, ...] = ()
    note: str | None = None


def find_pooled(graph: fx.Graph, network: nn.Module) -> Pooled:
    """Walks back from the output over everything without weights. Where each way ends at a linear layer or a 1x1 convolution,
    those classify; otherwise the network has no classifier and its output is the features."""
    output = _first_tensor(next(node for node in graph.nodes if node.op == "output").args[0])
    if output is None:
        raise TypeError("its output holds no tensor")
    found = _classifiers(output, network, data_nodes(graph))
    if not found:
        return Pooled(_before_dropout(output, network), (), "it has no classifying layer: its output is taken as the features")
    chosen = max(found, key=lambda node: (_depth(node, network), _width(node, network), -_order(node)))
    source = next(iter(chosen.all_input_nodes))
    note = None
    names = sorted({_name(node) for node in found})
    if len(names) > 1:
        note = f"it has several classifying layers ({', '.join(names)}): the features are those that {_name(chosen)} reads"
    return Pooled(_before_dropout(source, network), tuple(found), note)


def ancestors(node: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed from, in the graph's order."""
    found, todo = {node}, [node]
    while todo:
        for argument in todo.pop().all_input_nodes:
            if argument not in found:
                found.add(argument)
                todo.append(argument)
    return [candidate for candidate in node.graph.nodes if candidate in found]


def is_dropout(node: fx.Node, network: nn.Module) -> bool:
    """A node that drops values, whole samples or nothing at random."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        stateless = next(module.parameters(), None) is None
        named = any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth"))
        return isinstance(module, nn.modules.dropout._DropoutNd) or (stateless and named)
    return node.op == "call_function" and (node.target in _DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth")


def _first_tensor(value: object) -> fx.Node | None:
    """The output itself, or the first of several (a tuple with auxiliary outputs behind, a dictionary)."""
    if isinstance(value, fx.Node):
        return value
    items: Iterable[object] = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((node for node in map(_first_tensor, items) if node is not None), None)


def _classifiers(output: fx.Node, network: nn.Module, data: set[fx.Node]) -> list[fx.Node]:
    found: list[fx.Node] = []
    seen, todo = {output}, [output]
    while todo:
        node = todo.pop()
        if _classifies(node, network, data):
            found.append(node)
            continue
        if node.op == "placeholder" or _has_weights(node, network):
            return []
        inputs = [argument for argument in node.all_input_nodes if argument in data]
        for argument in inputs:
            if argument not in seen:
                seen.add(argument)
                todo.append(argument)
    # Several classify only side by side: one that reads what another gives is part of a residual block.
    beneath = {node for classifier in found for node in ancestors(classifier)[:-1]}
    return [] if beneath & set(found) else sorted(found, key=_order)


def _classifies(node: fx.Node, network: nn.Module, data: set[fx.Node]) -> bool:
    if node.op == "call_module":
        return is_linear(network.get_submodule(str(node.target)))
    called = node.target in _LINEAR_CALLS if node.op == "call_function" else node.op == "call_method" and node.target in ("matmul", "mm")
    weights = [argument for argument in node.all_input_nodes if argument not in data]
    return called and bool(weights)


def _has_weights(node: fx.Node, network: nn.Module) -> bool:
    return node.op == "call_module" and next(network.get_submodule(str(node.target)).parameters(), None) is not None


def _before_dropout(node: fx.Node, network: nn.Module) -> fx.Node:
    """The new head brings its own dropout."""
    while is_dropout(node, network):
        node = node.all_input_nodes[0]
    return node


def data_nodes(graph: fx.Graph, fixed: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes whose value depends on the images; the others (weights and what is made of them alone) can be made anywhere.
    `fixed` are known to be the same for all images (sizes, say), and so is what is made of them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in fixed and (node.op == "placeholder" or any(argument in found for argument in node.all_input_nodes)):
            found.add(node)
    return found


def _depth(node: fx.Node, network: nn.Module) -> int:
    """How many layers with weights lie below: a classifier on an early level has fewer than the last one."""
    return sum(_has_weights(candidate, network) for candidate in ancestors(node))


def _width(node: fx.Node, network: nn.Module) -> int:
    if node.op != "call_module":
        return 0
    module = network.get_submodule(str(node.target))
    width = getattr(module, "in_features", None) or getattr(module, "in_channels", 0)
    return int(width or 0)


def _name(node: fx.Node) -> str:
    """The layer's path, or, where a function classifies, that of the module that calls it."""
    stack = node.meta.get("stack", ())
    return str(node.target) if node.op == "call_module" else stack[-1][0] if stack else node.name


def _order(node: fx.Node) -> int:
    return next(index for index, candidate in enumerate(node.graph.nodes) if candidate is node)
