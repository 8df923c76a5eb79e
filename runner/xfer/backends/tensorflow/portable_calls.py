"""The portable operations of Keras's layers with weights or numbers of their own, and of its activations."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from xfer.backends.graph_writer import Value, pair
from xfer.backends.tensorflow.portable_step import Handler, Held, Step, last, scaled
from xfer.ops.windows import same_sides
from xfer.plan import portable as graph
from xfer.plan.portable import NO_SIDES, Pair, Sides

LEAKY_SLOPE = 0.2  # of Keras's function `leaky_relu`, where nobody says
_FUNCTIONS = {
    "relu": "relu", "relu6": "relu6", "elu": "elu", "selu": "selu", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
    "gelu": "gelu", "hard_silu": "hard_swish", "hard_swish": "hard_swish", "hard_sigmoid": "hard_sigmoid", "mish": "mish",
    "softplus": "softplus",
}  # fmt: skip


def array(variable: Any) -> np.ndarray | None:
    return None if variable is None else np.asarray(variable)


# layers with weights


def _conv(step: Step) -> Held:
    kernel = np.transpose(np.asarray(step.layer.kernel), (3, 2, 0, 1))
    return _activated(step, _convolution(step, step.name, kernel, array(step.layer.bias), groups=int(step.layer.groups)))


def _depthwise(step: Step) -> Held:
    kernel = _by_channel(step.layer.kernel)
    groups = int(step.layer.kernel.shape[2])
    return _activated(step, _convolution(step, step.name, kernel, array(step.layer.bias), groups=groups))


def _separable(step: Step) -> Held:
    """Each channel alone, then across channels."""
    layer = step.layer
    groups = int(layer.depthwise_kernel.shape[2])
    x = _convolution(step, f"{step.name}_depthwise", _by_channel(layer.depthwise_kernel), None, groups=groups).value
    kernel = np.transpose(np.asarray(layer.pointwise_kernel), (3, 2, 0, 1))
    weights = {"weight": kernel, "bias": array(layer.bias)}
    made = step.writer.add(graph.Conv, step.name, x, (len(kernel), *x.row[1:]), weights=weights, stride=(1, 1), padding=NO_SIDES)
    return _activated(step, Held(made, last(3)))


def _by_channel(kernel: Any) -> np.ndarray:
    """[height, width, channels, several] as [channels x several, 1, height, width]."""
    values = np.asarray(kernel)
    return values.transpose(2, 3, 0, 1).reshape(-1, 1, *values.shape[:2])


def _convolution(step: Step, name: str, kernel: np.ndarray, bias: np.ndarray | None, *, groups: int) -> Held:
    layer = step.layer
    if layer.data_format != "channels_last":
        raise step.refuse("it has the channels first")
    x = step.first(step.reads[0])
    window: Pair = (kernel.shape[2], kernel.shape[3])
    stride, dilation = pair(layer.strides), pair(layer.dilation_rate)
    padding = padding_of(layer.padding, x, window, stride, dilation)
    row = (len(kernel), *step.given(last(3))[1:])
    weights = {"weight": kernel, "bias": bias}
    made = step.writer.add(
        graph.Conv, name, x, row, weights=weights, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return Held(made, last(3))


def padding_of(written: str, x: Value, window: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Sides:
    if written != "same":
        return NO_SIDES
    return same_sides(x.row[1:], window=window, stride=stride, dilation=dilation)


def _dense(step: Step) -> Held:
    x = step.plain(step.reads[0])
    weights = {"weight": np.asarray(step.layer.kernel).T, "bias": array(step.layer.bias)}
    order = tuple(range(len(step.row)))
    return _activated(step, Held(step.writer.add(graph.Dense, step.name, x, step.row, weights=weights), order))


def _channels(step: Step) -> Value:
    """The first input with the channels first, for a layer that works on the last place."""
    axis = step.layer.axis
    axes = [axis] if isinstance(axis, int) else list(axis)
    if [one % (len(step.row) + 1) for one in axes] != [len(step.row)]:
        raise step.refuse(f"it works on axis {axis}")
    return step.first(step.reads[0])


def _norm_weights(step: Step) -> dict[str, np.ndarray | None]:
    layer = step.layer
    return {"weight": array(layer.gamma) if layer.scale else None, "bias": array(layer.beta) if layer.center else None}


def _batch_norm(step: Step) -> Held:
    layer, x = step.layer, _channels(step)
    weights = {**_norm_weights(step), "running_mean": array(layer.moving_mean), "running_var": array(layer.moving_variance)}
    made = step.writer.add(
        graph.BatchNorm,
        step.name,
        x,
        x.row,
        weights=weights,
        buffers=("running_mean", "running_var"),
        epsilon=float(layer.epsilon),
        momentum=round(1 - float(layer.momentum), 12),
    )
    return Held(made, last(len(x.row)))


def _layer_norm(step: Step) -> Held:
    layer, rank = step.layer, len(step.row)
    axes = [axis % (rank + 1) for axis in ([layer.axis] if isinstance(layer.axis, int) else layer.axis)]
    if axes != list(range(rank + 1 - len(axes), rank + 1)) or getattr(layer, "rms_scaling", False):
        raise step.refuse(f"it works on axis {layer.axis}")
    x = step.plain(step.reads[0])
    size = x.row[rank - len(axes) :]
    made = step.writer.add(graph.LayerNorm, step.name, x, x.row, weights=_norm_weights(step), epsilon=float(layer.epsilon), size=size)
    return Held(made, tuple(range(rank)))


def _group_norm(step: Step) -> Held:
    x = _channels(step)
    groups = int(step.layer.groups) if step.layer.groups != -1 else x.row[0]
    epsilon = float(step.layer.epsilon)
    made = step.writer.add(graph.GroupNorm, step.name, x, x.row, weights=_norm_weights(step), epsilon=epsilon, groups=groups)
    return Held(made, last(len(x.row)))


def _layer_scale(step: Step) -> Held:
    return _weighted(step, np.asarray(step.layer.gamma), by="multiply", is_parameter=True)


def _own_weighted(step: Step) -> Held:
    return _weighted(step, np.asarray(step.layer.weight), by=step.layer.by, is_parameter=step.layer.is_parameter)


def _weighted(step: Step, weight: np.ndarray, *, by: str, is_parameter: bool) -> Held:
    """`weight` lies as Keras's row does, or its last places."""
    held = step.reads[0]
    rank = len(held.order)
    full = weight.reshape((1,) * (rank - weight.ndim) + weight.shape).transpose([held.order.index(axis) for axis in range(rank)])
    while full.ndim > 1 and full.shape[0] == 1:
        full = full[0]
    buffers = () if is_parameter else ("weight",)
    made = step.writer.add(graph.Weighted, step.name, held.value, held.value.row, weights={"weight": full}, buffers=buffers, by=by)
    return Held(made, held.order)


