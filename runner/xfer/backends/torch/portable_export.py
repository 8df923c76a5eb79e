"""A torch network becomes a portable graph: its traced graph, node by node, up to the pooled features."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from xfer.backends.graph_writer import Value, Writer
from xfer.backends.torch.classifier import data_nodes
from xfer.backends.torch.cuts import needed
from xfer.backends.torch.derive import Derived
from xfer.backends.torch.network import TorchNetwork
from xfer.backends.torch.portable_calls import Batch, Call, Piece, Weight, called, cut
from xfer.backends.torch.portable_modules import written
from xfer.backends.torch.segments import AVERAGED
from xfer.backends.torch.shapes import Literal, Shape
from xfer.plan.portable import NotPortableError, Portable

_IN_PLACE = {operator.iadd, operator.imul, operator.isub, operator.itruediv}


def export(network: TorchNetwork) -> tuple[Portable, dict[str, np.ndarray]]:
    """A built network's source as data, with its tensors; raises NotPortableError naming what only torch has."""
    plan, segments = network.parts.plan, network.parts.segments
    writer = Writer(plan.source.model)
    if segments.derived is None:
        reason = (plan.model.note or "").partition(": ")[2]
        raise NotPortableError(f"both backends can't hold {plan.source.model}: its graph can't be traced: {reason}")
    derived, end = segments.derived, segments.derived.cuts[-1]
    features = _Export(writer, segments.network, derived).value(derived.trace.nodes[end.position])
    portable = writer.finish(
        features,
        averaged=[dimension - 1 for dimension in AVERAGED.get(end.layout, ())],
        backend="torch",
        input_size=plan.model.input_size,
        image_size=plan.model.image_size,
        preprocess=plan.source.preprocess,
    )
    return portable, writer.tensors


class _Export:
    """One walk over a graph. `values` holds what each node gives."""

    def __init__(self, writer: Writer, network: nn.Module, derived: Derived) -> None:
        self.writer, self.network, self.derived = writer, network, derived
        self.values: dict[fx.Node, Any] = {}
        wanted = needed(derived.trace, derived.known)
        depends = data_nodes(derived.trace.graph)
        parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        for node in derived.trace.nodes:
            if node in wanted and not isinstance(derived.known.get(node), Literal):
                self.values[node] = self._weight(node, parameters) if node.op == "get_attr" else self._value(node, node in depends)

    def value(self, node: fx.Node) -> Value:
        """What the node gives, as a value of the graph."""
        found = self._read(node)
        assert isinstance(found, Value)
        return found

    def _weight(self, node: fx.Node, parameters: set[str]) -> Weight:
        path = str(node.target)
        constants = self.derived.trace.constants
        tensor = constants[path] if path in constants else operator.attrgetter(path)(self.network)
        return Weight(path, tensor, path in parameters)

    def _value(self, node: fx.Node, depends: bool) -> Any:
        known = self.derived.known.get(node)
        row = known.row if isinstance(known, Shape) else None
        if node.op == "placeholder":
            assert row is not None
            return self.writer.images(row[-1])
        if node.op == "call_module":
            return self._module(node, row)
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), self._read)  # type: ignore[misc]
        function = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
        found = called(Call(self.writer, self._name(node), function, row), list(args), dict(kwargs))
        if function.endswith("_") or node.target in _IN_PLACE or kwargs.get("inplace") is True:
            self._overwrite(node, found)
        if isinstance(found, Weight) and depends:
            raise self.writer.refuse(self._name(node), function)
        return found

    def _module(self, node: fx.Node, row: tuple[int, ...] | None) -> Value:
        path = str(node.target)
        module = self.network.get_submodule(path)
        inputs = [self._read(argument) for argument in node.all_input_nodes]
        if len(inputs) != 1 or not isinstance(inputs[0], Value) or row is None:
            raise self.writer.refuse(path, type(module).__name__)
        if next(module.parameters(), None) is not None:
            self.writer.once(path, type(module).__name__)
        found = written(self.writer, path, module, inputs[0], row)
        if getattr(module, "inplace", False):
            self._overwrite(node, found)
        return found

    def _read(self, item: Any) -> Any:
        """An argument: a node's value, the plain number that it is known to be, or the argument itself."""
        if not isinstance(item, fx.Node):
            return item
        known = self.derived.known.get(item)
        if isinstance(known, Literal):
            return Batch() if known.per_image else known.value
        found = self.values.get(item)
        if isinstance(found, Piece):
            found = self.values[item] = cut(self.writer, self._name(item), found)
        return found

    def _overwrite(self, node: fx.Node, found: Any) -> None:
        """Who reads the first argument later reads what it was made into."""
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and isinstance(found, Value):
            self.values[first] = found

    def _name(self, node: fx.Node) -> str:
        """A function's operation lies in the module that calls it."""
        stack = node.meta.get("stack", ())
        return f"{stack[-1][0]}.{node.name}" if stack and stack[-1][0] else node.name


def network_input(network: TorchNetwork, pixels: np.ndarray) -> np.ndarray:
    """What the network itself gets for uint8 [n, H, W, 3]: float32 [n, H, W, 3]."""
    with torch.inference_mode():
        x = network.parts.rows(pixels, start="pixels")
        return x.permute(0, 2, 3, 1).float().cpu().numpy()  # type: ignore[no-any-return]
