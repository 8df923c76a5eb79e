"""The exchange between ranks, and batch normalisation over it, on a team of one; tests/engine/test_team.py has teams of two and three."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import distributed, nn

from xfer.backends.torch.backend import TorchBackend
from xfer.backends.torch.shared_statistics import SharedStatistics
from xfer.errors import UsageError


@pytest.fixture
def team(monkeypatch, free_ports):
    """Of one rank, its process group ended with the test."""
    (port,) = free_ports(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    yield TorchBackend().join(0, 1, device="cpu")
    distributed.destroy_process_group()


def test_exchanges(team):
    tensors = [torch.arange(6.0).reshape(2, 3), torch.tensor(2.0), torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]
    before = [tensor.clone() for tensor in tensors]
    team.sum_together(tensors)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert team.all_of(torch.tensor([1.0, 2.0])).tolist() == [[1.0, 2.0]]
    assert team.sum(np.array([[1, 2]], np.int64)).tolist() == [[1, 2]]
    assert team.broadcast_bytes(b"a\0b") == b"a\0b"
    assert team.broadcast_bytes(b"") == b""
    told = team.broadcast({"x": np.float32([1.5]), "n": np.array(3, np.int64)})
    assert (told["x"].tolist(), told["n"].shape, int(told["n"])) == ([1.5], (), 3)


def test_another_rank_than_told(team):
    with pytest.raises(UsageError, match=r"^this process is rank 0 of 1 for torch, and was told 1 of 2$"):
        TorchBackend().join(1, 2, device="cpu")


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm2d, (6, 5, 4, 3)), (nn.BatchNorm1d, (7, 5)), (nn.BatchNorm1d, (4, 5, 6))])
@pytest.mark.parametrize("affine", [True, False])
def test_normalisation_is_torchs(team, layer, shape, affine):
    """Output, gradients and running statistics, of values whose mean is large beside their spread."""
    torch.manual_seed(0)
    plain, shared = layer(5, affine=affine), layer(5, affine=affine)
    shared.load_state_dict(plain.state_dict())
    values, wanted = torch.randn(shape) + 50, torch.randn(shape)
    results = []
    for module, context in ((plain, None), (shared, SharedStatistics(team, 1.0))):
        x = values.clone().requires_grad_()
        if context is None:
            y = module(x)
        else:
            with context:
                y = module(x)
        (y * wanted).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in module.parameters()), module.running_mean, module.running_var])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_frozen_layer_is_left_alone(team):
    layer = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    with SharedStatistics(team, 1.0):
        assert torch.equal(layer(x), layer(x))
    assert int(layer.num_batches_tracked) == 0
