"""A source plugin with networks that are small enough to be written out again by hand, with weights and images for them.

Recipes name this file in `plugins:`; conftest.py loads it as they do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from xfer.plan.preprocess import Preprocess
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

SIDE = 8


class Plain(nn.Module):
    """Two convolutions and a linear layer with tanh between them: groups one, two and three."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.three, self.fc = nn.Linear(24, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.tanh(self.two(torch.tanh(self.one(x))))
        return self.fc(torch.tanh(self.three(x.flatten(1))))


class Block(nn.Module):
    """A convolution whose shift is its normalisation's: a bias would have no gradient, which Adam would blow up from nothing."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.conv(x)))


class Normalised(nn.Module):
    """Two convolutions with batch normalisation, averaged over positions: groups one and two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = Block(3, 4), Block(4, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.two(self.one(x)).mean((2, 3)))


NETWORKS = {"plain": Plain, "normalised": Normalised}


class TinySource:
    """`tiny/NAME`; implements `xfer.sources.source.Source`."""

    backend = "torch"
    provider = "tiny"

    def library(self) -> str:
        return "tiny 1"

    def models(self) -> list[str]:
        return sorted(NETWORKS)

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        return NETWORKS[name]()

    def tags(self, name: str) -> list[str]:
        return []

    def tag(self, name: str, tag: str) -> Tag:
        raise unknown_tag(self.provider, name, tag, [])

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        return Preprocess(resize=SIDE, crop=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        return tensors

    def input_size(self, name: str) -> int:
        return SIDE


xfer_plugins = {"sources": {"tiny": TinySource}}


def start_of(network: str) -> dict[str, np.ndarray]:
    """The source's tensors, float32; statistics are none that a layer starts with."""
    random = np.random.default_rng(7)
    made: dict[str, np.ndarray] = {}
    for name, tensor in NETWORKS[network]().state_dict().items():
        shape = tuple(tensor.shape)
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2
        drawn = (random.normal(size=shape) * spread + name.endswith(("norm.weight", "running_var"))).astype(np.float32)
        made[name] = np.array(5) if name.endswith("num_batches_tracked") else np.abs(drawn) if name.endswith("running_var") else drawn
    return {name: value for name, value in made.items() if not name.startswith("fc.")}


def images() -> dict[str, np.ndarray]:
    """Unequal classes that a few epochs learn and that a few more learn too well: an eighth of the labels is wrong."""
    random = np.random.default_rng(3)
    patterns = random.integers(0, 60, size=(3, SIDE, SIDE, 3))
    made: dict[str, np.ndarray] = {}
    for split, counts in {"train": (22, 14, 8), "val": (6, 6, 6), "test": (3, 3, 3)}.items():
        labels = np.repeat(np.arange(3), counts)
        made[f"x_{split}"] = (random.integers(0, 190, size=(len(labels), SIDE, SIDE, 3)) + patterns[labels]).astype(np.uint8)
        made[f"y_{split}"] = np.where(random.uniform(size=len(labels)) < 1 / 8, (labels + 1) % 3, labels)
    return made
