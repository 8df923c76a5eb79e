"""The portable operations of Keras's layers and operations that join, pool, pad and reshape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from xfer.backends.graph_writer import Value, pair
from xfer.backends.tensorflow.portable_calls import padding_of
from xfer.backends.tensorflow.portable_step import Handler, Held, Order, Step, last, scaled
from xfer.plan import portable as graph
from xfer.plan.portable import Pair, Sides


def _same(step: Step) -> Held:
    return step.reads[0]


def _cast(step: Step) -> Held:
    if step.call.gives[0].dtype != "float32":
        raise step.refuse(f"to {step.call.gives[0].dtype}")
    return step.reads[0]


# joining


def _merged(by: str) -> Handler:
    def handler(step: Step) -> Held:
        return _combined(step, by, step.reads)

    return handler


def _combined(step: Step, by: str, reads: Iterable[Held], *, name: str | None = None) -> Held:
    held = list(reads)
    if len({len(one.order) for one in held}) > 1:
        raise step.refuse("its inputs have different ranks")
    order = max(held, key=lambda one: math.prod(one.value.row)).order
    values = [step.laid(one, order) for one in held]
    row = tuple(max(sizes) for sizes in zip(*(value.row for value in values), strict=True))
    return Held(step.writer.add(graph.Combine, name or step.name, values, row, by=by), order)


def _average(step: Step) -> Held:
    found = _combined(step, "add", step.reads, name=f"{step.name}_sum")
    return Held(scaled(step, found.value, 1 / len(step.reads)), found.order)


def _binary(by: str) -> Handler:
    """An operation between two tensors, or a tensor and a number."""

    def handler(step: Step) -> Held:
        if len(step.reads) == 2:
            if by == "divide":
                raise step.refuse("between two tensors")
            return _combined(step, by, step.reads)
        args = [*step.call.node.arguments.args, *step.call.node.arguments.kwargs.values()]
        swapped = not isinstance(args[0], keras.KerasTensor)
        number = np.asarray(args[0] if swapped else args[1], np.float64)
        if len(step.reads) != 1 or number.size != 1 or len(args) != 2:
            raise step.refuse("with an array")
        factor, offset = _numbers(step, by, float(number.reshape(())), swapped)
        return Held(scaled(step, step.reads[0].value, factor, offset), step.reads[0].order)

    return handler


def _numbers(step: Step, by: str, number: float, swapped: bool) -> tuple[float, float]:
    """Factor and offset."""
    if by == "add":
        return 1.0, number
    if by == "subtract":
        return (-1.0, number) if swapped else (1.0, -number)
    if by == "multiply":
        return number, 0.0
    if by == "divide" and not swapped:
        return 1 / number, 0.0
    raise step.refuse(f"with the number {number:g}")


def _scale_and_add(step: Step) -> Held:
    """Of Inception-ResNet: the first input, and the second multiplied by a number."""
    first, second = step.reads
    branch = Held(scaled(step, second.value, step.layer.scale, name=f"{step.name}_scale"), second.order)
    return _combined(step, "add", (first, branch))


def _concat(step: Step) -> Held:
    order = step.reads[0].order
    values = [step.laid(held, order) for held in step.reads]
    axis = step.reads[0].axis(step.layer.axis)
    row = [sum(value.row[axis] for value in values) if index == axis else n for index, n in enumerate(values[0].row)]
    return Held(step.writer.add(graph.Concat, step.name, values, row, axis=axis), order)


# pooling


def _pool(by: str) -> Handler:
    def handler(step: Step) -> Held:
        layer, x = step.layer, _map(step)
        window = pair(layer.pool_size)
        stride = pair(layer.strides if layer.strides is not None else layer.pool_size)
        return _pooled(step, x, by, window, stride, padding_of(layer.padding, x, window, stride))

    return handler


def _padded_pool(step: Step) -> Held:
    layer = step.layer
    sides = (pair(layer.sides[0]), pair(layer.sides[1]))
    return _pooled(step, _map(step), layer.by, pair(layer.window), pair(layer.stride), sides)


def _pooled(step: Step, x: Value, by: str, window: Pair, stride: Pair, padding: Sides) -> Held:
    row = step.given(last(3))
    return Held(step.writer.pool(step.name, x, by, row, window=window, stride=stride, padding=padding, counts_padding=False), last(3))


def _map(step: Step) -> Value:
    if getattr(step.layer, "data_format", "channels_last") != "channels_last":
        raise step.refuse("it has the channels first")
    return step.first(step.reads[0])


def _global(by: str) -> Handler:
    def handler(step: Step) -> Held:
        x = _map(step)
        made = step.writer.reduce(step.name, x, by, (1, 2), keep=bool(step.layer.keepdims))
        return Held(made, last(len(made.row)))

    return handler


def _reduced(by: str) -> Handler:
    """An operation over some axes; it says itself over which."""

    def handler(step: Step) -> Held:
        held, written = step.reads[0], step.layer.axis
        places = [written] if isinstance(written, int) else list(written or [])
        if not places or 0 in [place % (len(held.order) + 1) for place in places]:
            raise step.refuse(f"it goes over axis {written}")
        axes = [held.axis(place) for place in places]
        made = step.writer.reduce(step.name, held.value, by, axes, keep=bool(step.layer.keepdims))
        left = held.order if step.layer.keepdims else tuple(axis for axis in held.order if axis not in axes)
        ranks = sorted(left)
        return Held(made, tuple(ranks.index(axis) for axis in left))

    return handler


def _adaptive(step: Step) -> Held:
    x = _map(step)
    return Held(step.writer.adaptive_average(step.name, x, (step.row[0], step.row[1])), last(3))


# padding and cutting


def _zero_padding(step: Step) -> Held:
    held, (height, width) = step.reads[0], step.layer.padding
    sides: list[Pair] = [(0, 0)] * len(held.order)
    sides[held.axis(1)], sides[held.axis(2)] = pair(height), pair(width)
    return Held(step.writer.pad(step.name, held.value, sides), held.order)


def _pad(step: Step) -> Held:
    held, width = step.reads[0], step.layer.pad_width
    filling = step.call.node.arguments.kwargs.get("constant_values")
    pairs = [pair(one) for one in width]
    if step.layer.mode != "constant" or filling not in (None, 0) or len(pairs) != len(held.order) + 1 or any(pairs[0]):
        raise step.refuse("it fills with something else than zero")
    sides: list[Pair] = [pairs[held.order.index(axis) + 1] for axis in range(len(held.order))]
    return Held(step.writer.pad(step.name, held.value, sides), held.order)


def _negative(step: Step) -> Held:
    return Held(scaled(step, step.reads[0].value, -1.0), step.reads[0].order)


def _cropping(step: Step) -> Held:
    held, value = step.reads[0], step.reads[0].value
    for place, (before, after) in enumerate(step.layer.cropping, start=1):
        axis = held.axis(place)
        value = step.writer.slice(f"{step.name}_{place}", value, axis, before, value.row[axis] - after)
    return Held(value, held.order)


def _item(step: Step) -> Held:
    held, value = step.reads[0], step.reads[0].value
    arguments = step.call.node.arguments
    key = arguments.args[1] if len(arguments.args) > 1 else arguments.kwargs.get("key")
    keys = list(key) if isinstance(key, tuple | list) else [key]
    if not all(isinstance(one, slice) for one in keys) or keys[0] != slice(None):
        raise step.refuse("it does more than cut a stretch out of each row")
    for place, one in enumerate(keys[1:], start=1):
        axis = held.axis(place)
        start, stop, stride = one.indices(value.row[axis])
        value = step.writer.slice(f"{step.name}_{place}", value, axis, start, stop, stride)
    return Held(value, held.order)


# reshaping


def _reshape(step: Step) -> Held:
    held, row = step.reads[0], step.row
    if math.prod(row) != math.prod(held.value.row):
        raise step.refuse("it does not keep the images apart")
    if sum(n != 1 for n in held.value.row) > 1:
        order: Order = tuple(range(len(row)))
        return Held(step.writer.reshape(step.name, step.plain(held), row), order)
    order = last(len(row))  # with one side only, every order is the same
    return Held(step.writer.reshape(step.name, held.value, step.given(order)), order)


def _permute(step: Step) -> Held:
    """Only the places change."""
    order = step.reads[0].order
    return Held(step.reads[0].value, tuple(order[place - 1] for place in step.layer.dims))


def _transpose(step: Step) -> Held:
    axes, order = step.layer.axes, step.reads[0].order
    if not axes or axes[0] != 0:
        raise step.refuse("it does not keep the images apart")
    return Held(step.reads[0].value, tuple(order[place - 1] for place in axes[1:]))


# dropout


def _dropout(step: Step) -> Held:
    held, layer = step.reads[0], step.layer
    shape = getattr(layer, "noise_shape", None)
    if shape is None:
        of: Any = "values"
    else:
        rest = list(shape)[1:]
        known = {(1,) * len(rest): "images", (*(1,) * (len(rest) - 1), None): "channels"}
        of = known.get(tuple(rest))
    if of is None or (of == "channels" and held.axis(-1) != 0):
        raise step.refuse(f"its noise_shape is {shape}")
    return Held(step.writer.dropout(step.name, held.value, layer.rate, of), held.order)


def _spatial_dropout(step: Step) -> Held:
    x = _map(step)
    return Held(step.writer.dropout(step.name, x, step.layer.rate, "channels"), last(3))


def _stochastic_depth(step: Step) -> Held:
    return Held(step.writer.dropout(step.name, step.reads[0].value, step.layer.drop_path_rate, "images"), step.reads[0].order)


MOVES: dict[str, Handler] = {
    "layers.Identity": _same,
    "layers.ActivityRegularization": _same,
    "layers.Add": _merged("add"),
    "layers.Subtract": _merged("subtract"),
    "layers.Multiply": _merged("multiply"),
    "layers.Maximum": _merged("maximum"),
    "layers.Minimum": _merged("minimum"),
    "layers.Average": _average,
    "layers.Concatenate": _concat,
    "layers.MaxPooling2D": _pool("max"),
    "layers.AveragePooling2D": _pool("average"),
    "layers.GlobalAveragePooling2D": _global("mean"),
    "layers.GlobalMaxPooling2D": _global("max"),
    "layers.AdaptiveAveragePooling2D": _adaptive,
    "layers.ZeroPadding2D": _zero_padding,
    "layers.Cropping2D": _cropping,
    "layers.Flatten": _reshape,
    "layers.Reshape": _reshape,
    "layers.Permute": _permute,
    "layers.Dropout": _dropout,
    "layers.SpatialDropout2D": _spatial_dropout,
    "applications.StochasticDepth": _stochastic_depth,
    "applications.CustomScaleLayer": _scale_and_add,
    "own.AdaptiveAverage": _adaptive,
    "own.PaddedPool": _padded_pool,
    "ops.Add": _binary("add"),
    "ops.Subtract": _binary("subtract"),
    "ops.Multiply": _binary("multiply"),
    "ops.Divide": _binary("divide"),
    "ops.TrueDivide": _binary("divide"),
    "ops.Maximum": _binary("maximum"),
    "ops.Minimum": _binary("minimum"),
    "ops.Concatenate": _concat,
    "ops.Mean": _reduced("mean"),
    "ops.Max": _reduced("max"),
    "ops.Sum": _reduced("sum"),
    "ops.GetItem": _item,
    "ops.Negative": _negative,
    "ops.Pad": _pad,
    "ops.Reshape": _reshape,
    "ops.Squeeze": _reshape,
    "ops.ExpandDims": _reshape,
    "ops.Transpose": _transpose,
    "ops.Identity": _same,
    "ops.Copy": _same,
    "ops.Cast": _cast,
}
