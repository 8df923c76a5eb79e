"""Windows that slide over the sides of an image: how much is padded, and how much of a window lies inside. Plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def same_padding(size: int, *, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) as TensorFlow pads for 'SAME': ceil(size / stride) windows, what is odd behind.

    >>> same_padding(224, window=3, stride=2), same_padding(7, window=3, stride=1)
    ((0, 1), (1, 1))
    """
    total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def same_sides(
    sizes: Sequence[int], *, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The same for height and width at once.

    >>> same_sides((224, 7), window=(3, 3), stride=(2, 1))
    ((0, 1), (1, 1))
    """
    height, width = (same_padding(sizes[axis], window=window[axis], stride=stride[axis], dilation=dilation[axis]) for axis in (0, 1))
    return (height, width)


def places(size: int, *, window: int, stride: int, padding: tuple[int, int], dilation: int = 1) -> int:
    """How many windows fit on a padded side.

    >>> places(224, window=3, stride=2, padding=(0, 1))
    112
    """
    return (size + sum(padding) - (window - 1) * dilation - 1) // stride + 1


def missing_behind(size: int, *, window: int, stride: int, padding: tuple[int, int], wanted: int) -> int:
    """How much more must be padded behind for `wanted` windows (what torch's ceil_mode adds).

    >>> missing_behind(6, window=3, stride=2, padding=(0, 0), wanted=3)
    1
    """
    return max(0, (wanted - 1) * stride + window - size - sum(padding))


def inside(size: int, *, window: int, stride: int, padding: tuple[int, int]) -> np.ndarray:
    """Per window, the share of it that lies on the side itself and not on its padding: float64 [places].

    >>> inside(4, window=2, stride=2, padding=(1, 1)).tolist()
    [0.5, 1.0, 0.5]
    """
    padded = np.zeros(size + sum(padding))
    padded[padding[0] : padding[0] + size] = 1
    n = places(size, window=window, stride=stride, padding=padding)
    return np.array([padded[start : start + window].mean() for start in range(0, n * stride, stride)])


def adaptive_average(size: int, wanted: int) -> np.ndarray:
    """The matrix [wanted, size] that averages a side into `wanted` windows, as torch's adaptive pooling places them.

    >>> adaptive_average(3, 2).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    matrix = np.zeros((wanted, size))
    for index in range(wanted):
        start, stop = index * size // wanted, -(-(index + 1) * size // wanted)
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix
