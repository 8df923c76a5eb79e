"""What every node of a graph gives, found by running the graph without numbers (on the meta device)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

META_BATCHES = (11, 13)  # two sizes tell what depends on the batch; primes that are no usual number of channels or tokens
REAL_BATCHES = (3, 5)

# What operators raise where a size or a device doesn't suit them.
RUN_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Literal:
    """A plain number or tuple of a node that is the same for every batch, or `per_image` times the batch."""

    value: Any
    per_image: int = 0


@dataclass(frozen=True)
class Shape:
    """A tensor: one row's shape, without the batch. `overwritten`: a later operation changes it in place."""

    row: tuple[int, ...]
    floating: bool
    overwritten: bool


Known = dict[fx.Node, Literal | Shape]


def propagate(network: nn.Module, graph: fx.Graph, constants: Mapping[str, torch.Tensor], *, image_size: int, channels: int) -> Known:
    """Shapes and literals of the nodes that have one row per image, or none; others are left out. The network must be in eval
    mode. Raises one of RUN_ERRORS where the network can't take such images.

    The run takes place on the meta device; a network that looks at its numbers on the way is run for real, on few rows.
    """
    try:
        light = as_meta(network)
        runs = [_run(light, graph, constants, torch.zeros(n, channels, image_size, image_size, device="meta")) for n in META_BATCHES]
        return _compare(runs[0], runs[1], META_BATCHES)
    except RUN_ERRORS as error:
        if not needs_numbers(error):
            raise
        real = as_real(network)
        runs = [_run(real, graph, constants, images(real, n, channels, image_size)) for n in REAL_BATCHES]
        return _compare(runs[0], runs[1], REAL_BATCHES)


def needs_numbers(error: BaseException) -> bool:
    """Whether a run on the meta device ended because there are no numbers there; only then a real run can do better."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def as_meta(network: nn.Module) -> nn.Module:
    """A copy of the network without numbers; nothing large is copied."""
    memo: dict[int, Any] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def as_real(network: nn.Module) -> nn.Module:
    """The network itself, or, if it has no numbers, a copy of it full of zeros."""
    if not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
        return network
    real = copy.deepcopy(network).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*real.parameters(), *real.buffers()]:
            tensor.zero_()
    return real


def images(network: nn.Module, n: int, channels: int, size: int) -> torch.Tensor:
    """Noise where the network is."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)


class _Recorder(fx.Interpreter):
    """Keeps each node's value, and how often its storage had been written when it was made."""

    def __init__(self, network: nn.Module, graph: fx.Graph, constants: Mapping[str, torch.Tensor], device: torch.device) -> None:
        super().__init__(network, graph=graph)
        self._constants = {name: tensor.to(device) for name, tensor in constants.items()}
        self.values: dict[fx.Node, tuple[Any, int]] = {}

    def fetch_attr(self, target: str) -> Any:
        return self._constants[target] if target in self._constants else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = (value, value._version if isinstance(value, torch.Tensor) else 0)
        return value


def _run(network: nn.Module, graph: fx.Graph, constants: Mapping[str, torch.Tensor], batch: torch.Tensor) -> dict[fx.Node, tuple[Any, int]]:
    recorder = _Recorder(network, graph, constants, batch.device)
    with torch.no_grad():
        recorder.run(batch)
    return recorder.values


def _compare(one: dict[fx.Node, tuple[Any, int]], other: dict[fx.Node, tuple[Any, int]], batches: tuple[int, int]) -> Known:
    known: Known = {}
    for node, (value, version) in one.items():
        second = other[node][0]
        if isinstance(value, torch.Tensor):
            rows = value.ndim > 0 and (value.shape[0], second.shape[0]) == batches and value.shape[1:] == second.shape[1:]
            if rows:
                known[node] = Shape(tuple(value.shape[1:]), value.is_floating_point(), value._version > version)
        elif node.op not in ("placeholder", "output", "get_attr") and (found := _literal(value, second, batches)):
            known[node] = found
    return known


def _literal(value: Any, second: Any, batches: tuple[int, int]) -> Literal | None:
    if _plain(value) and type(value) is type(second) and value == second:
        return Literal(tuple(value) if isinstance(value, torch.Size) else value)
    if isinstance(value, int) and isinstance(second, int) and value % batches[0] == 0 and value * batches[1] == second * batches[0]:
        return Literal(None, value // batches[0])
    return None


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