# numbers and activations


def _rescaling(step: Step) -> Held:
    return _rescaled(step, np.asarray(step.layer.scale, np.float64), np.asarray(step.layer.offset, np.float64))


def _normalization(step: Step) -> Held:
    layer = step.layer
    if layer.invert:
        raise step.refuse("it is inverted")
    mean, deviation = np.asarray(layer.mean, np.float64), np.sqrt(np.asarray(layer.variance, np.float64))
    factor = 1 / np.maximum(deviation, keras.backend.epsilon())
    return _rescaled(step, factor, -mean * factor)


def _rescaled(step: Step, factor: np.ndarray, offset: np.ndarray) -> Held:
    held, numbers = step.reads[0], [values.reshape(-1).tolist() for values in (factor, offset)]
    if all(len(each) == 1 for each in numbers):
        return Held(scaled(step, held.value, numbers[0][0], numbers[1][0]), held.order)
    if any(values.shape and values.shape[-1] != values.size for values in (factor, offset)) or len(held.order) != 3:
        raise step.refuse("its numbers are not by channel")
    x = step.first(held)
    made = step.writer.add(graph.Rescale, step.name, x, x.row, factor=tuple(numbers[0]), offset=tuple(numbers[1]))
    return Held(made, last(3))


def _activation(step: Step) -> Held:
    return _activated(step, step.reads[0], name=step.name)


