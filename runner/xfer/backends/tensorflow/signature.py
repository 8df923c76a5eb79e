"""What a piece of a graph computes, as text: the same in every process, whatever the layers happen to be called there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xfer.backends.tensorflow.graph import Call, named_tensors

# Settings that say how variables began, how they are trained or what they are called, not what is computed.
_BESIDE = {"name", "trainable", "dtype", "dtype_policy", "build_config", "registered_name", "batch_shape", "shared_object_id"}
_BESIDE_ENDS = ("_initializer", "_regularizer", "_constraint")


def of_calls(calls: Sequence[Call], *, start: Any, end: Any, averaged: str) -> str:
    """One line a call: the operation's class and settings, and which tensors it reads, by the order in which they are made."""
    numbers = {id(start): 0}
    lines = []
    layers: dict[int, int] = {}
    for call in calls:
        shared = layers.setdefault(id(call.operation), len(layers))

        def written(value: Any) -> Any:
            return f"tensor {numbers[id(value)]}" if isinstance(value, keras.KerasTensor) else value

        args, kwargs = call.node.arguments.convert(written)
        kwargs.pop("training", None)  # each call is given its own
        lines.append(_text([shared, _settings(call.operation), args, kwargs]))
        for tensor in call.gives:
            numbers[id(tensor)] = len(numbers)
    return "\n".join([*lines, f"tensor {numbers[id(end)]} {averaged}"])


def of_layer(layer: Any) -> str:
    """A layer with all that lies inside it."""
    return _text(_settings(layer))


def _settings(operation: Any) -> list[Any]:
    """Class and configuration; of a layer without one what can be seen: its variables and the layers inside it."""
    kind = f"{type(operation).__module__}.{type(operation).__qualname__}"
    try:
        config = operation.get_config()
    except NotImplementedError:
        config = {}
    found: list[Any] = [kind, config]
    if isinstance(operation, keras.Layer) and not kind.startswith("keras."):
        found.append([[tensor.name, tensor.shape] for tensor in named_tensors(operation)])
        found.append([_settings(layer) for layer in operation._layers])
    return found


def _text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if key not in _BESIDE and not str(key).endswith(_BESIDE_ENDS)}
        return {key: _plain(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic) or tf.is_tensor(value) or isinstance(value, keras.Variable):
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, slice):
        return ["slice", value.start, value.stop, value.step]
    code = getattr(value, "__code__", None)
    if code is not None:
        return ["function", value.__qualname__, hashlib.blake2b(code.co_code, digest_size=16).hexdigest(), _plain(list(code.co_names))]
    config = getattr(value, "get_config", None)
    return [type(value).__name__, _plain(config()) if callable(config) and not isinstance(value, type) else None]
