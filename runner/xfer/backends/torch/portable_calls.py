"""The portable operations that a function or a method of torch stands for in a traced graph."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xfer.backends.graph_writer import Value, Writer, even, pair
from xfer.plan import portable as graph


@dataclass(frozen=True)
class Weight:
    """A tensor of the network's own, read by its path, maybe seen in another shape."""

    path: str
    tensor: torch.Tensor
    is_parameter: bool


@dataclass(frozen=True)
class Piece:
    """One of the parts that a value was divided into, not yet written: `stop` is not in it; `drop` takes the axis away."""

    whole: Value
    axis: int
    start: int
    stop: int
    drop: bool = False


class Batch:
    """Stands for the number of images, a multiple of it, or sizes with it among them."""


@dataclass(frozen=True)
class Call:
    """Where a call stands: `name` for its operation, `row` the shape of what it gives, None where that is no tensor by rows."""

    writer: Writer
    name: str
    function: str
    row: tuple[int, ...] | None

    def given(self) -> tuple[int, ...]:
        if self.row is None:
            raise self.refuse("it does not keep the images apart")
        return self.row

    def refuse(self, reason: str | None = None) -> graph.NotPortableError:
        return self.writer.refuse(self.name, self.function, reason)


Handler = Callable[..., Any]


def array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().float().cpu().numpy()


