"""What fitting asks of a tensor, for torch's tensors and numpy's arrays alike, so that neither needs the other's library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def is_real(tensor: Any) -> bool:
    """Whether it holds floating-point numbers."""
    return bool(tensor.dtype.kind == "f") if isinstance(tensor, np.ndarray) else bool(tensor.is_floating_point())


def float32(tensor: Any) -> Any:
    """The same numbers in float32."""
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32, copy=False)
    import torch

    return tensor.to(torch.float32)


def spoilt(tensor: Any, *, finite: bool) -> int:
    """How many values are NaN; with `finite`, infinite ones count too."""
    if isinstance(tensor, np.ndarray):
        return int((~np.isfinite(tensor) if finite else np.isnan(tensor)).sum())
    return int((~tensor.isfinite() if finite else tensor.isnan()).sum())


def count(tensor: Any) -> int:
    """How many values it has."""
    return int(tensor.size) if isinstance(tensor, np.ndarray) else int(tensor.numel())


def turned(tensor: Any, axes: Sequence[int]) -> Any:
    """With its axes in another order, as a view."""
    return tensor.transpose(axes) if isinstance(tensor, np.ndarray) else tensor.permute(tuple(axes))


def plain(tensor: Any) -> Any:
    """In row-major memory."""
    return np.asarray(tensor, order="C") if isinstance(tensor, np.ndarray) else tensor.contiguous()


def counter(shape: Sequence[int]) -> Any:
    """A counter of batches that no file kept: torch alone has them."""
    import torch

    return torch.zeros(tuple(shape), dtype=torch.int64)
