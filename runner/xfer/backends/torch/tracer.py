"""Tracing one forward pass, and what may be known of sizes on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from xfer.backends.torch.classifier import ancestors
from xfer.backends.torch.layers import is_layer
from xfer.backends.torch.shapes import META_BATCHES, RUN_ERRORS, as_meta


class Values:
    """Numbers that follow from the images' size alone, computed without numbers in the tensors when they are asked for."""

    def __init__(self, network: nn.Module, *, image_size: int, channels: int) -> None:
        self._network, self._row = network, (channels, image_size, image_size)
        self._graph: fx.Graph | None = None
        self._runs: list[fx.Interpreter] = []
        self.were_asked = False

    def of(self, node: fx.Node) -> bool | int | float:
        """Raises TraceError for what depends on the images' content, or on how many there are."""
        if self._graph is not node.graph:
            self._graph = node.graph
            light = as_meta(self._network).eval()
            self._runs = [fx.Interpreter(light, garbage_collect_values=False, graph=node.graph) for _ in META_BATCHES]
        found = [self._run(run, node, batch) for run, batch in zip(self._runs, META_BATCHES, strict=True)]
        if not isinstance(found[0], bool | int | float) or found[0] != found[1]:
            raise TraceError("symbolically traced variables cannot be used as inputs to control flow")
        self.were_asked = True
        return found[0]

    def _run(self, run: fx.Interpreter, node: fx.Node, batch: int) -> Any:
        try:
            with torch.no_grad(), _untouched():
                for earlier in ancestors(node):
                    if earlier not in run.env:
                        images = earlier.op == "placeholder"
                        run.env[earlier] = torch.zeros(batch, *self._row, device="meta") if images else run.run_node(earlier)
        except RUN_ERRORS as error:
            raise TraceError("symbolically traced variables cannot be used as inputs to control flow") from error
        return run.env[node]


# Tracing replaces these two for its time, for every module there is.
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


@contextmanager
def _untouched() -> Iterator[None]:
    """Modules run as they are, in the middle of tracing."""
    replaced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = replaced  # type: ignore[method-assign,assignment]


class _Sized(fx.Proxy):
    """A proxy that may be used as a number where it stands for a size."""

    tracer: Tracer

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __index__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))


class Tracer(fx.Tracer):
    """Records for each node the modules that it was made in (`node.meta['stack']`) and the module in which tracing failed."""

    proxy_buffer_attributes = True

    def __init__(self, whole: set[Any], values: Values) -> None:
        super().__init__(autowrap_functions=_known_functions())
        self._whole, self._values = whole, values
        self._stack: list[tuple[str, int]] = []
        self._calls = 0
        self.fault: str | None = None
        self.constants_in: dict[str, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Images are the only input: further arguments of forward keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.number(obj)) if not self._stack else super().to_bool(obj)

    def number(self, obj: fx.Proxy) -> Any:
        """What a size is worth, at the network's top level; a module that asks for one is kept whole instead."""
        if self._stack:
            raise TypeError("it decides by the shape of its input")
        return self._values.of(obj.node)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m) or type(m) in self._whole or module_qualified_name in self._whole

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path, failed = self.path_of_module(m), True
        self._calls += 1
        self._stack.append((path, self._calls))
        try:
            result = super().call_module(m, forward, args, kwargs)
            failed = False
            return result
        finally:
            if failed and self.fault is None:
                self.fault = path
            self._stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["stack"] = tuple(self._stack)
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            self.constants_in[str(node.target)] = self._stack[-1][0] if self._stack else ""
        return node


def known_whole() -> set[Any]:
    """Modules that timm itself says can't be traced."""
    module = sys.modules.get("timm.layers._fx")
    return set(module.get_notrace_modules()) if module else set()


def _known_functions() -> tuple[Callable[..., Any], ...]:
    module = sys.modules.get("timm.layers._fx")
    return tuple(module.get_notrace_functions()) if module else ()