def _activated(step: Step, held: Held, *, name: str | None = None) -> Held:
    """With the layer's own activation, if it has one."""
    function = step.layer.activation
    called = getattr(function, "__name__", type(function).__name__) if function is not None else "linear"
    name = name or f"{step.name}_activation"
    if called == "linear":
        return held
    if called == "softmax":
        return Held(step.writer.add(graph.Softmax, name, held.value, held.value.row, axis=held.axis(-1)), held.order)
    if called == "leaky_relu":
        return Held(step.writer.activation(name, held.value, "leaky_relu", LEAKY_SLOPE), held.order)
    if called not in _FUNCTIONS:
        raise step.refuse(f"its activation is {called}")
    return Held(step.writer.activation(name, held.value, _FUNCTIONS[called]), held.order)


def _plain(function: str) -> Handler:
    def handler(step: Step) -> Held:
        return Held(step.writer.activation(step.name, step.reads[0].value, function), step.reads[0].order)

    return handler


def _relu(step: Step) -> Held:
    layer, held = step.layer, step.reads[0]
    if layer.threshold or layer.max_value not in (None, 6) or (layer.max_value and layer.negative_slope):
        raise step.refuse("its settings are not those of relu, relu6 or leaky_relu")
    if layer.negative_slope:
        return Held(step.writer.activation(step.name, held.value, "leaky_relu", float(layer.negative_slope)), held.order)
    return Held(step.writer.activation(step.name, held.value, "relu6" if layer.max_value else "relu"), held.order)


def _with_slope(function: str, attribute: str) -> Handler:
    def handler(step: Step) -> Held:
        slope = float(getattr(step.layer, attribute))
        return Held(step.writer.activation(step.name, step.reads[0].value, function, slope), step.reads[0].order)

    return handler


def _gelu(step: Step) -> Held:
    function = "gelu_tanh" if step.layer.approximate else "gelu"
    return Held(step.writer.activation(step.name, step.reads[0].value, function), step.reads[0].order)


def _softmax(step: Step) -> Held:
    held, axis = step.reads[0], step.layer.axis
    if not isinstance(axis, int):
        raise step.refuse(f"it goes over axis {axis}")
    return Held(step.writer.add(graph.Softmax, step.name, held.value, held.value.row, axis=held.axis(axis)), held.order)


CALLS: dict[str, Handler] = {
    "layers.Conv2D": _conv,
    "layers.DepthwiseConv2D": _depthwise,
    "layers.SeparableConv2D": _separable,
    "layers.Dense": _dense,
    "layers.BatchNormalization": _batch_norm,
    "layers.LayerNormalization": _layer_norm,
    "layers.GroupNormalization": _group_norm,
    "layers.Rescaling": _rescaling,
    "layers.Normalization": _normalization,
    "layers.Activation": _activation,
    "layers.ReLU": _relu,
    "layers.LeakyReLU": _with_slope("leaky_relu", "negative_slope"),
    "layers.ELU": _with_slope("elu", "alpha"),
    "layers.Softmax": _softmax,
    "applications.LayerScale": _layer_scale,
    "own.Weighted": _own_weighted,
    "own.GeluTanh": _plain("gelu_tanh"),
    "ops.Relu": _plain("relu"),
    "ops.Relu6": _plain("relu6"),
    "ops.Sigmoid": _plain("sigmoid"),
    "ops.Silu": _plain("silu"),
    "ops.Tanh": _plain("tanh"),
    "ops.Softplus": _plain("softplus"),
    "ops.Selu": _plain("selu"),
    "ops.HardSilu": _plain("hard_swish"),
    "ops.HardSigmoid": _plain("hard_sigmoid"),
    "ops.Elu": _with_slope("elu", "alpha"),
    "ops.LeakyRelu": _with_slope("leaky_relu", "negative_slope"),
    "ops.Gelu": _gelu,
    "ops.Softmax": _softmax,
}
