"""Ranks that train together on torch: one exchange of gradients a step, over torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import distributed

from xfer.backends.backend import Team
from xfer.errors import UsageError


class TorchTeam(Team):
    """Implements `xfer.backends.backend.Team`. The process group is the launcher's (Ray Train's), or made from the variables that
    torchrun sets. What passes between processors of one kind goes over it; numpy arrays go over a gloo group beside it."""

    def __init__(self, rank: int, size: int, *, device: str) -> None:
        self.rank, self.size = rank, size
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", rank=rank, world_size=size)
        found = (distributed.get_rank(), distributed.get_world_size())
        if found != (rank, size):
            raise UsageError(f"this process is rank {found[0]} of {found[1]} for torch, and was told {rank} of {size}")
        self._host: Any = distributed.group.WORLD if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")

    # between the devices

    @torch.no_grad()
    def sum_together(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the sum over the ranks in the place of each tensor: one exchange for all of them, in float32."""
        each = list(tensors)
        flat = torch.cat([tensor.reshape(-1).float() for tensor in each])
        distributed.all_reduce(flat)
        for tensor, summed in zip(each, flat.split([tensor.numel() for tensor in each]), strict=True):
            tensor.copy_(summed.view(tensor.shape))

    def all_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """[size, *shape]: each rank's."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    # between the hosts

    def sum(self, values: np.ndarray) -> np.ndarray:
        summed = torch.from_numpy(np.array(values, order="C"))
        distributed.all_reduce(summed, group=self._host)
        return summed.numpy()

    def broadcast_bytes(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)], dtype=torch.int64)
        distributed.broadcast(length, 0, group=self._host)
        content = torch.from_numpy(np.frombuffer(data, np.uint8).copy()) if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        if len(content):
            distributed.broadcast(content, 0, group=self._host)
        return content.numpy().tobytes()
