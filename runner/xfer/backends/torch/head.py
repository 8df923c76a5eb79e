"""The new head in torch: pooling where it reads a spatial cut, hidden layers with ReLU, dropout keyed by image, a linear output."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from xfer.data.order import keyed_uniform
from xfer.ops.initial import head_start
from xfer.plan.plan import HeadPlan


def pool(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Global average: [B, C, H, W] (chw), [B, H, W, C] (hwc) or [B, T, D] (tokens) to [B, C]; vectors pass."""
    if layout == "chw":
        return x.mean(dim=(2, 3))
    if layout == "hwc":
        return x.mean(dim=(1, 2))
    if layout == "tokens":
        return x.mean(dim=1)
    return x.flatten(1)


class Head(nn.Module):
    """Vectors [B, inputs] to logits [B, outputs], always in float32. Dropout masks depend on (seed, phase, epoch, image)
    only, so that they stay what they were however images are put into batches or spread over workers."""

    def __init__(self, plan: HeadPlan, *, seed: int) -> None:
        super().__init__()
        widths = (plan.inputs, *plan.hidden)
        self.hidden = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(widths, widths[1:], strict=False))
        self.output = nn.Linear(widths[-1], plan.outputs)
        self.dropout, self.widths, self.seed = plan.dropout, widths, seed
        start = head_start(((tensor.name, tensor.shape) for tensor in plan.tensors), seed=seed)
        self.load_state_dict({name.removeprefix("head."): torch.from_numpy(value) for name, value in start.items()})

    def masks(self, rows: np.ndarray, *, phase: int, epoch: int) -> list[torch.Tensor] | None:
        """Per layer a float32 mask [B, width] that is 0 or 1 / (1 - dropout), or None where there is no dropout."""
        if not self.dropout:
            return None
        uniform = keyed_uniform(self.seed, phase, epoch, rows, sum(self.widths))
        kept = torch.from_numpy(uniform >= self.dropout).float().div_(1 - self.dropout).to(self.output.weight.device)
        return list(kept.split(list(self.widths), dim=1))

    def forward(self, x: torch.Tensor, masks: list[torch.Tensor] | None = None) -> torch.Tensor:
        x = x.float()
        for index, layer in enumerate(self.hidden):
            x = torch.relu(layer(x if masks is None else x * masks[index]))
        return self.output(x if masks is None else x * masks[-1])  # type: ignore[no-any-return]
