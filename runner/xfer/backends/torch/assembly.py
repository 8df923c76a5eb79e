"""A source network with its new head and the method's own tensors: the modules, their tensors by name, and the way through them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from xfer import plugins
from xfer.backends.backend import Device
from xfer.backends.plan_tensors import changing, groups_of, of_source, own_start
from xfer.backends.torch.head import Head, pool
from xfer.backends.torch.modes import owners
from xfer.backends.torch.segments import Segments
from xfer.methods.method import Method
from xfer.plan.model_map import HEAD, OWN, PIXELS
from xfer.plan.plan import Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Assembly:
    """What a plan's network is made of, on its device. `named` holds every tensor by its name in the plan, `source` the values that
    the parameters which some phase trains have in the source."""

    def __init__(self, plan: Plan, base: nn.Module, device: Device) -> None:
        self.plan, self.device = plan, torch.device(device.name)
        self.base = base.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        self.segments = Segments(self.base, plan.model)
        self.owner = owners(self.segments)
        self.head = Head(plan.head, seed=plan.seed).to(self.device)
        self.dtype = DTYPES[plan.runtime.precision]  # of rows in the store
        # Where the processor has no fast bfloat16, float32 is both faster and more exact: rows are then only kept in it.
        self.compute_dtype = torch.float32 if self.dtype == torch.bfloat16 and not device.fast_bfloat16 else self.dtype
        preprocess = plan.source.preprocess
        scale = torch.tensor([s * preprocess.scale for s in preprocess.std], device=self.device)
        shift = torch.tensor([m * preprocess.scale for m in preprocess.mean], device=self.device)
        self._scale, self._shift = (1 / scale).view(1, -1, 1, 1), (-shift / scale).view(1, -1, 1, 1)
        self.method: Method = plugins.load(plan.method.target)(**plan.method.options)
        self.own = {
            name: nn.Parameter(torch.from_numpy(values).to(self.device), requires_grad=False)
            for name, values in own_start(self.method, plan).items()
        }
        self.named = self._named()
        self.group_of = groups_of(plan)
        self.changing = changing(plan, self.named)
        self.source = {name: self.named[name].detach().clone() for name in of_source(self.changing, self.group_of)}
        self.teacher = Segments(copy.deepcopy(self.base).eval(), plan.model) if plan.method.teacher else None

    def _named(self) -> dict[str, torch.Tensor]:
        tensors = {**dict(self.base.named_parameters()), **dict(self.base.named_buffers())}
        wanted = {tensor.name for group in self.plan.model.groups for tensor in group.tensors}
        named: dict[str, torch.Tensor] = {name: tensor for name, tensor in tensors.items() if name in wanted}
        named.update({f"{HEAD}.{name}": parameter for name, parameter in self.head.named_parameters()})
        named.update({f"{OWN}.{name}": parameter for name, parameter in self.own.items()})
        return named

    # the way through

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] RGB to the network's input, float32 [B, 3, H, W] in channels-last memory."""
        x = pixels.permute(0, 3, 1, 2).float()
        if self.plan.source.preprocess.channels == "bgr":
            x = x.flip(1)
        return torch.addcmul(self._shift, x, self._scale)

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        """Rows as they are stored, on the device; uint16 holds bfloat16."""
        tensor = torch.from_numpy(values)
        if tensor.dtype == torch.uint16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self.device)

    def rows(self, values: np.ndarray, *, start: str) -> torch.Tensor:
        """Stored rows of cut `start` as a segment wants them."""
        x = self.tensor(values)
        x = self.normalised(x) if start == PIXELS else x
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def through(self, x: torch.Tensor, segment: nn.Module) -> torch.Tensor:
        """What a segment makes of rows, in the precision of the plan."""
        with torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            return segment(x)  # type: ignore[no-any-return]

    def suffix(self, start: str, *, pooled: bool) -> nn.Module:
        """What lies between cut `start` and the head."""
        at = self.plan.head.at
        return nn.Identity() if pooled or start == at else self.segments.between(start, at)

    def vectors(self, x: torch.Tensor, *, pooled: bool) -> torch.Tensor:
        """The head's input [B, D] from what lies at its cut."""
        return x if pooled else pool(x.float(), self.plan.head.layout)

    def distances(self) -> dict[str, float]:
        """Per group that some phase trains: ||w - w⁰|| / ||w⁰|| over its parameters, w⁰ their values in the source."""
        squares: dict[str, list[float]] = {}
        parameters = {tensor.name for group in self.plan.model.groups for tensor in group.parameters}
        for name, before in self.source.items():
            if name not in parameters:
                continue
            moved, held = squares.setdefault(self.group_of[name], [0.0, 0.0]), before.double()
            moved[0] += float((self.named[name].detach().double() - held).square().sum())
            moved[1] += float(held.square().sum())
        return {group: (moved / held) ** 0.5 if held else 0.0 for group, (moved, held) in squares.items()}

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        return {name: self.named[name].detach().cpu().numpy().copy() for name in names}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Give tensors these values."""
        for name, value in tensors.items():
            self.named[name].copy_(torch.from_numpy(np.array(value)))
