"""A Keras network built from a portable graph.

Keras has the channels last. A value is kept as Keras wants it, beside the order in which the row's axes of the portable graph lie there,
so that nothing is transposed which nobody asks to see transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from xfer.backends.tensorflow import portable_layers as own
from xfer.backends.tensorflow.portable_step import Order, last
from xfer.ops.windows import same_sides
from xfer.plan import portable as graph
from xfer.plan.portable import CLASSIFIER, NO_SIDES, Names, Operation, Pair, Portable, Sides

_ACTIVATIONS = {"hard_swish": "hard_silu"}  # where Keras calls it otherwise
_COMBINED: dict[str, Any] = {
    "add": keras.layers.Add,
    "subtract": keras.layers.Subtract,
    "multiply": keras.layers.Multiply,
    "maximum": keras.layers.Maximum,
    "minimum": keras.layers.Minimum,
}


@dataclass(frozen=True)
class Laid:
    """A symbolic tensor [B, …], and for each place of its row the axis of the portable graph that lies there."""

    tensor: Any
    order: Order

    def place(self, axis: int) -> int:
        """Where an axis lies, the batch counted."""
        return self.order.index(axis) + 1


def build(portable: Portable, tensors: Mapping[str, np.ndarray]) -> Any:
    """The network as a functional model: normalised images [B, H, W, 3] to one number for each by a classifier that marks the pooled
    features below it, with its weights put in."""
    images = keras.Input((portable.image_size, portable.image_size, 3), name=graph.IMAGES, dtype="float32")
    builder = Builder(Names(operation.name for operation in portable.operations))
    values = {graph.IMAGES: Laid(images, last(3))}
    for operation in portable.operations:
        inputs = [values[name] for name in operation.inputs]
        made = values[operation.name] = _BUILT[type(operation)](builder, operation, inputs)
        if operation.tensors:
            fill(builder.layers[operation.name], operation, tensors, order=made.order)
    score = keras.layers.Dense(1, name=CLASSIFIER)(values[portable.features].tensor)
    return keras.Model(images, score, name="portable")


class Builder:
    """Layers by the name of their operation; `names` gives names to layers beside those."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.layers: dict[str, Any] = {}

    def laid(self, value: Laid, order: Order, *, name: str) -> Laid:
        """The value with its axes in that order."""
        if value.order == order:
            return value
        dims = [value.place(axis) for axis in order]
        return Laid(keras.layers.Permute(dims, name=self.names.free(f"{name}_permute"))(value.tensor), order)

    def last(self, operation: Operation, value: Laid) -> Laid:
        return self.laid(value, last(len(value.order)), name=operation.name)

    def layer(self, operation: Operation, layer: Any, value: Laid) -> Laid:
        """What a layer that keeps the axes makes of a value."""
        self.layers[operation.name] = layer
        return Laid(layer(value.tensor), value.order)

    def padded(self, operation: Operation, value: Laid, sides: Sides) -> Laid:
        if sides == NO_SIDES:
            return value
        layer = keras.layers.ZeroPadding2D(sides, name=self.names.free(f"{operation.name}_pad"))
        return Laid(layer(value.tensor), value.order)


def _is_same(value: Laid, sides: Sides, window: Sequence[int], stride: Pair, dilation: Pair = (1, 1)) -> bool:
    """Whether that padding is what TensorFlow calls SAME here."""
    return same_sides(value.tensor.shape[1:3], window=window, stride=stride, dilation=dilation) == sides


# layers with weights


