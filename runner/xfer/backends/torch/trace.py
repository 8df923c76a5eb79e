"""A torch network becomes a graph that holds no mode in it.

The network is traced in eval mode and in train mode. A module in which the two differ (dropout by a function, stochastic depth),
or that can't be traced at all, is kept whole: it then runs as it was written and reads its own `.training` when it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from xfer.backends.torch.classifier import Pooled, ancestors, find_pooled
from xfer.backends.torch.layers import PLAIN_CONTAINERS
from xfer.backends.torch.tracer import Tracer, Values, known_whole

# What a network's own code may raise when it meets a proxy instead of a tensor.
TRACE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, NameError)
_ROUNDS = 100  # each round keeps one more class of modules whole

Stack = tuple[tuple[str, int], ...]  # the modules that a node was made in, outermost first: path, number of the call


class Untraceable(ValueError):
    """The network's own top level can't be traced; the message says why. Never leaves the torch backend."""


@dataclass
class Trace:
    """A network's graph up to its pooled features.

    `nodes` are the nodes in order that the pooled features need, of the eval graph; `train_nodes` the same of the train graph,
    index by index, or `nodes` again where nothing differs. `used` names tensors that anything in either graph reads.
    """

    graph: fx.Graph
    nodes: list[fx.Node]
    train_nodes: list[fx.Node]
    pooled: Pooled
    used: set[str]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    specialised: bool = False


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Each module's `.training` is afterwards what it was before."""
    before = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def attributes_kept(network: nn.Module) -> Iterator[None]:
    """Each module's attributes are afterwards those of before: a network that keeps tables for the next call must keep no proxies."""
    before = [(module, _attributes(module)) for module in network.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Containers are copied, so that what is put into them later is not in the copy."""
    return {name: copy.copy(value) if isinstance(value, dict | list | set) else value for name, value in vars(module).items()}


def trace(network: nn.Module, *, image_size: int, channels: int = 3) -> Trace:
    """The network's graph; raises Untraceable. The network is unchanged afterwards.

    Where the top level decides by the size of the images, the graph is the one for `image_size` only (`specialised`).
    """
    values = Values(network, image_size=image_size, channels=channels)
    whole = known_whole()
    with modes_kept(network):
        for _ in range(_ROUNDS):
            graphs = []
            for training in (False, True):
                network.train(training)
                graph, constants, fault = _attempt(network, whole, values)
                if fault is not None:
                    _keep_whole(network, whole, fault[0], f"it can't be traced: {fault[1]}")
                    break
                graphs.append((graph, constants))
            if len(graphs) < 2:
                continue
            (graph, constants), (train_graph, train_constants) = graphs
            pooled, train_pooled = find_pooled(graph, network), find_pooled(train_graph, network)
            nodes, train_nodes = ancestors(pooled.node), ancestors(train_pooled.node)
            different = _different_owners(nodes, train_nodes)
            inner = sorted(path for path in different if path)
            if inner:
                _keep_whole(network, whole, inner[-1], "its eval and train mode differ")
                continue
            if different and not _same_structure(nodes, train_nodes):
                raise Untraceable("its forward pass has different operations in train mode than in eval mode")
            used = _used_tensors(network, graph) | _used_tensors(network, train_graph)
            constants = {**train_constants, **constants}
            return Trace(graph, nodes, train_nodes if different else nodes, pooled, used, constants, values.were_asked)
    raise Untraceable("too many of its modules can't be traced")


def _attempt(network: nn.Module, whole: set[Any], values: Values) -> tuple[fx.Graph, dict[str, torch.Tensor], tuple[str, str] | None]:
    """The graph, tensors that the top level made while it was traced, and the module at fault with its reason, if any."""
    tracer, graph, fault = Tracer(whole, values), fx.Graph(), None
    with attributes_kept(network):
        try:
            graph = tracer.trace(network)
        except TRACE_ERRORS as error:
            fault = (tracer.fault or "", _first_line(error))
        constants = {name: value for name, value in vars(network).items() if name.startswith("_tensor_constant")}
        if fault is None and (keeper := _keeps_proxies(network)) is not None:
            fault = (keeper, "it keeps what it computed for the next call")
    if fault is None and any(tracer.constants_in.values()):  # a tensor made in forward was baked in with this run's device and shape
        fault = (next(path for path in tracer.constants_in.values() if path), "it makes a tensor of its own")
    return graph, constants, fault


def _keeps_proxies(network: nn.Module) -> str | None:
    """The path of a module that kept a value of the tracing as an attribute."""
    for path, module in network.named_modules():
        for value in vars(module).values():
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else (value,)
            if any(isinstance(item, fx.Proxy) for item in inside):
                return str(path)
    return None


def _keep_whole(network: nn.Module, whole: set[Any], path: str, reason: str) -> None:
    """From now on all modules of that class are one node each, or this one alone where the class is the network's own."""
    if not path:
        raise Untraceable(reason)
    kind = type(network.get_submodule(path))
    key: Any = path if isinstance(network, kind) or kind in PLAIN_CONTAINERS else kind
    if key in whole:
        raise Untraceable(f"{path}: {reason}")
    whole.add(key)


def _signature(node: fx.Node) -> tuple[str, str, str]:
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return node.op, str(node.target), repr(arguments)


def _different_owners(one: list[fx.Node], other: list[fx.Node]) -> set[str]:
    """Modules whose own nodes differ between two traces ('' is the network itself)."""
    owned: list[dict[str, list[Any]]] = [{}, {}]
    for nodes, by_owner in zip((one, other), owned, strict=True):
        for node in nodes:
            stack: Stack = node.meta["stack"]
            by_owner.setdefault(stack[-1][0] if stack else "", []).append(_signature(node))
    return {path for path in owned[0].keys() | owned[1].keys() if owned[0].get(path) != owned[1].get(path)}


def _same_structure(one: list[fx.Node], other: list[fx.Node]) -> bool:
    """Whether two node lists differ in plain arguments only (`training=True`), never in operations or connections."""
    if len(one) != len(other):
        return False
    twin = dict(zip(one, other, strict=True))
    return all(
        a.op == b.op and str(a.target) == str(b.target) and [twin.get(n) for n in a.all_input_nodes] == b.all_input_nodes
        for a, b in zip(one, other, strict=True)
    )


def _used_tensors(network: nn.Module, graph: fx.Graph) -> set[str]:
    used: set[str] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            used.add(str(node.target))
        elif node.op == "call_module":
            module = network.get_submodule(str(node.target))
            inside = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
            used.update(f"{node.target}.{name}" for name, _ in inside)
    return used


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
