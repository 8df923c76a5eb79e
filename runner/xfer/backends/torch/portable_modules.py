"""The portable operations that a layer of torch, torchvision or timm stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from xfer.backends.graph_writer import Value, Writer, even, pair
from xfer.backends.torch.portable_calls import CALLS, Call, array
from xfer.ops.windows import same_sides
from xfer.plan import portable as graph
from xfer.plan.portable import NO_SIDES, Sides

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


def _function(function: str, *settings: str, **fixed: Any) -> Handler:
    """A layer that does what a function of torch does, with settings of the layer's by their own names, and fixed ones."""

    def handler(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
        given = {setting: getattr(module, setting) for setting in settings}
        return CALLS[function](Call(writer, name, type(module).__name__, row), x, **given, **fixed)  # type: ignore[no-any-return]

    return handler


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
    return same_sides(x.row[1:], window=pair(window), stride=pair(stride), dilation=pair(dilation))


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


def _drop_path(writer: Writer, name: str, module: Any, x: Value, row: tuple[int, ...]) -> Value:
    return writer.dropout(name, x, module.drop_prob or 0, "images")


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
    "ReLU": _function("relu"),
    "ReLU6": _function("relu6"),
    "SiLU": _function("silu"),
    "Sigmoid": _function("sigmoid"),
    "Tanh": _function("tanh"),
    "SELU": _function("selu"),
    "Hardswish": _function("hardswish"),
    "Hardsigmoid": _function("hardsigmoid"),
    "Mish": _function("mish"),
    "LeakyReLU": _function("leaky_relu", "negative_slope"),
    "ELU": _function("elu", "alpha"),
    "GELU": _function("gelu", "approximate"),
    "timm.GELU": _function("gelu"),
    "timm.GELUTanh": _function("gelu", approximate="tanh"),
    "timm.Swish": _function("silu"),
    "timm.Sigmoid": _function("sigmoid"),
    "timm.Tanh": _function("tanh"),
    "Softplus": _function("softplus", "beta"),
    "Softmax": _function("softmax", "dim"),
    "Dropout": _function("dropout", "p"),
    "Dropout2d": _function("dropout2d", "p"),
    "timm.DropPath": _drop_path,
    "xfer.DropImages": _function("stochastic_depth", "p", mode="row"),
    "torchvision.StochasticDepth": _function("stochastic_depth", "p", "mode"),
    "MaxPool2d": _function("max_pool2d", "kernel_size", "stride", "padding", "dilation"),
    "AvgPool2d": _function("avg_pool2d", "kernel_size", "stride", "padding", "count_include_pad", "divisor_override"),
    "timm.MaxPool2dSame": _pool_same("max"),
    "timm.AvgPool2dSame": _pool_same("average"),
    "xfer.PaddedMaxPool": _padded_pool("max"),
    "xfer.PaddedAveragePool": _padded_pool("average"),
    "AdaptiveAvgPool2d": _function("adaptive_avg_pool2d", "output_size"),
    "AdaptiveMaxPool2d": _function("adaptive_max_pool2d", "output_size"),
    "Flatten": _function("flatten"),
    "Unflatten": _function("unflatten"),
    "ZeroPad2d": _zero_pad,
    "ConstantPad2d": _zero_pad,
}