def _conv(builder: Builder, operation: graph.Conv, inputs: list[Laid]) -> Laid:
    n_out, _, *window = operation.shape("weight") or ()
    value = builder.last(operation, inputs[0])
    same = operation.padding != NO_SIDES and _is_same(value, operation.padding, window, operation.stride, operation.dilation)
    if not same:
        value = builder.padded(operation, value, operation.padding)
    settings = {
        "strides": operation.stride,
        "padding": "same" if same else "valid",
        "dilation_rate": operation.dilation,
        "use_bias": operation.shape("bias") is not None,
        "name": operation.name,
    }
    if is_depthwise(operation):
        layer = keras.layers.DepthwiseConv2D(window, depth_multiplier=n_out // operation.groups, **settings)
    else:
        layer = keras.layers.Conv2D(n_out, window, groups=operation.groups, **settings)
    return builder.layer(operation, layer, value)


def is_depthwise(operation: graph.Conv) -> bool:
    """A convolution of each channel alone. TensorFlow's own form of it takes one stride for both sides."""
    _, n_in, *_ = operation.shape("weight") or (0, 0)
    return n_in == 1 and operation.groups > 1 and operation.stride[0] == operation.stride[1]


def _dense(builder: Builder, operation: graph.Dense, inputs: list[Laid]) -> Laid:
    value = _ending(builder, operation, inputs[0], 1)
    n_out = (operation.shape("weight") or (0,))[0]
    layer = keras.layers.Dense(n_out, use_bias=operation.shape("bias") is not None, name=operation.name)
    return builder.layer(operation, layer, value)


def _ending(builder: Builder, operation: Operation, value: Laid, n: int) -> Laid:
    """With the last `n` axes of the row in the last places."""
    rank = len(value.order)
    ends = value.order[rank - n :] == tuple(range(rank - n, rank))
    return value if ends else builder.laid(value, tuple(range(rank)), name=operation.name)


def _batch_norm(builder: Builder, operation: graph.BatchNorm, inputs: list[Laid]) -> Laid:
    layer = keras.layers.BatchNormalization(
        momentum=round(1 - operation.momentum, 12),
        epsilon=operation.epsilon,
        center=operation.shape("bias") is not None,
        scale=operation.shape("weight") is not None,
        name=operation.name,
    )
    return builder.layer(operation, layer, builder.last(operation, inputs[0]))


def _layer_norm(builder: Builder, operation: graph.LayerNorm, inputs: list[Laid]) -> Laid:
    layer = keras.layers.LayerNormalization(
        axis=list(range(-len(operation.size), 0)),
        epsilon=operation.epsilon,
        center=operation.shape("bias") is not None,
        scale=operation.shape("weight") is not None,
        name=operation.name,
    )
    return builder.layer(operation, layer, _ending(builder, operation, inputs[0], len(operation.size)))


def _group_norm(builder: Builder, operation: graph.GroupNorm, inputs: list[Laid]) -> Laid:
    layer = keras.layers.GroupNormalization(
        groups=operation.groups,
        epsilon=operation.epsilon,
        center=operation.shape("bias") is not None,
        scale=operation.shape("weight") is not None,
        name=operation.name,
    )
    return builder.layer(operation, layer, builder.last(operation, inputs[0]))


def _weighted(builder: Builder, operation: graph.Weighted, inputs: list[Laid]) -> Laid:
    (tensor,), (value,) = operation.tensors, inputs
    shape = stretched(tensor.shape, value.order)
    layer = own.Weighted(by=operation.by, shape=shape, is_parameter=tensor.kind == "parameter", name=operation.name)
    return builder.layer(operation, layer, value)


def stretched(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """A weight's shape, given ones in front, as it lies in a value of that order.

    >>> stretched((8, 1, 1), (1, 2, 0)), stretched((8,), (0, 1, 2))
    ((1, 1, 8), (1, 1, 8))
    """
    full = (*(1,) * (len(order) - len(shape)), *shape)
    return tuple(full[axis] for axis in order)


def fill(layer: Any, operation: Operation, tensors: Mapping[str, np.ndarray], *, order: Order) -> None:
    """Put an operation's tensors into its layer, which reads values of that order."""
    values = {tensor.name.rpartition(".")[2]: tensors[tensor.name] for tensor in operation.tensors}
    if isinstance(operation, graph.BatchNorm | graph.LayerNorm | graph.GroupNorm):
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        for role, value in values.items():
            getattr(layer, names[role]).assign(value)
        return
    if isinstance(operation, graph.Weighted):
        weight = values["weight"]
        layer.weight.assign(weight.reshape((1,) * (len(order) - weight.ndim) + weight.shape).transpose(order))
        return
    weight = values["weight"]
    if isinstance(operation, graph.Conv):
        if is_depthwise(operation):
            n_out, _, height, width = weight.shape
            weight = weight.reshape(operation.groups, n_out // operation.groups, height, width).transpose(2, 3, 0, 1)
        else:
            weight = weight.transpose(2, 3, 1, 0)
    else:
        weight = weight.T
    layer.kernel.assign(weight)
    if "bias" in values:
        layer.bias.assign(values["bias"])


# operations without weights


def _rescale(builder: Builder, operation: graph.Rescale, inputs: list[Laid]) -> Laid:
    single = len(operation.factor) == len(operation.offset) == 1
    value = inputs[0] if single else builder.last(operation, inputs[0])
    factor, offset = (numbers[0] if len(numbers) == 1 else list(numbers) for numbers in (operation.factor, operation.offset))
    return builder.layer(operation, keras.layers.Rescaling(factor, offset, name=operation.name), value)


def _activation(builder: Builder, operation: graph.Activation, inputs: list[Laid]) -> Laid:
    name, function = operation.name, operation.function
    if function == "relu":
        layer: Any = keras.layers.ReLU(name=name)
    elif function == "relu6":
        layer = keras.layers.ReLU(max_value=6.0, name=name)
    elif function == "leaky_relu":
        layer = keras.layers.LeakyReLU(negative_slope=operation.slope or 0.0, name=name)
    elif function == "elu":
        layer = keras.layers.ELU(alpha=1.0 if operation.slope is None else operation.slope, name=name)
    elif function == "gelu_tanh":
        layer = own.GeluTanh(name=name)
    else:
        layer = keras.layers.Activation(_ACTIVATIONS.get(function, function), name=name)
    return builder.layer(operation, layer, inputs[0])


def _softmax(builder: Builder, operation: graph.Softmax, inputs: list[Laid]) -> Laid:
    return builder.layer(operation, keras.layers.Softmax(axis=inputs[0].place(operation.axis), name=operation.name), inputs[0])


def _combine(builder: Builder, operation: graph.Combine, inputs: list[Laid]) -> Laid:
    order = max(inputs, key=_size).order
    laid = [builder.laid(value, order, name=operation.name) for value in inputs]
    return Laid(_COMBINED[operation.by](name=operation.name)([value.tensor for value in laid]), order)


def _size(value: Laid) -> int:
    return int(np.prod(value.tensor.shape[1:]))


def _concat(builder: Builder, operation: graph.Concat, inputs: list[Laid]) -> Laid:
    laid = [builder.laid(value, inputs[0].order, name=operation.name) for value in inputs]
    layer = keras.layers.Concatenate(axis=inputs[0].place(operation.axis), name=operation.name)
    return Laid(layer([value.tensor for value in laid]), inputs[0].order)


def _pool(builder: Builder, operation: graph.Pool, inputs: list[Laid]) -> Laid:
    value, sides, name = builder.last(operation, inputs[0]), operation.padding, operation.name
    window, stride = operation.window, operation.stride
    if operation.counts_padding:
        value, sides = builder.padded(operation, value, sides), NO_SIDES
    if sides == NO_SIDES or _is_same(value, sides, window, stride):
        kind = keras.layers.MaxPooling2D if operation.by == "max" else keras.layers.AveragePooling2D
        layer: Any = kind(window, stride, padding="valid" if sides == NO_SIDES else "same", name=name)
    else:
        layer = own.PaddedPool(by=operation.by, window=window, stride=stride, sides=sides, name=name)
    return builder.layer(operation, layer, value)


def _adaptive(builder: Builder, operation: graph.AdaptiveAverage, inputs: list[Laid]) -> Laid:
    return builder.layer(operation, own.AdaptiveAverage(size=operation.size, name=operation.name), builder.last(operation, inputs[0]))


def _reduce(builder: Builder, operation: graph.Reduce, inputs: list[Laid]) -> Laid:
    (value,) = inputs
    rank = len(value.order)
    whole: dict[str, Any] = {"mean": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
    if rank == 3 and operation.axes == (1, 2) and operation.by in whole:
        value = builder.last(operation, value)
        tensor = whole[operation.by](keepdims=operation.keep, name=operation.name)(value.tensor)
    else:
        functions: dict[str, Any] = {"mean": keras.ops.mean, "max": keras.ops.max, "sum": keras.ops.sum}
        axes = tuple(sorted(value.place(axis) for axis in operation.axes))
        tensor = functions[operation.by](value.tensor, axis=axes, keepdims=operation.keep)
    if operation.keep:
        return Laid(tensor, value.order)
    left = [axis for axis in range(rank) if axis not in operation.axes]
    return Laid(tensor, tuple(left.index(axis) for axis in value.order if axis in left))


def _pad(builder: Builder, operation: graph.Pad, inputs: list[Laid]) -> Laid:
    (value,), sides = inputs, operation.sides
    if len(sides) == 3 and sides[0] == (0, 0):
        return builder.padded(operation, builder.last(operation, value), (sides[1], sides[2]))
    pairs = [(0, 0), *(sides[axis] for axis in value.order)]
    return Laid(keras.ops.pad(value.tensor, pairs), value.order)


def _slice(builder: Builder, operation: graph.Slice, inputs: list[Laid]) -> Laid:
    (value,) = inputs
    taken = [slice(None)] * (len(value.order) + 1)
    taken[value.place(operation.axis)] = slice(operation.start, operation.stop, operation.step)
    return Laid(value.tensor[tuple(taken)], value.order)


def _reshape(builder: Builder, operation: graph.Reshape, inputs: list[Laid]) -> Laid:
    (value,) = inputs
    if sum(n != 1 for n in value.tensor.shape[1:]) > 1:  # with one side only, every order is the same
        value = builder.laid(value, tuple(range(len(value.order))), name=operation.name)
    return Laid(keras.layers.Reshape(operation.row, name=operation.name)(value.tensor), tuple(range(len(operation.row))))


def _transpose(builder: Builder, operation: graph.Transpose, inputs: list[Laid]) -> Laid:
    """Only the axes' names change."""
    return Laid(inputs[0].tensor, tuple(operation.order.index(axis) for axis in inputs[0].order))


def _dropout(builder: Builder, operation: graph.Dropout, inputs: list[Laid]) -> Laid:
    (value,) = inputs
    shapes: dict[str, list[int | None] | None] = {
        "values": None,
        "channels": [None, *(None if axis == 0 else 1 for axis in value.order)],
        "images": [None, *(1 for _ in value.order)],
    }
    layer = keras.layers.Dropout(operation.rate, noise_shape=shapes[operation.of], name=operation.name)
    return builder.layer(operation, layer, value)


_BUILT: dict[type[Operation], Callable[[Builder, Any, list[Laid]], Laid]] = {
    graph.Conv: _conv,
    graph.Dense: _dense,
    graph.BatchNorm: _batch_norm,
    graph.LayerNorm: _layer_norm,
    graph.GroupNorm: _group_norm,
    graph.Weighted: _weighted,
    graph.Rescale: _rescale,
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
    graph.Dropout: _dropout,
}
