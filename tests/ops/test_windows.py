"""Windows over one side, against torch's and TensorFlow's own words for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from xfer.ops.windows import adaptive_average, inside, missing_behind, places, same_padding


@pytest.mark.parametrize("size", [1, 5, 6, 7, 32, 33])
@pytest.mark.parametrize(("window", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 2, 1), (5, 3, 1), (3, 1, 2), (1, 2, 1)])
def test_same_padding_leaves_as_many_windows_as_tensorflow_says(size: int, window: int, stride: int, dilation: int) -> None:
    padding = same_padding(size, window=window, stride=stride, dilation=dilation)
    assert places(size, window=window, stride=stride, padding=padding, dilation=dilation) == -(-size // stride)
    assert 0 <= padding[1] - padding[0] <= 1


@pytest.mark.parametrize(("size", "wanted"), [(7, 7), (2, 7), (7, 3), (13, 6), (6, 4), (5, 1)])
def test_adaptive_averages_are_those_of_torch(size: int, wanted: int) -> None:
    side = np.random.default_rng(0).normal(size=size)
    reference = functional.adaptive_avg_pool1d(torch.from_numpy(side).view(1, 1, -1), wanted).flatten().numpy()
    np.testing.assert_allclose(adaptive_average(size, wanted) @ side, reference, atol=1e-12)


@pytest.mark.parametrize(("size", "window", "stride", "padding"), [(7, 3, 2, (1, 1)), (8, 2, 2, (0, 0)), (6, 4, 3, (2, 2))])
def test_what_lies_inside_is_what_torch_does_not_count(size: int, window: int, stride: int, padding: tuple[int, int]) -> None:
    ones = torch.ones(1, 1, size, dtype=torch.float64)
    reference = functional.avg_pool1d(ones, window, stride, padding[0], count_include_pad=True).flatten().numpy()
    np.testing.assert_allclose(inside(size, window=window, stride=stride, padding=padding), reference)


@pytest.mark.parametrize("size", [5, 6, 7, 8, 56, 57])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 3)])
def test_ceil_mode_is_padding_behind(size: int, window: int, stride: int) -> None:
    x = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    reference = functional.max_pool1d(x, window, stride, ceil_mode=True)
    more = missing_behind(size, window=window, stride=stride, padding=(0, 0), wanted=reference.shape[-1])
    padded = functional.pad(x, (0, more), value=-float("inf"))
    torch.testing.assert_close(functional.max_pool1d(padded, window, stride), reference)