def called(call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What the call gives: a Value, a list of Pieces, or a Weight; raises NotPortableError."""
    function = call.function.removesuffix("_")
    if args and isinstance(args[0], Weight) and not any(isinstance(other, Value) for other in (*args[1:], *kwargs.values())):
        return _seen(call, function, args, kwargs)
    if function not in CALLS:
        raise call.refuse()
    handler = CALLS[function]
    try:
        inspect.signature(handler).bind(call, *args, **kwargs)
    except TypeError as error:
        raise call.refuse(str(error)) from error
    return handler(call, *args, **kwargs)


def _seen(call: Call, function: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Weight:
    """A weight in another shape; what computes with weights alone is not portable."""
    weight: Weight = args[0]
    if function not in ("reshape", "view", "unsqueeze", "squeeze", "flatten", "contiguous") or any(isinstance(a, Batch) for a in args):
        raise call.refuse("it works on weights")
    shaped = getattr(weight.tensor, function)(*args[1:], **kwargs)
    return Weight(weight.path, shaped, weight.is_parameter)


def _same(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _plain(function: str) -> Handler:
    def handler(call: Call, x: Value, *, inplace: bool = False) -> Value:
        return call.writer.activation(call.name, x, function)

    return handler


def _gelu(call: Call, x: Value, *, approximate: str = "none") -> Value:
    return call.writer.activation(call.name, x, "gelu_tanh" if approximate == "tanh" else "gelu")


def _leaky(call: Call, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return call.writer.activation(call.name, x, "leaky_relu", float(negative_slope))


def _elu(call: Call, x: Value, alpha: float = 1.0, *, inplace: bool = False) -> Value:
    return call.writer.activation(call.name, x, "elu", float(alpha))


def _softplus(call: Call, x: Value, *, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1:
        raise call.refuse(f"its beta is {beta}")
    return call.writer.activation(call.name, x, "softplus")


def _negative(call: Call, x: Value) -> Value:
    return _scaled(call, x, "multiply", -1.0, swapped=False)


def _clamp(call: Call, x: Value, min: float | None = None, max: float | None = None, inplace: bool = False) -> Value:  # noqa: A002
    if min != 0 or max not in (None, 6):
        raise call.refuse(f"its bounds are {min} and {max}")
    return call.writer.activation(call.name, x, "relu" if max is None else "relu6")


def _hardtanh(call: Call, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return _clamp(call, x, min_val, max_val)


def _softmax(call: Call, x: Value, dim: int | None = None, dtype: Any = None, **_: Any) -> Value:
    return call.writer.add(graph.Softmax, call.name, x, x.row, axis=_axis(call, x, dim))


def _axis(call: Call, x: Value, dim: Any) -> int:
    """The row's axis that a dimension of the batch means."""
    if not isinstance(dim, int) or dim % (len(x.row) + 1) == 0:
        raise call.refuse(f"it goes over dimension {dim}")
    return dim % (len(x.row) + 1) - 1


def _binary(by: str) -> Handler:
    def handler(call: Call, a: Any, b: Any, *, alpha: float = 1) -> Value:
        if alpha != 1:
            raise call.refuse(f"its alpha is {alpha}")
        if isinstance(a, Value) and isinstance(b, Value):
            if len(a.row) != len(b.row):
                raise call.refuse("its inputs have different ranks")
            return call.writer.add(graph.Combine, call.name, (a, b), call.given(), by=by)
        for x, other, swapped in ((a, b, False), (b, a, True)):
            if isinstance(x, Value) and isinstance(other, int | float):
                return _scaled(call, x, by, float(other), swapped=swapped)
            if isinstance(x, Value) and isinstance(other, Weight):
                return _weighted(call, x, by, other)
        raise call.refuse()

    return handler


def _scaled(call: Call, x: Value, by: str, number: float, *, swapped: bool) -> Value:
    factor, offset = {
        "add": (1.0, number),
        "subtract": (-1.0, number) if swapped else (1.0, -number),
        "multiply": (number, 0.0),
    }.get(by, (None, None))
    if factor is None:
        raise call.refuse(f"with the number {number:g}")
    return call.writer.add(graph.Rescale, call.name, x, x.row, factor=(factor,), offset=(offset,))


def _divide(call: Call, a: Any, b: Any) -> Value:
    if not isinstance(a, Value) or not isinstance(b, int | float):
        raise call.refuse()
    return _scaled(call, a, "multiply", 1 / b, swapped=False)


def _weighted(call: Call, x: Value, by: str, weight: Weight) -> Value:
    shape = tuple(weight.tensor.shape)
    while len(shape) > len(x.row) and shape[0] == 1:  # a batch of one
        shape = shape[1:]
    if by not in ("add", "multiply") or len(shape) > len(x.row) or call.given() != x.row:
        raise call.refuse("with a weight")
    call.writer.once(weight.path, "a tensor")
    weights = {"weight": array(weight.tensor.reshape(shape))}
    buffers = () if weight.is_parameter else ("weight",)
    return call.writer.add(graph.Weighted, weight.path, x, x.row, weights=weights, buffers=buffers, by=by)


def _concat(call: Call, values: Any, dim: int = 0) -> Value:
    parts = list(values)
    if not parts or not all(isinstance(part, Value | Piece) for part in parts):
        raise call.refuse("with a weight")
    read = [cut(call.writer, f"{call.name}_{index}", part) for index, part in enumerate(parts)]
    return call.writer.add(graph.Concat, call.name, read, call.given(), axis=_axis(call, read[0], dim))


def _reshape(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    row = call.given()
    if math.prod(row) != math.prod(x.row):
        raise call.refuse("it does not keep the images apart")
    return call.writer.reshape(call.name, x, row)


def _permute(call: Call, x: Value, *dims: Any) -> Value:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    axes = [dim % (len(x.row) + 1) for dim in order]
    if axes[0] != 0:
        raise call.refuse("it does not keep the images apart")
    return call.writer.transpose(call.name, x, [axis - 1 for axis in axes[1:]])


def _transpose(call: Call, x: Value, dim0: int, dim1: int) -> Value:
    one, other = _axis(call, x, dim0), _axis(call, x, dim1)
    order = list(range(len(x.row)))
    order[one], order[other] = other, one
    return call.writer.transpose(call.name, x, order)


def _reduce(by: str) -> Handler:
    def handler(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        axes = [_axis(call, x, one) for one in (dim if isinstance(dim, tuple | list) else (dim,))]
        return call.writer.reduce(call.name, x, by, axes, keep=bool(keepdim))

    return handler


def _pad(call: Call, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    if mode != "constant" or value not in (None, 0) or min(pad, default=0) < 0 or len(pad) > 2 * len(x.row):
        raise call.refuse("it cuts, or fills with something else than zero")
    sides = [(0, 0)] * len(x.row)
    for index in range(len(pad) // 2):  # the last axis comes first
        sides[-1 - index] = (int(pad[2 * index]), int(pad[2 * index + 1]))
    return call.writer.pad(call.name, x, sides)


def _dropout(of: str) -> Handler:
    def handler(call: Call, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
        return call.writer.dropout(call.name, x, p, of)

    return handler


def _stochastic_depth(call: Call, x: Value, p: float, mode: str, training: bool = True) -> Value:
    if mode != "row":
        raise call.refuse(f"its mode is '{mode}'")
    return call.writer.dropout(call.name, x, p, "images")


def _max_pool(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if pair(dilation) != (1, 1):
        raise call.refuse("its windows are dilated")
    window = pair(kernel_size)
    return call.writer.pool(
        call.name, x, "max", call.given(), window=window, stride=pair(stride or window), padding=even(padding), counts_padding=False
    )


def _average_pool(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        raise call.refuse("its divisor is overridden")
    window, counts = pair(kernel_size), bool(count_include_pad)
    stride = pair(stride or window)
    return call.writer.pool(
        call.name, x, "average", call.given(), window=window, stride=stride, padding=even(padding), counts_padding=counts
    )


def _adaptive(call: Call, x: Value, output_size: Any) -> Value:
    row = call.given()
    return call.writer.adaptive_average(call.name, x, (row[1], row[2]))


def _adaptive_max(call: Call, x: Value, output_size: Any, return_indices: bool = False) -> Value:
    if call.given()[1:] != (1, 1):
        raise call.refuse("it gives more than one position")
    return call.writer.reduce(call.name, x, "max", (1, 2), keep=True)


def _chunk(call: Call, x: Value, chunks: int, dim: int = 0) -> list[Piece]:
    axis = _axis(call, x, dim)
    return _split(call, x, -(-x.row[axis] // chunks), dim)


def _split(call: Call, x: Value, split_size_or_sections: Any, dim: int = 0) -> list[Piece]:
    axis, sizes = _axis(call, x, dim), split_size_or_sections
    if isinstance(sizes, int):
        starts = list(range(0, x.row[axis], sizes))
        stops = [min(start + sizes, x.row[axis]) for start in starts]
    else:
        stops = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        starts = [0, *stops[:-1]]
    return [Piece(x, axis, start, stop) for start, stop in zip(starts, stops, strict=True)]


def _unbind(call: Call, x: Value, dim: int = 0) -> list[Piece]:
    axis = _axis(call, x, dim)
    return [Piece(x, axis, index, index + 1, drop=True) for index in range(x.row[axis])]


def _sizes(call: Call, x: Value, *_: Any) -> Batch:
    """Sizes with the number of images among them: what is reshaped by them says itself what it gives."""
    return Batch()


def _item(call: Call, x: Any, index: Any) -> Any:
    if isinstance(x, Batch):
        return x
    if isinstance(x, list | tuple):
        return x[index]
    if not isinstance(x, Value):
        raise call.refuse()
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        place = indices.index(Ellipsis)
        indices[place : place + 1] = [slice(None)] * (len(x.row) + 2 - len(indices))
    if indices[0] != slice(None) or not all(isinstance(one, int | slice) for one in indices):
        raise call.refuse("it does not keep the images apart")
    found = x
    for axis, one in enumerate(indices[1:]):
        where = one if isinstance(one, slice) else slice(one % x.row[axis], one % x.row[axis] + 1)
        start, stop, step = where.indices(x.row[axis])
        found = call.writer.slice(f"{call.name}_{axis}", found, axis, start, stop, step)
    return call.writer.reshape(call.name, found, call.given())


def cut(writer: Writer, name: str, piece: Value | Piece) -> Value:
    """A piece as a value of its own."""
    if isinstance(piece, Value):
        return piece
    x = writer.slice(name, piece.whole, piece.axis, piece.start, piece.stop)
    return writer.reshape(f"{name}_row", x, [n for axis, n in enumerate(x.row) if axis != piece.axis]) if piece.drop else x


CALLS: dict[str, Handler] = {
    **dict.fromkeys(("contiguous", "to", "float", "clone", "detach", "type_as"), _same),
    **dict.fromkeys(("add", "iadd"), _binary("add")),
    **dict.fromkeys(("mul", "imul", "multiply"), _binary("multiply")),
    **dict.fromkeys(("sub", "isub", "subtract"), _binary("subtract")),
    **dict.fromkeys(("truediv", "itruediv", "div"), _divide),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze"), _reshape),
    **{name: _plain(name) for name in ("relu", "sigmoid", "tanh", "relu6", "silu", "selu", "mish")},
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    "maximum": _binary("maximum"),
    "minimum": _binary("minimum"),
    "hardswish": _plain("hard_swish"),
    "hardsigmoid": _plain("hard_sigmoid"),
    "gelu": _gelu,
    "leaky_relu": _leaky,
    "elu": _elu,
    "softplus": _softplus,
    "neg": _negative,
    "clamp": _clamp,
    "clip": _clamp,
    "hardtanh": _hardtanh,
    "softmax": _softmax,
    "permute": _permute,
    "mean": _reduce("mean"),
    "amax": _reduce("max"),
    "sum": _reduce("sum"),
    "pad": _pad,
    "dropout": _dropout("values"),
    "dropout2d": _dropout("channels"),
    "stochastic_depth": _stochastic_depth,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive_max,
    "chunk": _chunk,
    "split": _split,
    "unbind": _unbind,
    "getitem": _item,
    "getattr": _sizes,
    "size": _sizes,
}
