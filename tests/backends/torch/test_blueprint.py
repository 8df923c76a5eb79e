from __future__ import annotations

import pytest
import torch
from torch import nn

from xfer.backends.torch.blueprint import blueprint


def test_nothing_is_allocated() -> None:
    network = blueprint(lambda: nn.Linear(10**6, 10**6))
    assert network.weight.is_meta
    assert network.weight.shape == (10**6, 10**6)


def test_a_builder_that_reads_numbers_gets_them() -> None:
    def build() -> nn.Module:
        widths = (torch.arange(1, 4) * 8).tolist()
        network = nn.Sequential(*(nn.Conv2d(3, width, 1) for width in widths), nn.BatchNorm2d(24))
        network.register_buffer("table", torch.arange(5))
        return network

    network = blueprint(build)
    assert [tuple(p.shape) for p in network.parameters()][:4] == [(8, 3, 1, 1), (8,), (16, 3, 1, 1), (16,)]
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_what_a_builder_raises_is_raised() -> None:
    def build() -> nn.Module:
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        blueprint(build)
