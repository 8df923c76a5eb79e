"""A network without a graph: it is run as a whole, and watched."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from xfer.backends.torch.layers import is_linear
from xfer.backends.torch.layouts import layout_of
from xfer.backends.torch.shapes import REAL_BATCHES, RUN_ERRORS, as_meta, as_real, images, needs_numbers
from xfer.backends.torch.trace import modes_kept

Row = tuple[int, ...]


@dataclass
class Observed:
    """`classifier` is the path of the last classifying layer that ran, None for a network without one; `features` one row of what
    it read (or of the output); `rows` one row of what each module gave, in the order in which they began."""

    classifier: str | None
    features: Row
    rows: dict[str, Row | None] = field(default_factory=dict)


def observe(network: nn.Module, *, image_size: int, channels: int = 3) -> Observed:
    """Runs the network once in eval mode; raises one of RUN_ERRORS where it can't take such images."""
    n = REAL_BATCHES[0]
    with modes_kept(network), torch.no_grad():
        network.eval()
        try:
            return _watch(as_meta(network), torch.zeros(n, channels, image_size, image_size, device="meta"))
        except RUN_ERRORS as error:
            if not needs_numbers(error):
                raise
            real = as_real(network)
            return _watch(real, images(real, n, channels, image_size))


def refusal(network: nn.Module, image_size: int) -> str | None:
    """What the network itself says of images that it can't take, in one line; None if it takes them."""
    try:
        observe(network, image_size=image_size)
    except RUN_ERRORS as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _watch(network: nn.Module, batch: torch.Tensor) -> Observed:
    rows: dict[str, Row | None] = {}
    linear: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    last = None
    hooks = []
    for path, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, __, path=path: rows.setdefault(path, None)))

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any, path: str = path) -> None:
            nonlocal last
            last = path if next(module.parameters(recurse=False), None) is not None else last
            tensor = first_tensor(output)
            rows[path] = tuple(tensor.shape[1:]) if tensor is not None else None
            if is_linear(module) and tensor is not None and inputs:
                linear.append((path, inputs[0], tensor))

        hooks.append(module.register_forward_hook(after))
    try:
        output = first_tensor(network(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if output is None:
        raise TypeError("its output holds no tensor")
    if linear and last == linear[-1][0]:  # whatever has weights behind it makes it an inner layer
        path, read, given = linear[-1]
        classes = output.shape[1] if output.ndim == 2 else None
        if classes in (given.shape[1], given.shape[-1]) and layout_of(tuple(read.shape[1:])):
            return Observed(path, tuple(read.shape[1:]), rows)
    return Observed(None, tuple(output.shape[1:]), rows)


def first_tensor(value: Any) -> torch.Tensor | None:
    """The value itself, or the first tensor inside it."""
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((tensor for tensor in map(first_tensor, items) if tensor is not None), None)


class Whole(nn.Module):
    """From images to features through the whole network: what its classifying layer reads, or its output where it has none."""

    def __init__(self, network: nn.Module, classifier: str | None) -> None:
        super().__init__()
        self.network = network
        self._find = operator.methodcaller("get_submodule", classifier) if classifier is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._find is None:
            output = first_tensor(self.network(x))
            assert output is not None
            return output
        read: list[torch.Tensor] = []
        hook = self._find(self.network).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            self.network(x)
        finally:
            hook.remove()
        return read[-1]
