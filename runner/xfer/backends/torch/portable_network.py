"""A torch network built from a portable graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from xfer.plan import portable as graph
from xfer.plan.portable import CLASSIFIER, Operation, Portable, Sides

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "selu": functional.selu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "hard_swish": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "mish": functional.mish,
    "softplus": functional.softplus,
}
_COMBINED: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


class PortableNetwork(nn.Module):
    """Images [B, 3, H, W], normalised, to one number for each image by a classifier that marks the pooled features below it.

    Operations with tensors are modules under their own names, so that the tensors have the names of the portable graph.
    """

    def __init__(self, portable: Portable) -> None:
        super().__init__()
        self._portable = portable
        self._made: set[str] = set()
        for operation in portable.operations:
            made = _module(operation)
            if made is not None:
                _put(self, operation.name, made)
                self._made.add(operation.name)
        self.add_module(CLASSIFIER, nn.Linear(portable.width, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = {graph.IMAGES: images}
        for operation in self._portable.operations:
            inputs = [values[name] for name in operation.inputs]
            values[operation.name] = self._computed(operation, inputs)
        return self.get_submodule(CLASSIFIER)(values[self._portable.features])  # type: ignore[no-any-return]

    def _computed(self, operation: Operation, inputs: list[torch.Tensor]) -> torch.Tensor:
        if operation.name in self._made:
            return self.get_submodule(operation.name)(inputs[0])  # type: ignore[no-any-return]
        return _CALLED[type(operation)](operation, inputs)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Below plain containers, as the dots in the name say."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.ModuleDict())
        root = root._modules[part]  # type: ignore[assignment]
    root.add_module(last, module)


# operations that are modules: those with tensors, those that differ in train mode, those that keep a table


def _module(operation: Operation) -> nn.Module | None:
    make = _MODULES.get(type(operation))
    return make(operation) if make is not None else None


def _conv(operation: graph.Conv) -> nn.Module:
    n_out, n_in, *window = operation.shape("weight") or ()
    even = _even(operation.padding)
    made = nn.Conv2d if even is not None else PaddedConv
    convolution = made(
        n_in * operation.groups,
        n_out,
        tuple(window),  # type: ignore[arg-type]
        operation.stride,
        padding=even or 0,
        dilation=operation.dilation,
        groups=operation.groups,
        bias=operation.shape("bias") is not None,
    )
    if isinstance(convolution, PaddedConv):
        convolution.sides = operation.padding
    return convolution


class PaddedConv(nn.Conv2d):
    """Padded differently before and after."""

    sides: Sides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(x, _flat(self.sides)))


def _even(padding: Sides) -> tuple[int, int] | None:
    """Padding that is the same before and after, as torch's layers take it."""
    (top, bottom), (left, right) = padding
    return (top, left) if (top, left) == (bottom, right) else None


def _flat(padding: Sides) -> list[int]:
    """In the order of functional.pad: the last axis first."""
    return [*padding[1], *padding[0]]


def _dense(operation: graph.Dense) -> nn.Module:
    n_out, n_in = operation.shape("weight") or (0, 0)
    return nn.Linear(n_in, n_out, bias=operation.shape("bias") is not None)


def _scale_and_shift(norm: nn.Module, operation: Operation) -> None:
    """Either may be there without the other, as Keras has it."""
    for role, start in (("weight", torch.ones), ("bias", torch.zeros)):
        shape = operation.shape(role)
        norm.register_parameter(role, None if shape is None else nn.Parameter(start(shape)))


class PortableBatchNorm(nn.BatchNorm2d):
    """On axis 1 of any rank."""

    def __init__(self, operation: graph.BatchNorm) -> None:
        (width,) = operation.shape("running_mean") or (0,)
        super().__init__(width, eps=operation.epsilon, momentum=operation.momentum, affine=False)
        _scale_and_shift(self, operation)

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002
        pass


def _layer_norm(operation: graph.LayerNorm) -> nn.Module:
    norm = nn.LayerNorm(operation.size, eps=operation.epsilon, elementwise_affine=False)
    _scale_and_shift(norm, operation)
    return norm


class PortableGroupNorm(nn.GroupNorm):
    """The number of channels matters only to tensors, so where there are none it is not known."""

    def __init__(self, operation: graph.GroupNorm) -> None:
        (width,) = operation.shape("weight") or operation.shape("bias") or (operation.groups,)
        super().__init__(operation.groups, width, eps=operation.epsilon, affine=False)
        _scale_and_shift(self, operation)


