"""The new head's start, drawn once in numpy so that both backends begin at the same numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np


def draw(name: str, shape: tuple[int, ...], *, fan_in: int, seed: int) -> np.ndarray:
    """float32 values uniform in ±1/sqrt(fan_in) (torch's own start of a Linear layer), keyed by the seed and the tensor's name."""
    bound = 1.0 / np.sqrt(fan_in)
    generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    return generator.uniform(-bound, bound, size=shape).astype(np.float32)


def head_start(tensors: Iterable[tuple[str, tuple[int, ...]]], *, seed: int) -> dict[str, np.ndarray]:
    """Values for a head's (name, shape) pairs, weights [out, in] each followed by its bias [out]."""
    values: dict[str, np.ndarray] = {}
    fan_in = 1
    for name, shape in tensors:
        fan_in = shape[1] if len(shape) == 2 else fan_in
        values[name] = draw(name, shape, fan_in=fan_in, seed=seed)
    return values
