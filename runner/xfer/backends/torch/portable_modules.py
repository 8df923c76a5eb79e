"""The portable operations that a layer of torch, torchvision or timm stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from xfer.backends.graph_writer import NO_SIDES, Value, Writer
from xfer.ops.windows import same_padding
from xfer.plan import portable as graph
from xfer.plan.portable import Pair, Sides

Handler = Callable[[Writer, str, Any, Value, tuple[int, ...]], Value]


def written(writer: Writer, name: str, module: nn.Module, x: Value, row: tuple[int, ...]) -> Value:
    """What the layer makes of `x`, which has rows of shape `row`; raises NotPortableError."""
    kind = kind_of(module)
    if kind not in _MODULES:
        raise writer.refuse(name, type(module).__name__)
    return _MODULES[kind](writer, name, module, x, row)


def kind_of(module: nn.Module) -> str:
    """The class's name; of another library than torch with that before it.

    >>> kind_of(nn.ReLU())
    'ReLU'
    """
    kind = type(module)
    library = kind.__module__.partition(".")[0]
    return kind.__name__ if kind.__module__.startswith("torch.nn.modules.") else f"{library}.{kind.__name__}"


def array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().float().cpu().numpy()


def pair(value: Any) -> Pair:
    """Height and width, from one number or two.

    >>> pair(3), pair((2, 1)), pair([7])
    ((3, 3), (2, 1), (7, 7))
    """
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    return (int(numbers[0]), int(numbers[-1]))


def even(padding: Any) -> Sides:
    """The same before and after."""
    height, width = pair(padding)
    return ((height, height), (width, width))


def _identity(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return x


def _conv(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if module.padding_mode != "zeros":
        raise writer.refuse(name, type(module).__name__, f"its padding is '{module.padding_mode}'")
    window, dilation = module.kernel_size, module.dilation
    if module.padding == "same":
        total = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
        padding: Sides = ((total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2))
    else:
        padding = NO_SIDES if module.padding == "valid" else even(module.padding)
    return _convolution(writer, name, module, x, row, padding)


def _conv_same(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    """timm's convolutions that pad as TensorFlow does."""
    return _convolution(writer, name, module, x, row, _same(x, module.kernel_size, module.stride, module.dilation))


def _same(x: Value, window: Any, stride: Any, dilation: Any = 1) -> Sides:
    windows, strides, dilations = pair(window), pair(stride), pair(dilation)
    height, width = (same_padding(x.row[axis + 1], window=windows[axis], stride=strides[axis], dilation=dilations[axis]) for axis in (0, 1))
    return (height, width)


def _convolution(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...], padding: Sides) -> Value:
    weights = {"weight": array(module.weight), "bias": array(module.bias)}
    stride, dilation = pair(module.stride), pair(module.dilation)
    return writer.add(
        graph.Conv, name, x, row, weights=weights, stride=stride, padding=padding, dilation=dilation, groups=int(module.groups)
    )


