"""A built network on torch: frozen features, training by phases, and the state that a resume needs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from xfer.backends.backend import Device
from xfer.backends.phased import PhasedNetwork
from xfer.backends.torch.assembly import Assembly
from xfer.backends.torch.hardware import threads
from xfer.backends.torch.head import pool
from xfer.backends.torch.team import TorchTeam
from xfer.backends.torch.trainer import Trainer, small_threads
from xfer.plan.plan import PhasePlan, Plan

WEIGHTS_FILE = "weights.safetensors"


class TorchNetwork(PhasedNetwork[Assembly, TorchTeam]):
    """Implements `xfer.backends.backend.Network`."""

    def __init__(self, plan: Plan, base: nn.Module, device: Device, *, team: TorchTeam | None = None) -> None:
        super().__init__(Assembly(plan, base, device), team)
        self.named = self.parts.named
        self._threads = torch.get_num_threads()

    def make_trainer(self, phase: PhasePlan, *, steps_per_epoch: int, class_weights: np.ndarray | None, team: TorchTeam | None) -> Trainer:
        return Trainer(self.parts, phase, steps_per_epoch=steps_per_epoch, class_weights=class_weights, team=team)

    # frozen computation

    def compute(self, inputs: np.ndarray, *, start: str, end: str, pooled: bool) -> np.ndarray:
        parts = self.parts
        segment = parts.segments.between(start, end).eval()
        with torch.inference_mode(), threads(self._threads):  # all of them, though a small head that trains on it takes one
            y = parts.through(parts.rows(inputs, start=start), segment)
            if pooled:
                y = pool(y.float(), parts.plan.model.cut(end).layout)
            y = y.to(parts.dtype).contiguous().cpu()
            return y.view(torch.uint16).numpy() if y.dtype == torch.bfloat16 else y.numpy()

    def signature(self, start: str, end: str) -> str:
        segment = self.parts.segments.between(start, end)
        return hashlib.blake2b(str(segment).encode(), digest_size=16).hexdigest()

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: digest(self.named[name]) for name in names}

    def logits(self, inputs: np.ndarray, *, start: str, pooled: bool) -> np.ndarray:
        parts = self.parts
        suffix = parts.suffix(start, pooled=pooled).eval()
        with torch.inference_mode(), threads(small_threads(suffix, parts)):
            x = parts.vectors(parts.through(parts.rows(inputs, start=start), suffix), pooled=pooled)
            return parts.head(x).float().cpu().numpy()  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.named.items()}
        temporary = folder / f".{WEIGHTS_FILE}.tmp"
        save_file(tensors, temporary)
        os.replace(temporary, folder / WEIGHTS_FILE)


def digest(tensor: torch.Tensor) -> str:
    """blake2b over the tensor's bits in row-major order."""
    flat = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(flat.reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest() if flat.numel() else ""
