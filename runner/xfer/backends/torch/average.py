"""The exponential moving average of the weights, and of the statistics beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from xfer.ops.schedules import decay_at


class Average:
    """Averages of `tensors` (name to the live tensor); whole numbers, such as batch counts, are taken over as they are."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay, self.live = decay, dict(tensors)
        self.kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        self._counts = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the phase's `step`: kept = d · kept + (1 - d) · live, with d of `decay_at`."""
        weight = 1 - decay_at(self.decay, step)
        torch._foreach_lerp_([self.kept[name] for name in self._floats], [self.live[name].detach() for name in self._floats], weight)
        for name in self._counts:
            self.kept[name].copy_(self.live[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Live and kept values change places."""
        for name, tensor in self.live.items():
            before = tensor.detach().clone()
            tensor.copy_(self.kept[name])
            self.kept[name].copy_(before)

    def state(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy().copy() for name, tensor in self.kept.items()}

    def load_state(self, saved: Mapping[str, np.ndarray]) -> None:
        for name, value in saved.items():
            if name in self.kept:
                self.kept[name].copy_(torch.from_numpy(np.array(value)))