def _padded_conv(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    """Our own, in a network that was made of a portable one."""
    return _convolution(writer, name, module, x, row, module.sides)


def _linear(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.add(graph.Dense, name, x, row, weights={"weight": array(module.weight), "bias": array(module.bias)})


def _batch_norm(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if module.running_mean is None or module.momentum is None:
        raise writer.refuse(name, type(module).__name__, "it keeps no statistics, or averages over all batches")
    weights = {
        "weight": array(module.weight),
        "bias": array(module.bias),
        "running_mean": array(module.running_mean),
        "running_var": array(module.running_var),
    }
    return writer.add(
        graph.BatchNorm,
        name,
        x,
        row,
        weights=weights,
        buffers=("running_mean", "running_var"),
        epsilon=float(module.eps),
        momentum=float(module.momentum),
    )


def _with_activation(norm: Handler) -> Handler:
    """timm's normalisations that bring dropout and an activation."""

    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        x = norm(writer, name, module, x, row)
        for part in ("drop", "act"):
            x = written(writer, f"{name}_{part}", getattr(module, part), x, row)
        return x

    return handler


def _layer_norm(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    weights = {"weight": array(module.weight), "bias": array(getattr(module, "bias", None))}
    size = tuple(int(n) for n in module.normalized_shape)
    return writer.add(graph.LayerNorm, name, x, row, weights=weights, epsilon=float(module.eps), size=size)


def _channel_layer_norm(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    """Over the channels of a map, wherever they stand."""
    x = writer.transpose(f"{name}_last", x, (1, 2, 0))
    x = _layer_norm(writer, name, module, x, x.row)
    return writer.transpose(f"{name}_first", x, (2, 0, 1))


def _group_norm(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    weights = {"weight": array(module.weight), "bias": array(module.bias)}
    return writer.add(graph.GroupNorm, name, x, row, weights=weights, epsilon=float(module.eps), groups=int(module.num_groups))


def _plain(function: str) -> Handler:
    """An activation without numbers of its own."""

    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        return writer.activation(name, x, function)

    return handler


def _leaky(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.activation(name, x, "leaky_relu", float(module.negative_slope))


def _elu(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.activation(name, x, "elu", float(module.alpha))


def _gelu(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.activation(name, x, "gelu_tanh" if module.approximate == "tanh" else "gelu")


def _softplus(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if module.beta != 1:
        raise writer.refuse(name, "Softplus", f"its beta is {module.beta}")
    return writer.activation(name, x, "softplus")


def _softmax(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    axis = module.dim % (len(x.row) + 1) - 1 if module.dim is not None else -1
    if axis < 0:
        raise writer.refuse(name, "Softmax", f"it goes over axis {module.dim}")
    return writer.add(graph.Softmax, name, x, row, axis=axis)


def _dropout(of: str) -> Handler:
    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        rate = getattr(module, "p", None)
        return writer.dropout(name, x, float(module.drop_prob or 0 if rate is None else rate), of)

    return handler


def _stochastic_depth(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if module.mode != "row":
        raise writer.refuse(name, "StochasticDepth", f"its mode is '{module.mode}'")
    return writer.dropout(name, x, module.p, "images")


def _max_pool(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if pair(module.dilation) != (1, 1):
        raise writer.refuse(name, "MaxPool2d", "its windows are dilated")
    window, stride, padding = pair(module.kernel_size), pair(module.stride), even(module.padding)
    return writer.pool(name, x, "max", row, window=window, stride=stride, padding=padding, counts_padding=False)


def _average_pool(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if module.divisor_override is not None:
        raise writer.refuse(name, "AvgPool2d", "its divisor is overridden")
    window, stride, padding = pair(module.kernel_size), pair(module.stride), even(module.padding)
    counts = bool(module.count_include_pad)
    return writer.pool(name, x, "average", row, window=window, stride=stride, padding=padding, counts_padding=counts)


def _pool_same(by: str) -> Handler:
    """timm's poolings that pad as TensorFlow does, with zeros before they average: so there the padding counts."""

    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        window, stride = pair(module.kernel_size), pair(module.stride)
        padding = _same(x, window, stride)
        return writer.pool(name, x, by, row, window=window, stride=stride, padding=padding, counts_padding=by == "average")

    return handler


def _padded_pool(by: str) -> Handler:
    """Our own, in a network that was made of a portable one."""

    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        window, stride, counts = pair(module.kernel_size), pair(module.stride), bool(getattr(module, "counts", False))
        return writer.pool(name, x, by, row, window=window, stride=stride, padding=module.sides, counts_padding=counts)

    return handler


def _adaptive(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.adaptive_average(name, x, (row[1], row[2]))


def _adaptive_max(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    if row[1:] != (1, 1):
        raise writer.refuse(name, "AdaptiveMaxPool2d", "it gives more than one position")
    return writer.reduce(name, x, "max", (1, 2), keep=True)


def _reshaped(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.reshape(name, x, row)


def _zero_pad(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    left, right, top, bottom = module.padding
    if min(module.padding) < 0 or getattr(module, "value", 0) != 0:
        raise writer.refuse(name, type(module).__name__, "it cuts, or fills with another number than zero")
    return writer.pad(name, x, ((0, 0), (top, bottom), (left, right)))


_MODULES: dict[str, Handler] = {
    "Identity": _identity,
    "Conv2d": _conv,
    "timm.Conv2dSame": _conv_same,
    "xfer.PaddedConv": _padded_conv,
    "Linear": _linear,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "timm.BatchNorm2d": _batch_norm,
    "timm.BatchNormAct2d": _with_activation(_batch_norm),
    "xfer.PortableBatchNorm": _batch_norm,
    "LayerNorm": _layer_norm,
    "timm.LayerNorm": _layer_norm,
    "timm.LayerNorm2d": _channel_layer_norm,
    "timm.LayerNormAct2d": _with_activation(_channel_layer_norm),
    "torchvision.LayerNorm2d": _channel_layer_norm,
    "GroupNorm": _group_norm,
    "timm.GroupNorm": _group_norm,
    "xfer.PortableGroupNorm": _group_norm,
    "timm.GroupNorm1": _group_norm,
    "timm.GroupNormAct": _with_activation(_group_norm),
    "ReLU": _plain("relu"),
    "ReLU6": _plain("relu6"),
    "SiLU": _plain("silu"),
    "Sigmoid": _plain("sigmoid"),
    "Tanh": _plain("tanh"),
    "SELU": _plain("selu"),
    "Hardswish": _plain("hard_swish"),
    "Hardsigmoid": _plain("hard_sigmoid"),
    "Mish": _plain("mish"),
    "LeakyReLU": _leaky,
    "ELU": _elu,
    "GELU": _gelu,
    "timm.GELU": _plain("gelu"),
    "timm.GELUTanh": _plain("gelu_tanh"),
    "timm.Swish": _plain("silu"),
    "timm.Sigmoid": _plain("sigmoid"),
    "timm.Tanh": _plain("tanh"),
    "Softplus": _softplus,
    "Softmax": _softmax,
    "Dropout": _dropout("values"),
    "Dropout2d": _dropout("channels"),
    "timm.DropPath": _dropout("images"),
    "xfer.DropImages": _dropout("images"),
    "torchvision.StochasticDepth": _stochastic_depth,
    "MaxPool2d": _max_pool,
    "AvgPool2d": _average_pool,
    "timm.MaxPool2dSame": _pool_same("max"),
    "timm.AvgPool2dSame": _pool_same("average"),
    "xfer.PaddedMaxPool": _padded_pool("max"),
    "xfer.PaddedAveragePool": _padded_pool("average"),
    "AdaptiveAvgPool2d": _adaptive,
    "AdaptiveMaxPool2d": _adaptive_max,
    "Flatten": _reshaped,
    "Unflatten": _reshaped,
    "ZeroPad2d": _zero_pad,
    "ConstantPad2d": _zero_pad,
}