class Weighted(nn.Module):
    """x * weight, or x + weight."""

    def __init__(self, operation: graph.Weighted) -> None:
        super().__init__()
        self.multiplies = operation.by == "multiply"
        (tensor,) = operation.tensors
        values = torch.ones(tensor.shape)
        if tensor.kind == "parameter":
            self.weight = nn.Parameter(values)
        else:
            self.register_buffer("weight", values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if self.multiplies else x + self.weight


class Rescaled(nn.Module):
    """x * factor + offset by channel; the numbers belong to the network, not to its state."""

    factor: torch.Tensor
    offset: torch.Tensor

    def __init__(self, operation: graph.Rescale) -> None:
        super().__init__()
        for name, numbers in (("factor", operation.factor), ("offset", operation.offset)):
            values = torch.tensor(numbers)
            self.register_buffer(name, values.reshape(-1, 1, 1) if len(numbers) > 1 else values, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + self.offset


class DropImages(nn.Module):
    """Drops whole images in train mode (Huang et al. 2016, "Deep networks with stochastic depth")."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.p = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p)


def _dropout(operation: graph.Dropout) -> nn.Module:
    kinds: dict[str, Callable[[float], nn.Module]] = {"values": nn.Dropout, "channels": nn.Dropout2d, "images": DropImages}
    return kinds[operation.of](operation.rate)


class PaddedMaxPool(nn.MaxPool2d):
    """Padded as torch's own is not: differently before and after, or by more than half a window."""

    sides: Sides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(x, _flat(self.sides), value=-math.inf))  # type: ignore[no-any-return]


class PaddedAveragePool(nn.AvgPool2d):
    """The same; `counts` tells whether padding counts, as zero."""

    sides: Sides
    counts: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(functional.pad(x, _flat(self.sides)))
        if self.counts:
            return found
        return found / super().forward(functional.pad(torch.ones_like(x[:1, :1]), _flat(self.sides)))


def _padded_pool(operation: graph.Pool) -> nn.Module | None:
    if _fits(operation) is not None:
        return None
    if operation.by == "max":
        largest = PaddedMaxPool(operation.window, operation.stride)
        largest.sides = operation.padding
        return largest
    average = PaddedAveragePool(operation.window, operation.stride)
    average.sides, average.counts = operation.padding, operation.counts_padding
    return average


def _fits(operation: graph.Pool) -> tuple[int, int] | None:
    """The padding, if torch's own poolings take it."""
    even = _even(operation.padding)
    fits = even is not None and all(padded <= side // 2 for padded, side in zip(even, operation.window, strict=True))
    return even if fits else None


_MODULES: dict[type[Operation], Callable[[Any], nn.Module | None]] = {
    graph.Conv: _conv,
    graph.Dense: _dense,
    graph.BatchNorm: PortableBatchNorm,
    graph.LayerNorm: _layer_norm,
    graph.GroupNorm: PortableGroupNorm,
    graph.Weighted: Weighted,
    graph.Rescale: Rescaled,
    graph.Dropout: _dropout,
    graph.Pool: _padded_pool,
}


# operations that are calls


def _activation(operation: graph.Activation, inputs: list[torch.Tensor]) -> torch.Tensor:
    (x,) = inputs
    if operation.function == "leaky_relu":
        return functional.leaky_relu(x, operation.slope or 0.0)
    if operation.function == "elu":
        return functional.elu(x, 1.0 if operation.slope is None else operation.slope)
    return _FUNCTIONS[operation.function](x)


def _combine(operation: graph.Combine, inputs: list[torch.Tensor]) -> torch.Tensor:
    found = inputs[0]
    for other in inputs[1:]:
        found = _COMBINED[operation.by](found, other)
    return found


def _pool(operation: graph.Pool, inputs: list[torch.Tensor]) -> torch.Tensor:
    (x,), even = inputs, _fits(operation) or 0
    if operation.by == "max":
        return functional.max_pool2d(x, operation.window, operation.stride, even)
    return functional.avg_pool2d(x, operation.window, operation.stride, even, count_include_pad=operation.counts_padding)


def _reduce(operation: graph.Reduce, inputs: list[torch.Tensor]) -> torch.Tensor:
    functions: dict[str, Callable[..., torch.Tensor]] = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}
    return functions[operation.by](inputs[0], dim=[axis + 1 for axis in operation.axes], keepdim=operation.keep)


def _pad(operation: graph.Pad, inputs: list[torch.Tensor]) -> torch.Tensor:
    return functional.pad(inputs[0], [n for pair in reversed(operation.sides) for n in pair])


def _slice(operation: graph.Slice, inputs: list[torch.Tensor]) -> torch.Tensor:
    before = (slice(None),) * (operation.axis + 1)
    return inputs[0][(*before, slice(operation.start, operation.stop, operation.step))]


def _reshape(operation: graph.Reshape, inputs: list[torch.Tensor]) -> torch.Tensor:
    return inputs[0].reshape(-1, *operation.row)


def _transpose(operation: graph.Transpose, inputs: list[torch.Tensor]) -> torch.Tensor:
    return inputs[0].permute(0, *(axis + 1 for axis in operation.order))


def _adaptive(operation: graph.AdaptiveAverage, inputs: list[torch.Tensor]) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(inputs[0], operation.size)


def _softmax(operation: graph.Softmax, inputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.softmax(inputs[0], dim=operation.axis + 1)


def _concat(operation: graph.Concat, inputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(inputs, dim=operation.axis + 1)


_CALLED: dict[type[Operation], Callable[[Any, list[torch.Tensor]], torch.Tensor]] = {
    graph.Activation: _activation,
    graph.Softmax: _softmax,
    graph.Combine: _combine,
    graph.Concat: _concat,
    graph.Pool: _pool,
    graph.AdaptiveAverage: _adaptive,
    graph.Reduce: _reduce,
    graph.Pad: _pad,
    graph.Slice: _slice,
    graph.Reshape: _reshape,
    graph.Transpose: _transpose,
}
