"""The torch backend: describes, builds and loads networks."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from xfer import plugins
from xfer.backends.backend import Device, installed
from xfer.backends.torch import allocator, hardware
from xfer.backends.torch.blueprint import blueprint
from xfer.backends.torch.describe import describe
from xfer.backends.torch.network import WEIGHTS_FILE, TorchNetwork
from xfer.backends.torch.team import TorchTeam
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import Plan, SourcePlan
from xfer.sources.source import Source
from xfer.sources.weights import load, read_tensors

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


class TorchBackend:
    """Implements `xfer.backends.backend.Backend`."""

    name = "torch"

    def __init__(self) -> None:
        self.team: TorchTeam | None = None

    def join(self, rank: int, size: int, *, device: str = "auto", threads: int | None = None) -> TorchTeam:
        hardware.set_threads(threads)
        self.team = TorchTeam(rank, size, device=self.device(device).name)
        return self.team

    def versions(self) -> dict[str, str]:
        return installed(LIBRARIES)

    def device(self, wanted: str) -> Device:
        return hardware.find(wanted)

    def is_memory_full(self, error: BaseException) -> bool:
        return hardware.is_memory_full(error)

    def describe(self, source: Source, *, model: str, name: str, pretrained: bool, image_size: int) -> ModelMap:
        network = blueprint(lambda: source.build(name, pretrained=pretrained, image_size=image_size))
        return describe(network, model=model, library=source.library(), input_size=source.input_size(name), image_size=image_size)

    def build(self, plan: Plan, *, threads: int | None = None) -> TorchNetwork:
        base = self._bare(plan.source, seed=plan.seed, threads=threads, image_size=plan.model.image_size)
        if plan.source.weights.kind != "none":
            own = base.state_dict()
            state = OrderedDict(load(plan.source, model_map=plan.model, order=list(own)))
            state._metadata = own._metadata  # type: ignore[attr-defined]  # MNASNet asks it for the layout's version
            base.load_state_dict(state, strict=False)
        return TorchNetwork(plan, base, self.device(plan.runtime.device), team=self.team)

    def load(self, plan: Plan, folder: Path) -> TorchNetwork:
        base = self._bare(plan.source, seed=plan.seed, threads=None, image_size=plan.model.image_size)
        network = TorchNetwork(plan, base, self.device(plan.runtime.device), team=self.team)
        saved = read_tensors(folder / WEIGHTS_FILE)
        network.load_tensors({name: value.numpy() for name, value in saved.items() if name in network.named})
        return network

    def _bare(self, source: SourcePlan, *, seed: int, threads: int | None, image_size: int) -> Any:
        allocator.tune()
        hardware.set_threads(threads)
        pretrained = source.weights.kind == "tag" or source.weights.pretrained
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return plugins.load(source.target)().build(source.name, pretrained=pretrained, image_size=image_size)
