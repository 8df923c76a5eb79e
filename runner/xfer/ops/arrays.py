"""Array operations that mean the same on torch tensors, TensorFlow tensors and numpy arrays, so that a method is written once.

Each dispatches on the type of its first array. The framework is there already, since the array is: nothing is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # a torch.Tensor, a tf.Tensor or Variable, or a numpy array


def library(x: Array) -> Any:
    """The module whose functions take `x`: torch, tensorflow or numpy.

    >>> library(np.zeros(1)).__name__
    'numpy'
    """
    root = type(x).__module__.partition(".")[0]
    if root == "torch":
        return sys.modules["torch"]
    if root in ("tensorflow", "keras"):
        return sys.modules["tensorflow"]
    if isinstance(x, np.ndarray | np.generic | float | int):
        return np
    raise TypeError(f"no array: {type(x).__module__}.{type(x).__name__}")


def is_tensorflow(x: Array) -> bool:
    return bool(library(x).__name__ == "tensorflow")


def reduce_sum(x: Array, axis: int | Sequence[int] | None = None) -> Array:
    """Over all values, or over `axis`.

    >>> reduce_sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    if is_tensorflow(x):
        return library(x).reduce_sum(x, axis=axis)
    return x.sum() if axis is None else x.sum(axis)


def reduce_mean(x: Array, axis: int | Sequence[int] | None = None) -> Array:
    if is_tensorflow(x):
        return library(x).reduce_mean(x, axis=axis)
    return x.mean() if axis is None else x.mean(axis)


def square(x: Array) -> Array:
    return x * x


def exp(x: Array) -> Array:
    return library(x).exp(x)


def log(x: Array) -> Array:
    return library(x).math.log(x) if is_tensorflow(x) else library(x).log(x)


def sqrt(x: Array) -> Array:
    return library(x).sqrt(x)


def tanh(x: Array) -> Array:
    return library(x).tanh(x)


def relu(x: Array) -> Array:
    """max(x, 0).

    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    if library(x) is np:
        return np.maximum(x, 0)
    return library(x).nn.relu(x) if is_tensorflow(x) else library(x).relu(x)


def matmul(x: Array, y: Array) -> Array:
    return x @ y


def transpose(x: Array) -> Array:
    """Of a matrix: the last two axes change places."""
    return library(x).linalg.matrix_transpose(x) if is_tensorflow(x) else x.swapaxes(-1, -2)


def reshape(x: Array, shape: Sequence[int]) -> Array:
    return library(x).reshape(x, tuple(shape))


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays end to end along `axis`."""
    first = library(arrays[0])
    if first is np:
        return np.concatenate(arrays, axis)
    return first.concat(arrays, axis) if is_tensorflow(arrays[0]) else first.cat(list(arrays), axis)


def log_softmax(x: Array) -> Array:
    """Over the last axis, in a way that does not overflow.

    >>> float(exp(log_softmax(np.array([1000.0, 1000.0])))[0])
    0.5
    """
    if library(x) is np:
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return library(x).nn.log_softmax(x) if is_tensorflow(x) else library(x).log_softmax(x, -1)


def softmax(x: Array) -> Array:
    return exp(log_softmax(x))


def one_hot(labels: Array, classes: int) -> Array:
    """float32 [n, classes] from int64 [n].

    >>> one_hot(np.array([1]), 2)
    array([[0., 1.]], dtype=float32)
    """
    if library(labels) is np:
        return np.eye(classes, dtype=np.float32)[labels]
    if is_tensorflow(labels):
        return library(labels).one_hot(labels, classes)
    return library(labels).nn.functional.one_hot(labels, classes).float()


def zeros_like(x: Array) -> Array:
    return library(x).zeros_like(x)


def ones_like(x: Array) -> Array:
    return library(x).ones_like(x)


def stop_gradient(x: Array) -> Array:
    """The same values, as a constant."""
    if library(x) is np:
        return x
    return library(x).stop_gradient(x) if is_tensorflow(x) else x.detach()


def reverse_gradient(x: Array, strength: float) -> Array:
    """The same values; on the way back the gradient is multiplied by -strength (Ganin & Lempitsky 2015, equation 4)."""
    same = stop_gradient(x)
    return same - (x - same) * strength


def l2_normalise(x: Array, epsilon: float = 1e-12) -> Array:
    """Rows of length one.

    >>> l2_normalise(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]])
    """
    norm = sqrt(reduce_sum(square(x), axis=-1) + epsilon)
    return x / norm[..., None]
